"""Which problems a step draws: pure functions over state that lives on the devices.

A prompt sampler is four functions, in the manner of optax:

    init() → state
    sample(state, key) → state, ids_P
    update(state, ids_P, correct_PG, valid_PG) → state
    report(state, ids_P) → metrics

`report` gets the state that `sample` gave, before `update`: an update may weigh anew,
and shares are of the weights that were drawn by. It must give "epoch", how often the
data set has been drawn, as a fraction; the other metrics begin with the sampler's name.
State is a frozen dataclass of device arrays, replicated, and part of the checkpoint. A
problem is drawn at most once a step. `correct_PG` is raw correctness (fp32, 0 to 1),
never a shaped reward.

A sampler that keeps only some groups, as dynamic sampling does, has one function more,
`keep(state, correct_PG, valid_PG) → keep_P`: the groups to learn from. With it a step
samples once a round, and updates after the last one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class PromptSampler(NamedTuple):
    """The functions of a prompt sampler, as this module's docstring has them."""

    init: Callable[[], Any]
    sample: Callable[..., Any]
    update: Callable[..., Any]
    report: Callable[..., dict]
    keep: Callable[..., jax.Array] | None = None


def count_right(correct_PG, valid_PG):
    """The right responses of each group and the valid ones: right_P, valid_P, fp32."""
    right_P = jnp.sum(valid_PG & (correct_PG > 0), axis=1, dtype=jnp.float32)
    return right_P, jnp.sum(valid_PG, axis=1, dtype=jnp.float32)
