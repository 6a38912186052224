"""Advantages in units of the pass rate: MaxRL (arXiv:2602.02710).

    A_i = (r_i − mean(r)) / mean(r)             mean over the prompt's own group

and 0 where the mean is 0: nothing was right. For rewards of 0 or 1 of G independent
rollouts, whose pass rate is p,

    E[1/G Σ_i A_i ∇log π(y_i)] = ∇ −Σ_{k=1}^{G−1} (1 − p)^k / k

which is the series of log p to its (G − 1)-th term, tested by enumeration: at G = 2 it
is the pass rate that RL climbs, and in the limit the likelihood of a right response.

Departures: the paper counts the series to G terms. That is what its estimator without
a baseline has, Σ r_i ∇log π / Σ r_i; the baseline, left out where nothing is right,
takes the last one. Invalid rollouts are in no mean and get 0. A mean below 0, which
rewards of 0 and 1 do not have, counts as 0: check.py refuses such rewards by name.
Rewards are measured from the group's smallest, so that equal ones give exactly 0.
"""

import jax
import jax.numpy as jnp


def advantage(reward_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """MaxRL's advantage (arXiv:2602.02710): the reward above its group's mean, over it.

    reward_PG: fp32, of 0 and more. valid_PG: bool; an invalid rollout is in no mean and
    gets 0, and so does a group whose mean is 0. Returns advantage_PG, without a unit,
    from −1 to G − 1.
    """
    count_P1 = jnp.maximum(jnp.sum(valid_PG, axis=1, keepdims=True), 1)
    low_P1 = jnp.min(
        jnp.where(valid_PG, reward_PG, jnp.inf), axis=1, keepdims=True
    )  # inf where nothing is valid, and then it is masked below
    above_PG = jnp.where(valid_PG, reward_PG - low_P1, 0)
    above_P1 = jnp.sum(above_PG, axis=1, keepdims=True) / count_P1
    total_P1 = jnp.sum(jnp.where(valid_PG, reward_PG, 0), axis=1, keepdims=True)
    mean_P1 = total_P1 / count_P1
    known_PG = valid_PG & (mean_P1 > 0)
    # The inner where keeps 0 / 0 out of what the outer one leaves out.
    scaled_PG = (above_PG - above_P1) / jnp.where(mean_P1 > 0, mean_P1, 1)
    return jnp.where(known_PG, scaled_PG, 0)


def largest_advantage(group: int) -> float:
    """The largest MaxRL advantage of a group of `group` rewards of 0 or 1: G − 1.

    It is that of one right response among wrong ones.
    """
    return float(group - 1)
