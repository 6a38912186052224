"""The public face is typed, by mypy with pyproject.toml's `[tool.mypy]`.

With `pip install -e '.[test]'` mypy is there. typed_use.py is a program that uses the
face, rightly and wrongly.
"""

import importlib.util
import shutil
import subprocess
import sys

import pytest
from tiny_run import ROOT


@pytest.fixture
def mypy():
    """Arguments → (exit code, what it said)."""
    if importlib.util.find_spec("mypy"):
        command = [sys.executable, "-m", "mypy"]
    elif program := shutil.which("mypy"):  # of another environment
        command = [program, "--python-executable", sys.executable]
    else:
        pytest.skip("needs mypy: pip install -e '.[test]'")
    command += ["--no-incremental", "--cache-dir", "/dev/null"]

    def run(*arguments):
        ended = subprocess.run(
            [*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
        )
        return ended.returncode, ended.stdout + ended.stderr

    return run


def test_the_public_face(mypy):
    code, said = mypy()
    assert code == 0, said
    assert "no issues found in" in said


@pytest.mark.soak
def test_the_public_face_with_jax_own_types(mypy, tmp_path):
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    settings = tmp_path / "pyproject.toml"
    settings.write_text(text.replace('follow_imports = "skip"', ""))
    code, said = mypy("--config-file", settings)
    assert code == 0, said


@pytest.mark.soak
@pytest.mark.parametrize(
    "file, before, after",
    [
        ("library/grading.py", "seconds: float = 10.0\n) -> bool:", "seconds=10.0\n):"),
        ("library/policies.py", ") -> list[list[Completion]]:", ") -> list[str]:"),
        ("algorithms/lim.py", "threshold: float) -> jax.Array:", "threshold):"),
    ],
)
def test_a_signature_that_is_not_typed_is_found(mypy, tmp_path, file, before, after):
    """In a copy of the tree's settings, with one file changed."""
    shadow = tmp_path / "changed.py"
    text = (ROOT / "limr_jax" / file).read_text("utf-8")
    assert text.count(before) >= 1
    shadow.write_text(text.replace(before, after))
    code, said = mypy("--shadow-file", f"limr_jax/{file}", shadow)
    assert code == 1 and f"limr_jax/{file}" in said, said


def test_the_marker_that_type_checkers_look_for_is_in_the_package():
    assert (ROOT / "limr_jax/py.typed").is_file()
