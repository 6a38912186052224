import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import mismatch

# Sampler's and learner's probabilities of five tokens: w = .4, 1, 1.5, 3, 6.
SAMPLER_BT = jnp.log(jnp.array([[0.5, 0.2, 0.3, 0.3, 0.01]]))
LEARNER_BT = jnp.log(jnp.array([[0.2, 0.2, 0.45, 0.9, 0.06]]))


def check(found, weights, touched):
    np.testing.assert_allclose(found[0], [weights], rtol=1e-5)
    np.testing.assert_array_equal(found[1], [touched])


def test_by_hand():
    given = SAMPLER_BT, LEARNER_BT
    check(mismatch.tis(*given, cap=2.0), [0.4, 1, 1.5, 2, 2], [0, 0, 0, 1, 1])
    check(
        mismatch.icepop(*given, low=0.5, high=5.0), [0, 1, 1.5, 3, 0], [1, 0, 0, 0, 1]
    )
    # |π_l − π_s| = .3 (but for rounding), 0, .15, .6, .05: an unlikely token stays.
    check(mismatch.ipo(*given, limit=0.31), [0.4, 1, 1.5, 0, 6], [0, 0, 0, 1, 0])
    check(mismatch.ipo(*given, limit=0.29), [0, 1, 1.5, 0, 6], [1, 0, 0, 1, 0])


def test_no_weight_is_infinite():
    far_BT = jnp.array([[0.0, -300.0]])
    weight_BT, _ = mismatch.icepop(far_BT, far_BT[:, ::-1], low=0.0, high=1e9)
    np.testing.assert_allclose(weight_BT, [[np.exp(-20), np.exp(20)]], rtol=1e-5)
