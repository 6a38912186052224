"""Decode's attention on a TPU: each row reads the columns that it has, and no others.

A row has its prompt's columns, which lie in the row of the prompts that it names, and
its own, in a ring in which every row writes the same column (cache.py): row b's n are
the last n, from column − n + 1 to column, round the ring. Both are read in blocks, one
after another, softmax as it goes (arXiv:2205.14135). What is to be read is one list for
all rows, an entry being the next block of a row's prompt and the next of its own; the
kernel's grid is as long as that list, so a young row costs little beside an old one.
A block stays until another is wanted: rows of one prompt follow one another, and one
that fits into a block is read once for all of them. The list is walked in order: of the
two TensorCores of a v4 or v5p chip one does so, and the other waits, which no bound of
the compile report knows.

Axes: B rows, P rows of prompts, K kv heads, G query heads of each, S columns of the
ring, L of a prompt, C channels per head, R layers of a stack, I entries of the list.
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
class At:
    """Where a step's rows are; int32."""

    position_B: jax.Array  # of each query; negative in a row that has ended
    prompt_B: jax.Array  # row of the prompts that each reads, of its device's
    last_P: jax.Array  # position of each prompt's last token
    column: jax.Array  # the one of the ring just written


@dataclasses.dataclass(frozen=True)
class Cut:
    """So many columns in blocks of `size`."""

    columns: int
    size: int

    @property
    def blocks(self) -> int:
        return self.columns // self.size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class List:
    """What a device's rows read; int32."""

    row_I: jax.Array  # entries of a row follow one another
    nth_I: jax.Array  # of its row, from 0
    # A row's first column of the ring, counted from column 0 as if it were none, and of
    # its prompt: L where it sees none.
    own_from_B: jax.Array
    prompt_from_B: jax.Array
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


def entries(own_B, seen_B, prompt_B, column, own: Cut, prompt: Cut) -> List:
    """The list for rows that have so many columns of their own, the last `column`.

    seen_B: columns that they see of their prompts, prompt_B. A row without any of its
    own has an entry all the same, of which nothing comes.
    """
    own_from_B = column - jnp.clip(own_B, 1, own.columns) + 1
    prompt_from_B = prompt.columns - jnp.clip(seen_B, 0, prompt.columns)
    blocks_B = jnp.maximum(
        _last(own_from_B, column, own) - own_from_B // own.size + 1,
        prompt.blocks - prompt_from_B // prompt.size,
    )
    order_B = jnp.argsort(prompt_B)
    end_B = jnp.cumsum(blocks_B[order_B])
    most = max(own.blocks, prompt.blocks)
    entry_I = jnp.arange(len(own_B) * most + 1, dtype=jnp.int32)
    at_I = jnp.searchsorted(end_B, entry_I, side="right", method="compare_all")
    row_I = jnp.append(order_B, len(own_B))[at_I]
    first_I = jnp.append(0, end_B)[at_I]
    return List(
        row_I=row_I.astype(jnp.int32),
        nth_I=(entry_I - first_I).astype(jnp.int32),
        own_from_B=own_from_B.astype(jnp.int32),
        prompt_from_B=prompt_from_B.astype(jnp.int32),
        count=end_B[-1].astype(jnp.int32),
    )


def _last(own_from, column, own: Cut):
    """The last block of the ring: the oldest and the newest columns may share one."""
    return jnp.minimum(column // own.size, own_from // own.size + own.blocks - 1)


def attend(q_BHC, prompts, own, at: At, index, config, window=None):
    """out_BHC of one query a row, of the layer `index` (None: there is no stack).

    prompts, own: keys and values as cache.py has them, of P rows in order and of B.
    window: columns that a row sees at most; None is all.
    """
    arrays = [x if index is not None else x[None] for x in (*prompts, *own)]
    B, H, C = q_BHC.shape
    K = arrays[0].shape[2]
    q_BKGC = q_BHC.reshape(B, K, H // K, C)
    heads = divided(q_BKGC.shape, ROWS, "tensor", None, None)
    stacks = [divided(x.shape, None, ROWS, "tensor", None, None) for x in arrays]
    rows, prompt_rows = divided((B,), ROWS), divided(at.last_P.shape, ROWS)
    whole = jax.sharding.PartitionSpec()
    index = jnp.int32(0) if index is None else index
    specs = (heads, *stacks, At(rows, rows, prompt_rows, whole), whole)
    local = functools.partial(_attend, config=config, window=window)
    out = on_each(local, specs, heads)(q_BKGC, *arrays, at, index)
    return out.reshape(B, H, C)


def _attend(
    q_BKGC, prompt_keys, prompt_values, keys, values, at: At, index, *, config, window
):
    """What one device holds of it."""
    # Imported here: a second that only a TPU's programs need.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    B, K, G, C = q_BKGC.shape
    prompt, own = (
        Cut(x.shape[4], block(x.shape[4], K * C)) for x in (prompt_keys, keys)
    )
    last_B = at.last_P[at.prompt_B]
    own_B, seen_B = at.position_B - last_B, last_B + 1
    if window is not None:
        seen_B = jnp.minimum(seen_B, window - own_B)
    seen_B = jnp.where(at.position_B < 0, 0, seen_B)
    read = entries(own_B, seen_B, at.prompt_B, at.column, own, prompt)

    # Where nothing more of one is read, its last block stays.
    def of_row(i, layer, row_I, *_):
        return row_I[i], 0, 0, 0

    def in_prompt(i, layer, row_I, nth_I, own_from_B, prompt_from_B, prompt_B, _):
        row = row_I[i]
        first = prompt_from_B[row] // prompt.size
        block = jnp.minimum(first + nth_I[i], prompt.blocks - 1)
        return layer[0], prompt_B[row], block

    def in_ring(i, layer, row_I, nth_I, own_from_B, _, __, column):
        row = row_I[i]
        first, last = (
            own_from_B[row] // own.size,
            _last(own_from_B[row], column[0], own),
        )
        return layer[0], row, jnp.minimum(first + nth_I[i], last) % own.blocks

    def keys_at(place):
        def index(*given):
            layer, row, block = place(*given)
            return layer, row, 0, 0, block

        return index

    def values_at(place):
        def index(*given):
            layer, row, block = place(*given)
            return layer, row, 0, block, 0

        return index

    kernel = functools.partial(
        _kernel,
        own=own,
        prompt=prompt,
        scale=config.attention_scale or C**-0.5,
        softcap=config.attention_softcap,
    )
    held = (K, G, 128)
    return pl.pallas_call(
        kernel,
        name=NAME,
        out_shape=jax.ShapeDtypeStruct(q_BKGC.shape, values.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=7,
            grid=(read.count,),
            in_specs=[
                pl.BlockSpec((1, K, G, C), of_row),
                pl.BlockSpec((1, 1, K, C, prompt.size), keys_at(in_prompt)),
                pl.BlockSpec((1, 1, K, prompt.size, C), values_at(in_prompt)),
                pl.BlockSpec((1, 1, K, C, own.size), keys_at(in_ring)),
                pl.BlockSpec((1, 1, K, own.size, C), values_at(in_ring)),
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
        read.nth_I,
        read.own_from_B,
        read.prompt_from_B,
        at.prompt_B.astype(jnp.int32),
        jnp.reshape(at.column, (1,)).astype(jnp.int32),
        q_BKGC,
        prompt_keys,
        prompt_values,
        keys,
        values,
    )


def _kernel(
    layer, row_I, nth_I, own_from_B, prompt_from_B, prompt_B, column,
    q_ref, prompt_k_ref, prompt_v_ref, k_ref, v_ref, out_ref,
    most_ref, sum_ref, out_sum_ref, *, own, prompt, scale, softcap,
):  # fmt: skip
    """One entry: blocks of a row's columns, added to what its others gave."""
    from jax.experimental import pallas as pl

    i = pl.program_id(0)
    row, nth = row_I[i], nth_I[i]

    @pl.when(nth == 0)
    def _():
        most_ref[...] = jnp.full_like(most_ref, _NONE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)

    def add(k_ref, v_ref, start, sees):
        """Columns from `start` on, of which those are seen that `sees` is true of."""
        score_KGS = scale * jax.lax.dot_general(
            q_ref[0],
            k_ref[0, 0],
            (((2,), (1,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
        )
        if softcap:
            score_KGS = softcap * jnp.tanh(score_KGS / softcap)
        at_KGS = start + jax.lax.broadcasted_iota(jnp.int32, score_KGS.shape, 2)
        score_KGS = jnp.where(sees(at_KGS), score_KGS, _NONE)
        before_KG1 = most_ref[..., :1]
        most_KG1 = jnp.maximum(before_KG1, jnp.max(score_KGS, axis=2, keepdims=True))
        weight_KGS = jnp.exp(score_KGS - most_KG1)
        kept_KG1 = jnp.exp(before_KG1 - most_KG1)
        most_ref[...] = jnp.broadcast_to(most_KG1, most_ref.shape)
        sum_KG1 = jnp.sum(weight_KGS, axis=2, keepdims=True)
        sum_KG1 += kept_KG1 * sum_ref[..., :1]
        sum_ref[...] = jnp.broadcast_to(sum_KG1, sum_ref.shape)
        out_sum_ref[...] = kept_KG1 * out_sum_ref[...] + jax.lax.dot_general(
            weight_KGS.astype(v_ref.dtype),
            v_ref[0, 0],
            (((2,), (1,)), ((0,), (0,))),
            preferred_element_type=jnp.float32,
        )

    prompt_from, own_from = prompt_from_B[row], own_from_B[row]
    prompt_block, own_block = (
        prompt_from // prompt.size + nth,
        own_from // own.size + nth,
    )

    @pl.when(prompt_block < prompt.blocks)
    def _():
        start = prompt_block * prompt.size
        add(prompt_k_ref, prompt_v_ref, start, lambda at: at >= prompt_from)

    @pl.when(own_block <= _last(own_from, column[0], own))
    def _():
        # In the block that the oldest and the newest share, the newest lie a turn on.
        def sees(at):
            here = (at >= own_from) & (at <= column[0])
            return here | (at + own.columns <= column[0])

        add(k_ref, v_ref, own_block * own.size, sees)

    @pl.when(row_I[i + 1] != row)
    def _():
        out_ref[0] = (out_sum_ref[...] / sum_ref[..., :1]).astype(out_ref.dtype)


def columns_read(own_B, seen_B, prompt_B, column, own: Cut, prompt: Cut):
    """Columns of the cache that each row reads: whole blocks, one of the ring at least.

    As `entries`, in arrays of numpy; what the report adds up. A prompt of one block is
    read by the first row that has it.
    """
    blocks_B = prompt.blocks - (prompt.columns - seen_B) // prompt.size
    _, first_X = np.unique(np.where(blocks_B == 1, prompt_B, -1), return_index=True)
    again_B = blocks_B == 1
    again_B[first_X] = False
    read_B = np.where(again_B, 0, blocks_B) * prompt.size
    return own_read(own_B, column, own) + read_B


def own_read(own_B, column, own: Cut):
    """Those of the ring."""
    first_B = (column - own_B.clip(1, own.columns) + 1) // own.size
    return (column // own.size - first_B + 1).clip(1, own.blocks) * own.size


@dataclasses.dataclass(frozen=True)
class Read:
    """A step in which each row reads so many columns, in whichever of the two."""

    columns: float

    def of_prompt(self, prompt: Cut) -> float:
        return 0.0

    def of_ring(self, own: Cut) -> float:
        return self.columns


@dataclasses.dataclass(frozen=True)
class Decoded:
    """Steps of decode in which all rows begin and end together, in rounds."""

    length: int  # of every prompt
    steps: int  # of a round: one column more each
    rounds: int = 1

    def of_prompt(self, prompt: Cut) -> int:
        """Of a prompt's columns, those that a row reads at a step."""
        return -(-min(self.length, prompt.columns) // prompt.size) * prompt.size

    def of_ring(self, own: Cut) -> float:
        """Of the ring's, in the mean."""
        step = np.arange(self.steps)
        read = [
            own_read(1 + step, round_ * self.steps + step, own)
            for round_ in range(self.rounds)
        ]
        return float(np.mean(read))
