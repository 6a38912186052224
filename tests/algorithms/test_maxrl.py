import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import maxrl


def test_by_hand():
    reward_PG = jnp.array([[1.0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    got_PG = maxrl.advantage(reward_PG, jnp.ones((3, 4), bool))
    want_PG = [[1, -1, -1, 1], [3, -1, -1, -1], [0, 0, 0, 0]]
    np.testing.assert_allclose(got_PG, want_PG, rtol=1e-6)
    assert maxrl.largest_advantage(4) == 3


def test_the_mean_leaves_invalid_rollouts_out():
    reward_PG = jnp.array([[1.0, 0, jnp.nan], [1, 0, 0], [7, 7, 7], [-3, 1, 0]])
    valid_PG = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    got_PG = jax.jit(maxrl.advantage)(reward_PG, valid_PG)
    want_PG = [[1, -1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(got_PG, want_PG)


def test_equal_rewards_give_exactly_zero():
    got_PG = maxrl.advantage(jnp.full((1, 7), 0.1), jnp.ones((1, 7), bool))
    np.testing.assert_array_equal(got_PG, np.zeros((1, 7)))


@pytest.mark.parametrize("G", [2, 3, 4])
def test_the_expected_gradient_is_that_of_log_p_s_series_to_g_minus_1_terms(G):
    """Over all groups of responses of one token, one of three of them right."""
    logits_V, right = jnp.array([0.3, -1.0, 0.5]), 1
    slope_VV = np.asarray(jax.jacobian(jax.nn.log_softmax)(logits_V))
    chance_V = np.asarray(jax.nn.softmax(logits_V))
    groups_XG = np.array([*itertools.product(range(3), repeat=G)])
    advantage_XG = maxrl.advantage(
        jnp.asarray(groups_XG == right, jnp.float32), jnp.ones(groups_XG.shape, bool)
    )
    chance_X = np.prod(chance_V[groups_XG], axis=1)
    found_V = np.einsum(
        "x,xg,xgv->v", chance_X, np.asarray(advantage_XG) / G, slope_VV[groups_XG]
    )

    def series(logits_V, terms):
        wrong = 1 - jax.nn.softmax(logits_V)[right]
        return -sum(wrong**k / k for k in range(1, terms + 1))

    np.testing.assert_allclose(
        found_V, jax.grad(series)(logits_V, G - 1), rtol=1e-5, atol=1e-7
    )
    # And not to G terms: the difference would be seen.
    assert not np.allclose(found_V, jax.grad(series)(logits_V, G), rtol=1e-2)
