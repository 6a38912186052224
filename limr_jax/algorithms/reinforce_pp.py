"""Advantages whitened over the whole batch: REINFORCE++ (arXiv:2501.03262).

    A_i = (r_i − mean(r)) / (std(r) + ε)        mean, std over all valid rollouts

Departures: the paper whitens over tokens, whose return holds a per-token KL; here over
rollouts, so that long responses do not weigh more in mean and std, and without a KL in
the reward, whose penalties are taken off afterwards (`above_the_others`), a response's
sum off each of its tokens, where the paper has what is still to come: whitened too,
those of a batch that is solved throughout, .001 say, would become advantages of ±1. Std
is of the population (ddof 0). Equal rewards in the whole batch give exactly 0. The
paper's form with a baseline is left out.
"""

import jax
import jax.numpy as jnp


def advantage(
    reward_PG: jax.Array, valid_PG: jax.Array, *, epsilon: float = 1e-8
) -> jax.Array:
    """REINFORCE++'s advantage (arXiv:2501.03262): the reward whitened over the batch.

    reward_PG: fp32. valid_PG: bool; an invalid rollout is in no statistic and gets 0.
    epsilon: ε, added to the std, in units of the reward. Returns advantage_PG, without
    a unit.
    """
    # From the smallest reward, so that equal ones give exactly 0 and not rounding.
    low = jnp.min(jnp.where(valid_PG, reward_PG, jnp.inf))
    above_PG = jnp.where(valid_PG, reward_PG - low, 0)
    count = jnp.maximum(jnp.sum(valid_PG), 1)
    centred_PG = jnp.where(valid_PG, above_PG - jnp.sum(above_PG) / count, 0)
    std = jnp.sqrt(jnp.sum(centred_PG**2) / count)
    return centred_PG / (std + epsilon)


def above_the_others(penalty_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Each rollout's penalty above the mean of all other valid ones', fp32 [P, G].

    It is 0 where invalid. Left out of its own baseline, a penalty β k1 gives exactly β
    ∇KL in expectation.
    """
    count = jnp.sum(valid_PG)
    mean = jnp.sum(jnp.where(valid_PG, penalty_PG, 0)) / jnp.maximum(count, 1)
    centred_PG = jnp.where(valid_PG, penalty_PG - mean, 0)
    # x − mean of all = (1 − 1/n) · (x − mean of the others): the factor undoes that.
    return centred_PG * count / jnp.maximum(count - 1, 1)
