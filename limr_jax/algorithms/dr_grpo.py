"""Group-relative advantages without the std: Dr. GRPO (arXiv:2503.20783).

    A_i = r_i − mean(r)                         mean over the prompt's own group

The paper's other half, a constant in place of the response length as the loss's
denominator, is the learner's normaliser "constant", which algorithm=dr_grpo has where
none is named.

Departures: invalid rollouts are left out of the mean and get 0. Rewards are measured
from the group's smallest, which changes nothing but rounding: equal rewards give
exactly 0.
"""

import jax
import jax.numpy as jnp


def advantage(reward_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Dr. GRPO's advantage (arXiv:2503.20783): the reward above its group's mean.

    reward_PG: fp32. valid_PG: bool; an invalid rollout is in no mean and gets 0.
    Returns advantage_PG, in units of the reward.
    """
    low_P1 = jnp.min(
        jnp.where(valid_PG, reward_PG, jnp.inf), axis=1, keepdims=True
    )  # inf where nothing is valid, and then it is masked below
    above_PG = jnp.where(valid_PG, reward_PG - low_P1, 0)
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    # A group without a valid rollout divides 0 by 1, where 0 / 0 would be nan.
    mean_P1 = jnp.sum(above_PG, axis=1, keepdims=True) / jnp.maximum(count_P1, 1)
    return jnp.where(valid_PG, above_PG - mean_P1, 0)
