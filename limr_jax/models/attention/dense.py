"""Attention that makes all its scores, many of them in parts; rotary positions."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.chunking import by_chunks, chunk_size
from limr_jax.models import cpu
from limr_jax.models.config import ModelConfig, Rope
from limr_jax.models.kv_cache import (
    KVCache,
    over_filled,
    read_columns,
    write_columns,
    write_positions,
)


def rotate(x_BTHC, cos_sin):
    """Heads of queries or keys, turned by their positions: [B, T, H, C], in x's dtype.

    cos_sin: the two arrays [B, T, C / 2] that `rotation` gives. Turned in fp32.
    """
    cos, sin = (x_BTC[:, :, None] for x_BTC in cos_sin)
    # Channel c turns with c + C/2, as Hugging Face's weights are laid out, and not with
    # its neighbour.
    first, second = jnp.split(x_BTHC.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHC.dtype)


def attend_causal(q_BTHC, k_BKCT, v_BKTC, mask_BTT, config: ModelConfig):
    """`attend` of texts to themselves, where no token sees a later column: out_BTHC.

    mask_BTT: bool, as `attend` has it, False in all later columns, most of which are
    not even read. `transformer.forward` calls it where no kernel of a TPU's fits.
    """

    def part(start, end):
        return attend(
            q_BTHC[:, start:end],
            k_BKCT[..., :end],
            v_BKTC[:, :, :end],
            mask_BTS=mask_BTT[:, start:end, :end],
            config=config,
        )

    parts = cpu.query_parts(q_BTHC.shape[1])
    return jnp.concatenate([*itertools.starmap(part, parts)], axis=1)


def attend(q_BTHC, k_BKCS, v_BKSC, mask_BTS, config: ModelConfig):
    """Softmax attention of T queries to S columns: out_BTHC, in q's dtype.

    q_BTHC, k_BKCS, v_BKSC: query head h reads kv head h // Q. mask_BTS: bool, which
    columns a query sees; where it sees none the output is their plain mean. config: the
    ModelConfig, which has scale and soft cap. Scores and softmax are fp32; where they
    are many, they are made by chunks of queries.
    """
    B, T, H, _ = q_BTHC.shape
    return by_chunks(
        lambda q_BTHC, mask_BTS: _attend_at_once(
            q_BTHC, k_BKCS, v_BKSC, mask_BTS=mask_BTS, config=config
        ),
        q_BTHC,
        mask_BTS,
        size=chunk_size(T, B * H * k_BKCS.shape[3]),
    )


def _attend_at_once(q_BTHC, k_BKCS, v_BKSC, mask_BTS, config: ModelConfig):
    """Softmax attention in fp32, each kv head read by its Q query heads in place."""
    B, T, H, C = q_BTHC.shape
    K, Q = config.kv_heads, H // config.kv_heads
    q_BKQTC = q_BTHC.reshape(B, T, K, Q, C).transpose(0, 2, 3, 1, 4)
    scale = config.attention_scale or C**-0.5
    # [B, K, Q, T, C] · [B, K, C, S] → [B, K, Q, T, S]: no key is copied for the Q query
    # heads that read it.
    score = scale * jax.lax.dot_general(
        q_BKQTC.astype(k_BKCS.dtype),
        k_BKCS,
        (((4,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=jnp.float32,
    )
    if config.attention_softcap:
        cap = config.attention_softcap
        score = cap * jnp.tanh(score / cap)
    # Finite, so that a padding query, which may see nothing, gives no NaN.
    score = jnp.where(mask_BTS[:, None, None], score, jnp.finfo(jnp.float32).min)
    # fp32 up to here; the product reads weights of the queries' digits.
    weight_BKQTS = jax.nn.softmax(score, axis=-1).astype(q_BTHC.dtype)
    out_BKQTC = jax.lax.dot_general(
        weight_BKQTS.astype(v_BKSC.dtype),
        v_BKSC,
        (((4,), (2,)), ((0, 1), (0, 1))),
        preferred_element_type=cpu.product_dtype(q_BTHC.dtype),
    ).astype(q_BTHC.dtype)
    return out_BKQTC.transpose(0, 3, 1, 2, 4).reshape(B, T, H, C)


def rotation(position_BT, rope: Rope, C: int):
    """fp32 (cos, sin) of each position's angle for each channel pair, [B, T, C / 2]."""
    exponent = np.arange(0, C, 2, dtype=np.float32) / np.float32(C)
    frequency = (1.0 / np.float32(rope.base) ** exponent).astype(np.float32)
    slow = frequency / rope.factor
    if rope.original_length is not None:
        # Llama 3: how often a pair turns within the original context. Many turns tell
        # near tokens apart and are kept; few are slowed down.
        turns = rope.original_length * frequency / (2 * math.pi)
        blend = (turns - rope.low_frequency) / (
            rope.high_frequency - rope.low_frequency
        )
        blend = np.clip(blend, 0.0, 1.0)
        slow = (1 - blend) * slow + blend * frequency
    slow = jnp.asarray(slow, jnp.float32)[None, None]
    angle_BTC = position_BT[..., None].astype(jnp.float32) * slow
    return cpu.unfused((jnp.cos(angle_BTC), jnp.sin(angle_BTC)))


def seen_mask(query_BT, key_BS, window: int | None):
    """Which columns each query sees, from positions alone: bool [B, T, S].

    query_BT, key_BS: positions, int32; -1 is padding or an empty column, which nobody
    sees. window: positions that a query sees at most, itself included; None: all.
    """
    query_BT1, key_B1S = query_BT[:, :, None], key_BS[:, None]
    seen = (key_B1S >= 0) & (key_B1S <= query_BT1)
    return seen if window is None else seen & (query_BT1 - key_B1S < window)


def same_text_mask(segment_BT, branch_BT):
    """Which columns are of one text, [B, T, T]; None: all of a row."""
    if segment_BT is None:
        return None
    same_BTS = segment_BT[:, :, None] == segment_BT[:, None]
    if branch_BT is None:
        return same_BTS
    seen_B1S = branch_BT[:, None]
    # The prompt is seen by all that goes on from it, a response by itself alone.
    return same_BTS & ((seen_B1S == 0) | (seen_B1S == branch_BT[:, :, None]))


# --- In decode ----------------------------------------------------------------------


def decode_attend_of(position_BJ, cache: KVCache, column_B, config: ModelConfig):
    """The cache's positions with the new columns', and attention of each kind.

    That is `(q_BJHC, new, kv, _, index of the layer) → (out_BJHC, kv)`: the keys and
    values `new` are written into the cache `kv`, and attention is to what is filled of
    it, the prompt's columns among it. column_B: where each row's first new column is.
    """
    # With the new columns' before any mask is made, so that a token sees itself.
    position_BJ = position_BJ.astype(jnp.int32)
    position = {
        kind: write_positions(position_BS, position_BJ, column_B, kind=kind)
        for kind, position_BS in cache.position.items()
    }
    # A row that has ended sees nothing, however many columns it has.
    written_B = jnp.where(position_BJ[:, 0] < 0, 0, column_B + position_BJ.shape[1])
    filled = jnp.max(written_B)

    def of_kind(kind):
        # One mask a kind, made before the layers. What a row has left behind its
        # query's column has a later position: a column says what it is by that alone.
        mask_BJS = seen_mask(position_BJ, position[kind], config.window_of(kind))

        def attend_to(q_BJHC, new, kv, _, index):
            # Before attention: a token sees its own key and value.
            kept = write_columns(kv, new, column_B, index=index, kind=kind)
            out_BJHC = _attend_filled(
                q_BJHC,
                kept,
                mask_BJS=mask_BJS,
                filled=filled,
                index=index,
                config=config,
            )
            return out_BJHC, kept

        return attend_to

    return position, {kind: of_kind(kind) for kind in position}


def _attend_filled(q_BJHC, kv, mask_BJS, filled, index, config: ModelConfig):
    """Attention to the cache of one layer, what is filled of it."""
    columns = mask_BJS.shape[-1]

    def at(width):
        k_BKCS, v_BKSC = read_columns(kv, width, index)
        seen = mask_BJS[:, :, :width]
        return attend(q_BJHC, k_BKCS, v_BKSC, mask_BTS=seen, config=config)

    # XLA:CPU copies what is cut out, of a stack in any case: 448 tokens of 16 rows, 512
    # columns, took 1.74 s for 1.68 unrolled, and 3.29 s for 4.20 scanned.
    if index is None:
        return at(columns)
    return over_filled(at, columns, filled)
