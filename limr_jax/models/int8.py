"""The kernels of a frozen base as int8, with an fp32 scale for each output channel.

Quantised, a projection has `kernel_scale` beside its int8 `kernel`: the weights are
kernel · kernel_scale, symmetric about 0, with scale = max|w| / 127 over the axes that
the projection sums. Embedding, head, norms and biases are never quantised.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.models.config import TARGETS

SCALE = "kernel_scale"
_LARGEST = 127  # not -128, so that a weight and its negative are quantised alike


def contracted(projection: str) -> int:
    """The number of a kernel's first axes that the projection (of `TARGETS`) sums."""
    return 2 if projection == "o" else 1  # the output projection sums heads, channels


def quantise(kernel, axes: tuple[int, ...]):
    """The kernel as int8, and the fp32 scale of each channel, without `axes`.

    axes: those that are summed. NumPy's arrays are quantised on the host, JAX's where
    they are. The scale is 0 where all weights of a channel are 0.
    """
    xp = np if isinstance(kernel, np.ndarray) else jnp
    kernel = kernel.astype(xp.float32)
    largest = xp.max(xp.abs(kernel), axis=axes, keepdims=True)
    # XLA makes a division by a number a product: so hosts and devices give one scale.
    scale = largest * xp.float32(1 / _LARGEST)
    # Also 0 where the product underflows: those weights are then 0.
    steps = kernel / xp.where(scale > 0, scale, xp.float32(1))
    steps = xp.where(scale > 0, xp.round(steps), xp.float32(0))
    # A quotient just above 127 is rounded to it; of a subnormal scale it may be larger.
    steps = xp.clip(steps, -_LARGEST, _LARGEST)
    return steps.astype(xp.int8), xp.squeeze(scale, axes)


def dequantise(kernel, scale, axes: tuple[int, ...]):
    """The fp32 weights of an int8 kernel; axes: those that the scale lacks."""
    return kernel.astype(jnp.float32) * jnp.expand_dims(scale, axes)


def replace_kernels(params: dict, replace: Callable, path: str = "") -> dict:
    """The parameters with a quantised kernel in the place of every projection's.

    replace: `(path, kernel, axes) → (int8 kernel, scale)`, axes as `quantise` takes
    them. The kernel is what `params` has there, be it an array or its shape.
    """
    replaced = {}
    for name, x in params.items():
        here = f"{path}/{name}" if path else name
        if isinstance(x, dict):
            replaced[name] = replace_kernels(x, replace, here)
        elif name == "kernel" and path.rpartition("/")[2] in TARGETS:
            axes = summed_axes(path)
            replaced["kernel"], replaced[SCALE] = replace(here, x, axes)
        else:
            replaced[name] = x
    return replaced


def summed_axes(projection: str) -> tuple[int, ...]:
    """The kernel's axes that a projection sums, by its path in the parameters."""
    first = int(projection.startswith("blocks/"))  # behind the axis of stacked layers
    count = contracted(projection.rpartition("/")[2])
    return tuple(range(first, first + count))


def quantise_params(params: dict) -> dict:
    """The parameters with int8 kernels and their scales; all else as it is."""
    return replace_kernels(params, lambda _, kernel, axes: quantise(kernel, axes))


def is_quantised(params) -> bool:
    """Whether any of the parameters (arrays or shapes) is a kernel's scale."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return any(getattr(path[-1], "key", None) == SCALE for path, _ in leaves)
