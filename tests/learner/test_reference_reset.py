"""A reference that becomes the policy every so many steps."""

import jax
import numpy as np
import pytest
from tiny_run import (
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.storage import checkpoint, metrics
from limr_jax.train import train

FIELDS = {
    "kl__coefficient": 0.1,
    "kl__reset_every": 2,
    "num_steps": 5,
    "checkpoint__every": 1,
    "checkpoint__keep": 9,
}


@pytest.fixture(scope="module")
def whole(quick_compiler, tmp_path_factory):
    """(workdir of an unbroken run, the run's parts, its config)."""
    workdir = tmp_path_factory.mktemp("whole")
    problems = write_problems(tmp_path_factory.mktemp("data") / "train.jsonl", 10)
    config = configure(problems, **FIELDS)
    made = with_parity(set_up(config))
    train(made, config, workdir)
    return workdir, made, config


def stored(whole, step):
    """The state after this step."""
    with checkpoint.Checkpointer(whole[0], read_only=True) as saver:
        return saver.restore(step, whole[1].programs.state)[0]


def same(one, two) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.slow
def test_it_is_the_policy_after_every_second_step(whole):
    """And stays that until the next reset."""
    states = {step: stored(whole, step) for step in range(1, 6)}
    for step, since in ((2, 2), (3, 2), (4, 4), (5, 4)):
        assert same(states[step].reference, states[since].train.params)
        assert same(states[step].reference, states[step].train.params) == (
            step == since
        )
    assert not same(states[1].reference, states[2].reference)


@pytest.mark.slow
def test_the_kl_is_to_the_new_one(whole):
    """Of a step's rollouts before its update: 0 in the first step after a reset."""
    rows = list(metrics.read_metrics(whole[0]))
    for row in rows:
        fresh = row["step"] in (1, 3, 5)
        assert (row["kl"] < 1e-9) == fresh
        assert fresh or row["kl"] > 1e-6
    assert len({row["compile_count"] for row in rows}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_stop_before_and_after_a_reset_changes_nothing(whole, tmp_path, step):
    """The reference is in the checkpoint, and nothing is loaded to go on."""
    _, made, config = whole
    assert made.programs.copy is None
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, step), config, tmp_path)
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(whole[0])
