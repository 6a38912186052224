"""Advantages whitened over the whole batch: REINFORCE++ (arXiv:2501.03262).

    A_i = (r_i − mean(r)) / (std(r) + ε)        mean, std over all valid rollouts

Departures: the paper whitens over tokens, whose return holds a per-token KL; here over
rollouts, and a KL in the reward is the learner's affair, so that long responses do not
weigh more in mean and std. Std is of the population (ddof 0). Equal rewards in the
whole batch give exactly 0. The paper's form with a baseline is left out.
"""

import jax
import jax.numpy as jnp


def advantage(
    reward_PG: jax.Array, valid_PG: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
    """Whitened over every valid rollout of the batch, advantage_PG; 0 where invalid."""
    low = jnp.min(jnp.where(valid_PG, reward_PG, jnp.inf))
    above_PG = jnp.where(valid_PG, reward_PG - low, 0)
    count = jnp.maximum(jnp.sum(valid_PG), 1)
    centred_PG = jnp.where(valid_PG, above_PG - jnp.sum(above_PG) / count, 0)
    std = jnp.sqrt(jnp.sum(centred_PG**2) / count)
    return centred_PG / (std + epsilon)
