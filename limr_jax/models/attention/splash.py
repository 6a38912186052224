"""Attention by JAX's splash kernel for TPU: scores are made in blocks, on the chip.

The kernel is https://arxiv.org/abs/2205.14135's, forward and backward; blocks of which
a query sees nothing are not computed, nor read. What it takes is a function of the
query's number and the key's column, made up as the blocks are. In rows as
learner/packing.py lays them a query sees two runs of columns, whatever stands in its
row:

    its own text's from the text's first to the query itself, and
    of its segment those before the prompt's end, if it goes on from a prompt.

Three distances say which: d is from query to key, a sliding window w cuts both.

    own:     0 ≤ d ≤ near                    near = min(query − first, w − 1)
    prompt:  far < d < w + far − near        far  = query − the prompt's end

Axes: B rows, T tokens, S columns of keys, H heads, K kv heads, C channels per head,
I blocks of queries, J blocks of keys.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.models.attention import kernel_cost
from limr_jax.models.attention.kernel_cost import Cost, Launch
from limr_jax.sharding import ROWS, divided, on_each, platform, shards

INTERPRET = False  # tests only: the kernel's own interpreter, on any platform
QUERIES = (1024, 512, 256)  # of a block: the first that rows fill but for PADDING
PADDING = 1 / 8  # columns that a row may be filled up by
BLOCK = 2**17  # numbers of a block of queries at most: what fits on the chip in fp32
BLOCKS = 512  # of queries at once: each has two lines in a scalar memory of 1 MiB


@dataclasses.dataclass(frozen=True)
class Seen:
    """Who sees whom, from a query's code and a key's column; static in the kernel.

    A block's queries are twice its keys: so the kernel's two ways to lay out scores,
    queries first and keys first, are told apart.
    """

    queries: int  # of a block
    bits: int  # of a distance within a row
    shared: bool  # whether rows hold prompts with several texts after them
    window: int | None

    def encode(self, near_BT, far_BT):
        """The code of every query: near, far, and its block's number as far as needed.

        Keys are counted through all rows of a device, so blocks are too; none is
        visited across rows, so 2 ** (bits + 1) columns tell the distances.
        """
        rows, columns = near_BT.shape
        block_BT = jnp.arange(rows * columns, dtype=jnp.int32) // self.queries
        block_BT = (block_BT % self.cycle).reshape(near_BT.shape)
        code_BT = block_BT << self.bits | near_BT
        return code_BT << self.bits | far_BT if self.shared else code_BT

    @property
    def cycle(self) -> int:
        return 2 ** (self.bits + 1) // self.queries

    @property
    def code_bits(self) -> int:
        return (2 if self.shared else 1) * self.bits + self.cycle.bit_length() - 1

    def __call__(self, code_TS, key_TS):
        """bool; the code is the same in all of a query's elements."""
        across = int(code_TS.shape[0] != self.queries)  # the queries' axis
        # Decoded once a query: 128 lanes, or one row of sublanes, of all the keys'.
        code = jax.lax.slice_in_dim(code_TS, 0, 1 if across else 128, axis=1 - across)
        mask = 2**self.bits - 1
        far = code & mask
        code = code >> self.bits if self.shared else code
        near = code & mask
        inside = jax.lax.broadcasted_iota(jnp.int32, code.shape, across)
        query = (code >> self.bits) * self.queries + inside

        def whole(x):
            if across:
                return jnp.broadcast_to(x, code_TS.shape)
            return jnp.tile(x, (1, code_TS.shape[1] // x.shape[1]))

        # A key behind the query is a whole cycle away but for a few.
        distance = (whole(query) - key_TS) & (2 * mask + 1)
        # Modulo the cycle d < 0 is more than any near: 0 ≤ d needs no test.
        seen = distance <= whole(near)
        if not self.shared:
            return seen
        most = jnp.minimum(mask, self.window - 1 + far - near) if self.window else mask
        return seen | (distance > whole(far)) & (
            distance <= (whole(most) if self.window else most)
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sight:
    """What the queries of a batch see, as the kernel takes it."""

    near_BT: jax.Array  # int32: as above
    far_BT: jax.Array | None  # int32; as large as can be: sees no prompt beside itself
    segment_BT: jax.Array | None  # int32, -1 = padding; where prompts are shared
    visited_BIJ: jax.Array  # bool: a query of block i sees a key of block j
    seen: Seen = dataclasses.field(metadata={"static": True})


def queries(columns: int, head_dim: int) -> int:
    """Queries of a block, for rows of so many columns; 0: they are too short."""
    sizes = (size for size in QUERIES if size * head_dim <= BLOCK)
    return next((n for n in sizes if -columns % n <= PADDING * columns), 0)


def fits(columns: int, config, *, shared: bool) -> bool:
    """Whether the kernel is for attention in rows of so many columns, on this mesh.

    Only where a TPU is compiled for and the config wants it. Not for rows that are too
    short, or so long that codes need more than 31 bits, nor where a device's heads read
    parts of several kv heads' groups.
    """
    if not config.takes("splash") or not (INTERPRET or platform() == "tpu"):
        return False
    size = queries(columns, config.head_dim)
    if not size or config.head_dim % 64:
        return False
    if _seen(columns, size, shared=shared, window=None).code_bits > 31:
        return False
    return (
        not _parted(config)
        or config.heads // config.kv_heads % (config.heads // shards("tensor")) == 0
    )


def _parted(config) -> bool:
    """Whether devices have some of the heads each, but all kv heads."""
    parts = shards("tensor")
    return config.heads % parts == 0 and config.kv_heads % parts != 0


def _seen(columns: int, size: int, shared: bool, window: int | None) -> Seen:
    bits = (columns + -columns % size - 1).bit_length()
    return Seen(
        queries=size,
        bits=bits,
        shared=shared,
        # A window of all columns hides nothing, and needs no second test.
        window=window if window and window < columns else None,
    )


def sight(position_BT, segment_BT, branch_BT, config, *, window: int | None) -> Sight:
    """What each query of B rows of T columns sees, for `attend`.

    position_BT: int32, -1 = padding, which sees itself alone. segment_BT, branch_BT:
    int32 or None, as in `transformer.forward`: what belongs together lies in one piece.
    config: the ModelConfig. window: positions that a query sees at most, itself
    included; None: all. `fits` must be true of such rows. In the result T is filled up
    to whole blocks of queries.
    """
    T, shared = position_BT.shape[1], branch_BT is not None
    size = queries(T, config.head_dim)
    seen = _seen(T, size, shared=shared, window=window)
    fill = [(0, 0), (0, -T % size)]
    position_BT = jnp.pad(position_BT, fill, constant_values=-1)
    segment_BT, branch_BT = (
        x if x is None else jnp.pad(x, fill) for x in (segment_BT, branch_BT)
    )
    live_BT = position_BT >= 0
    column_T = jnp.arange(T + -T % size, dtype=jnp.int32)[None]

    def begins(x_BT):
        return jnp.pad(x_BT[:, 1:] != x_BT[:, :-1], [(0, 0), (1, 0)])

    def latest(column_BT):
        return jax.lax.cummax(column_BT, axis=1)

    # Padding sees itself only.
    text_BT = ~live_BT | begins(live_BT)
    if segment_BT is not None:
        text_BT |= begins(segment_BT)
    # Where a column's segment begins; where its text does, once branches are added.
    segment_begin_BT = latest(jnp.where(text_BT, column_T, 0))
    far_BT = least_BT = None
    if shared:
        text_BT |= begins(branch_BT)
    near_BT = column_T - latest(jnp.where(text_BT, column_T, 0))
    if shared:
        # The prompt's last column; far is counted from the column behind it.
        last_BT = latest(jnp.where(live_BT & (branch_BT == 0), column_T, -1))
        goes_on_BT = live_BT & (branch_BT > 0)
        far_BT = column_T - last_BT - 1
        least_BT = segment_begin_BT
        if seen.window:
            # A query is near + 1 positions behind the prompt's last token: with a
            # window of no more than that it sees none of the prompt.
            goes_on_BT &= near_BT + 1 < window
            reach_BT = window - 1 + far_BT - near_BT
            least_BT = jnp.maximum(least_BT, column_T - reach_BT)
        # The largest distance there is: `far < d` is then never true.
        far_BT = jnp.where(goes_on_BT, far_BT, 2**seen.bits - 1)
    if seen.window:
        near_BT = jnp.minimum(near_BT, window - 1)
    return Sight(
        near_BT=near_BT,
        far_BT=far_BT,
        segment_BT=jnp.where(live_BT, segment_BT, -1) if shared else None,
        visited_BIJ=_visited(size, near_BT=near_BT, far_BT=far_BT, least_BT=least_BT),
        seen=seen,
    )


def _visited(size: int, near_BT, far_BT, least_BT):
    """Whether a query of block i sees a key of block j, bool [B, I, J].

    size: queries of a block, twice its keys. near_BT, far_BT: as in `Sight`. least_BT:
    the first column of a prompt that a query sees; it is None where far_BT is.
    """
    B, T = near_BT.shape
    column_T = jnp.arange(T, dtype=jnp.int32)[None]
    begin_J = jnp.arange(0, T, size // 2, dtype=jnp.int32)[None, None]

    def meets(first_BT, last_BT):
        """Whether first … last has a column of each block, [B, T, J]."""
        end_J = begin_J + size // 2 - 1
        return (first_BT[..., None] <= end_J) & (last_BT[..., None] >= begin_J)

    met_BTJ = meets(column_T - near_BT, jnp.broadcast_to(column_T, (B, T)))
    if far_BT is not None:  # nothing ends before column 0
        met_BTJ |= meets(least_BT, column_T - far_BT - 1)
    return jnp.any(met_BTJ.reshape(B, T // size, size, -1), axis=2)


def attend(q_BTHC, k_BKCT, v_BKTC, sight: Sight, config):
    """Softmax attention by the kernel, forward and backward: out_BTHC, in q's dtype.

    q_BTHC, k_BKCT, v_BKTC: of one dtype. sight: of the same rows, from `sight`. config:
    the ModelConfig. Each device computes the rows and the heads that it holds. What
    comes at padding means nothing.
    """
    heads = divided(q_BTHC.shape, ROWS, None, "tensor", None)
    kv_heads = divided(k_BKCT.shape, ROWS, "tensor", None, None)
    rows = jax.tree.map(lambda x: divided(x.shape, ROWS, *[None] * (x.ndim - 1)), sight)
    scale = config.attention_scale or config.head_dim**-0.5
    T, fill = q_BTHC.shape[1], (0, sight.near_BT.shape[1] - q_BTHC.shape[1])
    parted = _parted(config)

    def each(q_BTHC, k_BKCT, v_BKTC, sight):
        if parted:  # the kv head that a device's heads share
            H, Q = q_BTHC.shape[2], config.heads // config.kv_heads
            head = jax.lax.axis_index("tensor") * H // Q
            k_BKCT, v_BKTC = (
                jax.lax.dynamic_slice_in_dim(x, head, 1, axis=1)
                for x in (k_BKCT, v_BKTC)
            )
        # The kernel does not scale its scores, so queries are, and rounded once.
        q_BTHC = (q_BTHC.astype(jnp.float32) * scale).astype(q_BTHC.dtype)
        q_BTHC, k_BKCT, v_BKTC = (
            jnp.pad(x, [fill if a == axis else (0, 0) for a in range(4)])
            for x, axis in ((q_BTHC, 1), (k_BKCT, 3), (v_BKTC, 2))
        )
        at_once = partial(_attend, softcap=config.attention_softcap)
        out_BTHC = _by_rows(
            at_once, q_BTHC=q_BTHC, k_BKCT=k_BKCT, v_BKTC=v_BKTC, sight=sight
        )
        return out_BTHC[:, :T]

    specs = (heads, kv_heads, kv_heads, rows)
    return on_each(each, specs, heads)(q_BTHC, k_BKCT, v_BKTC, sight)


def _by_rows(attend_rows, q_BTHC, k_BKCT, v_BKTC, sight: Sight):
    """`attend_rows` of as many of a device's rows at once as may be."""
    B, I, _ = sight.visited_BIJ.shape
    count = next(
        n for n in range(1, B + 1) if B % n == 0 and B // n * I <= max(I, BLOCKS)
    )
    if count == 1:
        return attend_rows(q_BTHC, k_BKCT, v_BKTC, sight)
    split = jax.tree.map(
        lambda x: x.reshape(count, -1, *x.shape[1:]), (q_BTHC, k_BKCT, v_BKTC, sight)
    )
    parts = jax.lax.map(lambda part: attend_rows(*part), split)
    return parts.reshape(B, *parts.shape[2:])


def _attend(q_BTHC, k_BKCT, v_BKTC, sight: Sight, softcap):
    """All rows as one, so that they are one grid of blocks."""
    B, T, H, C = q_BTHC.shape

    def flat(x):
        """[…, B, T, C] → […, B · T, C]"""
        return x.reshape(*x.shape[:-3], B * T, x.shape[-1])

    out = _kernel(sight, softcap)(
        flat(q_BTHC.transpose(2, 0, 1, 3)),
        flat(k_BKCT.transpose(1, 0, 3, 2)),
        flat(v_BKTC.swapaxes(0, 1)),
    )
    return out.reshape(H, B, T, C).transpose(1, 2, 0, 3)


def _kernel(sight: Sight, softcap):
    """`(q, k, v) → out`, of heads by all rows' columns by channels."""
    # Here, so that other platforms do without it.
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as splash,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask_info as mask_info,
    )

    (B, I, J), size = sight.visited_BIJ.shape, sight.seen.queries
    row_B = jnp.arange(B, dtype=jnp.int32)[:, None, None]
    # Rows are one grid: block j of row b is number b · J + j.
    by_query = _held(sight.visited_BIJ, axis=2) + J * row_B
    by_key = _held(sight.visited_BIJ, axis=1) + I * row_B
    visited_BIJ = sight.visited_BIJ.astype(jnp.int32)
    code_BT = sight.seen.encode(sight.near_BT, sight.far_BT)

    def info(next_BIJ, join):
        return mask_info.MaskInfo(
            data_next=join(next_BIJ),
            # No block of the mask lies in memory: `mask_function` makes each one up.
            mask_next=None,
            # 0: not visited; 1: partly seen, so that the function is asked of it.
            block_mask=join(visited_BIJ),
            partial_mask_blocks=None,
            q_sequence=code_BT.reshape(-1),
        )

    forward = info(by_query, lambda x: x.reshape(1, B * I, J))
    backward = info(by_key, lambda x: x.swapaxes(0, 1).reshape(1, I, B * J))
    # Of the forward pass, of dq, of dk and dv: the last walks over queries.
    kernel = splash.SplashAttentionKernel(
        forward,
        forward,
        backward,
        # `Seen` wants twice as many queries as keys in a block.
        block_sizes=splash.BlockSizes(
            block_q=size,
            block_kv=size // 2,
            block_q_dq=size,
            block_kv_dq=size // 2,
            block_q_dkv=size,
            block_kv_dkv=size // 2,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=None,
        mask_function=sight.seen,
        interpret=INTERPRET,
    )
    segments = None
    if sight.segment_BT is not None:
        segment = sight.segment_BT.reshape(-1)
        segments = splash.SegmentIds(q=segment, kv=segment)
    return partial(kernel, segment_ids=segments)


def _held(visited_BIJ, axis: int):
    """The number of the block that is in memory at each turn along `axis`, int32.

    visited_BIJ: as in `Sight`. Only visited blocks are fetched: the last one stays
    until the next, and before the first that one is there already.
    """
    size = visited_BIJ.shape[axis]
    at = jax.lax.broadcasted_iota(jnp.int32, visited_BIJ.shape, axis)
    held = jax.lax.cummax(jnp.where(visited_BIJ, at, -1), axis=axis)
    # Before the first visited block, that one already: it is fetched once.
    first = jnp.min(jnp.where(visited_BIJ, at, size - 1), axis=axis, keepdims=True)
    return jnp.where(held < 0, first, held)


@kernel_cost.of("splash_")
def cost(launch: Launch, rows=None) -> Cost:
    """The cost of one of splash's kernels, forward or backward.

    A block is visited up to the diagonal, as if every row were one text. A sliding
    window, padding and texts that share a row leave out more of them, as the data has
    it.
    """
    # Two blocks of keys a block of queries; the last axis walks over one row.
    blocks = launch.grid[2] if "_dkv" in launch.name else launch.grid[2] // 2
    visited = math.prod(launch.grid) * ((blocks + 1) / (2 * blocks))
    return Cost(
        flops=visited * launch.step_flops,
        hbm_bytes=sum(
            (visited if x.moved is None else x.moved) * x.block_bytes
            for x in launch.operands
        ),
    )
