import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import informative


# algorithms.md, section 8: G = 4.
@pytest.mark.parametrize(
    ("a", "b", "want"),
    [(1, 1, 0.6), (3, 1, 0.542857), (5, 5, 0.804196), (9, 1, 0.306294)],
)
def test_the_vector(a, b, want):
    a, b = jnp.float32(a), jnp.float32(b)
    got = informative.mixed_chance(a, b, group=4)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    # All right is as likely as all wrong with the counts exchanged.
    np.testing.assert_allclose(informative.mixed_chance(b, a, group=4), got, rtol=1e-6)
    # It is not that of the mean pass rate: .875, .679688, .875, .3438.
    p = a / (a + b)
    assert 1 - p**4 - (1 - p) ** 4 > got + 0.03


@pytest.mark.parametrize("group", [1, 2, 8, 64])
def test_it_is_the_chance_over_the_posterior(group):
    """Against all numbers of right responses of a beta-binomial, in float64."""
    for a, b in [(1, 1), (0.5, 3), (40.0, 2.0), (0.01, 0.01)]:

        def mass(right, a=a, b=b):
            def beta(x, y):
                return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

            ways = math.comb(group, right)
            return ways * math.exp(beta(a + right, b + group - right) - beta(a, b))

        want = sum(mass(right) for right in range(1, group))
        got = informative.mixed_chance(jnp.float32(a), jnp.float32(b), group=group)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_weights_have_a_floor():
    state = informative.State(jnp.array([1.0, 1e4, 1.0]), jnp.array([1.0, 0.5, 1e5]))
    weight_N = informative.weight(state, group=4, floor=0.01)
    np.testing.assert_allclose(weight_N, [0.6, 0.01, 0.01], rtol=1e-6)
    assert informative.weight(state, group=4, floor=0.0)[1:].max() < 0.01


def test_update_by_hand():
    update = jax.jit(functools.partial(informative.update, decay=0.5))
    correct_PG = jnp.array([[1, 1, 1, 0], [0, 0, 1, 1]], bool)
    valid_PG = jnp.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    state = update(informative.init(3), jnp.array([2, 0]), correct_PG, valid_PG)
    np.testing.assert_allclose(state.right_N, [2, 1, 4])
    np.testing.assert_allclose(state.wrong_N, [3, 1, 2])
    # Without a valid rollout nothing fades either.
    same = update(state, jnp.array([2, 1]), correct_PG, valid_PG & False)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    # Old counts fade towards 1: .5 · 4 + .5 + 3, and .5 · 2 + .5 + 1.
    state = update(state, jnp.array([2, 1]), correct_PG, valid_PG)
    np.testing.assert_allclose(state.right_N, [2, 2, 5.5])
    np.testing.assert_allclose(state.wrong_N, [3, 3, 2.5])
    whole = informative.update(
        state, jnp.array([2]), correct_PG[:1], valid_PG[:1], decay=1.0
    )
    np.testing.assert_allclose(whole.right_N, [2, 2, 8.5])
