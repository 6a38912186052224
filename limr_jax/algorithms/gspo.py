"""A ratio of whole responses: group sequence policy optimisation, GSPO.

arXiv:2507.18071. With ρ_t = π(a_t) / π_old(a_t), sg a stop-gradient:

    s    = exp(1/|y| Σ_t log ρ_t)               the sum over the whole response y
    loss   −min(s A, clip(s, 1 − ε_low, 1 + ε_high) A)      each response the same

The paper's ε_low is 3e-4 and its ε_high 4e-4. Here s is in the token form, with one
ratio a token and an advantage that may differ by token (GSPO-token in the paper):

    s_t = sg[s] π(a_t) / sg[π(a_t)]

Its value is s, and with weights of 1/|y| a token ("sequence", the learner's normaliser
where none is named) its loss and gradient are those of s. The rest is
`ppo.surrogate`, dual clip included.

Departures: the paper has no dual clip; s must be above c = 3, against bounds of
1 ± 4e-4, before it acts.
"""

import jax
import jax.numpy as jnp


def log_ratio(
    logprob_BT: jax.Array,
    old_logprob_BT: jax.Array,
    mask_BT: jax.Array,
    first_BT: jax.Array | None = None,
) -> jax.Array:
    """GSPO's log s_t of each token in nats, fp32 [B, T]; 0 off the mask.

    A row holds one response, or several: then `first_BT`, int32, is the column in which
    each token's own response begins. The mean of log ρ is over the response's tokens
    on the mask. Log-probabilities are in nats, of the policy now and of the one that
    wrote the token. The value is log s; the gradient is that of `logprob_BT` alone.
    """
    logprob_BT = jnp.where(mask_BT, logprob_BT, 0)
    now_BT = jax.lax.stop_gradient(logprob_BT)
    apart_BT = jnp.where(mask_BT, now_BT - old_logprob_BT, 0)
    count_BT = _response_sum(mask_BT.astype(apart_BT.dtype), first_BT)
    mean_BT = _response_sum(apart_BT, first_BT) / jnp.maximum(count_BT, 1)
    # The bracket is 0 in value, and ∇log π in gradient.
    return jnp.where(mask_BT, mean_BT + (logprob_BT - now_BT), 0)


def _response_sum(x_BT, first_BT):
    """The sum over the response that each token is of, [B, T]."""
    if first_BT is None:
        return jnp.broadcast_to(jnp.sum(x_BT, axis=1, keepdims=True), x_BT.shape)

    # Added where the response begins, token after token: so the sum does not depend on
    # where in a row it stands, nor on what else is there.
    def of_row(x_T, first_T):
        return jnp.zeros_like(x_T).at[first_T].add(x_T)[first_T]

    return jax.vmap(of_row)(x_BT, first_BT)
