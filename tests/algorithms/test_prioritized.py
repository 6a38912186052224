import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import prioritized


def test_by_hand():
    pass_N, count_N = jnp.array([0.0, 0, 2, 7, 8]), jnp.array([0, 8, 8, 8, 8])
    got_N = jax.jit(prioritized.weight)(pass_N, count_N, floor=0.0)
    np.testing.assert_allclose(got_N, [1, 1, 0.75, 0.125, 0])
    got_N = prioritized.weight(pass_N, count_N, floor=0.05)
    np.testing.assert_allclose(got_N, [1, 1, 0.75, 0.125, 0.05])
