"""Arrays too large to be made whole: a chunk of columns at a time, and again backward.

The two largest of a step are attention's scores, [B, H, T, S], and the learner's
logits, [B, T, V]: for 32 rows of 3,072 tokens and 151,936 words those are 60 GB.
"""

import jax
import jax.numpy as jnp

from limr_jax.sharding import device_count, row_shards

ELEMENTS = 2**26  # of such an array, made at once on a device; 256 MiB in fp32


def chunk_size(columns: int, elements: int) -> int:
    """How many columns a chunk has, so that a device makes at most ELEMENTS at once.

    columns: of the whole array. elements: of one column, on all devices together. All
    columns are one chunk where they fit at once. Else the chunks are as even as they
    can be, multiples of 8 where that many fit: what a TPU's registers hold.
    """
    # All devices share a column, so together they have room for more columns.
    most = max(1, ELEMENTS * device_count() // elements)
    if most >= columns:
        return columns
    # Of 100 columns, 30 at most: units of 8 allow 24, so there are 5 chunks, of 24.
    unit = 8 if most >= 8 else 1
    count = -(-columns // (most // unit * unit))
    return -(-columns // (count * unit)) * unit


def by_chunks(function, *arrays, size: int):
    """`function(*arrays)`, computed for `size` columns (axis 1) at a time.

    arrays: [B, T, …] each. The function gives arrays [B, T, …], or a tree of them, of
    which column t depends on column t of its arguments alone. What is computed in a
    chunk is not kept but computed again for the gradient.
    """
    rows, columns = arrays[0].shape[:2]
    if size == columns:
        return function(*arrays)

    def split(x):
        """[B, T, …] → [chunks, B, size, …], filled up behind."""
        # Zeros fill the last chunk; `join` cuts off what becomes of them.
        x = jnp.pad(x, [(0, 0), (0, -columns % size), *[(0, 0)] * (x.ndim - 2)])
        return jnp.swapaxes(x.reshape(rows, -1, size, *x.shape[2:]), 0, 1)

    def join(x):
        return jnp.swapaxes(x, 0, 1).reshape(rows, -1, *x.shape[3:])[:, :columns]

    # A scan prevents common subexpressions from being merged already.
    again = jax.checkpoint(function, prevent_cse=False)
    # One after another: a vmap would make all chunks at once, the whole array.
    chunks = jax.lax.map(lambda chunk: again(*chunk), tuple(map(split, arrays)))
    return jax.tree.map(join, chunks)


def row_parts(rows: int, elements: int) -> int:
    """How many parts to walk a batch in, so that a device makes at most ELEMENTS.

    rows: of the batch. elements: of one row. A power of 2, as far as it divides the
    rows of each device.
    """
    each, parts = rows // row_shards(rows), 1
    most = ELEMENTS * device_count()
    # Only what divides a device's rows: `split_rows` then moves none of them.
    while rows * elements > parts * most and each % (2 * parts) == 0:
        parts *= 2
    return parts


def split_rows(x, count: int):
    """[B, …] → [count, B / count, …]: part m has the rows m, m + count, m + 2 count, …

    Parts of rows that follow one another would each lie on a few of the devices; of
    these, each device has its share, and no row moves.
    """
    # Row b = k · count + m is at [k, m]: devices divide axis 0, and m is its part.
    return jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
