import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import reinforce_pp


def test_by_hand():
    reward_PG = jnp.array([[1.0, 0], [0, 0], [0, jnp.nan]])
    valid_PG = jnp.array([[1, 1], [1, 1], [0, 0]], bool)
    got_PG = reinforce_pp.advantage(reward_PG, valid_PG, epsilon=0.0)
    # mean 1/4, population std sqrt(3)/4
    want_PG = np.array([[3, -1], [-1, -1], [0, 0]]) / 3**0.5
    np.testing.assert_allclose(got_PG, want_PG, rtol=1e-6)


def test_equal_rewards_and_empty_batches_give_exactly_zero():
    reward_PG = jnp.full((3, 7), 0.1)
    for valid_PG in (jnp.ones((3, 7), bool), jnp.zeros((3, 7), bool)):
        got_PG = jax.jit(reinforce_pp.advantage)(reward_PG, valid_PG)
        np.testing.assert_array_equal(got_PG, np.zeros((3, 7)))
