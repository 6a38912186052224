"""Statistics of a step's rollouts for its metrics: sums of each round, divided once.

A round is one generation; a sampler that filters groups may need several for a step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import grpo
from limr_jax.rewards.types import CODE, INVALID, Graded
from limr_jax.rollout.types import Rollout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
    """A mean that may be of nothing, so that the host divides: no program gives nan.

    As a NumPy array it is the scalar total / count, and nan where count is 0.
    """

    total: jax.Array  # a scalar: the sum
    count: jax.Array  # a scalar: of how many

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        total, count = jax.device_get((self.total, self.count))
        return np.asarray(total / count if count else np.nan, dtype)


def mean(x: jax.Array, where: jax.Array) -> Mean:
    """The mean of the entries of x at which `where` is True; of x's shape, bool."""
    return Mean(jnp.sum(jnp.where(where, x, 0)), jnp.sum(where))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutStats:
    """Sums over the rollouts of one round, by metric; scalars on the devices.

    Sums and not means, so that `over_rounds` can add up rounds before it divides.
    """

    total: dict[str, jax.Array]  # in the metric's unit
    count: dict[str, jax.Array]  # how many each total is a sum of; absent: no mean
    longest: jax.Array  # int32: tokens of the longest response


def rollout_stats(
    rollout: Rollout, graded: Graded, *, drafted: bool = False
) -> RolloutStats:
    """The statistics of all rollouts of a round that were to be written.

    Rewards, the pass rate and well-formedness are of valid rollouts; lengths are in
    tokens, shares are of all rollouts, the entropy is in nats a token. drafted: whether
    decode steps had drafts.
    """
    valid_PG, length_B = graded.valid_PG, jnp.sum(rollout.mask_BT, axis=1)
    tokens, rollouts = jnp.sum(length_B), jnp.int32(rollout.quota)
    some_tokens = jnp.maximum(tokens, 1)
    # Of raw correctness, as samplers that filter groups judge them.
    flat_P = grpo.zero_variance(graded.correct_PG, valid_PG)
    # Nothing is learned from a group of one reward, whatever is right in it.
    flat_reward_P = grpo.zero_variance(graded.reward_PG, valid_PG)
    asked_PG = jnp.ones_like(valid_PG)
    if rollout.asked_B is not None:
        asked_PG = rollout.asked_B.reshape(valid_PG.shape)
    # Of a problem without a rollout in this round nothing is said.
    asked_P = jnp.any(asked_PG, axis=1)

    def over_valid(x_PG, counted_PG=valid_PG):
        # `where`, not a product: a part without a value is −inf, and −inf · 0 is nan.
        return jnp.sum(jnp.where(counted_PG, x_PG, 0.0)), jnp.sum(counted_PG)

    means = {
        "reward": over_valid(graded.reward_PG),
        **{
            # Of all rows that the part has a value for, valid or not.
            f"reward/{name}": over_valid(part_PG, jnp.isfinite(part_PG))
            for name, part_PG in graded.parts.items()
        },
        "pass_rate": over_valid(graded.correct_PG),
        "well_formed": over_valid(graded.well_formed_PG),
        "zero_variance_share": (jnp.sum(flat_P & asked_P), jnp.sum(asked_P)),
        "flat_reward_share": (jnp.sum(flat_reward_P & asked_P), jnp.sum(asked_P)),
        "truncated_share": (jnp.sum(rollout.truncated_B), rollouts),
        "invalid_share": (jnp.sum(asked_PG & ~valid_PG), rollouts),
        **{
            f"invalid/{name}": (count, rollouts)
            for name, count in _invalid(graded, asked_PG).items()
        },
        "response_length": (tokens, rollouts),
        "rollout_waste": rollout.waste(),
        "rollout_entropy": (jnp.sum(rollout.entropy_BT), some_tokens),
    }
    if drafted:
        row_steps = jnp.sum(rollout.row_steps_M)
        means |= {
            "drafts/tokens_per_step": (rollout.decoded, row_steps),
            "drafts/accepted": (rollout.decoded - row_steps, rollout.decoded),
        }
    return RolloutStats(
        total={name: total for name, (total, _) in means.items()}
        | {
            "tokens": tokens,
            "rollouts": rollouts,
            # Devices with a pace of their own wait for the last one.
            "decode_steps": jnp.max(rollout.steps_M),
        },
        count={name: count for name, (_, count) in means.items()},
        longest=jnp.max(length_B),
    )


def _invalid(graded: Graded, asked_PG) -> dict[str, jax.Array]:
    """How many rollouts are invalid for each reason; empty where none is known."""
    if graded.reason_PG is None:
        return {}
    # A valid row may have one of these reasons as well: LIMR's −1 for a timeout.
    invalid_PG = asked_PG & ~graded.valid_PG
    return {
        name: jnp.sum(invalid_PG & (graded.reason_PG == CODE[name])) for name in INVALID
    }


def over_rounds(rounds: list[RolloutStats]) -> dict[str, float]:
    """The metrics of a step from its rounds, on the host; nan for a mean of nothing."""

    def added(name, dicts):
        # In Python's numbers, as a sum of rounds may pass what int32 holds.
        return sum(each[name].item() for each in dicts)

    totals, counts = [x.total for x in rounds], [x.count for x in rounds]
    metrics = {"response_length_max": max(int(x.longest) for x in rounds)}
    for name in totals[0]:
        metrics[name] = added(name, totals)
        if name in counts[0]:
            count = added(name, counts)
            metrics[name] = metrics[name] / count if count else float("nan")
    return metrics
