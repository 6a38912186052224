import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import kl


def test_by_hand():
    logprob_BT = jnp.array([[-1.0, -1.0, -2.0]])
    reference_BT = jnp.array([[-1.0, -2.0, -1.0]])
    np.testing.assert_allclose(kl.k1(logprob_BT, reference_BT), [[0, 1, -1]])
    np.testing.assert_allclose(kl.k2(logprob_BT, reference_BT), [[0, 0.5, 0.5]])
    np.testing.assert_allclose(
        kl.k3(logprob_BT, reference_BT), [[0, np.exp(-1), np.e - 2]], rtol=1e-6
    )


def test_k3_keeps_its_digits_near_zero():
    got_BT = kl.k3(jnp.array([[-1e-3]]), jnp.array([[0.0]]))
    np.testing.assert_allclose(got_BT, [[5e-7]], rtol=1e-2)


def enumerated(logits_V, reference_V, k):
    """Expectation of k and of its gradient, over every token, tokens drawn from π."""
    policy_V = jax.nn.softmax(logits_V)

    def expected(x_V):
        return jnp.sum(
            jax.lax.stop_gradient(policy_V) * k(jax.nn.log_softmax(x_V), reference_V)
        )

    return jax.value_and_grad(expected)(logits_V)


def test_expectations_and_what_their_gradients_descend():
    logits_V = jnp.array([0.3, -1.0, 0.5, 1.2])
    reference_V = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.7, 0.1]))

    def forward(x_V):
        policy_V = jax.nn.log_softmax(x_V)
        return jnp.sum(jnp.exp(policy_V) * (policy_V - reference_V))

    def backward(x_V):
        policy_V = jax.nn.log_softmax(x_V)
        return jnp.sum(jnp.exp(reference_V) * (reference_V - policy_V))

    exact, forward_gradient_V = jax.value_and_grad(forward)(logits_V)
    backward_gradient_V = jax.grad(backward)(logits_V)
    k1, gradient1_V = enumerated(logits_V, reference_V, kl.k1)
    k2, gradient2_V = enumerated(logits_V, reference_V, kl.k2)
    k3, gradient3_V = enumerated(logits_V, reference_V, kl.k3)
    np.testing.assert_allclose([k1, k3], [exact, exact], rtol=1e-5)
    assert abs(k2 - exact) > 0.01
    np.testing.assert_allclose(gradient1_V, np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(gradient2_V, forward_gradient_V, atol=1e-6)
    np.testing.assert_allclose(gradient3_V, backward_gradient_V, atol=1e-6)


def test_k3_is_bounded():
    """e^10 + … = 22,015 without a bound, and inf at 100."""
    logprob_BT = jnp.array([[-10.0, -100.0, 2.0, 100.0]])
    got_BT = kl.k3(logprob_BT, jnp.zeros((1, 4)))
    # Above the reference x alone counts, up to 10 too.
    np.testing.assert_allclose(got_BT, [[10, 10, np.exp(-2) + 1, 10]], rtol=1e-6)


LOGITS_V = jnp.array([0.3, -1.0, 0.5, 1.2])
OLD_V = jax.nn.log_softmax(jnp.array([0.9, -0.2, -1.3, 0.4]))
REFERENCE_V = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.7, 0.1]))


@pytest.mark.parametrize("estimator", [kl.k2, kl.k3])
@pytest.mark.parametrize("old_V", [OLD_V, jax.nn.log_softmax(LOGITS_V)])
def test_the_losses_gradient_is_the_kls_whoever_wrote(estimator, old_V):
    """Every token weighed by π_old, on the policy and off it; k3's value is the KL."""

    def divergence(x_V):
        policy_V = jax.nn.log_softmax(x_V)
        return jnp.sum(jnp.exp(policy_V) * (policy_V - REFERENCE_V))

    def expected(x_V):
        policy_V = jax.nn.log_softmax(x_V)
        all_V = jnp.ones(4, bool)
        given = (policy_V, old_V, REFERENCE_V, all_V)
        loss_V = kl.loss_term(*given, estimator=estimator)
        return jnp.sum(jnp.exp(old_V) * loss_V)

    exact, gradient_V = jax.value_and_grad(divergence)(LOGITS_V)
    value, got_V = jax.value_and_grad(expected)(LOGITS_V)
    assert np.max(np.abs(gradient_V)) > 0.1
    np.testing.assert_allclose(got_V, gradient_V, atol=1e-6)
    if estimator is kl.k3:
        np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_token_by_token_at_the_states_of_the_old_policy():
    """Two tokens, the second's logits of the first: all 9 responses by their weight."""
    random = np.random.default_rng(0)
    old, reference, now = (
        {"first": jnp.asarray(a), "then": jnp.asarray(b)}
        for a, b in ((random.normal(size=3), random.normal(size=(3, 3))) for _ in "123")
    )

    def tables(x):
        return jax.nn.log_softmax(x["first"]), jax.nn.log_softmax(x["then"])

    (old_V, old_VV), (reference_V, reference_VV) = tables(old), tables(reference)

    def of(first_V, then_VV):
        """log π of both tokens of response a · 3 + b, [9, 2]."""
        return jnp.stack([jnp.repeat(first_V, 3), then_VV.reshape(-1)], axis=1)

    def expected(x):
        old_BT = of(old_V, old_VV)
        given = (of(*tables(x)), old_BT, of(reference_V, reference_VV))
        mask_BT = jnp.ones((9, 2), bool)
        loss_BT = kl.loss_term(*given, mask_BT, estimator=kl.k3)
        return jnp.sum(jnp.exp(jnp.sum(old_BT, axis=1)) * jnp.sum(loss_BT, axis=1))

    def divergences(x):
        first_V, then_VV = tables(x)
        apart_V = jnp.exp(first_V) * (first_V - reference_V)
        apart_VV = jnp.exp(then_VV) * (then_VV - reference_VV)
        return jnp.sum(apart_V) + jnp.sum(jnp.exp(old_V)[:, None] * apart_VV)

    want, got = jax.grad(divergences)(now), jax.grad(expected)(now)
    for name in ("first", "then"):
        np.testing.assert_allclose(got[name], want[name], atol=1e-6)


@pytest.mark.parametrize("estimator", [kl.k2, kl.k3])
def test_the_losses_gradient_is_bounded(estimator):
    """At log π − log ref = −10 it is −10; k3's own is 1 − e^10 = −22,025."""
    logprob_BT = jnp.array([[-12.0, -90.0, -1.0, -1.0, -5.0]])
    old_BT = jnp.array([[-12.0, -90.0, -1.0, -1.5, -5.0]])
    reference_BT = jnp.array([[-2.0, -2.0, -90.0, -2.0, -jnp.inf]])
    mask_BT = jnp.array([[True, True, True, True, False]])

    def loss(logprob_BT):
        given = (logprob_BT, old_BT, reference_BT, mask_BT)
        return jnp.sum(kl.loss_term(*given, estimator=estimator))

    value, grad_BT = jax.value_and_grad(loss)(logprob_BT)
    np.testing.assert_allclose(grad_BT, [[-10, -20, 20, np.exp(0.5), 0]], rtol=1e-6)
    assert np.isfinite(value)


@pytest.mark.parametrize(
    ("mean_kl", "want"),
    [(6.0, 0.1), (6.6, 0.101), (60.0, 0.102), (5.4, 0.099), (0.0, 0.098)],
)
def test_controller_by_hand(mean_kl, want):
    got = jax.jit(kl.adapt)(jnp.float32(0.1), jnp.float32(mean_kl), target=6.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
