import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import std

score = jax.jit(std.score)
ROWS = [[0, 1, 0, 1], [0.1, 0.1, 0.1, 0.1], [0, 0.5, np.nan, np.nan], [np.nan] * 4]


def test_by_hand():
    value_NE = jnp.array(ROWS)
    score_N = score(value_NE, ~jnp.isnan(value_NE))
    np.testing.assert_array_equal(score_N, [0.5, 0, 0.25, -np.inf])


def test_it_is_the_std():
    value_NE = jax.random.uniform(jax.random.key(0), (40, 9))
    score_N = score(value_NE, jnp.ones((40, 9), bool))
    np.testing.assert_allclose(score_N, np.asarray(value_NE).std(axis=1), rtol=1e-5)
