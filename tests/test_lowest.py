"""The lowest versions that pyproject.toml allows: named, installable, and enough.

CI compares the lists, and begins the main job in an environment of the lowest versions;
the soak runs tests of every room there. Both need the package index.
"""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from tiny_run import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
# Not of a run or its tests, and gigabytes: these extras are tried by hand.
BY_HAND = ("notebooks", "parity", "cuda")
QUICK = (
    "tests/test_console.py",
    "tests/test_escaping.py",
    "tests/config",
    "tests/algorithms",
    "tests/samplers/test_lim.py",
    "tests/data",
    "tests/models/test_gguf.py",
    "tests/models/test_hf_files.py",
    "tests/models/test_hf_weights.py",
    "tests/rollout/test_slots.py",
    "tests/rewards/math/test_compare.py",
    "tests/rewards/test_user_reward.py",
    "tests/learner/test_packing.py",
    "tests/evaluation/test_statistics.py",
    "tests/storage/test_checkpoint.py",
    "tests/storage/test_metrics.py",
    "tests/studies",
    "tests/launch/test_lim.py",
)


def requirements() -> list[Requirement]:
    """All that pyproject.toml asks for, but for the extras of BY_HAND."""
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"]]
    for extra, asked in extras.items():
        lines += asked if extra not in BY_HAND else []
    return [Requirement(line) for line in lines]


def lowest(requirement: Requirement) -> Version:
    """The lowest version that it allows; fails where it has no lower bound."""
    bounds = [x for x in requirement.specifier if x.operator in (">=", "==")]
    assert len(bounds) == 1, f"{requirement} has no lower bound"
    return Version(bounds[0].version)


def name_of(requirement: Requirement) -> str:
    return re.sub(r"[-_.]+", "-", requirement.name).lower()


def constraints() -> dict[str, Version]:
    """tests/lowest.txt: name → the one version of it."""
    text = (ROOT / "tests/lowest.txt").read_text(encoding="utf-8")
    lines = [Requirement(x) for x in text.splitlines() if x and x[0] != "#"]
    assert len({name_of(x) for x in lines}) == len(lines)
    assert all([y.operator for y in x.specifier] == ["=="] for x in lines)
    return {name_of(x): lowest(x) for x in lines}


def test_the_list_has_the_lowest_version_of_each_and_no_other():
    asked = {}
    for requirement in requirements():
        # The same package in two extras has one bound.
        version = asked.setdefault(name_of(requirement), lowest(requirement))
        assert version == lowest(requirement), requirement
    assert constraints() == asked


@pytest.mark.parametrize("extra", BY_HAND)
def test_every_extra_has_lower_bounds(extra):
    for line in PROJECT["optional-dependencies"][extra]:
        lowest(Requirement(line))


def test_what_is_installed_here_is_allowed():
    absent = []
    for requirement in requirements():
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            absent.append(name_of(requirement))
            continue
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert set(absent) <= {"pyarrow", "wandb"}  # of an extra that the tests do without


def test_the_pythons_that_are_named_were_tried():
    """`requires-python` is the lowest of the classifiers'; the README has each."""
    named = [
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", line)
    ]
    assert PROJECT["requires-python"] == f">={named[0]}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"Python (3\.\d+) with jax", readme) == named


def installed(folder, extras: str = "") -> tuple[pathlib.Path, dict[str, str]]:
    """An environment with the lowest versions: its Python, and variables to use it."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "-q", "-c", ROOT / "tests/lowest.txt"]
    subprocess.run([*pip, "-e", f"{ROOT}{extras}"], check=True, cwd=ROOT)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"],
        capture_output=True,
        text=True,
        check=True,
    )
    versions = {
        name_of(x): lowest(x)
        for x in map(Requirement, re.findall(r"^\S+==[\w.]+$", listed.stdout, re.M))
    }
    for name, version in constraints().items():
        # What belongs to an extra that was not asked for is not there.
        assert versions.get(name, version) == version, name
    assert versions["jax"] == constraints()["jax"]
    path = f"{folder}/venv/bin:{os.environ['PATH']}"
    return python, os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}


def quick_main_job(python, folder, variables, *, steps: int) -> None:
    """The README's, short; raises where it does not come to its end."""
    job = [python, "launch/tpu.py", "--config", "configs/tiny.py"]
    job += ["--workdir", folder / "run", f"--config.num_steps={steps}"]
    job += ["--config.data.eval=arithmetic:eval[:64]", "--config.evaluation.samples=0"]
    job += [f"--config.data.cache_dir={folder / 'cache'}"]
    subprocess.run(job, check=True, cwd=ROOT, env=variables)


@pytest.mark.slow
def test_the_main_job_begins_on_the_lowest_versions(tmp_path):
    python, variables = installed(tmp_path)
    quick_main_job(python, tmp_path, variables, steps=1)


@pytest.mark.soak
def test_the_lowest_versions_do(tmp_path):
    """The quick main job, and tests of every room, in an environment of its own."""
    python, variables = installed(tmp_path, "[test,parquet]")
    quick_main_job(python, tmp_path, variables, steps=3)
    tests = [python, "-m", "pytest", "-p", "no:cacheprovider", *QUICK]
    subprocess.run(tests, check=True, cwd=ROOT, env=variables)
