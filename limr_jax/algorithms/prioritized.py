"""Prioritized sampling: Kimi k1.5 (arXiv:2501.12599).

    draw problem i with probability ∝ 1 − s_i      s_i its pass rate so far

Departures: the paper does not say over which visits s_i runs; here over all of them. A
never-seen problem counts as s = 0. `floor` keeps solved problems drawable (0: paper).
"""

import jax
import jax.numpy as jnp


def weight(pass_N: jax.Array, count_N: jax.Array, *, floor: float) -> jax.Array:
    """The weight of each problem in the draw, fp32 weight_N, `floor` to 1.

    It is 1 − the pass rate so far (Kimi k1.5, arXiv:2501.12599). pass_N, count_N: right
    and valid rollouts so far.
    """
    pass_rate_N = pass_N / jnp.maximum(count_N, 1)
    return jnp.maximum(1 - pass_rate_N, floor)
