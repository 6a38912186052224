"""Decode's attention on a TPU: each row reads the columns that it has, and no others.

A row has its prompt's columns, which lie in the row of the prompts that it names, and
its own from 0 on (kv_cache.py). A step of J tokens a row writes columns c to c + J − 1
of each, c being the row's: its j-th query sees the prompt, the row's columns before c,
and the step's tokens up to itself. Prompt and row are read in blocks, one after
another, softmax as it goes (arXiv:2205.14135); the step's own tokens come beside the
queries, and are put into the columns that hold them in the cache by the kernel itself:
it has read those. Of a block only the part that has new columns is written back.

What is to be read is one list for all rows, an entry being the next block of a row's
prompt and the next of its own; the kernel's grid is as long as that list, so a young
row costs little beside an old one. A block stays until another is wanted: rows of one
prompt follow one another, and where prompts are one block each is read once for all its
rows. The list is walked in order: of the two TensorCores of a v4 or v5p chip one does
so, and the other waits, which no bound of the compile report knows.

What a launch costs is at the end of the file, counted by the functions that make the
list; compilation/ asks by the kernel's name (kernel_cost.py).

Axes: B rows, J tokens of each, P rows of prompts, K kv heads, Q queries of each (its
query heads', of J tokens), S columns of a row, L of a prompt, C channels per head, I
entries of the list (the grid's steps). A stack of layers has them along its first axis.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.models.attention import kernel_cost
from limr_jax.models.attention.kernel_cost import Cost, Launch
from limr_jax.models.kv_cache import KVCache, Shared, column_counts
from limr_jax.sharding import ROWS, divided, on_each, platform, shards

INTERPRET = False  # tests only: the kernel's own interpreter, on any platform
BLOCKS = (512, 256, 128)  # columns of a block: the first that divides a row's and fits
PART = 128  # columns of a block's part that is written back, at most
MOST = 2**18  # numbers of a block's keys on a device, at most; as many of its values
NAME = "ragged_decode"  # the kernel's
_NONE = -1e30  # a score of what is not seen; finite, for −inf − −inf is nan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowPlaces:
    """Where each row of a decode step is; int32."""

    column_B: jax.Array  # of its own, the first that the step writes
    live_B: jax.Array  # 0 in a row that has ended
    prompt_B: jax.Array  # row of the prompts that each reads, of its device's
    last_P: jax.Array  # position of each prompt's last token


@dataclasses.dataclass(frozen=True)
class Cut:
    """How columns of the cache lie in blocks, which the kernel reads whole."""

    columns: int  # of a row, or of a prompt
    size: int  # columns of a block; it divides them

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return self.columns // self.size


@dataclasses.dataclass(frozen=True)
class OwnCut(Cut):
    """How a row's own columns lie, and which of them a step reads and writes.

    `column` is the first that the step writes, one number or an array of several. It
    and all others are counted on, not round a ring, and so are blocks.
    """

    tokens: int = 1  # J, columns that a step writes
    window: int | None = None  # columns that a query sees at most, its own included

    @property
    def part(self) -> int:
        """Columns of the parts in which new ones are written back."""
        return min(PART, self.size)

    @property
    def wraps(self) -> bool:
        """Whether column c lies at c % `columns`; else those behind are dropped."""
        return self.window is not None and self.columns >= self.window + self.tokens - 1

    def first(self, column):
        """The first column that a query of the step sees."""
        return jnp.maximum(column - (self.window or self.columns) + 1, 0)

    def last(self, column):
        """The last column that the step writes."""
        last = column + self.tokens - 1
        return last if self.wraps else jnp.minimum(last, self.columns - 1)

    def first_block(self, column):
        """The block of the first column that is read."""
        return self.first(column) // self.size

    def last_block(self, column):
        """The last block: in a ring the oldest and the newest columns may share one."""
        last = self.last(column) // self.size
        return jnp.minimum(last, self.first_block(column) + self.blocks - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReadList:
    """What a device's rows read, block by block; int32."""

    row_I: jax.Array  # entries of a row follow one another
    nth_I: jax.Array  # of its row, from 0; 0 behind the last
    column_B: jax.Array  # the first that a row writes; 0 where it has ended
    prompt_from_B: jax.Array  # the first column seen of its prompt; L where none is
    prompt_B: jax.Array
    count_1: jax.Array  # entries that are to be read; the rest is filling


def fits(columns: int, config) -> int:
    """The size of the blocks in which this kernel reads a row; 0 where it does not.

    columns: of the row, or of a prompt that is read in several blocks. config: the
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


def cuts(
    length: int, columns: int, config, *, tokens: int = 1, window: int | None = None
) -> tuple[Cut, OwnCut]:
    """How prompts of `length` columns and rows of `columns` are cut: (prompt, own).

    A prompt is one block where its keys are no more than MOST numbers on a device, so
    that one read serves all its rows. Otherwise, as a row always, it must be of columns
    that `fits` has a size for. tokens, window: as `OwnCut` has them.
    """
    whole = length * _numbers(config) <= MOST
    prompt = Cut(length, length if whole else fits(length, config))
    own = OwnCut(columns, fits(columns, config), tokens=tokens, window=window)
    return prompt, own


def read_list(at: RowPlaces, prompt: Cut, own: OwnCut) -> ReadList:
    """What each device's rows read at this step, of any layer."""
    rows, prompt_rows = divided(at.prompt_B.shape, ROWS), divided(at.last_P.shape, ROWS)
    places = RowPlaces(column_B=rows, live_B=rows, prompt_B=rows, last_P=prompt_rows)

    def local(at: RowPlaces) -> ReadList:
        # Positions of a prompt begin at 0: its last one says how many tokens it has.
        seen_B = at.last_P[at.prompt_B] + 1
        if own.window is not None:
            # A row's own columns fill the window first; the prompt has what is left.
            seen_B = jnp.minimum(seen_B, own.window - at.column_B - 1)
        return list_entries(
            column_B=jnp.where(at.live_B > 0, at.column_B, 0),
            seen_B=jnp.where(at.live_B > 0, seen_B, 0),
            prompt_B=at.prompt_B,
            prompt=prompt,
            own=own,
        )

    # Each device makes its own rows' list, so every field is divided as rows are.
    out = ReadList(
        row_I=rows,
        nth_I=rows,
        column_B=rows,
        prompt_from_B=rows,
        prompt_B=rows,
        count_1=rows,
    )
    return on_each(local, (places,), out)(at)


def list_entries(column_B, seen_B, prompt_B, prompt: Cut, own: OwnCut) -> ReadList:
    """The list of the blocks that one device's B rows read at a step.

    column_B: the first of its own that each row writes. seen_B: columns that a row sees
    at the end of its prompt. prompt_B: which prompt that is. prompt, own: how prompts
    and rows are cut. I is one more than the most blocks that B rows can have.

    Rows that see nothing of a prompt go by prompt 0, or each would have the kernel
    fetch its own.
    """
    prompt_from_B = _prompt_from(seen_B, prompt)
    # An entry reads a block of both parts, so a row has as many as its longer one.
    blocks_B = jnp.maximum(
        own.last_block(column_B) - own.first_block(column_B) + 1,
        prompt.blocks - prompt_from_B // prompt.size,
    )
    prompt_B = jnp.where(seen_B > 0, prompt_B, 0)
    # Rows of one prompt follow one another, so that its block can stay.
    order_B = jnp.argsort(prompt_B)
    end_B = jnp.cumsum(blocks_B[order_B])
    most = max(own.blocks, prompt.blocks)
    # As long as it can ever get, for the shape is fixed, and one more: the kernel asks
    # whether the next entry begins a row.
    entry_I = jnp.arange(len(column_B) * most + 1, dtype=jnp.int32)
    # Entry i is of the row before which so many rows have ended.
    at_I = jnp.searchsorted(end_B, entry_I, side="right", method="compare_all")
    there_I = at_I < len(column_B)
    at_I = jnp.minimum(at_I, len(column_B) - 1)
    # 0 behind the last one, so that the last row is written out as well.
    nth_I = jnp.where(there_I, entry_I - (end_B - blocks_B[order_B])[at_I], 0)
    reads = ReadList(
        row_I=order_B[at_I],
        nth_I=nth_I,
        column_B=column_B,
        prompt_from_B=prompt_from_B,
        prompt_B=prompt_B,
        count_1=end_B[-1:],
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), reads)


def _prompt_from(seen_B, prompt: Cut):
    """The first column of its prompt that a row sees; L where it sees none."""
    return prompt.columns - jnp.clip(seen_B, 0, prompt.columns)


def attend_of(position_BJ, cache: KVCache, shared: Shared, column_B, config):
    """Attention of each kind, which writes the step's keys and values as well.

    That is `(q_BJHC, new, kv, prompts' kv, index of the layer) → (out_BJHC, kv)`.
    position_BJ: of the queries, negative in a row that has ended. column_B: of its own,
    the first that each row writes.
    """

    def of_kind(kind):
        prompt_PL, own_BS = shared.prompts.position[kind], cache.position[kind]
        at = RowPlaces(
            column_B=column_B,
            live_B=(position_BJ[:, 0] >= 0).astype(jnp.int32),
            prompt_B=shared.row_B,
            last_P=prompt_PL[:, -1],
        )
        window = config.window_of(kind)
        prompt, own = cuts(
            prompt_PL.shape[1],
            own_BS.shape[1],
            config,
            tokens=position_BJ.shape[1],
            window=window,
        )
        read = read_list(at, prompt, own)

        def attend_to(q_BJHC, new, kv, prompt_kv, index):
            return attend(
                q_BJHC,
                prompts=prompt_kv,
                own=kv,
                new=new,
                read=read,
                index=index,
                config=config,
                window=window,
            )

        return attend_to

    return {kind: of_kind(kind) for kind in cache.position}


def attend(q_BJHC, prompts, own, new, read: ReadList, index, config, window=None):
    """(out_BJHC, own) of J queries a row, of the layer `index` (None: of no stack).

    prompts, own: keys and values as kv_cache.py has them, of P rows, the last column
    last, and of B. new: of the J tokens, [B, K, C, J] and [B, K, J, C]; `own` is
    returned with them. read: from `read_list`. window: as `OwnCut` has it.
    """
    # The kernel takes the stack and a layer's number: a layer that is cut out would be
    # copied first.
    prompt_keys, prompt_values, keys, values = (
        x if index is not None else x[None] for x in (*prompts, *own)
    )
    B, J, H, C = q_BJHC.shape
    K = keys.shape[2]
    # The queries of a kv head are one matrix, the heads of a token one after another.
    q_BJKQC = q_BJHC.reshape(B, J, K, H // K, C)
    q_BKQC = q_BJKQC.transpose(0, 2, 1, 3, 4).reshape(B, K, J * (H // K), C)
    new_keys = jnp.swapaxes(new[0], 2, 3).astype(keys.dtype)
    new_values = new[1].astype(values.dtype)
    heads, new_heads = (
        divided(x.shape, ROWS, "tensor", None, None) for x in (q_BKQC, new_values)
    )
    stacks = [
        divided(x.shape, None, ROWS, "tensor", None, None)
        for x in (prompt_keys, prompt_values, keys, values)
    ]
    rows = divided((B,), ROWS)
    whole = jax.sharding.PartitionSpec()
    index_1 = jnp.reshape(jnp.int32(0 if index is None else index), (1,))
    lists = jax.tree.map(lambda _: rows, read)
    specs = (heads, *stacks, new_heads, new_heads, lists, whole)
    prompt, own_cut = cuts(
        prompt_keys.shape[4], keys.shape[4], config, tokens=J, window=window
    )
    local = functools.partial(_attend, prompt=prompt, own=own_cut, config=config)
    # shard_map takes its arguments by their places, as the specs have them.
    out, keys, values = on_each(local, specs, (heads, *stacks[2:]))(
        q_BKQC,
        prompt_keys,
        prompt_values,
        keys,
        values,
        new_keys,
        new_values,
        read,
        index_1,
    )
    out_BJKQC = out.reshape(B, K, J, H // K, C).transpose(0, 2, 1, 3, 4)
    own = (keys, values) if index is not None else (keys[0], values[0])
    return out_BJKQC.reshape(B, J, H, C), own


def _attend(
    q_BKQC, prompt_keys, prompt_values, keys, values, new_keys, new_values,
    read: ReadList, index_1, *, prompt: Cut, own: OwnCut, config,
):  # fmt: skip
    """What one device holds of it."""
    # Imported here: a second that only a TPU's programs need.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    _, K, Q, C = q_BKQC.shape
    of_row, of_prompts, of_own = _places(prompt, own)
    kernel = functools.partial(
        _kernel,
        own=own,
        prompt=prompt,
        scale=config.attention_scale or C**-0.5,
        softcap=config.attention_softcap,
    )
    # One number a query, the same in all 128 lanes of a register.
    held = (K, Q, 128)
    # New columns lie in so many parts at most.
    parts = 1 + -(-(own.tokens - 1) // own.part)
    new = pl.BlockSpec((1, K, own.tokens, C), of_row)
    # Where they are in HBM: the kernel writes them itself, in parts of a block.
    written = pl.BlockSpec(memory_space=pl.ANY)
    scalars = (
        index_1,
        read.row_I,
        read.nth_I,
        read.column_B,
        read.prompt_from_B,
        read.prompt_B,
        read.count_1,
    )
    arrays = (
        q_BKQC,
        prompt_keys,
        prompt_values,
        keys,
        values,
        new_keys,
        new_values,
    )
    return pl.pallas_call(
        kernel,
        name=NAME,
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, values.dtype) for x in (q_BKQC, keys, values)
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            # Index maps are called with these arguments.
            num_scalar_prefetch=len(scalars),
            # Traced: the filling of the list is never walked.
            grid=(read.count_1[0],),
            in_specs=[
                pl.BlockSpec((1, K, Q, C), of_row),
                pl.BlockSpec((1, 1, K, C, prompt.size), of_prompts[0]),
                pl.BlockSpec((1, 1, K, prompt.size, C), of_prompts[1]),
                pl.BlockSpec((1, 1, K, C, own.size), of_own[0]),
                pl.BlockSpec((1, 1, K, own.size, C), of_own[1]),
                new,
                new,
            ],
            out_specs=[pl.BlockSpec((1, K, Q, C), of_row), written, written],
            scratch_shapes=[
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM(held, jnp.float32),
                pltpu.VMEM((K, Q, C), jnp.float32),
                pltpu.VMEM((parts, K, C, own.part), keys.dtype),
                pltpu.VMEM((parts, K, own.part, C), values.dtype),
                pltpu.SemaphoreType.DMA((2, parts)),
                pltpu.SMEM((parts,), jnp.int32),
            ],
        ),
        # Keys and values, counted with the scalars, are the second and third result.
        input_output_aliases={len(scalars) + 3: 1, len(scalars) + 4: 2},
        interpret=INTERPRET,
    )(*scalars, *arrays)


def _places(prompt: Cut, own: OwnCut):
    """Index maps: a row's; keys and values of prompts; of the rows' own columns.

    Where nothing more of one is read, its last block stays.
    """

    def of_row(i, layer, row_I, *_):
        return row_I[i], 0, 0, 0

    def in_prompt(i, layer, row_I, nth_I, column_B, prompt_from_B, prompt_B, _):
        row = row_I[i]
        first = prompt_from_B[row] // prompt.size
        # An index that stays is not fetched again.
        block = jnp.minimum(first + nth_I[i], prompt.blocks - 1)
        return layer[0], prompt_B[row], block

    def in_row(i, layer, row_I, nth_I, column_B, *_):
        row = row_I[i]
        column = column_B[row]
        block = own.first_block(column) + nth_I[i]
        block = jnp.minimum(block, own.last_block(column))
        return layer[0], row, block % own.blocks

    def keys_and_values(place):
        def keys(*scalars):
            layer, row, block = place(*scalars)
            return layer, row, 0, 0, block

        def values(*scalars):
            layer, row, block = place(*scalars)
            return layer, row, 0, block, 0

        return keys, values

    return of_row, keys_and_values(in_prompt), keys_and_values(in_row)


def _kernel(
    layer, row_I, nth_I, column_B, prompt_from_B, prompt_B, count_1,
    q_ref, prompt_k_ref, prompt_v_ref, k_ref, v_ref, new_k_ref, new_v_ref,
    out_ref, keys_ref, values_ref,
    most_ref, sum_ref, out_sum_ref, k_part_ref, v_part_ref, copied, under_way_ref,
    *, own: OwnCut, prompt: Cut, scale, softcap,
):  # fmt: skip
    """One entry: blocks of a row's columns, added to what its others gave."""
    from jax.experimental import pallas as pl

    i = pl.program_id(0)
    row, nth = row_I[i], nth_I[i]
    column, prompt_from = column_B[row], prompt_from_B[row]
    held = most_ref, sum_ref, out_sum_ref
    write_back = _WriteBack(
        layer[0],
        row,
        cache=(keys_ref, values_ref),
        parts=(k_part_ref, v_part_ref),
        copied=copied,
        under_way_ref=under_way_ref,
        own=own,
    )

    @pl.when(i == 0)
    def _():
        write_back.begin()

    add = functools.partial(_add, q_ref[0], held, own=own, scale=scale, softcap=softcap)

    def near(place, token):
        """Whether a column is within the window of a token's query."""
        return True if own.window is None else token - place < own.window

    # A row begins: its maximum, its sum of weights, its sum of values. The step's own
    # tokens come first, so that every query has seen one from here on: itself.
    @pl.when(nth == 0)
    def _():
        most_ref[...] = jnp.full_like(most_ref, _NONE)
        sum_ref[...] = jnp.zeros_like(sum_ref)
        out_sum_ref[...] = jnp.zeros_like(out_sum_ref)

        def sees(place, token):
            return (place <= token) & near(place, token)

        # As the queries' do, the keys' channels come last.
        add(new_k_ref[0], new_v_ref[0], start=0, sees=sees, channels=2)

    # Of a prompt that is read whole, what the row sees is computed.
    prompt_block = prompt_from // prompt.size + nth
    part = next(n for n in BLOCKS if prompt.size % n == 0)
    for offset in range(0, prompt.size, part):
        start, here = prompt_block * prompt.size + offset, pl.ds(offset, part)

        @pl.when((prompt_block < prompt.blocks) & (start + part > prompt_from))
        def _(start=start, here=here):
            k_KCS, v_KSC = prompt_k_ref[0, 0, :, :, here], prompt_v_ref[0, 0, :, here]
            # A prompt's last column is the one before column 0 of the row's own.
            end = prompt.columns + column

            def sees(place, token):
                return (place >= prompt_from - end) & near(place, token)

            add(k_KCS, v_KSC, start=start - end, sees=sees)

    own_block = own.first_block(column) + nth

    @pl.when(own_block <= own.last_block(column))
    def _():
        # What lies from `column` on was never the row's, or is no longer. In a ring's
        # block that the oldest and the newest share, the newest lie a turn on.
        oldest, turn = own.first(column) - column, own.columns

        def sees(place, token):
            old = (place >= oldest) & (place < 0) & near(place, token)
            if not own.wraps:
                return old
            return old | (place + turn < 0) & near(place + turn, token)

        add(k_ref[0, 0], v_ref[0, 0], start=own_block * own.size - column, sees=sees)
        blocks, new = (k_ref, v_ref), (new_k_ref, new_v_ref)
        write_back.write(column, own_block, blocks=blocks, new=new)

    @pl.when(i == count_1[0] - 1)
    def _():
        write_back.end()

    # The next entry is another row's: this row's sums are complete.
    @pl.when(nth_I[i + 1] == 0)
    def _():
        out_ref[0] = (out_sum_ref[...] / sum_ref[..., :1]).astype(out_ref.dtype)


@dataclasses.dataclass(frozen=True)
class _WriteBack:
    """New columns on their way from the kernel's memory to the cache."""

    layer: jax.Array
    row: jax.Array
    cache: tuple  # its keys and values in HBM
    parts: tuple  # of keys and values, so many of each as new columns may lie in
    copied: Any  # semaphores of their copies
    under_way_ref: Any  # int32: 1 while a part's copies have not been waited for
    own: OwnCut

    @property
    def _slots(self):
        return range(self.under_way_ref.shape[0])

    def _copies(self, slot: int, begin):
        """Of the keys and of the values of a part, which begins at that column."""
        from jax.experimental import pallas as pl
        from jax.experimental.pallas import tpu as pltpu

        at = pl.ds(pl.multiple_of(begin, self.own.part), self.own.part)
        every = slice(None)
        places = (
            (self.layer, self.row, every, every, at),
            (self.layer, self.row, every, at, every),
        )
        return [
            pltpu.make_async_copy(part.at[slot], x.at[place], self.copied.at[n, slot])
            for n, (part, x, place) in enumerate(
                zip(self.parts, self.cache, places, strict=True)
            )
        ]

    def _wait(self, slot: int):
        from jax.experimental import pallas as pl

        @pl.when(self.under_way_ref[slot] == 1)
        def _():
            # A copy of as many bytes, wherever it goes.
            for copy in self._copies(slot, 0):
                copy.wait()
            self.under_way_ref[slot] = 0

    def begin(self):
        """Nothing is under way."""
        for slot in self._slots:
            self.under_way_ref[slot] = 0

    def end(self):
        """All is written."""
        for slot in self._slots:
            self._wait(slot)

    def write(self, column, own_block, blocks, new):
        """Those parts of a block that have new columns, with them.

        column: the first of the new ones. own_block: which of the row's `blocks` is.
        blocks, new: keys and values, of the block and of the tokens.
        """
        from jax.experimental import pallas as pl

        own = self.own
        for slot in self._slots:
            begin = (column // own.part + slot) * own.part
            block = begin // own.size
            # In a ring the newest columns may lie in the block of the oldest.
            here = (block == own_block) | (block == own_block + own.blocks)

            @pl.when(here & (begin <= own.last(column)))
            def _(slot=slot, begin=begin):
                self._wait(slot)  # for the part of the row before
                at = pl.ds(pl.multiple_of(begin % own.size, own.part), own.part)
                old = blocks[0][0, 0, :, :, at], blocks[1][0, 0, :, at, :]
                placed = _placed(*new, start=begin - column, own=own)
                for part, new_x, old_x, axis in zip(
                    self.parts, placed, old, (2, 1), strict=True
                ):
                    place = begin - column + _iota(new_x.shape, axis)
                    is_new = (place >= 0) & (place < own.tokens)
                    # In fp32: not every chip selects numbers of 16 bits.
                    x = jnp.where(is_new, new_x, old_x.astype(jnp.float32))
                    part[slot] = x.astype(part.dtype)
                for copy in self._copies(slot, begin % own.columns):
                    copy.start()
                self.under_way_ref[slot] = 1


def _placed(new_k_ref, new_v_ref, start, own: OwnCut):
    """A part's new keys [K, C, S] and values [K, S, C], each at its place; fp32.

    start: where the part begins, in columns from the first new one. A product with a
    matrix that has a 1 for each token, in its column: exact, as nothing is added to it.
    """
    k_KJC, v_KJC = new_k_ref[0], new_v_ref[0]
    exact = jax.lax.Precision.HIGHEST if k_KJC.dtype == jnp.float32 else None
    product = functools.partial(
        jax.lax.dot_general, precision=exact, preferred_element_type=jnp.float32
    )

    def hot(shape, tokens, columns):
        there = start + _iota(shape, columns) == _iota(shape, tokens)
        return there.astype(jnp.float32).astype(k_KJC.dtype)

    K, J, S = k_KJC.shape[0], own.tokens, own.part
    k_KCS = product(k_KJC, hot((K, J, S), 1, 2), (((1,), (1,)), ((0,), (0,))))
    v_KSC = product(hot((K, S, J), 2, 1), v_KJC, (((2,), (1,)), ((0,), (0,))))
    return k_KCS, v_KSC


def _iota(shape, axis: int):
    return jax.lax.broadcasted_iota(jnp.int32, shape, axis)


def _add(q_KQC, held, k, v_KSC, start, sees, *, own, scale, softcap, channels=1):
    """Columns of which a query sees those that `sees(place, token)` is true of.

    k: their keys, whose channels are axis `channels`. start: where they begin. Places
    are counted from the first column that the step writes, where token 0 is.
    """
    most_ref, sum_ref, out_sum_ref = held
    score_KQS = scale * jax.lax.dot_general(
        q_KQC,
        k,
        (((2,), (channels,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
    if softcap:
        score_KQS = softcap * jnp.tanh(score_KQS / softcap)
    shape, heads = score_KQS.shape, score_KQS.shape[1] // own.tokens
    # A token's query heads follow one another.
    query = _iota(shape, 1)
    token = sum((query >= n * heads).astype(jnp.int32) for n in range(1, own.tokens))
    score_KQS = jnp.where(sees(start + _iota(shape, 2), token), score_KQS, _NONE)
    # Softmax as it goes: with a larger maximum the sums so far are scaled down by
    # exp(before − most). A query that has seen a column has a maximum above _NONE, and
    # what it does not see has weight 0.
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


def columns_read(column_B, seen_B, prompt_B, prompt: Cut, own: OwnCut):
    """Columns of the cache that each row reads, by `list_entries`: whole blocks.

    Of its own one block at least. Prompts of one block are read by the first row that
    has them. The arguments are those of `list_entries`.
    """
    read_B = prompt_read(seen_B, prompt)
    if prompt.blocks == 1:
        read_B *= first_of_each(prompt_B, read_B > 0)
    return own_read(column_B, own) + read_B


def prompt_read(seen_B, prompt: Cut):
    """Columns of its prompt that each row reads, whole blocks."""
    return (prompt.blocks - _prompt_from(seen_B, prompt) // prompt.size) * prompt.size


def own_read(column_B, own: OwnCut):
    """Columns of its own that each row reads, whole blocks."""
    blocks_B = own.last_block(column_B) - own.first_block(column_B) + 1
    return blocks_B * own.size


def columns_written(own: OwnCut) -> int:
    """Columns that a row writes back at a step, in the mean of all places in a part."""
    # J columns lie in two parts if they begin at the last J − 1 places of one.
    return own.part + own.tokens - 1


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

    def own_columns(self, own: OwnCut) -> float:
        """Columns that a row reads at a step, those of its prompt among them."""
        return self.columns


@dataclasses.dataclass(frozen=True)
class Rounds:
    """Rows that all begin and end together, in so many decode steps."""

    length: int  # of every prompt
    steps: int  # one column more each
    group: int = 1  # rows of a prompt, which follow one another

    def prompt_columns(self, prompt: Cut) -> float:
        """Columns of its prompt that a row reads at a step, in the mean."""
        seen = np.full(self.steps, self.length)
        if prompt.columns < self.length:  # a window's: one less for each of its own
            seen = prompt.columns - 1 - np.arange(self.steps)
        return _mean(prompt_read(seen, prompt))

    def own_columns(self, own: OwnCut) -> float:
        """Columns of its own that a row reads at a step, in the mean."""
        return _mean(own_read(np.arange(self.steps), own))


def _mean(columns) -> float:
    return float(np.mean(np.asarray(columns)))  # in 64 bits, which JAX has not


@kernel_cost.of(NAME)
def cost(launch: Launch, rows: Rounds | ColumnsRead | None = None) -> Cost:
    """The cost of a step in which rows read as `rows` says; None: all of both parts.

    A launch does not show its window: a ring is read whole once it has turned.
    """
    queries, prompt_keys, _, own_keys, _, new_keys, _, out, _, _ = launch.operands
    prompt = Cut(prompt_keys.shape[-1], prompt_keys.block[-1])
    (_, K, J, C), columns = new_keys.block, own_keys.shape[-1]
    own = OwnCut(columns, own_keys.block[-1], tokens=J)
    prompt_columns, own_columns = prompt.columns, own.columns
    if rows is not None:
        prompt_columns, own_columns = rows.prompt_columns(prompt), rows.own_columns(own)
    count = queries.shape[0]
    # By the keys and by the values, a multiplication and an addition each: of all
    # queries with what they read and with the step's tokens, and of these with their
    # places in the parts that are written back.
    written = columns_written(own)
    flops = 2 * 2.0 * math.prod(queries.block) * (prompt_columns + own_columns + J)
    flops += 2 * 2.0 * K * J * C * written
    prompt_blocks = prompt_columns / prompt.size
    if prompt.blocks == 1 and rows is not None:
        prompt_blocks /= rows.group  # read by the first of its rows
    own_blocks = (own_columns + written) / own.size
    # Of a row: queries, and what comes of them; of prompts, of its own and of the new
    # tokens keys and values, which have as many bytes.
    row_bytes = queries.block_bytes + out.block_bytes
    for blocks, keys in (
        (prompt_blocks, prompt_keys),
        (own_blocks, own_keys),
        (1, new_keys),
    ):
        row_bytes += 2 * blocks * keys.block_bytes
    return Cost(flops=count * flops, hbm_bytes=count * row_bytes)
