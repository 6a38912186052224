"""With JAX_DEBUG_NANS=1 a run goes on unless a number is wrong: none is by design."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import pytest
from tiny_run import configure, set_up, write_problems

from limr_jax.storage import metrics
from limr_jax.train import train


def now_and_then(prompts, completions, **columns):
    """A reward of 0 or 1, and None where there is no grading."""
    draws = [zlib.crc32(completion.encode()) % 3 for completion in completions]
    return [None if draw == 2 else float(draw) for draw in draws]


RUNS = {
    # Before the first epoch's end there is no score, of which there would be a mean.
    "grpo": {"sampler__name": "lim", "kl__coefficient": 0.1, "filter__tau": 0.0},
    "ppo": {
        "algorithm": "ppo",
        "critic__learning_rate": 0.01,
        "rollout__slots": 4,
        "rollout__top_p": 0.9,
    },
    # No group varies at first, and the parts of some rewards have no value.
    "dynamic": {
        "reward": "test_debug_nans.now_and_then",
        "filter__groups": "mixed",
        "filter__max_rounds": 2,
        "rollout__calls": 2,
    },
    "jepo": {
        "algorithm": "jepo",
        "jepo__semi_verifiable": True,
        "loss_normaliser": "rollout",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(fields, id=name, marks=pytest.mark.slow if name != "jepo" else ())
        for name, fields in RUNS.items()
    ],
)
def test_a_run_in_which_every_number_is_one(tmp_path, quick_compiler, fields):
    problems = write_problems(tmp_path / "train.jsonl", 9)
    made = configure(problems, num_steps=2, data__eval="", **fields)
    with jax.debug_nans(True):
        train(set_up(made), made, tmp_path / "run")
    rows = list(metrics.read_metrics(tmp_path / "run"))
    assert len(rows) == 2
    if "lim/score_mean" in rows[0]:
        assert rows[0]["lim/score_mean"] is rows[0]["lim/score_max"] is None


@pytest.mark.slow
def test_a_number_that_is_wrong_is_found_where_it_is_made(tmp_path, quick_compiler):
    """In the loop, whose guard on transfers would be what is raised otherwise."""
    made = configure(write_problems(tmp_path / "train.jsonl", 9), num_steps=1)
    run = set_up(made)

    spoil = jax.jit(lambda reward_PG: reward_PG * jnp.nan)

    def spoilt(written, drawn):
        graded = run.programs.grade(written, drawn)
        return dataclasses.replace(graded, reward_PG=spoil(graded.reward_PG))

    wrong = dataclasses.replace(run, grade=spoilt)
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        train(wrong, made, tmp_path / "run")
