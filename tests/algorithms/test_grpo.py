import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import grpo


def test_by_hand():
    reward_PG = jnp.array([[1.0, 0, 0, 0], [1, 1, 0, 0]])
    got_PG = grpo.advantage(reward_PG, jnp.ones((2, 4), bool), epsilon=0.0)
    # ddof 1: std of [1,0,0,0] is 1/2, of [1,1,0,0] is 1/sqrt(3)
    root = 3**0.5 / 2
    want_PG = [[1.5, -0.5, -0.5, -0.5], [root, root, -root, -root]]
    np.testing.assert_allclose(got_PG, want_PG, rtol=1e-6)


def test_ddof_0_and_epsilon():
    reward_PG, valid_PG = jnp.array([[1.0, 0.0]]), jnp.ones((1, 2), bool)
    got_PG = grpo.advantage(reward_PG, valid_PG, epsilon=0.5, ddof=0)
    np.testing.assert_allclose(got_PG, [[0.5, -0.5]], rtol=1e-6)


def test_invalid_is_left_out_and_not_a_zero_reward():
    reward_PG = jnp.array([[1.0, jnp.nan, 0, 0, 0], [3, 3, 0, 0, 0]])
    valid_PG = jnp.array([[1, 0, 1, 1, 1], [1, 1, 0, 0, 0]], bool)
    got_PG = grpo.advantage(reward_PG, valid_PG)
    alone_PG = grpo.advantage(jnp.array([[1.0, 0, 0, 0]]), jnp.ones((1, 4), bool))
    np.testing.assert_array_equal(got_PG[0, np.array([0, 2, 3, 4])], alone_PG[0])
    assert got_PG[0, 1] == 0
    np.testing.assert_array_equal(got_PG[1], np.zeros(5))


def test_zero_variance_is_exact_where_the_mean_rounds():
    reward_PG = jnp.full((1, 11), 0.1)
    valid_PG = jnp.ones((1, 11), bool)
    mean = jnp.sum(reward_PG) / 11
    assert mean != reward_PG[0, 0]  # the residue that would have been left
    got_PG = jax.jit(grpo.advantage)(reward_PG, valid_PG, epsilon=0.0)
    np.testing.assert_array_equal(got_PG, np.zeros((1, 11)))


def test_zero_variance():
    reward_PG = jnp.array([[1.0, 1, 1], [1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 1, 0]])
    valid_PG = jnp.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0], [0, 0, 0]], bool)
    got_P = jax.jit(grpo.zero_variance)(reward_PG, valid_PG)
    np.testing.assert_array_equal(got_P, [True, False, True, True, True])


def test_mean_zero_and_std_one_within_the_group():
    key = jax.random.key(0)
    reward_PG = jax.random.normal(key, (16, 8))
    got_PG = grpo.advantage(reward_PG, jnp.ones((16, 8), bool), epsilon=0.0)
    np.testing.assert_allclose(np.mean(got_PG, axis=1), np.zeros(16), atol=1e-6)
    np.testing.assert_allclose(np.std(got_PG, axis=1, ddof=1), np.ones(16), rtol=1e-5)
