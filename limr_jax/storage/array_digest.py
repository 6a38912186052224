"""Digests of arrays: one that the devices compute where the shards lie, and sha256.

A checkpoint holds the first kind of every array, and whoever restores it compares. It
is a sum over the array's words of a mix of each word and its place in the array, modulo
2^32. So it is the same however the array is cut over devices and hosts: each device
adds up what it holds, in one pass over its memory, and only the sums move. One word
that changes always changes the first sum (the mix is a bijection of the word); of other
damage about 1 in 2^64 goes unnoticed. It is no protection against somebody who forges a
checkpoint; `params_digest` is sha256.
"""

import functools
import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import jit
from limr_jax.multihost.arrays import on_host, rows_on_host

# Odd numbers without a pattern in their bits: xxHash's primes, and MurmurHash3's mix.
_START = np.uint32(0x27D4EB2F)
# One an axis, six at most.
_AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x165667B1, 0x2545F491, 0x9E3779B9)
_MIX_1, _MIX_2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)


def named(tree: Any) -> dict[str, Any]:
    """The tree's leaves by name, `params/blocks/0/attention/q/kernel`, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def queue(tree: Any) -> dict[str, jax.Array]:
    """The digest of each array with a number in it, by name: uint32[2], on the devices.

    Only queued there: the arrays may be donated afterwards, and no process waits. All
    processes call it. An array has at most six axes. Arrays on the same devices are one
    program: of many small ones under way at once, XLA:CPU's devices may each wait in
    the sum of another, and it ends the process after a while.
    """
    programs: dict[frozenset, dict[str, jax.Array]] = {}
    for name, array in named(tree).items():
        if array.size:
            devices = frozenset(array.sharding.device_set)
            programs.setdefault(devices, {})[name] = array
    digests = {}
    for devices, arrays in programs.items():
        cpu = next(iter(devices)).platform == "cpu"
        digests |= _compiled(cpu)(arrays)
    return digests


def collect(queued: Mapping[str, jax.Array]) -> dict[str, str]:
    """What `queue` gave, computed: 16 hexadecimal digits by name, on every process."""
    sums = on_host(dict(queued))
    return {name: f"{one:08x}{two:08x}" for name, (one, two) in sums.items()}


def of_tree(tree: Any) -> str:
    """One digest of all arrays, by name, of 16 hexadecimal digits; on every process.

    It is the same however they are cut over devices.
    """
    with jax.transfer_guard("allow"):
        digests = collect(queue(tree))
    text = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _compiled(cpu: bool):
    options = jit.known(**jit.CPU) if cpu else None
    return jax.jit(_sums_of_all, compiler_options=options)


def _sums_of_all(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: _sums(array) for name, array in arrays.items()}


def _sums(array: jax.Array) -> jax.Array:
    """uint32[2]: the sums of the mixed words, and of these times their places."""
    # uint32 arithmetic is modulo 2^32. `place` comes of coordinates in the whole array,
    # so that it does not matter how shards cut it.
    words = _words(array)
    place = jnp.full(words.shape, _START)
    for axis in range(words.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += along * np.uint32(_AXES[axis])
    # MurmurHash3's finaliser: each line can be undone, so another word is another mix.
    mixed = words ^ place
    mixed = (mixed ^ (mixed >> 16)) * _MIX_1
    mixed = (mixed ^ (mixed >> 13)) * _MIX_2
    mixed ^= mixed >> 16
    # Odd factors, so that a changed word changes the second sum, too.
    sums = [mixed, mixed * (place | np.uint32(1))]
    # Under x64, too, where a sum would have 64 bits.
    return jnp.stack([jnp.sum(each, dtype=jnp.uint32) for each in sums])


def _words(array: jax.Array) -> jax.Array:
    """The array's bits as uint32; a number of 64 bits is two along a new last axis."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    # As wide as the number, then widened: a cast to uint32 would join neighbours.
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, narrow).astype(jnp.uint32)


def params_digest(params: Any) -> str:
    """sha256, in hex, of names, shapes, dtypes and bytes, in the names' order.

    Sharded arrays are gathered some rows at a time; every process gets the digest."""
    digest = hashlib.sha256()
    # `rows_on_host` hands a Python int to a program, which the loop forbids.
    with jax.transfer_guard("allow"):
        for name, array in sorted(named(params).items()):
            digest.update(f"{name}:{array.dtype.name}{list(array.shape)}:".encode())
            for rows in rows_on_host(array):
                # As uint8, for hashlib cannot read a buffer of bfloat16.
                digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
    return digest.hexdigest()
