"""The KV cache: what a layer has computed, and how rows enter, move and leave it.

Each row has its own text in its own columns, in their order: a prompt at columns 0 to
L − 1, its response from column L on. A decode step writes J columns of each row, behind
those that the row has. A layer with a window keeps fewer columns than there are, column
c at c % the number that it keeps.

A decode step may be told later that some of its tokens were not the row's (a draft that
is rejected): the row goes on at the first column that was not, and overwrites them.
Until then they lie behind its queries. Positions decide what a query sees, and these
columns have later ones.

A row begins with its prompt's columns, which are copied into it. Where decode's kernel
reads them (models/attention/ragged_decode.py), prompts are kept once, beside the rows,
and shared by their rollouts; then a row has its response from column 0 on, and nothing
asks for positions.

Axes: B rows, J tokens of a decode step, K kv heads, S columns, C channels per head, L
columns of a prompt. A stack has groups of layers along its first axis.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from limr_jax.models.config import ModelConfig
from limr_jax.sharding import ROWS, constrain, divided, on_each, platform

# Columns that attention reads at least; up to so many there is nothing to choose.
NARROWEST = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys [B, K, C, S] and values [B, K, S, C]: each as attention contracts it.

    Rows (B) are axis 1 of the stacks (5 axes), axis 0 of all else.
    """

    # Of a scan one dict of stacks [groups, B, …]; unrolled, one dict for each group of
    # [B, …]: pattern position → (keys, values).
    blocks: tuple
    tail: dict  # layer of the tail → (keys, values)
    position: dict  # kind of attention → int32 [B, S]; -1 marks an empty column

    @property
    def rows(self) -> int:
        """B, how many rows the cache has."""
        return next(iter(self.position.values())).shape[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    """Prompts that rows of a cache have beside their own columns."""

    prompts: KVCache  # P rows; the last column is the last token
    row_B: jax.Array  # int32: which of them each has, counted on its device


def column_counts(
    config: ModelConfig, columns: int, step_tokens: int = 1
) -> dict[str, int]:
    """Columns that each kind of attention keeps, of so many.

    Sliding has a ring of its window and of the other tokens of a decode step, of which
    there are `step_tokens`: the last one's column must not take the place of the oldest
    that the first one sees.
    """
    kept = columns if config.window is None else config.window + step_tokens - 1
    return {"full": columns, "sliding": min(kept, columns)}


def _map(function: Callable, config: ModelConfig, *caches: KVCache) -> KVCache:
    """A cache whose arrays are the function's, of the same array of each of these.

    It is called as `function(*arrays, kind=…, axis=…, empty=…)`: the kind of attention,
    the axis of the columns, and what stands in an empty one.
    """

    def layer(kind, kvs):
        return tuple(
            function(*arrays, kind=kind, axis=axis, empty=0)
            # Keys have their columns last, values last but one, before channels.
            for arrays, axis in zip(zip(*kvs), (-1, -2))
        )

    def positions(kind):
        arrays = (cache.position[kind] for cache in caches)
        # No query sees a column of position -1.
        return function(*arrays, kind=kind, axis=-1, empty=-1)

    first = caches[0]
    return KVCache(
        blocks=tuple(
            {
                key: layer(config.pattern[int(key)], [group[key] for group in groups])
                for key in groups[0]
            }
            for groups in zip(*(cache.blocks for cache in caches))
        ),
        tail={
            key: layer(config.tail[int(key)], [cache.tail[key] for cache in caches])
            for key in first.tail
        },
        position={kind: positions(kind) for kind in first.position},
    )


def _rows_axis(x) -> int:
    # Behind the axis of the groups where layers are stacked.
    return int(x.ndim == 5)


def write_columns(kv, new, column_B, index, *, kind: str):
    """A layer's (keys, values) with J new columns in every row, in their dtype.

    kv: [B, K, C, S] and [B, K, S, C], or stacks of them. new: [B, K, C, J] and
    [B, K, J, C]. column_B: where each row's first new column is, counted on and not
    round a ring; may be traced. index: which layer of the stacks it is; None where
    there are no stacks. kind: of attention, by which sliding layers have rings.

    Every device writes its own rows and heads.
    """
    layer = jnp.int32(0 if index is None else index)
    stack = () if index is None else (None,)
    stacks = tuple(divided(x.shape, *stack, ROWS, "tensor", None, None) for x in kv)
    heads = tuple(divided(x.shape, ROWS, "tensor", None, None) for x in new)
    rows, whole = divided(column_B.shape, ROWS), jax.sharding.PartitionSpec()

    def local(kv, new, column_B, layer):
        def write(x, x_new, axis):
            x_new = x_new if index is None else x_new[:, None]
            return _write_rows(x, x_new, column_B, layer, axis=axis, kind=kind)

        return tuple(map(write, kv, new, (-1, -2)))

    # shard_map takes its arguments by their places, as the specs have them.
    specs = stacks, heads, rows, whole
    return on_each(local, specs, stacks)(kv, new, column_B, layer)


def write_positions(position_BS, position_BJ, column_B, *, kind: str):
    """The positions of a kind's columns with the new ones', as `write_columns` does."""
    size = position_BS.shape[1]
    ahead_BS = jnp.arange(size, dtype=jnp.int32)[None] - column_B[:, None]
    if kind == "sliding":
        ahead_BS %= size
    # Few numbers: read and chosen from, they take less than a scatter.
    for j in range(position_BJ.shape[1]):
        new_B1 = position_BJ[:, j : j + 1]
        position_BS = jnp.where(ahead_BS == j, new_B1, position_BS)
    return position_BS


def _write_rows(x, new, column_B, layer, *, axis: int, kind: str):
    """x with `new` at each row's columns.

    x: keys or values. new: its rows first, then the other axes of x, of which `axis`
    has J columns. layer: of a stack, whose axis has size 1 in `new`; else 0.
    """
    new, at = new.astype(x.dtype), _rows_axis(x)
    tokens, size = new.shape[axis], x.shape[axis]
    # In a ring one by one, for they may lie round its end.
    width = tokens if kind == "full" else 1

    def write(x, one_row, column, *place):
        for j in range(0, tokens, width):
            there = [*place, *[jnp.int32(0)] * (x.ndim - len(place))]
            there[axis] = column if kind == "full" else (column + j) % size
            one = jax.lax.slice_in_dim(one_row, j, j + width, axis=one_row.ndim + axis)
            x = jax.lax.dynamic_update_slice(x, one, there)
        return x

    stack = (jnp.int32(layer),) * at
    if platform() == "tpu":
        # Its compiler scatters into copies of all of x. A row's axis has size 1 in the
        # rows' `new`, as the layer's has: their order does not matter.
        def write_row(b, x):
            one_row = jax.lax.dynamic_slice_in_dim(new, b, 1, axis=0)
            return write(x, one_row, column_B[b], *stack, b)

        return jax.lax.fori_loop(0, len(column_B), write_row, x)
    # Slices whose places depend on the row become one scatter, in place.
    write_rows = jax.vmap(write, in_axes=(at, 0, 0) + (None,) * at, out_axes=at)
    return write_rows(x, new, column_B, *stack)


def read_columns(kv, width: int, index):
    """The first columns of a layer: keys [B, K, C, width], values [B, K, width, C].

    kv, index: as `write_columns` takes them.
    """
    parts = (
        jax.lax.slice_in_dim(x, 0, width, axis=x.ndim + axis)
        for x, axis in zip(kv, (-1, -2))
    )
    if index is None:
        return tuple(parts)
    read = jax.lax.dynamic_index_in_dim
    return tuple(read(x, index, keepdims=False) for x in parts)


def widths(columns: int) -> tuple[int, ...]:
    """How many columns may be read: twice as many each time, at last all."""
    choices = [NARROWEST]
    while choices[-1] < columns:
        choices.append(2 * choices[-1])
    return (*choices[:-1], columns)


def over_filled(function: Callable, columns: int, filled):
    """`function(width)`, of the least width that holds all that has been written.

    filled: columns of the fullest row, of so many; more than there are in a ring that
    has turned, which is read whole.
    """
    choices = widths(columns)
    number = _choice(choices, filled)
    return jax.lax.switch(number, [functools.partial(function, w) for w in choices])


def width_read(columns: int, filled):
    """The width that `over_filled` reads."""
    choices = widths(columns)
    return jnp.array(choices, jnp.int32)[_choice(choices, filled)]


def _choice(choices: tuple[int, ...], filled):
    return jnp.sum(filled > jnp.array(choices[:-1], jnp.int32))


def empty_rows(
    prompts: KVCache, config: ModelConfig, *, rows: int, counts: dict[str, int]
) -> KVCache:
    """A cache of empty rows, for rollouts that read their prompts beside it.

    prompts: the cache that those lie in, of the same model and dtypes. rows: B.
    counts: columns of a row for each kind of attention.
    """

    def filled(x, *, kind, axis, empty):
        shape = list(x.shape)
        shape[_rows_axis(x)], shape[axis] = rows, counts[kind]
        return jnp.full(shape, empty, x.dtype)

    return _map(filled, config, prompts)


def in_order(prompts: KVCache, config: ModelConfig, *, length: int) -> KVCache:
    """The prompts' cache with each layer's columns in their order, the newest last.

    length: columns of the prompts, L. Where a layer keeps fewer, its ring is turned,
    and of a sliding layer its window is left.
    """
    counts = column_counts(config, length)

    def turned(x, *, kind, axis, empty):
        size = x.shape[axis]
        # Column c lies at c % size, so the oldest that is kept at length % size.
        x = jnp.roll(x, -length % size, axis=axis) if length > size else x
        return jax.lax.slice_in_dim(x, size - counts[kind], size, axis=axis % x.ndim)

    return _map(turned, config, prompts)


def repeat(
    cache: KVCache,
    config: ModelConfig,
    *,
    group: int,
    rows: int,
    counts: dict[str, int],
) -> KVCache:
    """A cache of `rows` rows, each a copy of a prompt's: row b has prompt b // group.

    cache: of the prompts. counts: columns of a new row for each kind of attention;
    those behind the prompt's are empty.
    """

    def widened(x, *, kind, axis, empty):
        # Only prompts that these rows have: repeated for all rollouts and cut after,
        # the cache would be there once whole.
        x = jax.lax.slice_in_dim(x, 0, -(-rows // group), axis=_rows_axis(x))
        x = jnp.repeat(x, group, axis=_rows_axis(x))
        x = jax.lax.slice_in_dim(x, 0, rows, axis=_rows_axis(x))
        return _widen(x, axis=axis, count=counts[kind], empty=empty)

    return _map(widened, config, cache)


def copies(
    cache: KVCache, config: ModelConfig, prompt_X, *, counts: dict[str, int]
) -> KVCache:
    """A cache of X rows, each a copy of the prompt of that number.

    It is `repeat` where rows have prompts in whatever order; prompt_X: int32, may be
    traced.
    """

    def widened(x, *, kind, axis, empty):
        return _widen(x, axis, counts[kind], empty)

    return _map(widened, config, take(cache, prompt_X))


def _widen(x, axis: int, count: int, empty):
    """Empty columns behind, up to `count`."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, count - x.shape[axis])
    return jnp.pad(x, pads, constant_values=empty)


def put(
    cache: KVCache, prompts: KVCache, config: ModelConfig, *, row, prompt
) -> KVCache:
    """The cache with a copy of one prompt in one row, and nothing else in that row.

    row, prompt: numbers of rows of `cache` and of `prompts`; both may be traced.
    """

    def put_one(x, prompt_x, *, kind, axis, empty):
        at = _rows_axis(x)
        new = jax.lax.dynamic_slice_in_dim(prompt_x, prompt, 1, axis=at)
        # As wide as the row: what its last rollout left there is overwritten.
        new = _widen(new, axis=axis, count=x.shape[axis], empty=empty)
        return jax.lax.dynamic_update_slice_in_dim(x, new, row, axis=at)

    return _map(put_one, config, cache, prompts)


def by_parts(function: Callable, *arrays):
    """`function(*part)` of each part of `chunking.split_rows`, the rows as they were.

    It returns a cache, with other arrays of its rows or without. Each part is written
    where it stays: all of them stacked and put in order after would be there twice.
    """
    count = len(arrays[0])
    of_part = jax.eval_shape(function, *(x[0] for x in arrays))

    def room(x):
        # Parts lie behind the rows: row i of part m is row i · parts + m, as
        # `split_rows` deals them.
        at = _rows_axis(x) + 1
        heads = ("tensor",) if x.ndim > 3 else ()
        empty = jnp.zeros((*x.shape[:at], count, *x.shape[at:]), x.dtype)
        axes = (*(None,) * (at - 1), ROWS, None, *heads)
        return constrain(empty, *axes, *(None,) * (empty.ndim - len(axes)))

    def write(m, all_parts):
        def one(x, new):
            at = _rows_axis(new) + 1
            new = jnp.expand_dims(new, at)
            return jax.lax.dynamic_update_slice_in_dim(x, new, m, at)

        return jax.tree.map(one, all_parts, function(*(x[m] for x in arrays)))

    def join(x, part):
        at = _rows_axis(part)
        return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])

    all_parts = jax.lax.fori_loop(0, count, write, jax.tree.map(room, of_part))
    return jax.tree.map(join, all_parts, of_part)


def take(cache: KVCache, row_X) -> KVCache:
    """A cache of X = len(row_X) rows: those of these numbers, in this order."""

    def one(x):
        if not _rows_axis(x):
            return jnp.take(x, row_X, axis=0)

        # A TPU's gather from a stack would first copy all of it, in pieces.
        def move(i, taken_x):
            row = jax.lax.dynamic_slice_in_dim(x, row_X[i], 1, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(taken_x, row, i, axis=1)

        empty = jnp.zeros((x.shape[0], len(row_X), *x.shape[2:]), x.dtype)
        return jax.lax.fori_loop(0, len(row_X), move, empty)

    return jax.tree.map(one, cache)


def specs(cache: KVCache, rows) -> KVCache:
    """How each array lies on the mesh; `rows` are the axes that its rows lie over."""

    def spec(x):
        stack = (None,) * _rows_axis(x)
        # kv heads lie over `tensor`, where it divides them; positions have no heads.
        axes = (rows, "tensor", None, None) if x.ndim > 2 else (rows, None)
        return divided(x.shape, *stack, *axes)

    return jax.tree.map(spec, cache)
