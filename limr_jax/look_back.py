"""Decode's attention on a TPU: each row reads the columns that it has, and no others.

The cache is a ring in which every row writes the same column (cache.py), so row b's
n columns are the last n: from column − n + 1 to column, round the ring. They are read
in blocks of the ring, one after another, softmax as it goes (arXiv:2205.14135). What
is to be read is one list of (row, block) for all rows; the kernel's grid is as long as
that list, so a young row costs little beside an old one. It is walked in order: of the
two TensorCores of a v4 or v5p chip one does so, and the other waits, which no bound of
the compile report knows.

Axes: B rows, K kv heads, G query heads of each, S columns of the ring, C channels per
head, R layers of a stack, I entries of the list.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.sharding import ROWS, divided, on_each, platform, shards

INTERPRET = False  # tests only: the kernel's own interpreter, on any platform
BLOCKS = (512, 256, 128)  # columns of a block: the first that divides the ring, and
MOST = 2**19  # of which a device's heads have at most so many keys' numbers
NAME = "look_back"  # the kernel's
_NONE = -1e30  # a score of what is not seen


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class List:
    """What a device's rows read of a ring; int32."""

    row_I: jax.Array  # entries of a row follow one another
    block_I: jax.Array  # counted from column 0, as if there were no ring
    from_B: jax.Array  # a row's first column, counted likewise
    column: jax.Array  # the one just written
    count: jax.Array  # entries that are to be read; the rest is filling


def block(columns: int, channels: int) -> int:
    """Columns of a block of this ring, of so many K · C; 0: none divides it."""
    sizes = (n for n in BLOCKS if columns % n == 0 and n * channels <= MOST)
    return next(sizes, 0)


def fits(columns: int, config) -> int:
    """Columns of a block where decode reads such a ring by this kernel, else 0.

    Only where a TPU is compiled for and the config wants it.
    """
    if not config.attention_kernel or not (INTERPRET or platform() == "tpu"):
        return 0
    parts = shards("tensor") if config.kv_heads % shards("tensor") == 0 else 1
    return block(columns, config.kv_heads // parts * config.head_dim)


def entries(count_B, column, columns: int, size: int) -> List:
    """The list for rows that have so many columns, the last of them `column`.

    size: columns of a block. A row without any has one entry, of which nothing comes.
    """
    most = columns // size
    from_B = column - jnp.clip(count_B, 1, columns) + 1
    first_B = from_B // size
    # The oldest and the newest columns may share a block of the ring.
    blocks_B = jnp.minimum(column // size - first_B + 1, most)
    end_B = jnp.cumsum(blocks_B)
    entry_I = jnp.arange(len(count_B) * most + 1, dtype=jnp.int32)
    row_I = jnp.searchsorted(end_B, entry_I, side="right", method="compare_all")
    held_I = jnp.minimum(row_I, len(count_B) - 1)
    nth_I = entry_I - (end_B - blocks_B)[held_I]
    return List(
        row_I=row_I.astype(jnp.int32),
        block_I=(first_B[held_I] + nth_I).astype(jnp.int32),
        from_B=from_B.astype(jnp.int32),
        column=jnp.reshape(column, (1,)).astype(jnp.int32),
        count=end_B[-1].astype(jnp.int32),
    )


def attend(q_BHC, kv, count_B, column, index, config):
    """out_BHC of one query a row; kv as cache.py has it, of the layer `index`.

    count_B: columns that each row has, `column` the last of them.
    """
    keys, values = kv if index is not None else (x[None] for x in kv)
    B, H, C = q_BHC.shape
    K = keys.shape[2]
    q_BKGC = q_BHC.reshape(B, K, H // K, C)
    heads = divided(q_BKGC.shape, ROWS, "tensor", None, None)
    stack = divided(keys.shape, None, ROWS, "tensor", None, None)
    rows = divided(count_B.shape, ROWS)
    whole = jax.sharding.PartitionSpec()
    index = jnp.int32(0) if index is None else index
    specs = (heads, stack, stack, rows, whole, whole)
    each = on_each(functools.partial(_attend, config=config), specs, heads)
    out = each(q_BKGC, keys, values, count_B, column, index)
    return out.reshape(B, H, C)


def _attend(q_BKGC, keys, values, count_B, column, index, *, config):
    """What one device holds of it."""
    # Imported here: a second that only a TPU's programs need.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    B, K, G, C = q_BKGC.shape
    columns = keys.shape[4]
    size = block(columns, K * C)
    blocks = columns // size
    read = entries(count_B, column, columns, size)

    def of_row(i, layer, row_I, *_):
        return row_I[i], 0, 0, 0

    def of_keys(i, layer, row_I, block_I, *_):
        return layer[0], row_I[i], 0, 0, block_I[i] % blocks

    def of_values(i, layer, row_I, block_I, *_):
        return layer[0], row_I[i], 0, block_I[i] % blocks, 0

    kernel = functools.partial(
        _kernel,
        size=size,
        columns=columns,
        scale=config.attention_scale or C**-0.5,
        softcap=config.attention_softcap,
    )
    held = (K, G, 128)
    return pl.pallas_call(
        kernel,
        name=NAME,
        out_shape=jax.ShapeDtypeStruct(q_BKGC.shape, values.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(read.count,),
            in_specs=[
                pl.BlockSpec((1, K, G, C), of_row),
                pl.BlockSpec((1, 1, K, C, size), of_keys),
                pl.BlockSpec((1, 1, K, size, C), of_values),
            ],
            out_specs=pl.BlockSpec((1, K, G, C), of_row),
            scratch_shapes=[
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM((K, G, C), jnp.float32),
            ],
        ),
        interpret=INTERPRET,
    )(
        jnp.reshape(index, (1,)),
        read.row_I,
        read.block_I,
        read.from_B,
        read.column,
        q_BKGC,
        keys,
        values,
    )


def _kernel(
    layer, row_I, block_I, from_B, column,
    q_ref, k_ref, v_ref, out_ref, most_ref, sum_ref, out_sum_ref,
    *, size, columns, scale, softcap,
):  # fmt: skip
    """One entry: a block of a row's columns, added to what its others gave."""
    from jax.experimental import pallas as pl

    i = pl.program_id(0)
    row, first = row_I[i], from_B[row_I[i]]

    @pl.when(block_I[i] == first // size)
    def _():
        most_ref[...] = jnp.full_like(most_ref, _NONE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)

    score_KGS = scale * jax.lax.dot_general(
        q_ref[0],
        k_ref[0, 0],
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    if softcap:
        score_KGS = softcap * jnp.tanh(score_KGS / softcap)
    at_KGS = block_I[i] * size + jax.lax.broadcasted_iota(jnp.int32, score_KGS.shape, 2)
    # In the block that the oldest and the newest share, the newest lie a turn on.
    seen_KGS = (at_KGS >= first) & (at_KGS <= column[0])
    seen_KGS |= at_KGS + columns <= column[0]
    score_KGS = jnp.where(seen_KGS, score_KGS, _NONE)
    before_KG1 = most_ref[..., :1]
    most_KG1 = jnp.maximum(before_KG1, jnp.max(score_KGS, axis=2, keepdims=True))
    weight_KGS = jnp.exp(score_KGS - most_KG1)
    kept_KG1 = jnp.exp(before_KG1 - most_KG1)
    most_ref[...] = jnp.broadcast_to(most_KG1, most_ref.shape)
    sums_KG1 = kept_KG1 * sum_ref[..., :1] + jnp.sum(weight_KGS, axis=2, keepdims=True)
    sum_ref[...] = jnp.broadcast_to(sums_KG1, sum_ref.shape)
    out_sum_ref[...] = kept_KG1 * out_sum_ref[...] + jax.lax.dot_general(
        weight_KGS.astype(v_ref.dtype),
        v_ref[0, 0],
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )

    @pl.when(row_I[i + 1] != row)
    def _():
        out_ref[0] = (out_sum_ref[...] / sum_ref[..., :1]).astype(out_ref.dtype)


def columns_read(count_B, column, columns: int, size: int):
    """Columns of the cache that each row reads: whole blocks of `size`, at least one.

    What the report adds up; arrays of numpy or JAX.
    """
    first_B = (column - count_B.clip(1, columns) + 1) // size
    return (column // size - first_B + 1).clip(1, columns // size) * size


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Steps of decode in which all rows begin and end together, in rounds."""

    length: int  # columns that a row begins with
    steps: int  # of a round: one column more each
    rounds: int = 1

    def __call__(self, columns: int, size: int) -> float:
        """Of a ring of so many, those that a row reads at a step, in the mean."""
        step = np.arange(self.steps)
        read = [
            columns_read(
                self.length + 1 + step,
                self.length + round_ * self.steps + step,
                columns,
                size,
            )
            for round_ in range(self.rounds)
        ]
        return float(np.mean(read))
