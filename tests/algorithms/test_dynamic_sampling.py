import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import dynamic_sampling, grpo


def test_keep_by_hand():
    correct_PG = jnp.array(
        [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 0, 1]], bool
    )
    valid_PG = jnp.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [0, 1, 1], [0, 0, 0]], bool)
    got_P = dynamic_sampling.keep(correct_PG, valid_PG)
    np.testing.assert_array_equal(got_P, [False, False, True, False, False])


def test_on_correctness_it_is_grpo_without_zero_variance():
    correct_PG = jax.random.bernoulli(jax.random.key(0), 0.3, (64, 4))
    valid_PG = jax.random.bernoulli(jax.random.key(1), 0.8, (64, 4))
    np.testing.assert_array_equal(
        jax.jit(dynamic_sampling.keep)(correct_PG, valid_PG),
        ~grpo.zero_variance(correct_PG.astype(jnp.float32), valid_PG),
    )


def test_overlong_penalty_by_hand():
    length_B = np.array([0, 16_384, 16_385, 18_432, 20_480, 20_481], np.float32)
    got_B = dynamic_sampling.overlong_penalty(length_B, max_length=20_480, buffer=4_096)
    np.testing.assert_allclose(got_B, [0, 0, -1 / 4_096, -0.5, -1, -1])
