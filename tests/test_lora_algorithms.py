"""JEPO over adapters beside an int8 base: a run, and a stop in it."""

import pytest
from tiny_run import configure, set_up, stopping, told, with_parity, write_problems

from limr_jax.storage import array_digest, metrics
from limr_jax.train import train

ADAPTED = {
    "model__lora__rank": 2,
    "model__base_dtype": "int8",
    "kl__coefficient": 0.1,
    "num_steps": 3,
    "checkpoint__every": 1,
    "checkpoint__keep": 9,
}
JEPO = {"algorithm": "jepo", "jepo__beta_sup": 1.0, "jepo__estimator": "multi_sample"}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


def run_of(fields, problems, workdir):
    """(workdir of an unbroken run, the run's parts, its config)."""
    config = configure(problems, **ADAPTED | fields)
    made = with_parity(set_up(config))
    train(made, config, workdir)
    return workdir, made, config


def check_stop(whole, workdir, step):
    """Stopped at this step and gone on, a run is as if it had not been."""
    unbroken, made, config = whole
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, step), config, workdir)
    train(made, config, workdir)
    assert told(workdir) == told(unbroken)


def test_jepo_and_a_stop(quick_compiler, problems, tmp_path):
    """Thoughts and answers are learned by adapters alone, on policy."""
    whole = run_of(JEPO, problems, tmp_path / "whole")
    rows = list(metrics.read_metrics(whole[0]))
    assert len({row["compile_count"] for row in rows}) == 1
    for row in rows:
        assert row["gradient_norm"] > 0
        assert row["drift_max"] < 1e-5
    # The reference is the base, which the policy is before its first update.
    assert rows[0]["kl"] < 1e-9
    assert all(row["kl"] > 1e-7 for row in rows[1:])
    learned = array_digest.named(whole[1].programs.state.train)
    assert not any("kernel" in name for name in learned)
    check_stop(whole, tmp_path / "broken", 3)
