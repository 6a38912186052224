"""Weights for a sampler that is not quite the learner: TIS, IcePop, IPO.

Rollout and learner differ where one is in bf16, quantised, or late. With π_s the policy
that wrote the tokens and π_l the learner's own before the step's first update,

    w       = π_l(a_t) / π_s(a_t)
    TIS     min(w, C)                                                 C = 2
    IcePop  w where α ≤ w ≤ β, else 0                                 α = .5, β = 5
    IPO     w where |π_l(a_t) − π_s(a_t)| ≤ δ, else 0                 δ = .3

weigh each token's loss. TIS: F. Yao and others, "Your efficient RL framework secretly
brings you off-policy RL training" (2025). IcePop: Ring-1T, arXiv:2510.18855. IPO: what
prime-rl (github.com/PrimeIntellect-ai/prime-rl) takes where nothing is named.

What they cost, shown by enumeration (tests/learner/test_mismatch.py): for responses of
one token the gradient is that of π_l, less (w − c(w)) A ∇log π of the tokens whose
weight c(w) is not w. For longer ones a token's weight leaves out that its prefix, too,
was written by π_s; only the product over the prefix would be without bias. On a table
whose logits err by .4 the gradient is off, in parts of its size: for one token by 16 %
without weights, 0 with w, 5 % with C = 1.1, and 75 % where IcePop masks all outside .8
to 1.3 (a mask that acts often costs more than it mends); for two tokens by 42 % without
weights, 27 % with w.

At fp32 and in one family of programs w is 1 to 1e-5, and all three are the identity:
that is the point of this design. There they are for bf16 and quantised rollouts.

Departures: a masked token still counts in the loss's denominator, which is one for the
batch. prime-rl's loss has no clip of a ratio beside the mask; the learner's has. So
where nothing is recomputed, and w is the ratio, the clip acts first: a token of w above
1 + ε_high and A > 0 has no gradient to weigh, nor has one of w above the dual clip's c
and A < 0. With old log-probabilities of the learner's own it takes none for w.
"""

import jax
import jax.numpy as jnp

LARGEST = 20.0  # |log w| is taken for no more, so that no weight is inf


def log_weight(sampler_BT: jax.Array, learner_BT: jax.Array) -> jax.Array:
    """log w of each token in nats, from −20 to 20, fp32 [B, T].

    The arguments are log-probabilities of the chosen tokens: of the policy that wrote
    them, and of the learner.
    """
    return jnp.clip(learner_BT - sampler_BT, -LARGEST, LARGEST)


def tis(
    sampler_BT: jax.Array, learner_BT: jax.Array, *, cap: float
) -> tuple[jax.Array, jax.Array]:
    """Truncated importance sampling: weight_BT, and bool where it is the cap.

    cap: C, 1 or more. The other arguments are as for `log_weight`.
    """
    weight_BT = jnp.exp(log_weight(sampler_BT, learner_BT))
    return jnp.minimum(weight_BT, cap), weight_BT > cap


def icepop(
    sampler_BT: jax.Array, learner_BT: jax.Array, *, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """IcePop (arXiv:2510.18855): weight_BT, and bool where it is masked to 0.

    low, high: α and β, both allowed. The other arguments are as for `log_weight`.
    """
    weight_BT = jnp.exp(log_weight(sampler_BT, learner_BT))
    outside_BT = (weight_BT < low) | (weight_BT > high)
    return jnp.where(outside_BT, 0, weight_BT), outside_BT


def ipo(
    sampler_BT: jax.Array, learner_BT: jax.Array, *, limit: float
) -> tuple[jax.Array, jax.Array]:
    """prime-rl's mask by probability: weight_BT, and bool where it is masked to 0.

    limit: δ, a probability. The other arguments are as for `log_weight`. An unlikely
    token may have a large ratio and stays; a likely one may not move far.
    """
    weight_BT = jnp.exp(log_weight(sampler_BT, learner_BT))
    far_BT = jnp.abs(jnp.exp(learner_BT) - jnp.exp(sampler_BT)) > limit
    return jnp.where(far_BT, 0, weight_BT), far_BT
