import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import curriculum


def test_level_weight():
    level_N = jnp.array([1, 3, 4, 5, -1])
    weight = jax.jit(curriculum.level_weight)
    np.testing.assert_array_equal(weight(level_N, 9, start=10, minimum=4), np.ones(5))
    np.testing.assert_array_equal(
        weight(level_N, 10, start=10, minimum=4), [0, 0, 1, 1, 0]
    )


def test_nearest_by_hand():
    difficulty_N = jnp.array([10.0, 50, 47, 90, 52])
    nearest = jax.jit(curriculum.nearest, static_argnames="prompts")
    got_P = nearest(difficulty_N, 48.0, jax.random.key(0), prompts=3)
    np.testing.assert_array_equal(got_P, [2, 1, 4])


def test_equal_distances_come_in_random_order():
    difficulty_N = jnp.array([20.0] * 5 + [90] * 5)
    draws = jax.jit(
        jax.vmap(lambda key: curriculum.nearest(difficulty_N, 20.0, key, prompts=2))
    )(jax.random.split(jax.random.key(1), 200))
    assert set(np.ravel(draws).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("target", "mean_reward", "want"),
    [
        (30, 0.5, 30),
        (30, 1.0, 30 + 50 * np.tanh(1)),
        (30, 0.0, 0),
        (90, 1.0, 100),
        (60, 0.25, 60 - 50 * np.tanh(0.5)),
    ],
)
def test_adapt_by_hand(target, mean_reward, want):
    got = jax.jit(curriculum.adapt)(jnp.float32(target), jnp.float32(mean_reward))
    np.testing.assert_allclose(got, want, rtol=1e-6)
