"""A field that an algorithm or a sampler owns is refused wherever a config comes in."""

import json
import subprocess
import sys

import pytest
from tiny_run import ROOT, configure, write_problems

from limr_jax.errors import InputError
from limr_jax.evaluation import benchmarks, trained_policy

WRONG = {
    "algorithm": ("gppo", "algorithm='gppo' is unknown; did you mean 'ppo'?"),
    "sampler.name": ("lym", "sampler.name='lym' is unknown; did you mean 'lim'?"),
    "critic.gamma": (7.0, "critic.gamma=7.0 must be from 0 to 1"),
    "sampler.mopps.pool": (0, "sampler.mopps.pool=0 must be from 1 to"),
}


@pytest.fixture
def config(tmp_path):
    return configure(write_problems(tmp_path / "train.jsonl", 4))


def with_field(config, field: str, value):
    config = config.copy_and_resolve_references()
    *sections, leaf = field.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[leaf] = value
    return config


@pytest.mark.parametrize("field", WRONG)
def test_by_an_evaluation(config, field):
    value, line = WRONG[field]
    with pytest.raises(InputError) as caught:
        benchmarks.set_up(with_field(config, field, value))
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("field", WRONG)
def test_in_a_runs_own_file(config, tmp_path, field):
    value, line = WRONG[field]
    stored = {"config": with_field(config, field, value).to_dict()}
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(InputError) as caught:
        trained_policy.read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/run.json: {line}")


@pytest.mark.slow
def test_before_a_host_waits_for_the_others():
    alone = ["--coordinator=localhost:1", "--processes=2", "--process=1"]
    ended = subprocess.run(
        [sys.executable, "launch/tpu.py", "--config=configs/tiny.py", *alone]
        + ["--config.algorithm=gppo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {WRONG['algorithm'][1]}")
    assert ended.stderr.count("\n") == 1
