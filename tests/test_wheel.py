"""A wheel of this checkout, installed apart from it, does what the checkout does."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from tiny_run import ROOT

pytestmark = pytest.mark.slow

# What a wheel is made of. The rest of the checkout may hold an earlier build.
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("limr_jax", "configs", "launch")
# Python runs a module of this name at its start, the children's Pythons too.
WATCH = """
import os
import sys

def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        if path.startswith({checkout!r}):
            with open({log!r}, "a") as file:
                print(path, file=file)

sys.addaudithook(note)
"""


def pip(*words, cwd):
    settings = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}
    command = [sys.executable, "-m", "pip", "-q", *map(str, words)]
    ended = subprocess.run(
        command, cwd=cwd, env=os.environ | settings, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """It has `target`, where the wheel is installed, and `elsewhere` to be in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in filter(lambda name: (ROOT / name).is_file(), SOURCES):
        shutil.copy(ROOT / name, source / name)
    for name in FOLDERS:
        no_byte_code = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=no_byte_code)
    # The build fetches hatchling from the package index.
    pip("wheel", "--no-deps", "-w", folder, source, cwd=folder)
    shutil.rmtree(source)
    wheel = next(folder.glob("*.whl"))
    pip("install", "--no-deps", "--target", folder / "target", wheel, cwd=folder)
    (folder / "target/sitecustomize.py").write_text(
        WATCH.format(checkout=f"{ROOT}{os.sep}", log=str(folder / "opened"))
    )
    (folder / "elsewhere").mkdir()
    return folder


@pytest.fixture
def python(folder):
    """Runs Python on these words where no checkout is; nothing of ours is opened."""

    def python(*words, code: int = 0):
        ended = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder / "elsewhere",
            env=os.environ
            | {
                "PYTHONPATH": str(folder / "target"),
                "JAX_PLATFORMS": "cpu",
                # What one run compiled, the next one loads.
                "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            },
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended

    yield python
    opened = folder / "opened"
    assert not opened.exists(), opened.read_text()


def launch(python, script: str, *arguments, code: int = 0):
    return python("-m", f"limr_jax.shipped.launch.{script}", *arguments, code=code)


def test_a_file_of_the_checkout_would_be_seen(folder, python):
    python("-c", f"open({str(ROOT / 'pyproject.toml')!r})")
    opened = folder / "opened"
    assert opened.read_text() == f"{ROOT / 'pyproject.toml'}\n"
    opened.unlink()


def test_the_wheel_has_every_file_but_documents_and_shell_scripts(folder):
    there = {
        str(path.relative_to(folder / "target"))
        for path in (folder / "target").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted = {
        str(path.relative_to(ROOT))
        for name in FOLDERS
        for path in (ROOT / name).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in (".md", ".sh")
    }
    shipped = {
        x if x.startswith("limr_jax/") else f"limr_jax/shipped/{x}" for x in wanted
    }
    own = {x for x in there if x.startswith("limr_jax/")}
    assert own == shipped
    # Nothing else of ours would lie in site-packages.
    tops = {x.split("/")[0] for x in there - own - {"sitecustomize.py"}}
    assert len(tops) == 1 and tops.pop().endswith(".dist-info")


def test_the_main_job_and_an_evaluation(folder, python):
    cache = f"--config.data.cache_dir={folder / 'cache'}"
    ended = launch(
        python,
        "tpu",
        "--config=configs/tiny.py",
        "--workdir=run",
        "--config.num_steps=3",
        "--config.data.eval=arithmetic:eval[:64]",
        cache,
    )
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["steps"] == 3
    ended = launch(
        python, "evaluate", "--workdir=run", "--benchmarks=arithmetic:eval[:8]", cache
    )
    result = json.loads(ended.stdout.splitlines()[-1])
    assert result["benchmarks"]["arithmetic:eval[:8]@1"]["problems"] == 8


def test_a_grid_starts_its_runs_from_the_wheel(folder, python):
    launch(
        python,
        "ablate",
        "--config=configs/tiny.py",
        "--arm=one",
        "--arm=another:checkpoint.every=7",  # which compiles nothing anew
        "--seeds=1",
        "--out=grid",
        "--config.num_steps=1",
        "--config.evaluation.samples=0",
        "--config.data.eval=arithmetic:eval[:64]",
        f"--config.data.cache_dir={folder / 'cache'}",
    )
    report = (folder / "elsewhere/grid/ablation.md").read_text()
    assert "python -m limr_jax.shipped.launch.ablate --config=configs/tiny.py" in report
    assert "python -m limr_jax.shipped.launch.tpu --config configs/tiny.py" in report


def test_the_help_of_each_script_shows_how_to_start_it(folder, python):
    scripts = [x.stem for x in (folder / "target/limr_jax/shipped/launch").glob("*.py")]
    assert "tpu" in scripts
    program = f"""
import runpy, sys
for name in {scripts}:
    sys.argv[1:] = ["--help"]
    try:
        runpy.run_module("limr_jax.shipped.launch." + name, run_name="__main__")
    except SystemExit as error:
        assert not error.code, name
"""
    said = python("-c", program).stdout
    for name in scripts:
        assert f"python -m limr_jax.shipped.launch.{name} " in said
    assert "python launch/" not in said


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (
            "--config=configs/absent.py",
            "--config=configs/absent.py: no file configs/absent.py; give a Python "
            "config file",
        ),
        (
            "--confg=configs/tiny.py",
            "unknown flag --confg; did you mean --config? Flags: ",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(python, argument, said):
    ended = launch(python, "tpu", argument, code=2)
    assert ended.stderr.startswith(f"error: {said}") and not ended.stdout
    assert ended.stderr.count("\n") == 1
