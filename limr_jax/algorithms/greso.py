"""Skipping before the rollout: GRESO (arXiv:2506.02177).

    skip problem i with probability 1 − max(p^z_i, 0.01)
    z_i  its most recent consecutive zero-variance visits;   p one of two, by whether
         the last visit was all right or all wrong
    after a step, for each kind:  p ← clip(p ∓ 0.01, 0.05, 0.95), down where that kind's
         share of the visits is above its target (1/3 and 2/3 of 0.25), else up

p starts at 0.5. Departures: judged on raw correctness. A group with fewer than two
valid rollouts cannot vary: it counts as no visit, and a step of such alone leaves p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class State(NamedTuple):
    """What GRESO remembers of N problems, and its two exploration probabilities."""

    streak_N: jax.Array  # z, int32
    all_right_N: jax.Array  # bool, the kind of the last zero-variance visit
    explore_right: jax.Array  # p of all-right problems, fp32
    explore_wrong: jax.Array  # p of all-wrong problems, fp32


def init(problems: int) -> State:
    """The state before the first visit: nothing is skipped, and p is 0.5 twice."""
    half = jnp.full((), 0.5, jnp.float32)
    return State(
        streak_N=jnp.zeros(problems, jnp.int32),
        all_right_N=jnp.zeros(problems, bool),
        explore_right=half,
        explore_wrong=half,
    )


def skip_probability(state: State, *, floor: float = 0.01) -> jax.Array:
    """The probability of skipping each problem before its rollout, fp32 skip_N.

    It is 1 − p^z of arXiv:2506.02177, at most 1 − `floor`.
    """
    explore_N = jnp.where(state.all_right_N, state.explore_right, state.explore_wrong)
    # p^0 = 1: after a visit that varied, or before any, a problem is never skipped.
    return 1 - jnp.maximum(explore_N**state.streak_N, floor)


def update(
    state: State,
    ids_P: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    target_right: float = 0.25 / 3,
    target_wrong: float = 0.25 * 2 / 3,
    step: float = 0.01,
) -> State:
    """The state after the rollouts of a step (arXiv:2506.02177).

    ids_P: the problems drawn, all different. correct_PG and valid_PG: bool.
    target_right, target_wrong: shares of all-right and of all-wrong groups among the
    step's visits that are to be held. step: by how much p moves.
    """
    visited_P = jnp.sum(valid_PG, axis=1) >= 2  # one rollout alone cannot vary
    # Only valid rollouts have a say: an invalid one counts as what the others are.
    right_P = visited_P & jnp.all(correct_PG | ~valid_PG, axis=1)
    wrong_P = visited_P & ~jnp.any(correct_PG & valid_PG, axis=1)
    flat_P = right_P | wrong_P
    old_P = state.streak_N[ids_P]
    # Flat goes on, varied starts again at 0, and without a visit nothing changes.
    streak_P = jnp.where(flat_P, old_P + 1, jnp.where(visited_P, 0, old_P))
    all_right_P = jnp.where(flat_P, right_P, state.all_right_N[ids_P])
    visits = jnp.sum(visited_P)

    def adapt(explore, flat_P, target):
        share = jnp.sum(flat_P) / jnp.maximum(visits, 1)
        # Too many such groups: explore less, so that they are skipped more often.
        moved = explore + jnp.where(share > target, -step, step)
        return jnp.where(visits > 0, jnp.clip(moved, 0.05, 0.95), explore)

    return State(
        streak_N=state.streak_N.at[ids_P].set(streak_P),
        all_right_N=state.all_right_N.at[ids_P].set(all_right_P),
        explore_right=adapt(state.explore_right, right_P, target_right),
        explore_wrong=adapt(state.explore_wrong, wrong_P, target_wrong),
    )
