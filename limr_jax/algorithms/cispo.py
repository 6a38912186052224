"""Clipped weights in the place of clipped updates: CISPO (arXiv:2506.13585).

    loss_t = −sg[clip(ρ_t, 1 − ε_low, 1 + ε_high)] A_t log π(a_t)

ρ_t = π(a_t) / π_old(a_t), sg a stop-gradient; a mean over the tokens of the batch. No
token loses its gradient: where PPO's clip would take it, its weight is the bound. In
use there is no lower bound (ε_low = 1); ScaleRL (arXiv:2510.13786) has ε_high = 4, a
weight of 5 at most.

Departures: none of the formula. The paper does not publish its ε_high, and its KL-free
loss is the learner's to normalise: "token", where none is named.
"""

import jax
import jax.numpy as jnp


def loss(
    logprob_BT: jax.Array,
    old_logprob_BT: jax.Array,
    advantage_BT: jax.Array,
    mask_BT: jax.Array,
    *,
    clip_low: float,
    clip_high: float,
) -> tuple[jax.Array, jax.Array]:
    """CISPO's policy loss (arXiv:2506.13585): loss_BT and clipped_BT.

    The former is the loss per token, to be summed; the latter, bool, is where the
    weight is a bound. Log-probabilities are in nats, of the policy now and of the one
    that wrote the token. mask_BT: bool, what lies outside gives 0. clip_low, clip_high:
    ε_low (1: no lower bound) and ε_high. Only `logprob_BT` is differentiated.
    """
    # Masked before exp and product: what stands in the padding may be inf.
    logprob_BT = jnp.where(mask_BT, logprob_BT, 0)
    old_BT = jnp.where(mask_BT, old_logprob_BT, 0)
    ratio_BT = jnp.exp(jax.lax.stop_gradient(logprob_BT) - old_BT)
    weight_BT = jnp.clip(ratio_BT, 1 - clip_low, 1 + clip_high)
    advantage_BT = jnp.where(mask_BT, jax.lax.stop_gradient(advantage_BT), 0)
    clipped_BT = (ratio_BT < 1 - clip_low) | (ratio_BT > 1 + clip_high)
    return -weight_BT * advantage_BT * logprob_BT, clipped_BT
