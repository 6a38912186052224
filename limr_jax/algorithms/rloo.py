"""REINFORCE with a leave-one-out baseline: RLOO (arXiv:2402.14740).

    A_i = r_i − 1/(n−1) Σ_{j≠i} r_j             over the n valid rollouts of the group

Departures: invalid rollouts are left out of the baseline and get 0; a group with one
valid rollout has no baseline and gets 0 rather than its raw reward. Rewards are
measured from the group's smallest, so that equal rewards give exactly 0.
"""

import jax
import jax.numpy as jnp


def advantage(reward_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """RLOO's advantage (arXiv:2402.14740): the reward above the others' mean.

    reward_PG: fp32. valid_PG: bool; an invalid rollout is in no baseline and gets 0,
    and so does one valid rollout alone. Returns advantage_PG, in units of the reward.
    """
    low_P1 = jnp.min(
        jnp.where(valid_PG, reward_PG, jnp.inf), axis=1, keepdims=True
    )  # inf where nothing is valid, and then it is masked below
    above_PG = jnp.where(valid_PG, reward_PG - low_P1, 0)
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    # Σ_{j≠i}: the group's sum without one's own reward.
    others_PG = jnp.sum(above_PG, axis=1, keepdims=True) - above_PG
    baseline_PG = others_PG / jnp.maximum(count_P1 - 1, 1)
    return jnp.where(valid_PG & (count_P1 > 1), above_PG - baseline_PG, 0)
