"""KL(π ‖ π_ref) per token: three estimators, the term of a loss, and a controller.

Estimators (J. Schulman, "Approximating KL divergence", 2020), with a ~ π:

    x  = log π(a) − log π_ref(a)
    k1 = x
    k2 = ½ x²
    k3 = exp(−x) + x − 1

k3 takes x from −20 to 20 and is 10 at most: one token that π all but excludes would
else be the whole batch's mean. (verl has the same bounds.)

In the reward an estimate weighs ∇log π(a), and k1 alone is right there:
E[k1 ∇log π] = ∇KL(π ‖ π_ref). k2 and k3 are of second order near the reference, so
their gradient is a few per cent of that and may point the other way.

In the loss no estimator may be differentiated as it stands: with a ~ π the expectation
of ∇k1 is 0 and that of ∇k3 is ∇KL(π_ref ‖ π), e^(−x) large where π(a) ≪ π_ref(a); with
a ~ π_old, which several updates learn from, that of ∇k2 is not ∇KL either. With
ρ = π(a) / π_old(a), differentiated like the rest,

    E_old[ρ k3] = KL(π ‖ π_ref)        ∇(ρ k3) = ρ x ∇log π

(arXiv:2505.17508; arXiv:2512.02556, which trains with it), and ∇k2 weighted by ρ is the
same. So `loss_term` has the gradient ρ x ∇log π whatever estimates its value: in
expectation over the tokens of π_old the gradient of Σ_t KL(π(·|s_t) ‖ π_ref(·|s_t)), at
the states s_t that π_old reached. Departure from GRPO (arXiv:2402.03300), whose
gradient is that of k3 alone, 1 − e^(−x) in the place of ρ x.

Reference reset (ProRL, arXiv:2505.24864): every K steps π_ref becomes π as it is then,
so that a long run is not held to where it began. Departure: the optimiser's state goes
on, where ProRL begins it anew.

Adaptive coefficient (arXiv:1909.08593):

    e = clip(KL / target − 1, −0.2, 0.2);   β ← β (1 + K e)

Departure: released code counts in samples; its n / horizon is K here.
"""

from typing import Any

import jax
import jax.numpy as jnp

LOG_RATIO, K3 = 20.0, 10.0  # the most that |x| and log ρ, and k3, are taken for


def k1(logprob_BT: jax.Array, reference_BT: jax.Array) -> jax.Array:
    """The estimator k1 of the KL to the reference per token, in nats, fp32 [B, T].

    It is unbiased and of either sign. Both arguments are log-probabilities of the
    chosen tokens, in nats.
    """
    return logprob_BT - reference_BT


def k2(logprob_BT: jax.Array, reference_BT: jax.Array) -> jax.Array:
    """The estimator k2 of the KL to the reference per token, in nats, fp32 [B, T].

    It is biased and never negative. The arguments are as for `k1`.
    """
    return 0.5 * (logprob_BT - reference_BT) ** 2


def k3(logprob_BT: jax.Array, reference_BT: jax.Array) -> jax.Array:
    """The estimator k3 of the KL to the reference per token, in nats, fp32 [B, T].

    It is unbiased but for its bounds, 0 to 10. The arguments are as for `k1`.
    """
    log_ratio_BT = _bounded(reference_BT - logprob_BT)
    # exp(−x) + x − 1; near x = 0 expm1 keeps the digits that exp − 1 loses.
    return jnp.minimum(jnp.expm1(log_ratio_BT) - log_ratio_BT, K3)


def loss_term(
    logprob_BT: jax.Array,
    old_logprob_BT: jax.Array,
    reference_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    estimator: Any,
) -> jax.Array:
    """The KL term of a loss per token, in nats, fp32 [B, T]; 0 off the mask.

    Its value is ρ · `estimator`, one of this module, and its gradient ρ x ∇log π
    (arXiv:2505.17508). The log-probabilities are the policy's now, the policy's that
    wrote the token, and the reference's. Only `logprob_BT` is differentiated; x and
    log ρ are taken from −20 to 20.
    """
    # Masked before exp: elsewhere the reference is 0, or of another token.
    logprob_BT = jnp.where(mask_BT, logprob_BT, 0)
    now_BT = jax.lax.stop_gradient(logprob_BT)
    reference_BT = jnp.where(mask_BT, reference_BT, 0)
    old_BT = jnp.where(mask_BT, old_logprob_BT, 0)
    # Of constants: neither ρ, x nor the estimate is differentiated. Off the mask ρ is 1
    # and x is 0, so value and slope are 0.
    ratio_BT = jnp.exp(_bounded(now_BT - old_BT))
    slope_BT = ratio_BT * _bounded(now_BT - reference_BT)
    value_BT = ratio_BT * estimator(now_BT, reference_BT)
    # The bracket is 0 in value and ∇log π in gradient.
    surrogate_BT: jax.Array = value_BT + slope_BT * (logprob_BT - now_BT)
    return surrogate_BT


def _bounded(log_ratio_BT: jax.Array) -> jax.Array:
    """From −20 to 20, so that no exp of it is inf in fp32."""
    return jnp.clip(log_ratio_BT, -LOG_RATIO, LOG_RATIO)


def adapt(
    coefficient: jax.Array, mean_kl: jax.Array, *, target: float, gain: float = 0.1
) -> jax.Array:
    """The next step's KL coefficient β (arXiv:1909.08593), a scalar.

    mean_kl and target: KL a token of this step, and to be held, in one unit (nats).
    The state is β itself. `gain` is K: a step changes β by at most 0.2 K of itself.
    """
    error = jnp.clip(mean_kl / target - 1, -0.2, 0.2)
    return coefficient * (1 + gain * error)
