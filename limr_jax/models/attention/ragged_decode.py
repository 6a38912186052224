"""Decode's attention on a TPU: each row reads the columns that it has, and no others.

A row has its prompt's columns, which lie in the row of the prompts that it names, and
its own, in a ring in which every row writes the same column (kv_cache.py): row b's n
are the last n, from column − n + 1 to column, round the ring. Both are read in blocks,
one after another, softmax as it goes (arXiv:2205.14135).

What is to be read is one list for all rows, an entry being the next block of a row's
prompt and the next of its own; the kernel's grid is as long as that list, so a young
row costs little beside an old one. A block stays until another is wanted: rows of one
prompt follow one another, and where prompts are one block each is read once for all its
rows. The list is walked in order: of the two TensorCores of a v4 or v5p chip one does
so, and the other waits, which no bound of the compile report knows.

What a launch costs is at the end of the file, counted by the functions that make the
list; compilation/ asks by the kernel's name (kernel_cost.py).

Axes: B rows, P rows of prompts, K kv heads, Q query heads of each, S columns of the
ring, L of a prompt, C channels per head, I entries of the list (the grid's steps). A
stack of layers has them along its first axis.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.models.attention import kernel_cost
from limr_jax.models.attention.kernel_cost import Cost, Launch
from limr_jax.models.kv_cache import KVCache, Shared, column_counts
from limr_jax.sharding import ROWS, divided, on_each, platform, shards

INTERPRET = False  # tests only: the kernel's own interpreter, on any platform
BLOCKS = (512, 256, 128)  # columns of a block: the first that divides the ring and fits
MOST = 2**18  # numbers of a block's keys on a device, at most; as many of its values
NAME = "ragged_decode"  # the kernel's
_NONE = -1e30  # a score of what is not seen; finite, for −inf − −inf is nan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowPlaces:
    """Where each row of a decode step is; int32."""

    position_B: jax.Array  # of each query; negative in a row that has ended
    prompt_B: jax.Array  # row of the prompts that each reads, of its device's
    last_P: jax.Array  # position of each prompt's last token
    column: jax.Array  # the one of the ring just written


@dataclasses.dataclass(frozen=True)
class Cut:
    """How columns of the cache lie in blocks, which the kernel reads whole."""

    columns: int  # of a ring, or of a prompt
    size: int  # columns of a block; it divides them

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.columns // self.size


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReadList:
    """What a device's rows read, block by block; int32."""

    row_I: jax.Array  # entries of a row follow one another
    nth_I: jax.Array  # of its row, from 0; 0 behind the last
    # A row's first column of the ring, counted from column 0 as if it were none, and of
    # its prompt: L where it sees none.
    own_from_B: jax.Array
    prompt_from_B: jax.Array
    prompt_B: jax.Array
    count_1: jax.Array  # entries that are to be read; the rest is filling


def fits(columns: int, config) -> int:
    """The size of the blocks in which this kernel reads a ring; 0 where it does not.

    columns: of the ring, or of a prompt that is read in several blocks. config: the
    ModelConfig. The size is in columns: the first of BLOCKS that divides them and of
    which a device of the current mesh holds keys of no more than MOST numbers. It is 0
    too where no TPU is compiled for, or the config wants XLA's attention.
    """
    if not config.takes("ragged") or not (INTERPRET or platform() == "tpu"):
        return 0
    sizes = (n for n in BLOCKS if columns % n == 0 and n * _numbers(config) <= MOST)
    return next(sizes, 0)


def _numbers(config) -> int:
    """Numbers that the keys of one column take on a device; its values take as many.

    A head's channels lie in whole lines of 128 there.
    """
    # kv heads that `tensor` does not divide lie whole on every device.
    parts = shards("tensor") if config.kv_heads % shards("tensor") == 0 else 1
    return config.kv_heads // parts * max(config.head_dim, 128)


def row_counts(config, columns: int, step_tokens: int = 1) -> dict[str, int]:
    """Columns that each kind of attention keeps of a row's own: whole blocks of a ring.

    The arguments are those of `kv_cache.column_counts`.
    """
    counts = column_counts(config, columns, step_tokens)
    ring = -(-counts["sliding"] // min(BLOCKS)) * min(BLOCKS)
    return counts | {"sliding": min(ring, columns)}


def shares(config, *, length: int, columns: int, step_tokens: int = 1) -> bool:
    """Whether decode reads prompts and rows by this kernel, in all layers.

    config: the ModelConfig. length: columns of a prompt. columns: of a response.
    step_tokens: tokens of a row in a decode step at most. Where it does, the rollouts
    of a prompt share its columns; where not, each begins with a copy of them.
    """
    counts = column_counts(config, length), row_counts(config, columns, step_tokens)
    return all(fits(kinds[kind], config) for kinds in counts for kind in config.pattern)


def cuts(length: int, columns: int, config) -> tuple[Cut, Cut]:
    """How prompts of `length` columns and rings of `columns` are cut: (prompt, own).

    A prompt is one block where its keys are no more than MOST numbers on a device, so
    that one read serves all its rows. Otherwise, as the ring always, it must be of
    columns that `fits` has a size for.
    """
    whole = length * _numbers(config) <= MOST
    prompt = Cut(length, length if whole else fits(length, config))
    return prompt, Cut(columns, fits(columns, config))


def read_list(
    at: RowPlaces, prompt: Cut, own: Cut, window: int | None = None
) -> ReadList:
    """What each device's rows read at this step, of any layer.

    window: columns that a row sees at most, with the one that it writes; None is all.
    """
    rows, prompt_rows = divided(at.prompt_B.shape, ROWS), divided(at.last_P.shape, ROWS)
    places = RowPlaces(
        position_B=rows,
        prompt_B=rows,
        last_P=prompt_rows,
        column=jax.sharding.PartitionSpec(),
    )

    def local(at: RowPlaces) -> ReadList:
        last_B = at.last_P[at.prompt_B]
        # Positions of a prompt begin at 0: its last one says how many tokens it has.
        own_B, seen_B = at.position_B - last_B, last_B + 1
        if window is not None:
            # A row's own columns fill the window first; the prompt has what is left.
            seen_B = jnp.minimum(seen_B, window - own_B)
        seen_B = jnp.where(at.position_B < 0, 0, seen_B)
        return list_entries(
            own_B=own_B,
            seen_B=seen_B,
            prompt_B=at.prompt_B,
            column=at.column,
            prompt=prompt,
            own=own,
        )

    # Each device makes its own rows' list, so every field is divided as rows are.
    out = ReadList(
        row_I=rows,
        nth_I=rows,
        own_from_B=rows,
        prompt_from_B=rows,
        prompt_B=rows,
        count_1=rows,
    )
    return on_each(local, (places,), out)(at)


def list_entries(own_B, seen_B, prompt_B, column, prompt: Cut, own: Cut) -> ReadList:
    """The list of the blocks that one device's B rows read at a step.

    own_B: columns of the ring that are a row's own, the last of them `column`, which is
    counted on and not round the ring. seen_B: columns that a row sees at the end of its
    prompt. prompt_B: which prompt that is. prompt, own: how prompts and ring are cut.
    I is one more than the most blocks that B rows can have.

    Rows that see nothing of a prompt go by prompt 0, or each would have the kernel
    fetch its own. A row without a column of its own has an entry all the same, of which
    nothing comes.
    """
    own_from_B = _own_from(own_B, column, own)
    prompt_from_B = _prompt_from(seen_B, prompt)
    # An entry reads a block of both parts, so a row has as many as its longer one.
    blocks_B = jnp.maximum(
        _last(own_from_B, column, own) - own_from_B // own.size + 1,
        prompt.blocks - prompt_from_B // prompt.size,
    )
    prompt_B = jnp.where(seen_B > 0, prompt_B, 0)
    # Rows of one prompt follow one another, so that its block can stay.
    order_B = jnp.argsort(prompt_B)
    end_B = jnp.cumsum(blocks_B[order_B])
    most = max(own.blocks, prompt.blocks)
    # As long as it can ever get, for the shape is fixed, and one more: the kernel asks
    # whether the next entry begins a row.
    entry_I = jnp.arange(len(own_B) * most + 1, dtype=jnp.int32)
    # Entry i is of the row before which so many rows have ended.
    at_I = jnp.searchsorted(end_B, entry_I, side="right", method="compare_all")
    there_I = at_I < len(own_B)
    at_I = jnp.minimum(at_I, len(own_B) - 1)
    # 0 behind the last one, so that the last row is written out as well.
    nth_I = jnp.where(there_I, entry_I - (end_B - blocks_B[order_B])[at_I], 0)
    reads = ReadList(
        row_I=order_B[at_I],
        nth_I=nth_I,
        own_from_B=own_from_B,
        prompt_from_B=prompt_from_B,
        prompt_B=prompt_B,
        count_1=end_B[-1:],
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), reads)


def _own_from(own_B, column, own: Cut):
    """The first column of the ring that is a row's own."""
    # At least one: then every row has an entry, and its output is written.
    return column - jnp.clip(own_B, 1, own.columns) + 1


def _prompt_from(seen_B, prompt: Cut):
    """The first column of its prompt that a row sees; L where it sees none."""
    return prompt.columns - jnp.clip(seen_B, 0, prompt.columns)


def _last(own_from, column, own: Cut):
    """The last block of the ring: the oldest and the newest columns may share one."""
    return jnp.minimum(column // own.size, own_from // own.size + own.blocks - 1)


def attend_of(position_B, cache: KVCache, shared: Shared, column, config):
    """Attention of each kind, `(q_B1HC, kv, prompts' kv, index of the layer) → out`.

    position_B: of each row's query, negative in a row that has ended; column: the one
    of the ring just written.
    """

    def of_kind(kind):
        prompt_PL, own_BS = shared.prompts.position[kind], cache.position[kind]
        at = RowPlaces(
            position_B=position_B,
            prompt_B=shared.row_B,
            last_P=prompt_PL[:, -1],
            column=column,
        )
        prompt, own = cuts(prompt_PL.shape[1], own_BS.shape[1], config)
        read = read_list(at, prompt, own, window=config.window_of(kind))

        def attend_to(q_B1HC, kv, prompt_kv, index):
            out_BHC = attend(
                q_B1HC[:, 0],
                prompts=prompt_kv,
                own=kv,
                read=read,
                column=column,
                index=index,
                config=config,
            )
            return out_BHC[:, None]

        return attend_to

    return {kind: of_kind(kind) for kind in cache.position}


def attend(q_BHC, prompts, own, read: ReadList, column, index, config):
    """out_BHC of one query a row, of the layer `index` (None: there is no stack).

    prompts, own: keys and values as kv_cache.py has them, of P rows, the last column
    last, and of B. read: from `read_list`. column: the one of the ring just written.
    """
    # The kernel takes the stack and a layer's number: a layer that is cut out would be
    # copied first.
    prompt_keys, prompt_values, keys, values = (
        x if index is not None else x[None] for x in (*prompts, *own)
    )
    B, H, C = q_BHC.shape
    K = keys.shape[2]
    q_BKQC = q_BHC.reshape(B, K, H // K, C)
    heads = divided(q_BKQC.shape, ROWS, "tensor", None, None)
    stacks = (
        divided(x.shape, None, ROWS, "tensor", None, None)
        for x in (prompt_keys, prompt_values, keys, values)
    )
    rows = divided((B,), ROWS)
    whole = jax.sharding.PartitionSpec()
    index = jnp.int32(0) if index is None else index
    specs = (heads, *stacks, jax.tree.map(lambda _: rows, read), whole, whole)
    cut = cuts(prompt_keys.shape[4], keys.shape[4], config)
    local = functools.partial(_attend, cut=cut, config=config)
    # shard_map takes its arguments by their places, as the specs have them.
    out = on_each(local, specs, heads)(
        q_BKQC, prompt_keys, prompt_values, keys, values, read, column, index
    )
    return out.reshape(B, H, C)


def _attend(
    q_BKQC, prompt_keys, prompt_values, keys, values, read: ReadList, column, index,
    *, cut, config,
):  # fmt: skip
    """What one device holds of it."""
    # Imported here: a second that only a TPU's programs need.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (_, K, Q, C), (prompt, own) = q_BKQC.shape, cut

    of_row, of_prompts, of_ring = _places(prompt, own)
    kernel = functools.partial(
        _kernel,
        own=own,
        prompt=prompt,
        scale=config.attention_scale or C**-0.5,
        softcap=config.attention_softcap,
    )
    # One number a query, the same in all 128 lanes of a register.
    held = (K, Q, 128)
    return pl.pallas_call(
        kernel,
        name=NAME,
        out_shape=jax.ShapeDtypeStruct(q_BKQC.shape, values.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            # The first seven arguments: index maps are called with them.
            num_scalar_prefetch=7,
            # Traced: the filling of the list is never walked.
            grid=(read.count_1[0],),
            in_specs=[
                pl.BlockSpec((1, K, Q, C), of_row),
                pl.BlockSpec((1, 1, K, C, prompt.size), of_prompts[0]),
                pl.BlockSpec((1, 1, K, prompt.size, C), of_prompts[1]),
                pl.BlockSpec((1, 1, K, C, own.size), of_ring[0]),
                pl.BlockSpec((1, 1, K, own.size, C), of_ring[1]),
            ],
            out_specs=pl.BlockSpec((1, K, Q, C), of_row),
            scratch_shapes=[
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM((K, Q, C), jnp.float32),
            ],
        ),
        interpret=INTERPRET,
    )(
        jnp.reshape(index, (1,)),
        read.row_I,
        read.nth_I,
        read.own_from_B,
        read.prompt_from_B,
        read.prompt_B,
        jnp.reshape(column, (1,)).astype(jnp.int32),
        q_BKQC,
        prompt_keys,
        prompt_values,
        keys,
        values,
    )


def _places(prompt: Cut, own: Cut):
    """Index maps: a row's; keys and values of prompts; of the ring.

    Where nothing more of one is read, its last block stays.
    """

    def of_row(i, layer, row_I, *_):
        return row_I[i], 0, 0, 0

    def in_prompt(i, layer, row_I, nth_I, own_from_B, prompt_from_B, prompt_B, _):
        row = row_I[i]
        first = prompt_from_B[row] // prompt.size
        # An index that stays is not fetched again.
        block = jnp.minimum(first + nth_I[i], prompt.blocks - 1)
        return layer[0], prompt_B[row], block

    def in_ring(i, layer, row_I, nth_I, own_from_B, _, __, column):
        row = row_I[i]
        last = _last(own_from_B[row], column[0], own)
        block = jnp.minimum(own_from_B[row] // own.size + nth_I[i], last)
        return layer[0], row, block % own.blocks

    def keys_and_values(place):
        def keys(*scalars):
            layer, row, block = place(*scalars)
            return layer, row, 0, 0, block

        def values(*scalars):
            layer, row, block = place(*scalars)
            return layer, row, 0, block, 0

        return keys, values

    return of_row, keys_and_values(in_prompt), keys_and_values(in_ring)


def _kernel(
    layer, row_I, nth_I, own_from_B, prompt_from_B, prompt_B, column,
    q_ref, prompt_k_ref, prompt_v_ref, k_ref, v_ref, out_ref,
    most_ref, sum_ref, out_sum_ref, *, own, prompt, scale, softcap,
):  # fmt: skip
    """One entry: blocks of a row's columns, added to what its others gave."""
    from jax.experimental import pallas as pl

    i = pl.program_id(0)
    row, nth = row_I[i], nth_I[i]

    # A row begins: its maximum, its sum of weights, its sum of values.
    @pl.when(nth == 0)
    def _():
        most_ref[...] = jnp.full_like(most_ref, _NONE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)

    held = most_ref, sum_ref, out_sum_ref
    add = functools.partial(_add, q_ref[0], held, scale=scale, softcap=softcap)
    prompt_from, own_from = prompt_from_B[row], own_from_B[row]
    prompt_block = prompt_from // prompt.size + nth
    own_block = own_from // own.size + nth

    # Of a prompt that is read whole, what the row sees is computed.
    part = next(n for n in BLOCKS if prompt.size % n == 0)
    for offset in range(0, prompt.size, part):
        start, here = prompt_block * prompt.size + offset, pl.ds(offset, part)

        @pl.when((prompt_block < prompt.blocks) & (start + part > prompt_from))
        def _(start=start, here=here):
            k_KCS, v_KSC = prompt_k_ref[0, 0, :, :, here], prompt_v_ref[0, 0, :, here]
            add(k_KCS, v_KSC, start=start, sees=lambda at: at >= prompt_from)

    @pl.when(own_block <= _last(own_from, column[0], own))
    def _():
        # In the block that the oldest and the newest share, the newest lie a turn on.
        def sees(at):
            here = (at >= own_from) & (at <= column[0])
            return here | (at + own.columns <= column[0])

        add(k_ref[0, 0], v_ref[0, 0], start=own_block * own.size, sees=sees)

    # The next entry is another row's: this row's sums are complete.
    @pl.when(nth_I[i + 1] == 0)
    def _():
        out_ref[0] = (out_sum_ref[...] / sum_ref[..., :1]).astype(out_ref.dtype)


def _add(q_KQC, held, k_KCS, v_KSC, start, sees, *, scale, softcap):
    """Columns from `start` on, of which those are seen that `sees` is true of."""
    most_ref, sum_ref, out_sum_ref = held
    score_KQS = scale * jax.lax.dot_general(
        q_KQC,
        k_KCS,
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    if softcap:
        score_KQS = softcap * jnp.tanh(score_KQS / softcap)
    at_KQS = start + jax.lax.broadcasted_iota(jnp.int32, score_KQS.shape, 2)
    score_KQS = jnp.where(sees(at_KQS), score_KQS, _NONE)
    # Softmax as it goes: with a larger maximum the sums so far are scaled down by
    # exp(before − most). While a row has seen nothing its maximum is _NONE and every
    # weight 1, of columns that it must not see: the first score that is seen scales all
    # of that down to 0. Each row comes to one, the column that it has just written.
    before_KQ1 = most_ref[..., :1]
    most_KQ1 = jnp.maximum(before_KQ1, jnp.max(score_KQS, axis=2, keepdims=True))
    weight_KQS = jnp.exp(score_KQS - most_KQ1)
    kept_KQ1 = jnp.exp(before_KQ1 - most_KQ1)
    most_ref[...] = jnp.broadcast_to(most_KQ1, most_ref.shape)
    sum_KQ1 = jnp.sum(weight_KQS, axis=2, keepdims=True)
    sum_KQ1 += kept_KQ1 * sum_ref[..., :1]
    sum_ref[...] = jnp.broadcast_to(sum_KQ1, sum_ref.shape)
    out_sum_ref[...] = kept_KQ1 * out_sum_ref[...] + jax.lax.dot_general(
        weight_KQS.astype(v_KSC.dtype),
        v_KSC,
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )


# --- What it costs ----------------------------------------------------------------


def columns_read(own_B, seen_B, prompt_B, column, prompt: Cut, own: Cut):
    """Columns of the cache that each row reads, by `list_entries`: whole blocks.

    Of the ring one block at least. Prompts of one block are read by the first row that
    has them. The arguments are those of `list_entries`.
    """
    read_B = prompt_read(seen_B, prompt)
    if prompt.blocks == 1:
        read_B *= first_of_each(prompt_B, read_B > 0)
    return own_read(own_B, column, own) + read_B


def prompt_read(seen_B, prompt: Cut):
    """Columns of its prompt that each row reads, whole blocks."""
    return (prompt.blocks - _prompt_from(seen_B, prompt) // prompt.size) * prompt.size


def own_read(own_B, column, own: Cut):
    """Columns of the ring that each row reads, whole blocks."""
    own_from_B = _own_from(own_B, column, own)
    return (_last(own_from_B, column, own) - own_from_B // own.size + 1) * own.size


def first_of_each(prompt_B, is_B):
    """bool: the first row of each prompt, of the rows where it is so."""
    prompt_B = jnp.where(is_B, prompt_B, -1)
    order_B = jnp.argsort(prompt_B, stable=True)
    begins_B = jnp.diff(prompt_B[order_B], prepend=-1) != 0
    return jnp.zeros_like(is_B).at[order_B].set(begins_B)


@dataclasses.dataclass(frozen=True)
class ColumnsRead:
    """Rows that read so many columns each at a step, whether prompts' or their own."""

    columns: float
    group: int = 1  # rows of a prompt, which follow one another

    def prompt_columns(self, prompt: Cut) -> float:
        """Columns of its prompt that a row reads at a step: 0, all count as its own."""
        return 0.0

    def own_columns(self, own: Cut) -> float:
        """Columns that a row reads at a step, those of its prompt among them."""
        return self.columns


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Rows that all begin and end together, in rounds of so many decode steps."""

    length: int  # of every prompt
    steps: int  # of a round: one column more each
    rounds: int = 1
    group: int = 1  # rows of a prompt, which follow one another

    def prompt_columns(self, prompt: Cut) -> float:
        """Columns of its prompt that a row reads at a step, in the mean."""
        seen = np.full(self.steps, self.length)
        if prompt.columns < self.length:  # a window's: one less for each of its own
            seen = prompt.columns - 1 - np.arange(self.steps)
        return _mean(prompt_read(seen, prompt))

    def own_columns(self, own: Cut) -> float:
        """Columns of the ring that a row reads at a step, in the mean."""
        column = np.arange(self.rounds * self.steps)
        return _mean(own_read(1 + column % self.steps, column, own))


def _mean(columns) -> float:
    return float(np.mean(np.asarray(columns)))  # in 64 bits, which JAX has not


@kernel_cost.of(NAME)
def cost(launch: Launch, rows: Rounds | ColumnsRead | None = None) -> Cost:
    """The cost of a step in which rows read as `rows` says; None: all of both parts."""
    queries, prompt_keys, _, own_keys, _, _ = launch.operands
    prompt, own = (Cut(x.shape[-1], x.block[-1]) for x in (prompt_keys, own_keys))
    prompt_columns, own_columns = prompt.columns, own.columns
    if rows is not None:
        prompt_columns, own_columns = rows.prompt_columns(prompt), rows.own_columns(own)
    count = queries.shape[0]
    # By the keys and by the values, a multiplication and an addition each.
    flops = 2 * 2.0 * math.prod(queries.block) * count * (prompt_columns + own_columns)
    prompt_blocks = count * prompt_columns / prompt.size
    own_blocks = count * own_columns / own.size
    if prompt.blocks == 1 and rows is not None:
        prompt_blocks /= rows.group  # read by the first of its rows
    # Queries; keys and values of prompts and of the ring; what comes of them.
    moved = (count, prompt_blocks, prompt_blocks, own_blocks, own_blocks, count)
    return Cost(
        flops=flops,
        hbm_bytes=sum(
            n * x.block_bytes for n, x in zip(moved, launch.operands, strict=True)
        ),
    )
