import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import dr_grpo, grpo


def test_by_hand():
    reward_PG = jnp.array([[1.0, 0, 0, 0], [-1, 1, 3, 9]])
    valid_PG = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    got_PG = dr_grpo.advantage(reward_PG, valid_PG)
    np.testing.assert_allclose(
        got_PG, [[0.75, -0.25, -0.25, -0.25], [-2, 0, 2, 0]], rtol=1e-6
    )


def test_it_is_grpo_times_the_std():
    reward_PG = jax.random.normal(jax.random.key(0), (16, 8))
    valid_PG = jnp.ones((16, 8), bool)
    std_P1 = jnp.std(reward_PG, axis=1, ddof=1, keepdims=True)
    np.testing.assert_allclose(
        dr_grpo.advantage(reward_PG, valid_PG),
        grpo.advantage(reward_PG, valid_PG, epsilon=0.0) * std_P1,
        atol=1e-6,
    )


def test_equal_rewards_give_exactly_zero_and_invalid_rows_may_hold_anything():
    reward_PG = jnp.array([[0.1, 0.1, 0.1, jnp.nan], [jnp.inf] * 4])
    valid_PG = jnp.array([[1, 1, 1, 0], [0, 0, 0, 0]], bool)
    got_PG = jax.jit(dr_grpo.advantage)(reward_PG, valid_PG)
    np.testing.assert_array_equal(got_PG, np.zeros((2, 4)))
