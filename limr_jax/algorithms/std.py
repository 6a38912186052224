"""Spread of a problem's historical accuracy: 1-shot RLVR (arXiv:2504.20571).

    score_i = std over the epochs of problem i's accuracy;   the largest come first

Departure: the std is of the population; epochs in which the problem was not seen are
left out. A flat curve scores exactly 0.
"""

import jax
import jax.numpy as jnp


def score(value_NE: jax.Array, seen_NE: jax.Array) -> jax.Array:
    """The std of each problem's accuracy over epochs, fp32 [N] (arXiv:2504.20571).

    value_NE: the accuracy in each epoch. seen_NE: bool, False where the problem was not
    seen. A problem never seen has −inf.
    """
    # From the smallest value, so that a flat curve is exactly 0 and not rounding.
    low_N1 = jnp.min(jnp.where(seen_NE, value_NE, jnp.inf), axis=1, keepdims=True)
    above_NE = jnp.where(seen_NE, value_NE - low_N1, 0)
    count_N1 = jnp.maximum(jnp.sum(seen_NE, axis=1, keepdims=True), 1)
    mean_N1 = jnp.sum(above_NE, axis=1, keepdims=True) / count_N1
    centred_NE = jnp.where(seen_NE, above_NE - mean_N1, 0)
    std_N = jnp.sqrt(jnp.sum(centred_NE**2, axis=1) / count_N1[:, 0])
    return jnp.where(jnp.any(seen_NE, axis=1), std_N, -jnp.inf)
