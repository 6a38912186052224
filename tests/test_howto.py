"""The how-tos of the rooms' READMEs, done as they say on a copy of the tree.

Of a section `## How to …`: a block of Python or JSON is a new file, named by its first
line; a block `diff` edits the files after `@@`, hunks parted by blank lines, in each of
which what stands without a plus is found once. A command's --config.… is the run's.
"""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from tiny_run import FIELDS, ROOT

HOW_TOS = {
    "reward": "rewards",
    "prompt sampler": "samplers",
    "advantage": "algorithms",
    "loss": "learner",
    "data set": "data",
    "model family": "models",
}
COPIED = ("limr_jax", "configs", "launch")
# As tests compile (conftest.py), and at level 0.
LAUNCH = """
import sys
import jax
from limr_jax import jit
from limr_jax.config.load import run_main
jax.config.update("jax_disable_most_optimizations", True)
jit.CPU["xla_backend_optimization_level"] = 0
sys.path.insert(0, "launch")
import tpu
run_main(tpu.main)
"""


@dataclasses.dataclass(frozen=True)
class HowTo:
    """A section: the new files, the edits (file, hunk), and fields of commands."""

    files: dict[str, str]
    edits: list[tuple[str, list[str]]]
    fields: dict[str, str]

    @property
    def lines(self) -> int:
        """Lines of code to write."""
        new = sum(len(text.splitlines()) for text in self.files.values())
        return new + sum(line[:1] in "+-" for _, hunk in self.edits for line in hunk)


def read(what: str) -> HowTo:
    page = (ROOT / "limr_jax" / HOW_TOS[what] / "README.md").read_text("utf-8")
    (section,) = re.findall(
        rf"(?ms)^## How to add an? {what}$(.*?)^## ", page + "\n## "
    )
    files, edits = {}, []
    for kind, block in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", section):
        if kind != "diff":
            first, _, rest = block.partition("\n")
            name = re.fullmatch(r"(?:#|//) (\S+)", first)[1]
            files[name] = rest
            continue
        file = None
        for hunk in re.split(r"\n\n+|(?<=\.py)\n", block.rstrip("\n")):
            if hunk.startswith("@@ "):
                file = hunk.removeprefix("@@ ")
            else:
                edits.append((file, hunk.split("\n")))
    words = re.findall(r"^ {4}.*$", section, re.M)
    pairs = re.findall(r"--config\.([\w.]+)=(\S+)", " ".join(words))
    return HowTo(files, edits, dict(pairs))


def apply(how: HowTo, root: pathlib.Path) -> None:
    for name, text in how.files.items():
        path = root / name
        assert not path.exists(), f"{name} is there already"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    for name, hunk in how.edits:
        text = (root / name).read_text("utf-8")
        old, new = (
            "".join(line[1:] + "\n" for line in hunk if line[0] in kept)
            for kept in (" -", " +")
        )
        assert {line[0] for line in hunk} <= {*" +-"} and old, hunk
        assert text.count(old) == 1, f"{name} has {text.count(old)} of:\n{old}"
        (root / name).write_text(text.replace(old, new))


@pytest.fixture
def copy(tmp_path) -> pathlib.Path:
    """A copy of the tree without its documents."""
    for name in COPIED:
        shutil.copytree(
            ROOT / name,
            tmp_path / "tree" / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.md"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "tree")
    return tmp_path / "tree"


def python(tree: pathlib.Path, *words) -> str:
    settings = {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=tree,
        env=os.environ | settings,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def run(tree: pathlib.Path, fields: dict) -> list[dict]:
    """Two steps of a tiny run with these fields, as launch/tpu.py makes it."""
    tiny = FIELDS | {
        "model.layers": 1,
        "grader.workers": 1,
        "num_steps": 2,
        "prompts_per_step": 2,
        "rollout.compactions": 0,
        "mesh.data": 1,
    }
    overrides = [f"--config.{name}={x}" for name, x in (tiny | fields).items()]
    words = ["--config", "configs/base.py", "--workdir", "run", *overrides]
    python(tree, "-c", LAUNCH, *words)
    lines = (tree / "run/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_all_six_at_once_make_a_run(copy):
    """Each as its README says; they do not meet in any line."""
    fields = {}
    for what in HOW_TOS:
        how = read(what)
        assert how.fields or what == "model family"
        assert 0 < how.lines < 30, (what, how.lines)
        apply(how, copy)
        fields |= how.fields
    # The same rows under the name of the public set.
    shutil.copy(copy / fields["data.train"], copy / "shop.jsonl")
    places = {"data.manual_dir": copy, "data.cache_dir": copy / "cache"}
    fields |= {"data.train": "shop:train", "model.architecture": "mistral", **places}
    python(copy, "-m", "ruff", "check", "--no-cache", ".")
    rows = run(copy, fields)
    assert [row["step"] for row in rows] == [1, 2]
    kept = json.loads((copy / "run/run.json").read_text())["config"]
    assert kept["algorithm"] == "sign" and kept["sign"] == {"size": 0.5}
    assert kept["loss"] == "plain" and kept["sampler"]["oldest"] == {"noise": 2.0}
    assert kept["reward"] == "brevity.right_and_short"
    assert kept["model"]["architecture"] == "mistral"
