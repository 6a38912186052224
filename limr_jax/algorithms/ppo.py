"""Proximal policy optimisation (arXiv:1707.06347) and GAE (arXiv:1506.02438).

    ρ_t = exp(log π(a_t) − log π_old(a_t))
    policy   −min(ρ_t A_t, clip(ρ_t, 1 − ε_low, 1 + ε_high) A_t)
             and for A_t < 0 at most −c A_t: the dual clip (arXiv:1912.09729)
    δ_t = r_t + γ V_{t+1} − V_t;   A_t = Σ_l (γλ)^l δ_{t+l};   V = 0 after the end token
    value    ½ max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²),   R_t = A_t + V_t

ε_low ≠ ε_high is DAPO's clip-higher (arXiv:2503.14476). The mask holds the response's
tokens with the end token; what lies outside gives 0, whatever it holds. Sums and the
one division are the learner's.

A λ of the returns apart from that of the advantages, and value pre-training, are of
VC-PPO (arXiv:2503.01491); at λ = .95 a critic that says 0 everywhere gives signal to
the last hundred tokens only.

Departures: a response cut at the length limit also has V = 0 after its last token (it
is the end of what the reward saw), unless `after_B` says what it is worth there
(arXiv:1712.00378). The value loss and its clip follow the authors' later code: the
paper has neither.
"""

import jax
import jax.numpy as jnp

LARGEST = 60.0  # log ρ is taken for no more, so that no ρ and no ρ A is inf in fp32


def clip_loss(
    logprob_BT: jax.Array,
    old_logprob_BT: jax.Array,
    advantage_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    clip_dual: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped policy loss (arXiv:1707.06347): loss_BT and clipped_BT.

    Log-probabilities are in nats, of the policy now and of the one that wrote the
    token. The other arguments, and what is returned, are as for `surrogate`. Only
    `logprob_BT` is differentiated.
    """
    # Masked before exp: inf in the padding would make its gradient 0 · inf = nan.
    old_BT = jax.lax.stop_gradient(old_logprob_BT)
    return surrogate(
        jnp.where(mask_BT, logprob_BT - old_BT, 0),
        advantage_BT,
        mask_BT,
        clip_low=clip_low,
        clip_high=clip_high,
        clip_dual=clip_dual,
    )


def surrogate(
    log_ratio_BT: jax.Array,
    advantage_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
    clip_dual: float,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped loss of a ratio, whatever it is the ratio of: loss_BT, clipped_BT.

    The former is the loss per token, to be summed; the latter, bool, is where a clip
    took the gradient. log_ratio_BT: log ρ in nats, 0 off the mask. mask_BT: bool, what
    lies outside gives 0. clip_low, clip_high: ε_low and ε_high. clip_dual: c, above 1;
    0 is no dual clip. Only `log_ratio_BT` is differentiated; above 60 it is 60, and has
    no gradient.
    """
    # An inf would make the gradient of what a clip takes 0 · inf = nan.
    ratio_BT = jnp.exp(jnp.minimum(log_ratio_BT, LARGEST))
    advantage_BT = jnp.where(mask_BT, jax.lax.stop_gradient(advantage_BT), 0)
    near_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    loss_BT = -jnp.minimum(ratio_BT * advantage_BT, near_BT * advantage_BT)
    # Elsewhere the minimum is the unclipped term, and its gradient is whole.
    above_BT = (ratio_BT > 1 + clip_high) & (advantage_BT > 0)
    below_BT = (ratio_BT < 1 - clip_low) & (advantage_BT < 0)
    clipped_BT = above_BT | below_BT
    if clip_dual:  # a Python number: at 0 nothing is compiled
        # Without it ρ, and so the loss of a bad token, has no bound from above.
        far_BT = (ratio_BT > clip_dual) & (advantage_BT < 0)
        loss_BT = jnp.where(far_BT, -clip_dual * advantage_BT, loss_BT)
        clipped_BT |= far_BT
    return loss_BT, clipped_BT


def gae(
    reward_BT: jax.Array,
    value_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    gamma: float,
    lam: float,
    after_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation (arXiv:1506.02438): advantage_BT, return_BT.

    Returns are the critic's targets. reward_BT and value_BT: fp32, the value before
    each token. gamma, lam: γ and λ, 0 to 1. after_B: fp32, the value of what stands
    after the last token of the mask; None: 0. Both results are 0 off the mask. The mask
    may have gaps: the token after one follows the token before it.
    """

    def earlier(later, token):
        advantage_B, next_value_B = later
        reward_B, value_B, mask_B = token
        # δ_t, then A_t = δ_t + γλ A_{t+1}; off the mask both pass unchanged.
        delta_B = reward_B + gamma * next_value_B - value_B
        here_B = delta_B + gamma * lam * advantage_B
        advantage_B = jnp.where(mask_B, here_B, advantage_B)
        next_value_B = jnp.where(mask_B, value_B, next_value_B)
        return (advantage_B, next_value_B), advantage_B

    tokens = (reward_BT.T, value_BT.T, mask_BT.T)  # scan walks axis 0
    zero_B = jnp.zeros_like(value_BT[:, 0])  # nothing is worth anything after the end
    later = (zero_B, zero_B if after_B is None else after_B)
    _, advantage_TB = jax.lax.scan(earlier, later, tokens, reverse=True)
    advantage_BT = jnp.where(mask_BT, advantage_TB.T, 0)
    return advantage_BT, jnp.where(mask_BT, advantage_BT + value_BT, 0)


def whiten(x_BT: jax.Array, mask_BT: jax.Array, *, epsilon: float = 1e-8) -> jax.Array:
    """Advantages with mean 0 and variance 1 over all tokens of the mask, fp32 [B, T].

    They are 0 off the mask. epsilon is added to the variance, which has ddof 0.
    """
    count = jnp.maximum(jnp.sum(mask_BT), 1)
    mean = jnp.sum(jnp.where(mask_BT, x_BT, 0)) / count
    centred_BT = jnp.where(mask_BT, x_BT - mean, 0)
    return centred_BT * jax.lax.rsqrt(jnp.sum(centred_BT**2) / count + epsilon)


def value_loss(
    value_BT: jax.Array,
    old_value_BT: jax.Array,
    return_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    clip: float = 0.2,
) -> tuple[jax.Array, jax.Array]:
    """PPO's clipped value loss: loss_BT and clipped_BT, both 0 off the mask.

    The former is the critic's loss per token, to be summed; the latter, bool, is where
    the clipped error was the larger. old_value_BT: the critic's before the step. clip:
    ε, in units of the value.
    """
    move_BT = jnp.clip(value_BT - old_value_BT, -clip, clip)
    error_BT = jnp.where(mask_BT, value_BT - return_BT, 0)
    near_error_BT = jnp.where(mask_BT, old_value_BT + move_BT - return_BT, 0)
    # Beyond the clip the near error has no gradient. Where it is the larger, the value
    # has moved far enough, and its token teaches nothing.
    loss_BT = 0.5 * jnp.maximum(error_BT**2, near_error_BT**2)
    return loss_BT, near_error_BT**2 > error_BT**2
