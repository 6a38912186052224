"""AdamW and the learning rate's schedule."""

import jax
import optax

from limr_jax.sharding import param_rows


def schedule(
    *, learning_rate: float, warmup_steps: int, decay_steps: int, decay_to: float
) -> optax.Schedule:
    """The learning rate of each update, counted from 0.

    It rises linearly over the first `warmup_steps` updates to `learning_rate`, its
    peak, then follows a cosine to `decay_to` × the peak at update `decay_steps` (0: it
    stays at its peak).
    """
    # From 1 / warmup_steps of the peak, not from 0: update 0 would move nothing.
    warmup = optax.linear_schedule(
        learning_rate / max(warmup_steps, 1), learning_rate, max(warmup_steps - 1, 1)
    )
    after = optax.constant_schedule(learning_rate)
    if decay_steps:
        # The joined schedule counts the cosine from its own 0, the end of the warm-up.
        span = max(decay_steps - warmup_steps, 1)
        after = optax.cosine_decay_schedule(learning_rate, span, alpha=decay_to)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    decay_to: float,
    b1: float,
    b2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) with the rates of `schedule`.

    Gradients are clipped to a global norm of `clip_norm` before (0: they are not).
    Which parameters `weight_decay` takes from is in sharding.py's table; a parameter
    that is not there is a KeyError when the optimiser's state is made.
    """
    adam = optax.adamw(
        schedule(
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            decay_steps=decay_steps,
            decay_to=decay_to,
        ),
        b1=b1,
        b2=b2,
        eps=epsilon,
        weight_decay=weight_decay,
        # Asked of whatever tree comes: a critic's has no head but a value head.
        mask=lambda params: jax.tree.map(lambda row: row.decay, param_rows(params)),
    )
    if not clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam)
