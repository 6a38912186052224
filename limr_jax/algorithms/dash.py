"""Gradient filtering before the forward pass: DASH (arXiv:2505.17218).

    keep rollout i  ⇔  |A_i| > τ

Only the kept rollouts are packed into rows (learner/packing.py): the learner walks
whole micro-batches, and only their number depends on the data. (DASH's preemptive
sampling, one generation for the whole optimiser batch, is how the loop works and needs
no formula.)

Departures: the released code filters after the forward pass, divides by the surviving
rows of each micro-batch and trains on row 0 if none survives. Here the filter comes
first, the denominator is the learner's and is one for the whole batch, and if none
survives there are no micro-batches.
"""

import jax
import jax.numpy as jnp


def keep(advantage_B: jax.Array, valid_B: jax.Array, *, tau: float) -> jax.Array:
    """Which rollouts the gradient is computed for: bool keep_B (arXiv:2505.17218).

    advantage_B: the advantage of a rollout, or the largest absolute one of its tokens.
    valid_B: bool. tau: τ, in units of the advantage; a rollout of |A| = τ is dropped.
    """
    # Strictly: at τ = 0 only what has no gradient is dropped.
    return (jnp.abs(advantage_B) > tau) & valid_B
