import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import dr_grpo, rloo


def test_by_hand():
    reward_PG = jnp.array([[-1.0, -2, -4], [1, 0, 0]])
    got_PG = rloo.advantage(reward_PG, jnp.ones((2, 3), bool))
    want_PG = [[2, 0.5, -2.5], [1, -0.5, -0.5]]
    np.testing.assert_allclose(got_PG, want_PG, rtol=1e-6)


def test_the_baseline_leaves_invalid_rollouts_out():
    reward_PG = jnp.array([[1.0, 0.5, jnp.nan], [7, 0, 0], [1, 1, 1]])
    valid_PG = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    got_PG = jax.jit(rloo.advantage)(reward_PG, valid_PG)
    np.testing.assert_allclose(got_PG, [[0.5, -0.5, 0], [0, 0, 0], [0, 0, 0]])


def test_it_is_dr_grpo_times_n_over_n_minus_1():
    reward_PG = jax.random.normal(jax.random.key(0), (16, 8))
    valid_PG = jax.random.bernoulli(jax.random.key(1), 0.7, (16, 8))
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    assert int(jnp.min(count_P1)) > 1
    np.testing.assert_allclose(
        rloo.advantage(reward_PG, valid_PG),
        dr_grpo.advantage(reward_PG, valid_PG) * count_P1 / (count_P1 - 1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_equal_rewards_give_exactly_zero():
    got_PG = rloo.advantage(jnp.full((1, 7), 0.1), jnp.ones((1, 7), bool))
    np.testing.assert_array_equal(got_PG, np.zeros((1, 7)))
