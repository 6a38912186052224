"""Group-relative advantages: GRPO (arXiv:2402.03300).

    A_i = (r_i − mean(r)) / (std(r) + ε)        mean, std over the prompt's own group

Departures: the paper gives neither ε nor the std's degrees of freedom (`ddof`); both
are arguments, the defaults those of most released code. Invalid rollouts are left out
of mean and std and get 0. A group of zero variance, judged by max(r) == min(r), gets
exactly 0, where rounding of the mean would leave a residue that ε does not drown. The
rewards are without a KL penalty: divided by the std, those of a solved group, .001 say,
would become advantages of ±1 (advantages.by_group takes them off afterwards).
"""

import jax
import jax.numpy as jnp
import numpy as np


def zero_variance(reward_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Which groups have no variance: bool [P].

    Their valid rewards are all equal, or there is none. reward_PG: fp32; valid_PG:
    bool.
    """
    high_P = jnp.max(jnp.where(valid_PG, reward_PG, -jnp.inf), axis=1)
    low_P = jnp.min(jnp.where(valid_PG, reward_PG, jnp.inf), axis=1)
    # Where nothing is valid this is −inf ≤ inf, so that group is flat as well.
    return high_P <= low_P


def advantage(
    reward_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    epsilon: float = 1e-4,
    ddof: int = 1,
) -> jax.Array:
    """GRPO's advantage (arXiv:2402.03300): the reward whitened within its group.

    reward_PG: fp32. valid_PG: bool; an invalid rollout is in no statistic and gets 0,
    and so does a group of zero variance. epsilon: ε, added to the std, in units of the
    reward. ddof: the std's degrees of freedom. Returns advantage_PG, without a unit.
    """
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    total_P1 = jnp.sum(jnp.where(valid_PG, reward_PG, 0), axis=1, keepdims=True)
    mean_P1 = total_P1 / jnp.maximum(count_P1, 1)
    centred_PG = jnp.where(valid_PG, reward_PG - mean_P1, 0)
    squares_P1 = jnp.sum(centred_PG**2, axis=1, keepdims=True)
    # A single valid rollout divides 0 by 1, not by 1 − ddof = 0.
    std_P1 = jnp.sqrt(squares_P1 / jnp.maximum(count_P1 - ddof, 1))
    # By max and min, not by the std: rounding of the mean would leave a residue there.
    flat_P1 = zero_variance(reward_PG, valid_PG)[:, None]
    return jnp.where(flat_P1, 0, centred_PG / (std_P1 + epsilon))


def largest_advantage(group: int) -> float:
    """The largest GRPO advantage that a group of `group` 0 and 1 rewards can have.

    It is that of one right response among wrong ones, at ddof 1 and ε = 0.
    """
    # One 1 among G rewards: mean 1/G and variance 1/G, so A = (1 − 1/G) · √G.
    return float((group - 1) / np.sqrt(group))
