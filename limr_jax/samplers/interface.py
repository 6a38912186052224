"""Which problems a step draws: pure functions over state that lives on the devices.

A prompt sampler is four functions, in the manner of optax:

    init() → state
    sample(state, key, earlier=None) → state, ids_P
    update(state, ids_P, correct_PG, valid_PG) → state
    report(state, ids_P) → metrics

`report` gets the state that `sample` gave, before `update`: an update may weigh anew,
and shares are of the weights that were drawn by. It must give "epoch", how often the
data set has been drawn, as a fraction; the other metrics begin with the sampler's name.
State is a frozen dataclass of device arrays, replicated, and part of the checkpoint. A
problem is drawn at most once a step: its rollouts would be the same, word for word.
`correct_PG` is raw correctness (fp32, 0 to 1), never a shaped reward.

A sampler whose draws have a known probability has `importance(state, key) → weight_P`:
what the losses of the problems that `sample(state, key)` draws are to be multiplied by,
so that their mean estimates that over all N problems, each as often (importance.py).

With a filter of groups (group_filter.py) a step draws, and updates, once a round.
`earlier` says what the rounds before it have drawn; the key is the same in all of them.
With such a filter it has two functions more: `keep(correct_PG, valid_PG) → keep_P`, the
groups to learn from, and `end_step(state) → state` after the last round.

Where the problems of a step get different numbers of rollouts (allocation.py) there is
`ask(state, ids_P) → asked_PG`, bool: those to write of the draw that `sample` gave. An
allocation in rounds has `end_step` as well, and `take(state, may_PG) → taken_PG, whole,
metrics`: after a round, the rollouts of the step to learn from (bool), none but those
of `may_PG`, and whether a further round would write nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What the rounds of a step before this one have drawn."""

    first: jax.Array  # bool: there was none
    # bool: drawn in one of them; None for a sampler with `in_order`.
    drawn_N: jax.Array | None
    ahead: int  # problems that all rounds of a step may draw, at most N


class PromptSampler(NamedTuple):
    """The functions of a prompt sampler, as this module's docstring has them."""

    init: Callable[[], Any]
    sample: Callable[..., Any]
    update: Callable[..., Any]
    report: Callable[..., dict]
    # Draws are the next problems of an order, whatever came of them: the rounds of a
    # step need only be looked ahead for.
    in_order: bool = False
    importance: Callable[..., jax.Array] | None = None
    keep: Callable[..., jax.Array] | None = None
    end_step: Callable[..., Any] | None = None
    ask: Callable[..., jax.Array] | None = None
    take: Callable[..., Any] | None = None


def count_right(correct_PG, valid_PG):
    """The right responses of each group and the valid ones: right_P, valid_P, fp32."""
    right_P = jnp.sum(valid_PG & (correct_PG > 0), axis=1, dtype=jnp.float32)
    return right_P, jnp.sum(valid_PG, axis=1, dtype=jnp.float32)


def epochs(step, epoch_steps: int) -> jax.Array:
    """fp32: how often the data set has been drawn after so many steps.

    A whole number after whole epochs, for who takes its floor: in a jit a division by a
    constant is a product with its inverse, and 41 / 41 would be 0.99999994.
    """
    return step // epoch_steps + (step % epoch_steps) / epoch_steps
