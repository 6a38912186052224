"""A step's rollouts: rounds add up, and are divided once."""

import dataclasses

import jax
import numpy as np
import pytest

from limr_jax.programs import Graded
from limr_jax.rewards.stats import mean, over_rounds, rollout_stats
from limr_jax.rollout.types import Rollout


def round_of(right_PG, valid_PG, length_B, part_PG):
    """Rollouts of these lengths, of which every third is cut off; G = 2, T = 4."""
    length_B, right_PG = np.array(length_B), np.array(right_PG, np.float32)
    mask_BT = np.arange(4)[None] < length_B[:, None]
    prompt_PL = np.zeros((len(right_PG), 3), np.int32)
    written = Rollout(
        prompt_PL=prompt_PL,
        position_PL=prompt_PL,
        response_BT=np.zeros(mask_BT.shape, np.int32),
        mask_BT=mask_BT,
        logprob_BT=-1.0 * mask_BT,
        entropy_BT=0.5 * mask_BT,
        truncated_B=np.arange(len(length_B)) % 3 == 0,
        slot_steps_M=np.array([10], np.int32),
        steps_M=np.array([5, 3], np.int32),
        # One token a step: all but the first of each rollout.
        row_steps_M=np.array([sum(length_B) - len(length_B)], np.int32),
    )
    valid_PG = np.array(valid_PG, bool)
    parts = {"brevity": np.array(part_PG, np.float32)}
    return written, Graded(2 * right_PG, right_PG, valid_PG, valid_PG, parts)


def test_two_rounds_by_hand():
    inf = np.inf  # less is what has no value
    one = round_of([[1, 0]], [[1, 1]], [2, 4], [[-inf, 0.5]])
    two = round_of(
        [[1, 1], [1, 0]], [[1, 1], [0, 1]], [1, 1, 2, 2], [[1, 0], [-inf, 0]]
    )
    told = over_rounds(jax.device_get([jax.jit(rollout_stats)(*x) for x in (one, two)]))
    want = {
        "rollouts": 6,
        "tokens": 12,
        "response_length": 2,
        "response_length_max": 4,
        "pass_rate": 3 / 5,  # one of six is invalid, and would have been right
        "reward": 6 / 5,
        "reward/brevity": 1.5 / 4,
        "well_formed": 1,
        "invalid_share": 1 / 6,
        "truncated_share": 3 / 6,
        "zero_variance_share": 2 / 3,  # all right, and one valid rollout alone
        "flat_reward_share": 2 / 3,
        "rollout_entropy": 0.5,
        "rollout_waste": (20 - (12 - 6)) / 20,
        "decode_steps": 5 + 5,
    }
    assert told == pytest.approx(want)
    assert isinstance(told["rollouts"], int) and isinstance(told["tokens"], int)


def test_drafts_by_hand():
    """Seven tokens of two rollouts: five by decode steps, of which rows took four."""
    written, graded = round_of([[1, 0]], [[1, 1]], [3, 4], [[0, 0]])
    written = dataclasses.replace(written, row_steps_M=np.array([1, 3], np.int32))
    stats = jax.jit(rollout_stats, static_argnames="drafted")
    told = over_rounds(jax.device_get([stats(written, graded, drafted=True)] * 2))
    assert told["drafts/tokens_per_step"] == 5 / 4
    assert told["drafts/accepted"] == pytest.approx(1 / 5)
    assert told["rollout_waste"] == pytest.approx((10 - 4) / 10)


def test_a_mean_is_divided_on_the_host():
    """(1 + 3) / 2, and nothing: in the program both are numbers."""
    x = np.array([1.0, 2.0, 3.0], np.float32)
    for where, total, value in (([1, 0, 1], 4, 2), ([0, 0, 0], 0, np.nan)):
        made = jax.jit(mean)(x, np.array(where, bool))
        assert (float(made.total), int(made.count)) == (total, sum(where))
        np.testing.assert_equal(np.asarray(made), np.asarray(value, np.float32))


def test_what_nobody_has_is_no_number():
    told = over_rounds(
        jax.device_get(
            [rollout_stats(*round_of([[1, 0]], [[0, 0]], [1, 1], [[-np.inf] * 2]))]
        )
    )
    for name in ("reward/brevity", "reward", "pass_rate", "well_formed"):
        assert np.isnan(told[name])
    assert told["invalid_share"] == 1
