"""How decode's queries look back: by positions over rows, or by row with a kernel.

Axes: B rows, L columns of a prompt, S of a row, H heads, C channels per head.
"""

import jax
import jax.numpy as jnp

from limr_jax import look_back
from limr_jax.cache import KVCache, Shared, over_filled, places, read_columns
from limr_jax.layers import ModelConfig, attend, seen_mask


def looks(position_B, cache: KVCache, column, shared: Shared | None, config):
    """The cache's positions, the new column's too, and each kind of attention's look.

    That is `(q_B1HC, kv, prompts' kv, index of the layer) → out_B1HC`. shared: the
    rows' prompts, which only the kernel reads beside the cache.
    """
    if shared is not None:
        return cache.position, _by_row(position_B, cache, shared, column, config)
    position = {
        kind: jax.lax.dynamic_update_slice(
            cache.position[kind], position_B.astype(jnp.int32)[:, None], (0, place)
        )
        for kind, place in places(cache, column).items()
    }

    def look(kind):
        key_BS = position[kind]
        mask_B1S = seen_mask(position_B[:, None], key_BS, config.window_of(kind))

        def attend_to(q_B1HC, kv, _, index):
            return _look_back(q_B1HC, kv, mask_B1S, column, index, config)

        return attend_to

    return position, {kind: look(kind) for kind in position}


def _by_row(position_B, cache: KVCache, shared: Shared, column, config: ModelConfig):
    """The kernel's looks, as `looks` has them."""

    def look(kind):
        prompt_PL, own_BS = shared.prompts.position[kind], cache.position[kind]
        at = look_back.At(position_B, shared.row_B, prompt_PL[:, -1], column)
        cuts = look_back.cuts(prompt_PL.shape[1], own_BS.shape[1], config)
        read = look_back.listed(at, *cuts, config.window_of(kind))

        def attend_to(q_B1HC, kv, prompt_kv, index):
            given = q_B1HC[:, 0], prompt_kv, kv, read, column, index, config
            return look_back.attend(*given)[:, None]

        return attend_to

    return {kind: look(kind) for kind in cache.position}


def _look_back(q_B1HC, kv, mask_B1S, column, index, config: ModelConfig):
    """Attention to the cache of one layer, what is filled of it."""
    columns = mask_B1S.shape[-1]

    def at(width):
        seen = mask_B1S[:, :, :width]
        return attend(q_B1HC, *read_columns(kv, width, index), seen, config)

    # XLA:CPU copies what is cut out, of a stack in any case: 448 tokens of 16 rows, 512
    # columns, took 1.74 s for 1.68 unrolled, and 3.29 s for 4.20 scanned.
    if index is None:
        return at(columns)
    return over_filled(at, columns, column)
