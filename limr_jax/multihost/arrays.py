"""Arrays of several processes: from a host to the devices, and back."""

from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from limr_jax.sharding import REPLICATED

GATHER_BYTES = 2**28  # of an array that each device gets at a time


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that every process has, put on the devices; no process waits."""
    array = np.asarray(array)
    return put_parts(array.shape, sharding, lambda index: array[index])


def put_parts(shape, sharding: NamedSharding, part: Callable) -> jax.Array:
    """A global array of this shape, of which each process puts its own devices' parts.

    part: index (a tuple of slices) → the NumPy array that lies there.
    """
    # Not jax.device_put(array, sharding): where all processes have a part of it, that
    # first compares the array among them, by a collective.
    places = sharding.addressable_devices_indices_map(shape)
    arrays = [jax.device_put(part(index), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def on_host(arrays):
    """A pytree of arrays as NumPy arrays, whole, on every process.

    What other processes' devices hold comes over a collective: all processes call it.
    """

    leaves, tree = jax.tree.flatten(arrays)
    # NumPy's arrays, what lies here whole, and replicas need no other process.
    elsewhere = [
        i
        for i, x in enumerate(leaves)
        if not (getattr(x, "is_fully_addressable", True) or x.is_fully_replicated)
    ]
    if elsewhere:
        whole = NamedSharding(leaves[elsewhere[0]].sharding.mesh, REPLICATED)
        # An identity, but replicated: XLA makes an all-gather of it.
        gather = jax.jit(_same, out_shardings=whole)
        gathered = gather([leaves[i] for i in elsewhere])
        for i, x in zip(elsewhere, gathered, strict=True):
            leaves[i] = x
    return jax.device_get(tree.unflatten(leaves))


def _same(arrays):
    return arrays


def rows_on_host(array) -> Iterator[np.ndarray]:
    """`on_host` of an array, some rows after the other: GATHER_BYTES at a time, or one.

    So that a device need not hold a stack of all layers. All processes walk through it.
    """
    whole = getattr(array, "is_fully_addressable", True) or array.is_fully_replicated
    if whole or array.nbytes <= GATHER_BYTES:
        yield on_host(array)
        return
    count = array.shape[0]
    # As many rows as have GATHER_BYTES together; one row may have more.
    step = max(1, GATHER_BYTES // (array.nbytes // count))
    gather = gather_rows(array.sharding.mesh)
    for start in range(0, count, step):
        # `start` is traced, so that all parts but a shorter last one are one program.
        yield jax.device_get(gather(array, start, count=min(step, count - start)))


def gather_rows(mesh) -> Callable:
    """The program `(array, start, count=…)` → those rows, whole on every device."""
    everywhere = NamedSharding(mesh, REPLICATED)
    return jax.jit(_rows, static_argnames="count", out_shardings=everywhere)


def _rows(array, start, count: int):
    return jax.lax.dynamic_slice_in_dim(array, start, count)
