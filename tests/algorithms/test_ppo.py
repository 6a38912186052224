import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import ppo


def test_clip_loss_by_hand():
    ratio_BT = jnp.array([[0.5, 0.9, 1.0, 1.25, 1.5]])
    mask_BT = jnp.ones((1, 5), bool)
    zero_BT = jnp.zeros((1, 5))
    clip = {"clip_low": 0.2, "clip_high": 0.28}
    logprob_BT = jnp.log(ratio_BT)
    loss_BT, clipped_BT = ppo.clip_loss(
        logprob_BT, zero_BT, zero_BT + 2, mask_BT, **clip
    )
    np.testing.assert_allclose(loss_BT, [[-1, -1.8, -2, -2.5, -2.56]], rtol=1e-6)
    np.testing.assert_array_equal(clipped_BT, [[0, 0, 0, 0, 1]])
    loss_BT, clipped_BT = ppo.clip_loss(
        logprob_BT, zero_BT, zero_BT - 2, mask_BT, **clip
    )
    np.testing.assert_allclose(loss_BT, [[1.6, 1.8, 2, 2.5, 3]], rtol=1e-6)
    np.testing.assert_array_equal(clipped_BT, [[1, 0, 0, 0, 0]])


def test_dual_clip_by_hand():
    """At A = −2 and c = 3 the loss is 6 at most; a good token's is what it was."""
    ratio_BT = jnp.array([[0.5, 1.0, 2.9, 3.5, 50.0]])
    mask_BT, zero_BT = jnp.ones((1, 5), bool), jnp.zeros((1, 5))

    def total(logprob_BT, advantage_BT, dual):
        loss_BT, clipped_BT = ppo.clip_loss(
            logprob_BT, zero_BT, advantage_BT, mask_BT, clip_dual=dual
        )
        return jnp.sum(loss_BT), (loss_BT, clipped_BT)

    def found(advantage, dual):
        gradient_BT, (loss_BT, clipped_BT) = jax.grad(total, has_aux=True)(
            jnp.log(ratio_BT), zero_BT + advantage, dual
        )
        return map(np.asarray, (gradient_BT, loss_BT, clipped_BT))

    gradient_BT, loss_BT, clipped_BT = found(-2.0, 3.0)
    np.testing.assert_allclose(loss_BT, [[1.6, 2, 5.8, 6, 6]], rtol=1e-6)
    np.testing.assert_allclose(gradient_BT, [[0, 2, 5.8, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped_BT, [[1, 0, 0, 1, 1]])
    without = [*found(-2.0, 0.0)]
    np.testing.assert_allclose(without[1], [[1.6, 2, 5.8, 7, 100]], rtol=1e-6)
    # To the last bit where it does not act.
    for one_BT, two_BT in zip((gradient_BT, loss_BT, clipped_BT), without):
        np.testing.assert_array_equal(one_BT[:, :3], two_BT[:, :3])
    for one_BT, two_BT in zip(found(2.0, 3.0), found(2.0, 0.0)):
        np.testing.assert_array_equal(one_BT, two_BT)


@pytest.mark.parametrize("dual", [0.0, 3.0])
def test_a_ratio_beyond_fp32_leaves_loss_and_gradient_finite(dual):
    """Whether a clip takes the token's gradient, nothing does, or it weighs nothing."""
    log_ratio_BT = jnp.array([[59.0, 89.0, 300.0, 89.0, 300.0, 300.0]])
    advantage_BT = jnp.array([[1.0, 1e3, 1.0, -1e3, -1.0, 0.0]])

    def total(logprob_BT):
        loss_BT, clipped_BT = ppo.clip_loss(
            logprob_BT,
            jnp.zeros_like(logprob_BT),
            advantage_BT,
            jnp.ones_like(logprob_BT, bool),
            clip_dual=dual,
        )
        return jnp.sum(loss_BT), clipped_BT

    (loss, clipped_BT), gradient_BT = jax.value_and_grad(total, has_aux=True)(
        log_ratio_BT
    )
    assert np.isfinite(loss)
    np.testing.assert_array_equal(gradient_BT, np.zeros((1, 6)))
    bad = bool(dual)
    np.testing.assert_array_equal(clipped_BT, [[1, 1, 1, bad, bad, 0]])


def test_on_policy_gradient_is_reinforce_and_a_clipped_token_has_none():
    advantage_BT = jnp.array([[1.0, -2, 3, 3, -1]])
    old_BT = jnp.array([[-1.0, -2, -0.5, -3, -3]])
    logprob_BT = old_BT + jnp.array([[0.0, 0, 0, 1, -1]])
    mask_BT = jnp.array([[1, 1, 0, 1, 1]], bool)
    gradient_BT = jax.grad(
        lambda x_BT: jnp.sum(ppo.clip_loss(x_BT, old_BT, advantage_BT, mask_BT)[0])
    )(logprob_BT)
    np.testing.assert_allclose(gradient_BT, [[-1, 2, 0, 0, 0]], rtol=1e-6)


def test_padding_may_hold_anything():
    bad_BT = jnp.array([[0.0, -jnp.inf, jnp.nan]])
    mask_BT = jnp.array([[1, 0, 0]], bool)

    def total(x_BT):
        loss_BT, clipped_BT = ppo.clip_loss(x_BT, bad_BT, bad_BT + 1, mask_BT)
        assert clipped_BT.shape == (1, 3)
        return jnp.sum(loss_BT)

    loss, gradient_BT = jax.value_and_grad(total)(jnp.array([[0.0, jnp.inf, 3.0]]))
    assert loss == -1
    np.testing.assert_array_equal(gradient_BT, [[-1, 0, 0]])


def test_gae_by_hand():
    reward_BT = jnp.array([[0.0, 0, 1, 99]])
    value_BT = jnp.array([[0.5, 0.25, 0.75, 99]])
    mask_BT = jnp.array([[1, 1, 1, 0]], bool)
    got_BT, return_BT = ppo.gae(reward_BT, value_BT, mask_BT, gamma=1.0, lam=0.5)
    # δ = [−.25, .5, .25]; A_2 = .25, A_1 = .5 + .125, A_0 = −.25 + .3125
    np.testing.assert_allclose(got_BT, [[0.0625, 0.625, 0.25, 0]])
    np.testing.assert_allclose(return_BT, [[0.5625, 0.875, 1.0, 0]])


def test_gae_is_the_sum_of_discounted_deltas_wherever_the_response_lies():
    T, gamma, lam = 9, 0.9, 0.8
    reward_T, value_T = np.random.default_rng(0).normal(size=(2, T))
    later_T = np.append(value_T[1:], 0)
    delta_T = reward_T + gamma * later_T - value_T
    want_T = [
        sum((gamma * lam) ** k * delta_T[t + k] for k in range(T - t)) for t in range(T)
    ]

    def place(x_T):
        return jnp.concatenate([jnp.zeros(3), jnp.asarray(x_T), jnp.full(4, 5.0)])[None]

    mask_BT = place(np.ones(T)) == 1
    got_BT, return_BT = jax.jit(ppo.gae)(
        place(reward_T), place(value_T), mask_BT, gamma=gamma, lam=lam
    )
    np.testing.assert_allclose(got_BT[0, 3 : 3 + T], want_T, atol=1e-5)
    np.testing.assert_array_equal(got_BT[0, 3 + T :], np.zeros(4))
    np.testing.assert_array_equal(return_BT[0, :3], np.zeros(3))


def test_what_stands_after_the_last_token_may_be_worth_something():
    """δ_2 = 1 + .9 · 2 − .75 where a response is cut; off the mask nothing is read."""
    reward_BT = jnp.array([[0.0, 0, 1, 99]])
    value_BT = jnp.array([[0.5, 0.25, 0.75, 99]])
    mask_BT = jnp.array([[1, 1, 1, 0]], bool)
    got_BT, return_BT = ppo.gae(
        reward_BT, value_BT, mask_BT, gamma=0.9, lam=0.5, after_B=jnp.array([2.0])
    )
    # δ = [−.275, .425, 2.05]; A_1 = .425 + .45 · 2.05, A_0 = −.275 + .45 · 1.3475
    np.testing.assert_allclose(got_BT, [[0.331375, 1.3475, 2.05, 0]], rtol=1e-6)
    np.testing.assert_allclose(return_BT, got_BT + value_BT * mask_BT, rtol=1e-6)


def test_gae_steps_over_a_gap_in_the_mask():
    reward_BT = jnp.array([[0.0, 5, 1]])
    value_BT = jnp.array([[0.5, 7, 0.75]])
    mask_BT = jnp.array([[1, 0, 1]], bool)
    got_BT, _ = ppo.gae(reward_BT, value_BT, mask_BT, gamma=0.9, lam=0.5)
    near_BT, _ = ppo.gae(
        reward_BT[:, ::2], value_BT[:, ::2], mask_BT[:, ::2], gamma=0.9, lam=0.5
    )
    np.testing.assert_allclose(got_BT[:, ::2], near_BT)
    assert got_BT[0, 1] == 0


def test_gae_with_lambda_1_and_no_critic_is_the_reward_to_go():
    reward_BT = jnp.array([[0.0, 2, 1], [0, 0, 1]])
    zero_BT = jnp.zeros((2, 3))
    got_BT, _ = ppo.gae(reward_BT, zero_BT, zero_BT == 0, gamma=1.0, lam=1.0)
    np.testing.assert_allclose(got_BT, [[3, 3, 1], [1, 1, 1]])


def test_whiten():
    x_BT = jnp.array([[1.0, 3, jnp.nan], [5, 7, 0]])
    mask_BT = jnp.array([[1, 1, 0], [1, 1, 0]], bool)
    got_BT = jax.jit(ppo.whiten)(x_BT, mask_BT)
    want_BT = np.array([[-3, -1, 0], [1, 3, 0]]) / 5**0.5
    np.testing.assert_allclose(got_BT, want_BT, rtol=1e-6)


def test_value_loss_by_hand():
    value_BT = jnp.array([[1.0, 1.0, 0.1, 9]])
    old_BT = jnp.zeros((1, 4))
    return_BT = jnp.array([[1.0, 0.0, 1.0, 0]])
    mask_BT = jnp.array([[1, 1, 1, 0]], bool)

    def total(value_BT):
        loss_BT, clipped_BT = ppo.value_loss(
            value_BT, old_BT, return_BT, mask_BT, clip=0.2
        )
        return jnp.sum(loss_BT), (loss_BT, clipped_BT)

    gradient_BT, (loss_BT, clipped_BT) = jax.grad(total, has_aux=True)(value_BT)
    # token 0 reached its return by moving too far: still charged, with no gradient
    np.testing.assert_allclose(loss_BT, [[0.32, 0.5, 0.405, 0]], rtol=1e-6)
    np.testing.assert_array_equal(clipped_BT, [[1, 0, 0, 0]])
    np.testing.assert_allclose(gradient_BT, [[0, 1, -0.9, 0]], rtol=1e-6)
