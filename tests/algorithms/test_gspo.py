import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import gspo, ppo

CLIP = {"clip_low": 3e-4, "clip_high": 4e-4, "clip_dual": 0.0}


def test_the_ratio_by_hand():
    """log ρ = .1, −.2, .3: the mean is .0667, and exp of it 1.068939."""
    logprob_BT = jnp.array([[0.1, -0.2, 0.3, 7.0]]) - 2
    old_BT = jnp.full((1, 4), -2.0)
    mask_BT = jnp.array([[1, 1, 1, 0]], bool)
    ratio_BT = jnp.exp(gspo.log_ratio(logprob_BT, old_BT, mask_BT))
    np.testing.assert_allclose(ratio_BT, [[1.068939] * 3 + [1]], rtol=1e-6)


def test_the_gradient_is_that_of_the_paper_s_sequence_form():
    """With weights of 1/|y|: ∇(−s A) = −s A · 1/|y| Σ ∇log π, and 0 where clipped."""
    old_BT = jnp.array([[-1.0, -2, -3], [-0.5, -1, 0]])
    logprob_BT = old_BT + jnp.array([[1e-4, -3e-4, 5e-4], [0.1, 0.3, 9]])
    mask_BT = jnp.array([[1, 1, 1], [1, 1, 0]], bool)
    length_B1 = jnp.sum(mask_BT, axis=1, keepdims=True)

    def token_form(logprob_BT, advantage_B):
        log_ratio_BT = gspo.log_ratio(logprob_BT, old_BT, mask_BT)
        advantage_BT = jnp.broadcast_to(advantage_B[:, None], mask_BT.shape)
        loss_BT, _ = ppo.surrogate(log_ratio_BT, advantage_BT, mask_BT, **CLIP)
        return jnp.sum(loss_BT / length_B1)

    def sequence_form(logprob_BT, advantage_B):
        apart_BT = jnp.where(mask_BT, logprob_BT - old_BT, 0)
        ratio_B = jnp.exp(jnp.sum(apart_BT, axis=1) / length_B1[:, 0])
        near_B = jnp.clip(ratio_B, 1 - 3e-4, 1 + 4e-4)
        return -jnp.sum(jnp.minimum(ratio_B * advantage_B, near_B * advantage_B))

    for advantage_B, rows in ((jnp.array([2.0, 1.0]), 1), (jnp.array([-2.0, -1.0]), 2)):
        found = jax.value_and_grad(token_form)(logprob_BT, advantage_B)
        wanted = jax.value_and_grad(sequence_form)(logprob_BT, advantage_B)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
        np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
        # The second response, of ratio 1.22, is clipped where its advantage is good.
        assert np.sum(np.any(found[1], axis=1)) == rows


def test_responses_in_a_row_have_the_ratios_that_they_have_alone():
    """To the last bit, wherever in the row they stand."""
    random = np.random.default_rng(0)
    alone = [random.normal(size=(2, 1, n)).astype(np.float32) for n in (5, 1, 9)]
    gap = np.zeros((2, 1, 2), np.float32)
    one, two, three = alone
    row = np.concatenate([gap, three, one, gap, two], axis=2)
    first_BT = np.array([[0, 1, *[2] * 9, *[11] * 5, 16, 17, 18]])
    mask_BT = np.array([[*[0] * 2, *[1] * 14, *[0] * 2, 1]], bool)
    log_ratio = jax.jit(gspo.log_ratio)
    together_BT = log_ratio(*row, mask_BT, first_BT)
    for begin, (logprob_BT, old_BT) in zip((11, 18, 2), alone, strict=True):
        length = logprob_BT.shape[1]
        found_BT = together_BT[:, begin : begin + length]
        first = np.zeros((1, length), np.int32)
        whole_BT = np.ones((1, length), bool)
        np.testing.assert_array_equal(
            found_BT, log_ratio(logprob_BT, old_BT, whole_BT, first)
        )
        np.testing.assert_allclose(
            found_BT, log_ratio(logprob_BT, old_BT, whole_BT), rtol=1e-5
        )
    assert not np.any(together_BT[~mask_BT])


def test_padding_may_hold_anything():
    bad_BT = jnp.array([[0.0, -jnp.inf, jnp.nan]])
    mask_BT = jnp.array([[1, 0, 0]], bool)

    def total(x_BT):
        return jnp.sum(jnp.exp(gspo.log_ratio(x_BT, bad_BT, mask_BT)))

    value, gradient_BT = jax.value_and_grad(total)(jnp.array([[0.0, jnp.inf, 3.0]]))
    assert value == 3
    np.testing.assert_array_equal(gradient_BT, [[1, 0, 0]])
