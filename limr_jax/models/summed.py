"""Gradients of the stacked layers, added to a sum where they arise.

JAX gives the gradient of a stack that is scanned over as an array of its own; to add it
to the sum of the micro-batches before takes two arrays as large as the layers. Here the
sum itself goes through the backward pass: what is differentiated is the sum so far,
whose "gradient" is that sum with each layer's gradient added in its place.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.models import lora
from limr_jax.sharding import constrain_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Summed:
    """`params["blocks"]` whose gradient is to be added to the sum so far.

    Differentiated with respect to `so_far` it gives `so_far` and the gradient of
    `weights` together, if the function reads the layers exactly once.
    """

    weights: Any  # the stacks: arrays whose first axis is the groups of layers
    so_far: Any  # of the same shapes
    reads: "Reads" = dataclasses.field(metadata={"static": True})


class Reads:
    """How often the layers have been read while a function was traced."""

    count = 0


def add_gradient(loss, params, so_far):
    """The sum so far and the gradient of `loss` at `params`: ((value, rest), sum).

    loss(params) → (value, rest), a scalar and anything, of a model's parameters, whose
    layers it reads once. so_far: of the same structure as params.

    Raises:
      ValueError: the loss reads the layers not once. Twice the sum so far would be
        counted twice; never, it would be lost.
    """
    reads = Reads()
    # Adapters are a hundredth of the layers, and joined with their base first.
    in_place = not lora.has_adapters(params)

    def of_learned(learned):
        if in_place:
            blocks = Summed(params["blocks"], learned["blocks"], reads)
            learned = {**learned, "blocks": blocks}
        return loss(learned)

    at = {**params, "blocks": so_far["blocks"]} if in_place else params
    value, gradient = jax.value_and_grad(of_learned, has_aux=True)(at)
    if in_place and reads.count != 1:
        raise ValueError(f"a loss that reads the layers {reads.count} times, not once")

    def add(name, total, x):
        if in_place and name == "blocks":
            return x
        return jax.tree.map(jnp.add, total, x)

    # As the parameters lie, else each device of fsdp holds them whole.
    gradient = constrain_params(gradient)
    total = {name: add(name, so_far[name], x) for name, x in gradient.items()}
    return value, constrain_params(total)


@jax.custom_vjp
def read_layer(weights, so_far, index):
    """The weights of group `index`, whose gradient goes into the sum: both, as given.

    weights: of that group, cut out of the stacks. so_far: the sum of the stacks.
    """
    return weights, so_far


def _read_layer(weights, so_far, index):
    return (weights, so_far), index


def _add_layer(index, gradients):
    of_weights, total = gradients
    total = jax.tree.map(lambda x, one: x.at[index].add(one), total, of_weights)
    return None, constrain_params({"blocks": total})["blocks"], None


read_layer.defvjp(_read_layer, _add_layer)


@jax.custom_vjp
def begin_sum(x, so_far, total):
    """`x`, behind the last layer: from here the backward pass takes `total` along.

    so_far: what `read_layer` gave last. total: the sum so far, not differentiated.
    """
    return x


def _begin_sum(x, so_far, total):
    return x, total


def _with_total(total, gradient_of_x):
    return gradient_of_x, total, None


begin_sum.defvjp(_begin_sum, _with_total)
