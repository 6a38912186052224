"""Arrays too large to be made whole: a chunk of columns at a time, and again backward.

The two largest of a step are attention's scores, [B, H, T, S], and the learner's
logits, [B, T, V]: for 32 rows of 3,072 tokens and 151,936 words those are 60 GB.
"""

import jax
import jax.numpy as jnp

from limr_jax.sharding import device_count, row_shards

ELEMENTS = 2**26  # of such an array, made at once on a device; 256 MiB in fp32


def chunk_size(columns: int, elements: int) -> int:
    """Columns of a chunk, where a column has so many elements on all devices.

    All columns, where they fit at once. Else the chunks are as even as they can be,
    multiples of 8 where that many fit: what a TPU's registers hold.
    """
    most = max(1, ELEMENTS * device_count() // elements)
    if most >= columns:
        return columns
    unit = 8 if most >= 8 else 1
    count = -(-columns // (most // unit * unit))
    return -(-columns // (count * unit)) * unit


def by_chunks(function, *arrays, size: int):
    """`function(*arrays)`, over `size` columns (axis 1) of all of them at a time.

    What it returns has rows and columns as they have. What is computed in a chunk is
    not kept but computed again for the gradient.
    """
    rows, columns = arrays[0].shape[:2]
    if size == columns:
        return function(*arrays)

    def split(x):
        """[B, T, …] → [chunks, B, size, …], filled up behind."""
        x = jnp.pad(x, [(0, 0), (0, -columns % size), *[(0, 0)] * (x.ndim - 2)])
        return jnp.swapaxes(x.reshape(rows, -1, size, *x.shape[2:]), 0, 1)

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :columns]

    # A scan prevents common subexpressions from being merged already.
    again = jax.checkpoint(function, prevent_cse=False)
    chunks = jax.lax.map(lambda chunk: again(*chunk), tuple(map(split, arrays)))
    return jax.tree.map(join, chunks)


def row_parts(rows: int, elements: int) -> int:
    """Parts to walk rows in one by one, where a row has so many elements.

    A power of 2, so that a part has at most ELEMENTS on a device, as far as the rows of
    each device can be divided.
    """
    each, parts = rows // row_shards(rows), 1
    most = ELEMENTS * device_count()
    while rows * elements > parts * most and each % (2 * parts) == 0:
        parts *= 2
    return parts


def split_rows(x, count: int):
    """[B, …] → [count, B / count, …]: part m takes every count-th row.

    So each device keeps the rows that it holds, and minibatches mix all groups.
    """
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)


def join_rows(x):
    """The inverse of `split_rows`."""
    return jnp.swapaxes(x, 0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:])
