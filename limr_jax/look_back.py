"""Decode's attention on a TPU: each row reads the columns that it has, and no others.

A row has its prompt's columns, which lie in the row of the prompts that it names, and
its own, in a ring in which every row writes the same column (cache.py): row b's n are
the last n, from column − n + 1 to column, round the ring. Both are read in blocks, one
after another, softmax as it goes (arXiv:2205.14135). What is to be read is one list for
all rows, an entry being the next block of a row's prompt and the next of its own; the
kernel's grid is as long as that list, so a young row costs little beside an old one.
A block stays until another is wanted: rows of one prompt follow one another, and where
prompts are one block each is read once for all its rows. The list is walked in order:
of the two TensorCores of a v4 or v5p chip one does so, and the other waits, which no
bound of the compile report knows.

Axes: B rows, P rows of prompts, K kv heads, G query heads of each, S columns of the
ring, L of a prompt, C channels per head, R layers of a stack, I entries of the list.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from limr_jax.sharding import ROWS, divided, on_each, platform, shards

INTERPRET = False  # tests only: the kernel's own interpreter, on any platform
BLOCKS = (512, 256, 128)  # columns of a block: the first that divides the ring, and
MOST = 2**18  # of which a device's heads have at most so many keys' numbers
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
    nth_I: jax.Array  # of its row, from 0; 0 behind the last
    # A row's first column of the ring, counted from column 0 as if it were none, and of
    # its prompt: L where it sees none.
    own_from_B: jax.Array
    prompt_from_B: jax.Array
    prompt_B: jax.Array
    count_1: jax.Array  # entries that are to be read; the rest is filling


def fits(columns: int, config) -> int:
    """Columns of a block where decode reads such a ring by this kernel, else 0.

    Only where a TPU is compiled for and the config wants it.
    """
    if not config.attention_kernel or not (INTERPRET or platform() == "tpu"):
        return 0
    sizes = (n for n in BLOCKS if columns % n == 0 and n * _numbers(config) <= MOST)
    return next(sizes, 0)


def _numbers(config) -> int:
    """Of a column on a device, as its values lie there: 128 to a head at least."""
    parts = shards("tensor") if config.kv_heads % shards("tensor") == 0 else 1
    return config.kv_heads // parts * max(config.head_dim, 128)


def cuts(length: int, columns: int, config) -> tuple[Cut, Cut]:
    """Of prompts and of the ring, both of which `fits`; a prompt in one, if it can."""
    whole = length * _numbers(config) <= MOST
    prompt = Cut(length, length if whole else fits(length, config))
    return prompt, Cut(columns, fits(columns, config))


def listed(at: At, prompt: Cut, own: Cut, window: int | None = None) -> List:
    """What each device's rows read at this step, of any layer.

    window: columns that a row sees at most, with the one that it writes; None is all.
    """
    rows, prompt_rows = divided(at.prompt_B.shape, ROWS), divided(at.last_P.shape, ROWS)
    places = At(rows, rows, prompt_rows, jax.sharding.PartitionSpec())

    def local(at: At) -> List:
        last_B = at.last_P[at.prompt_B]
        own_B, seen_B = at.position_B - last_B, last_B + 1
        if window is not None:
            seen_B = jnp.minimum(seen_B, window - own_B)
        seen_B = jnp.where(at.position_B < 0, 0, seen_B)
        return entries(own_B, seen_B, at.prompt_B, at.column, prompt, own)

    out = List(*(rows for _ in dataclasses.fields(List)))
    return on_each(local, (places,), out)(at)


def entries(own_B, seen_B, prompt_B, column, prompt: Cut, own: Cut) -> List:
    """The list for rows that have so many columns of their own, the last `column`.

    seen_B: columns that they see of their prompts, prompt_B; rows that see none go by
    prompt 0, or each would have the kernel fetch its own. A row without any column of
    its own has an entry all the same, of which nothing comes.
    """
    own_from_B = column - jnp.clip(own_B, 1, own.columns) + 1
    prompt_from_B = prompt.columns - jnp.clip(seen_B, 0, prompt.columns)
    blocks_B = jnp.maximum(
        _last(own_from_B, column, own) - own_from_B // own.size + 1,
        prompt.blocks - prompt_from_B // prompt.size,
    )
    prompt_B = jnp.where(seen_B > 0, prompt_B, 0)
    order_B = jnp.argsort(prompt_B)
    end_B = jnp.cumsum(blocks_B[order_B])
    most = max(own.blocks, prompt.blocks)
    entry_I = jnp.arange(len(own_B) * most + 1, dtype=jnp.int32)
    at_I = jnp.searchsorted(end_B, entry_I, side="right", method="compare_all")
    there_I = at_I < len(own_B)
    at_I = jnp.minimum(at_I, len(own_B) - 1)
    nth_I = jnp.where(there_I, entry_I - (end_B - blocks_B[order_B])[at_I], 0)
    found = List(
        row_I=order_B[at_I],
        nth_I=nth_I,
        own_from_B=own_from_B,
        prompt_from_B=prompt_from_B,
        prompt_B=prompt_B,
        count_1=end_B[-1:],
    )
    return jax.tree.map(lambda x: x.astype(jnp.int32), found)


def _last(own_from, column, own: Cut):
    """The last block of the ring: the oldest and the newest columns may share one."""
    return jnp.minimum(column // own.size, own_from // own.size + own.blocks - 1)


def attend(q_BHC, prompts, own, read: List, column, index, config):
    """out_BHC of one query a row, of the layer `index` (None: there is no stack).

    prompts, own: keys and values as cache.py has them, of P rows, the last column last,
    and of B. read: what `listed` gives; column: the one of the ring just written.
    """
    arrays = [x if index is not None else x[None] for x in (*prompts, *own)]
    B, H, C = q_BHC.shape
    K = arrays[0].shape[2]
    q_BKGC = q_BHC.reshape(B, K, H // K, C)
    heads = divided(q_BKGC.shape, ROWS, "tensor", None, None)
    stacks = [divided(x.shape, None, ROWS, "tensor", None, None) for x in arrays]
    rows = divided((B,), ROWS)
    whole = jax.sharding.PartitionSpec()
    index = jnp.int32(0) if index is None else index
    specs = (heads, *stacks, jax.tree.map(lambda _: rows, read), whole, whole)
    cut = cuts(arrays[0].shape[4], arrays[2].shape[4], config)
    local = functools.partial(_attend, cut=cut, config=config)
    out = on_each(local, specs, heads)(q_BKGC, *arrays, read, column, index)
    return out.reshape(B, H, C)


def _attend(
    q_BKGC, prompt_keys, prompt_values, keys, values, read: List, column, index,
    *, cut, config,
):  # fmt: skip
    """What one device holds of it."""
    # Imported here: a second that only a TPU's programs need.
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    (_, K, G, C), (prompt, own) = q_BKGC.shape, cut

    of_row, of_prompts, of_ring = _places(prompt, own)
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
            grid=(read.count_1[0],),
            in_specs=[
                pl.BlockSpec((1, K, G, C), of_row),
                pl.BlockSpec((1, 1, K, C, prompt.size), of_prompts[0]),
                pl.BlockSpec((1, 1, K, prompt.size, C), of_prompts[1]),
                pl.BlockSpec((1, 1, K, C, own.size), of_ring[0]),
                pl.BlockSpec((1, 1, K, own.size, C), of_ring[1]),
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
        read.prompt_B,
        jnp.reshape(column, (1,)).astype(jnp.int32),
        q_BKGC,
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
        block = jnp.minimum(first + nth_I[i], prompt.blocks - 1)
        return layer[0], prompt_B[row], block

    def in_ring(i, layer, row_I, nth_I, own_from_B, _, __, column):
        row = row_I[i]
        last = _last(own_from_B[row], column[0], own)
        block = jnp.minimum(own_from_B[row] // own.size + nth_I[i], last)
        return layer[0], row, block % own.blocks

    def keys_and_values(place):
        def keys(*given):
            layer, row, block = place(*given)
            return layer, row, 0, 0, block

        def values(*given):
            layer, row, block = place(*given)
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
            add(k_KCS, v_KSC, start, lambda at: at >= prompt_from)

    @pl.when(own_block <= _last(own_from, column[0], own))
    def _():
        # In the block that the oldest and the newest share, the newest lie a turn on.
        def sees(at):
            here = (at >= own_from) & (at <= column[0])
            return here | (at + own.columns <= column[0])

        add(k_ref[0, 0], v_ref[0, 0], own_block * own.size, sees)

    @pl.when(nth_I[i + 1] == 0)
    def _():
        out_ref[0] = (out_sum_ref[...] / sum_ref[..., :1]).astype(out_ref.dtype)


def _add(q_KGC, held, k_KCS, v_KSC, start, sees, *, scale, softcap):
    """Columns from `start` on, of which those are seen that `sees` is true of."""
    most_ref, sum_ref, out_sum_ref = held
    score_KGS = scale * jax.lax.dot_general(
        q_KGC,
        k_KCS,
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
        weight_KGS.astype(v_KSC.dtype),
        v_KSC,
        (((2,), (1,)), ((0,), (0,))),
        preferred_element_type=jnp.float32,
    )
