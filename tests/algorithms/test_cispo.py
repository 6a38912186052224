import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import cispo

RATIO_BT = jnp.array([[0.01, 0.5, 1.0, 3.0, 8.0]])
OLD_BT = jnp.array([[-1.0, -2, -3, -2, -4]])
MASK_BT = jnp.ones((1, 5), bool)


def test_no_token_loses_its_gradient():
    """Its weight is the ratio, and 1 + ε_high = 5 where that is above it."""
    logprob_BT = OLD_BT + jnp.log(RATIO_BT)
    advantage_BT = jnp.array([[1.0, -2, 3, -1, 2]])
    options = {"clip_low": 1.0, "clip_high": 4.0}

    def total(x_BT):
        loss_BT, clipped_BT = cispo.loss(x_BT, OLD_BT, advantage_BT, MASK_BT, **options)
        return jnp.sum(loss_BT), (loss_BT, clipped_BT)

    gradient_BT, (loss_BT, clipped_BT) = jax.grad(total, has_aux=True)(logprob_BT)
    weight_BT = np.array([[0.01, 0.5, 1, 3, 5]])
    np.testing.assert_allclose(gradient_BT, -weight_BT * advantage_BT, rtol=1e-5)
    np.testing.assert_allclose(loss_BT, gradient_BT * logprob_BT, rtol=1e-5)
    np.testing.assert_array_equal(clipped_BT, [[0, 0, 0, 0, 1]])


def test_a_lower_bound_raises_small_weights():
    logprob_BT = OLD_BT + jnp.log(RATIO_BT)
    one_BT = jnp.ones_like(OLD_BT)

    def total(x_BT):
        return jnp.sum(
            cispo.loss(x_BT, OLD_BT, one_BT, MASK_BT, clip_low=0.2, clip_high=0.2)[0]
        )

    gradient_BT = jax.grad(total)(logprob_BT)
    np.testing.assert_allclose(gradient_BT, [[-0.8, -0.8, -1, -1.2, -1.2]], rtol=1e-5)


def test_padding_may_hold_anything():
    bad_BT = jnp.array([[0.0, -jnp.inf, jnp.nan]])
    mask_BT = jnp.array([[1, 0, 0]], bool)

    def total(x_BT):
        loss_BT, clipped_BT = cispo.loss(
            x_BT, bad_BT, bad_BT + 1, mask_BT, clip_low=1.0, clip_high=4.0
        )
        assert clipped_BT.shape == (1, 3)
        return jnp.sum(loss_BT)

    loss, gradient_BT = jax.value_and_grad(total)(jnp.array([[-1.0, jnp.inf, 3.0]]))
    np.testing.assert_allclose(loss, np.exp(-1), rtol=1e-6)
    np.testing.assert_allclose(gradient_BT, [[-np.exp(-1), 0, 0]], rtol=1e-6)
