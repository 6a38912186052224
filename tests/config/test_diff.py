"""How two configs differ, for people."""

import subprocess
import sys

import pytest
from tiny_run import ROOT, configure

from limr_jax.config import config_file, load
from limr_jax.config.diff import from_defaults


@pytest.mark.parametrize("kind", config_file.KINDS)
def test_the_defaults_differ_in_nothing(kind):
    assert from_defaults(config_file.defaults(kind), kind) == (
        f"config: configs/{kind}.py"
    )


def test_what_a_run_prints_is_what_differs(tmp_path):
    """Each field once, old and new; nothing that is as in base.py."""
    config = configure(tmp_path / "train.jsonl", num_steps=7, seed=0)
    first, *lines = from_defaults(config, "base").splitlines()
    assert first == "config: configs/base.py, but for"
    assert "  num_steps: 100 → 7" in lines
    assert f'  data.train: "" → "{tmp_path}/train.jsonl"' in lines
    names = [line.split(":")[0].strip() for line in lines]
    assert names == sorted({*names}) and "seed" not in names
    defaults = dict(config_file.leaves(config_file.defaults("base").to_dict()))
    own = dict(config_file.leaves(config.to_dict()))
    assert {*names} == {name for name in own if own[name] != defaults[name]}


def test_a_field_of_fine_tuning(tmp_path):
    argv = ["--config", str(ROOT / "configs/sft_base.py"), "--config.rows=3"]
    config, _ = load.load(argv)
    assert from_defaults(config, "sft_base").splitlines()[1:] == ["  rows: 64 → 3"]


@pytest.mark.soak
def test_a_dry_run_prints_all_of_it_and_a_run_the_difference(tmp_path):
    """As a user starts them."""

    def said(*flags):
        command = [sys.executable, "launch/tpu.py", "--config", "configs/tiny.py"]
        command += [*flags, "--workdir", tmp_path / "run", "--config.num_steps=1"]
        command += ["--config.prompts_per_step=4", "--config.evaluation.samples=0"]
        command += ["--config.data.eval=", "--config.micro_batch_rows=0"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        # No terminal: no bar, no colour, nothing on stderr.
        assert not {"\r", "\x1b"} & {*ended.stdout, *ended.stderr}
        return ended.stdout

    whole = said("--dry_run")
    assert "temperature: 1.0" in whole and "num_steps: 1\n" in whole
    run = said()
    assert "temperature" not in run
    assert run.startswith("config: configs/base.py, but for\n")
    assert "\nstep 1/1  reward " in run
