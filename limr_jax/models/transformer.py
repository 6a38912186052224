"""One decoder-only Transformer: Qwen2/3, Llama and Gemma 2/3 by configuration.

Parameters are a plain nested dict. Layers are stacked by their position in the
repeating pattern of full and sliding attention (`blocks/<position>/…`, leading axis:
the groups) and scanned over the groups; layers that fill no whole group follow
unrolled (`tail/<i>/…`). NNX modules say what one layer is; they are split from and
merged with the dict in this file only.

Axes: B rows, T tokens, L prompt columns, S cache columns, D width, F feed-forward,
H heads, K kv heads, C channels per head, J tokens of a row in a decode step, V
vocabulary, X any axes before these.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from limr_jax.models import cpu, lora
from limr_jax.models.attention import dense, ragged_decode, splash
from limr_jax.models.attention.dense import (
    attend_causal,
    rotation,
    same_text_mask,
    seen_mask,
)
from limr_jax.models.config import ModelConfig, Rope
from limr_jax.models.int8 import is_quantised, quantise_params
from limr_jax.models.kv_cache import KVCache, Shared, column_counts
from limr_jax.models.layers import Block, RMSNorm
from limr_jax.models.summed import Summed, begin_sum, read_layer
from limr_jax.sharding import ROWS, constrain, device_count, param_rows, platform

__all__ = [
    "KVCache",
    "ModelConfig",
    "Rope",
    "compute_params",
    "decode",
    "forward",
    "init_params",
    "prefill",
    "text_attend_of",
    "unembed",
    "unstack",
]


# Layers, at most, that decode walks unrolled.
_UNROLLED, _UNROLLED_ON_CPU = 8, 32
_MANY = 2**24  # elements of one activation of all layers: 64 MiB in fp32
# Of a layer, for its backward pass: what layers.Projection gives.
_PRODUCTS = jax.checkpoint_policies.save_only_these_names("product")


@functools.cache
def _block_graph(config: ModelConfig, int8: bool):
    """The layer's structure without its arrays (None: what the config leaves out)."""
    block = nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0), int8=int8))
    return nnx.split(block)[0]


def _graph_of(params, config: ModelConfig):
    """The structure of the layers that these parameters are of.

    Parameters without adapters are of the base alone, whatever the config has: so a
    reference goes through the programs of the policy. Whether kernels are int8 is seen
    by their scales.
    """
    config = config if lora.has_adapters(params) else config.base
    return _block_graph(config, is_quantised(params))


def _rotations(position_BT, config: ModelConfig):
    """The rotation of each kind of attention in the pattern."""
    # Gemma 3's sliding layers turn by a base of their own.
    ropes = {"full": config.rope, "sliding": config.local_rope or config.rope}
    return {
        kind: rotation(position_BT, ropes[kind], config.head_dim)
        for kind in dict.fromkeys(config.pattern)
    }


# --- The whole model --------------------------------------------------------------


def init_params(config: ModelConfig, key, dtype=jnp.float32, *, int8: bool = False):
    """Random parameters: kernels normal(0, 0.02), biases 0, norms the identity.

    Adapters, where the config has them, change nothing yet: A is normal, B is 0.
    int8: quantise the projections' kernels, a layer at a time, so that the layers are
    never all there in fp32; the rest is of `dtype`, scales fp32.
    """
    layers_key, embedding_key, head_key = jax.random.split(key, 3)

    def block(key):
        rngs = nnx.Rngs(params=key, lora=jax.random.fold_in(key, 1))
        return nnx.to_pure_dict(nnx.split(Block(config, rngs=rngs))[1])

    # All layers at once, then dealt out: one random program to compile, not one each.
    keys = jax.random.split(layers_key, config.layers)
    if int8:
        layers = jax.lax.map(lambda key: quantise_params(block(key)), keys)
    else:
        layers = jax.vmap(block)(keys)
    period, stacked = len(config.pattern), config.groups * len(config.pattern)

    def deal(layer):
        return jax.tree.map(lambda x: x[layer], layers)

    shape = (config.vocab_size, config.width)
    params = {
        "embedder": {"embedding": 0.02 * jax.random.normal(embedding_key, shape)},
        # Position i of the pattern: layers i, i + period, … are one stack.
        "blocks": {str(i): deal(slice(i, stacked, period)) for i in range(period)},
        "final_norm": nnx.to_pure_dict(nnx.split(RMSNorm(config.width, config))[1]),
    }
    if config.tail:
        params["tail"] = {str(i): deal(stacked + i) for i in range(len(config.tail))}
    if not config.tied:
        params["head"] = {"kernel": 0.02 * jax.random.normal(head_key, shape[::-1])}
    if int8:
        return compute_params(params, dtype)
    return jax.tree.map(lambda x: x.astype(dtype), params)


def compute_params(params, dtype):
    """The parameters in `dtype`, but for those that sharding.py's table keeps in fp32.

    int8 kernels are int8. What the model computes does not change (it casts where it
    uses); a loop over decode then reads the smaller copy.
    """

    def cast(row, x):
        return x if row.fp32 or x.dtype == jnp.int8 else x.astype(dtype)

    return jax.tree.map(cast, param_rows(params), params)


def forward(
    params,
    tokens_BT,
    position_BT,
    segment_BT=None,
    branch_BT=None,
    *,
    config,
    dtype,
    remat=False,
):
    """hidden_BTD after the final norm; position -1 is padding, on either side.

    With `segment_BT` a row holds several texts, each with positions from 0, and a
    token sees its own segment only. With `branch_BT` a text goes on in several ways: of
    its segment a token sees branch 0 and its own, each going on from 0's positions.
    What belongs together lies in one piece, branch 0 first, in the order of positions:
    nobody sees a later column.
    `remat` keeps only each layer's input for the backward pass.
    """
    x_BTD = _embed(params, tokens_BT, config=config, dtype=dtype)
    x_BTD, _ = _read(
        params,
        x_BTD,
        position_BT,
        segment_BT=segment_BT,
        branch_BT=branch_BT,
        config=config,
        dtype=dtype,
        remat=remat,
        keep=lambda *_: None,
    )
    return _final_norm(params, x_BTD, config=config, dtype=dtype)


def unembed(params, hidden_XD, *, config, dtype):
    """fp32 logits_XV, the soft cap included; X is any leading axes."""
    if config.tied:
        kernel = params["embedder"]["embedding"]
    else:
        kernel = params["head"]["kernel"]
    # fp32 sums: bf16 logits between 16 and 32 would lie 0.125 nats apart.
    logits_XV = cpu.contract(
        hidden_XD.astype(dtype),
        kernel,
        count=1,
        dtype=jnp.float32,
        last=config.tied,
    )
    if config.logit_softcap:
        logits_XV = config.logit_softcap * jnp.tanh(logits_XV / config.logit_softcap)
    return logits_XV


def _embed(params, tokens_BT, config: ModelConfig, dtype):
    """The residual stream before the first layer, fp32; the embedding's in `dtype`."""
    x_BTD = params["embedder"]["embedding"].astype(dtype)[tokens_BT]
    if config.scale_embedding:
        # The factor is rounded to `dtype` too, as in transformers: √1152 = 33.94 is 34
        # in bf16.
        x_BTD = x_BTD * jnp.asarray(math.sqrt(config.width), dtype)
    x_BTD = x_BTD.astype(jnp.float32)
    # The table lies along words and width. Activations lie along rows, from here on.
    return constrain(x_BTD, ROWS, None, None)


def _final_norm(params, x_BTD, config: ModelConfig, dtype):
    # A module's structure costs nothing to make: no array is.
    graph = nnx.split(nnx.eval_shape(lambda: RMSNorm(config.width, config)))[0]
    return nnx.merge(graph, params["final_norm"])(x_BTD, dtype)


def text_attend_of(position_BT, segment_BT, branch_BT, config: ModelConfig):
    """Attention of each kind, `(q, k, v) → out`: a TPU's kernel, or XLA's own.

    The arguments are those of `forward`.
    """
    columns, shared = position_BT.shape[1], branch_BT is not None
    by_kernel = splash.fits(columns, config, shared=shared)
    # The kernel makes its masks as it goes; [B, T, T] is for XLA's attention alone.
    same_BTS = None if by_kernel else same_text_mask(segment_BT, branch_BT)

    def of_kind(kind):
        window = config.window_of(kind)
        if by_kernel:
            sight = splash.sight(
                position_BT,
                segment_BT=segment_BT,
                branch_BT=branch_BT,
                config=config,
                window=window,
            )
            return lambda q, k, v: splash.attend(q, k, v, sight=sight, config=config)
        mask_BTS = seen_mask(position_BT, position_BT, window)
        if same_BTS is not None:
            mask_BTS &= same_BTS
        return lambda q, k, v: attend_causal(q, k, v, mask_BTT=mask_BTS, config=config)

    return {kind: of_kind(kind) for kind in dict.fromkeys(config.pattern)}


def _keeps_products(position_BT, branch_BT, config: ModelConfig) -> bool:
    """Whether the backward pass finds a layer's products only, and computes the rest.

    Kept whole, a layer has three times as much: attention's scores, what the norms and
    the activation make. 2 rows of 280 columns of 30 layers (D = 576): 426 MiB instead
    of 1,403, in the same time. Few numbers are not worth what it adds to compiling; and
    a kernel's own residuals are no product.
    """
    elements = position_BT.size * config.mlp_width * config.layers // device_count()
    columns, shared = position_BT.shape[1], branch_BT is not None
    return elements > _MANY and not splash.fits(columns, config, shared=shared)


def _read(
    params, x_BTD, position_BT, segment_BT, branch_BT, *, config, dtype, remat, keep
):
    """All layers over whole sequences; also `keep(kind, k, v)` of every layer."""
    # Angles and masks are the same in all layers of a kind: made once, before the scan.
    rotations = _rotations(position_BT, config)
    attend_of = text_attend_of(
        position_BT, segment_BT=segment_BT, branch_BT=branch_BT, config=config
    )
    graph = _graph_of(params, config)

    def layer(x_BTD, weights, kind):
        def attend(q, k, v):
            return attend_of[kind](q, k, v), keep(kind, k, v)

        module = nnx.merge(graph, weights)
        return module(x_BTD, rotation=rotations[kind], attend=attend, dtype=dtype)

    keeps_products = _keeps_products(position_BT, branch_BT, config)

    def checkpointed(prevent_cse):
        if not (remat or keeps_products):
            return layer
        return jax.checkpoint(
            layer,
            static_argnums=2,  # kind is a string, not an array
            prevent_cse=prevent_cse,
            policy=None if remat else _PRODUCTS,
        )

    def group(x_BTD, weights):
        step, kept = checkpointed(prevent_cse=False), {}  # a scan prevents it already
        for key, kind in _keyed(config.pattern):
            x_BTD, kept[key] = step(x_BTD, weights[key], kind)
        return x_BTD, kept

    def summed_group(carry, weights_and_index):
        x_BTD, so_far = carry
        weights, index = weights_and_index
        weights, so_far = read_layer(weights, so_far, index)
        x_BTD, kept = group(x_BTD, weights)
        return (x_BTD, so_far), kept

    # Few layers too (decode's are unrolled: `_scanned`). 3 and 6 train as quickly on a
    # CPU, and the compiler takes half as long for 6.
    blocks = params["blocks"]
    if isinstance(blocks, Summed):
        blocks.reads.count += 1
        total = jax.lax.stop_gradient(blocks.so_far)
        over = blocks.weights, jnp.arange(config.groups)
        (x_BTD, so_far), kept = jax.lax.scan(summed_group, (x_BTD, blocks.so_far), over)
        x_BTD = begin_sum(x_BTD, so_far, total)
    else:
        x_BTD, kept = jax.lax.scan(group, x_BTD, blocks)
    tail_kept = {}
    for key, kind in _keyed(config.tail):
        weights = params["tail"][key]
        x_BTD, tail_kept[key] = checkpointed(prevent_cse=True)(x_BTD, weights, kind)
    return x_BTD, (kept, tail_kept)


# --- The cache ---------------------------------------------------------------------


def prefill(
    params,
    tokens_BL,
    position_BL,
    *,
    config,
    columns: int,
    dtype,
    step_tokens: int = 1,
):
    """hidden_BLD after the final norm, in `dtype`, and the prompts' cache of B rows.

    tokens_BL, position_BL: int32; prompts are left-padded (position -1), so that all
    rows go on at column L. columns: how many the cache has room for; column c lies at
    c % the columns that a layer keeps. step_tokens: tokens of a row, at most, in a
    decode step over this cache or a copy of its rows.

    Raises:
      ValueError: there is not even room for the prompts' L columns.
    """
    L = tokens_BL.shape[1]
    if columns < L:
        raise ValueError(f"{columns} columns are too few for prompts of {L}")
    # A sliding layer keeps its last columns, a ring from the start.
    counts = column_counts(config, columns, step_tokens)

    def columns_of(kind, x, axis, empty):
        """The last columns of x, column c at place c % size."""
        size, width = counts[kind], x.shape[axis]
        if width <= size:
            pads = [(0, size - width if a == axis else 0) for a in range(x.ndim)]
            return jnp.pad(x, pads, constant_values=empty)
        last = jax.lax.slice_in_dim(x, width - size, width, axis=axis)
        # The first of them is column width − size, which must lie at its own c % size.
        return jnp.roll(last, width % size, axis=axis)

    def keep(kind, k_BKCL, v_BKLC):
        return tuple(
            constrain(
                columns_of(kind, cpu.cached(x), axis=axis, empty=0),
                ROWS,
                "tensor",
                None,
                None,
            )
            for x, axis in ((k_BKCL, 3), (v_BKLC, 2))
        )

    x_BLD = _embed(params, tokens_BL, config=config, dtype=dtype)
    x_BLD, (blocks, tail) = _read(
        params,
        x_BLD,
        position_BL,
        segment_BT=None,
        branch_BT=None,
        config=config,
        dtype=dtype,
        remat=False,
        keep=keep,
    )
    # One array a kind, not a layer: the layers of a kind keep the same columns.
    position = {
        kind: columns_of(kind, position_BL.astype(jnp.int32), axis=1, empty=-1)
        for kind in sorted(set(config.pattern))
    }
    # As decode walks them: all groups as one stack, or each by itself.
    if _scanned(config):
        blocks = (blocks,)
    else:
        groups = range(config.groups)
        blocks = tuple(jax.tree.map(lambda x, i=i: x[i], blocks) for i in groups)
    cache = KVCache(blocks, tail, position)
    return _final_norm(params, x_BLD, config=config, dtype=dtype), cache


def unstack(params, config):
    """The parameters as `decode` reads them, for a loop over it to close over.

    Cut out of the stacks within the loop, the weights would be copied every step.
    """
    if _scanned(config) or isinstance(params["blocks"], tuple):  # done already
        return params
    groups = range(config.groups)
    blocks = tuple(jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in groups)
    return {**params, "blocks": blocks}


def _scanned(config: ModelConfig) -> bool:
    """Whether decode scans over the groups; a few layers are quicker unrolled.

    The cache is carried through the scan and its columns are written in place: scanned
    over, all of it would be copied every step (2.1x slower). Still XLA:CPU cuts each
    layer's part out of the stacks, weights and cache, to read it; unrolled, it copies
    nothing. A step of 3 layers, D = 128, B = 256, S = 80: 7.8 ms of CPU unrolled, 10.2
    scanned. SmolLM2's 30 layers write 1,209 tokens in 3.6 s for 4.5, and compile in 30
    s for 12.
    """
    most = _UNROLLED_ON_CPU if platform() == "cpu" else _UNROLLED
    return config.layers > most


def decode(
    params,
    token_BJ,
    position_BJ,
    cache: KVCache,
    column_B,
    shared: Shared | None = None,
    *,
    config,
    dtype,
):
    """hidden_BJD after J more tokens of every row, and the cache with their columns.

    Row b's token j is written at its column column_B[b] + j, and sees the row's earlier
    columns, those of the tokens before it, and its own. What lies behind is seen by
    nobody, and overwritten as the row goes on.

    token_BJ, position_BJ, column_B: int32, may be traced; columns are counted on, not
    round a ring. A row of positions -1 has ended: what it writes is seen by nobody.
    The cache has room for all columns, and was made for so many tokens of a step
    (`step_tokens`). shared: the rows' prompts, where decode's kernel reads them beside
    the cache, whose positions then stay as they are, and whose columns have room for
    responses only. hidden_BJD is after the final norm, in `dtype`.
    """
    params = unstack(params, config)
    prompts, prompt_tail = _blocks_of(shared, cache)
    if shared is None:
        position, attend_of = dense.decode_attend_of(
            position_BJ, cache, column_B=column_B, config=config
        )
    else:
        # There a row sees its own columns by their number, and no positions.
        position = cache.position
        attend_of = ragged_decode.attend_of(
            position_BJ, cache, shared=shared, column_B=column_B, config=config
        )
    rotations = _rotations(position_BJ, config)
    graph = _graph_of(params, config)

    def layer(x_BJD, weights, kind, kv, prompt_kv, index):
        def attend(q_BJHC, *new):
            return attend_of[kind](q_BJHC, new, kv, prompt_kv, index)

        module = nnx.merge(graph, weights)
        return module(x_BJD, rotation=rotations[kind], attend=attend, dtype=dtype)

    def group(x_BJD, kv, weights, prompts, index):
        kept = {}
        for key, kind in _keyed(config.pattern):
            x_BJD, kept[key] = layer(
                x_BJD,
                weights=weights[key],
                kind=kind,
                kv=kv[key],
                prompt_kv=prompts[key],
                index=index,
            )
        return x_BJD, kept

    x_BJD = _embed(params, token_BJ, config=config, dtype=dtype)
    if _scanned(config):

        def step(carry, weights_and_index):
            x_BJD, kv = carry
            weights, index = weights_and_index
            return group(x_BJD, kv, weights, prompts=prompts[0], index=index), None

        # The cache is carried whole, so a layer finds its part of the stacks by number.
        over = params["blocks"], jnp.arange(config.groups)
        (x_BJD, kv), _ = jax.lax.scan(step, (x_BJD, cache.blocks[0]), over)
        blocks = (kv,)
    else:
        blocks = ()
        for kv, weights, prompt_kv in zip(
            cache.blocks, params["blocks"], prompts, strict=True
        ):
            x_BJD, kept = group(x_BJD, kv, weights, prompts=prompt_kv, index=None)
            blocks += (kept,)
    tail = {}
    for key, kind in _keyed(config.tail):
        x_BJD, tail[key] = layer(
            x_BJD,
            weights=params["tail"][key],
            kind=kind,
            kv=cache.tail[key],
            prompt_kv=prompt_tail[key],
            index=None,
        )
    cache = KVCache(blocks, tail, position)
    return _final_norm(params, x_BJD, config=config, dtype=dtype), cache


def _keyed(kinds):
    """The layers' names in the dict, each with its kind of attention."""
    return ((str(i), kind) for i, kind in enumerate(kinds))


def _blocks_of(shared: Shared | None, cache: KVCache):
    """The prompts' blocks and tail; as many of None where there are no such prompts."""
    if shared is not None:
        return shared.prompts.blocks, shared.prompts.tail
    blocks = tuple(dict.fromkeys(block) for block in cache.blocks)
    return blocks, dict.fromkeys(cache.tail)
