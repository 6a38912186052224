"""Rows of the cache: repeated, put in at a later column, taken out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import GEMMA, LENGTH, QUICK, prompts_of, random_params

from limr_jax.models import kv_cache, transformer

COLUMNS = 12
HOW = {"config": GEMMA, "dtype": jnp.float32}
PREFILL = jax.jit(
    transformer.prefill,
    static_argnames=("config", "columns", "dtype"),
    compiler_options=QUICK,
)


def prompts(config=GEMMA):
    """The caches of three prompts, each as long as the prompt."""
    how = {"config": config, "dtype": jnp.float32}
    return PREFILL(random_params(config), *prompts_of(range(3)), columns=LENGTH, **how)[
        1
    ]


def rows_of(x):
    """An array of the cache with its rows first."""
    return np.moveaxis(np.asarray(x), int(x.ndim == 5), 0)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 10])  # unrolled, scanned
def test_repeated(layers):
    config = dataclasses.replace(GEMMA, layers=layers)
    before = prompts(config)
    after = kv_cache.repeat(before, config, group=2, rows=5, columns=COLUMNS)
    assert after.position["full"].shape == (5, COLUMNS)
    assert after.position["sliding"].shape == (5, GEMMA.window)
    for one, many in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        one, many = rows_of(one), rows_of(many)
        for b in range(5):
            room = tuple(map(slice, one[b // 2].shape))
            np.testing.assert_array_equal(many[b][room], one[b // 2])
    assert np.all(np.asarray(after.position["full"])[:, LENGTH:] == -1)


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 10])
def test_a_row_put_in_later_is_that_row_further_round_the_ring(layers):
    """Every array of it, turned; the other rows as they were."""
    config = dataclasses.replace(GEMMA, layers=layers)
    given = prompts(config)
    before = kv_cache.repeat(given, config, group=1, rows=3, columns=COLUMNS)
    for turn in (0, 1, 5, 23):
        after = kv_cache.put(before, given, config, row=1, prompt=2, turn=turn)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
            old, new = rows_of(old), rows_of(new)
            np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
        for kind, count in (("full", COLUMNS), ("sliding", GEMMA.window)):
            old, new = before.position[kind][2], after.position[kind][1]
            for column in range(count):
                assert new[(column + turn) % count] == old[column]
        keys, values = after.blocks[0]["1"]
        old_keys, old_values = before.blocks[0]["1"]
        np.testing.assert_array_equal(
            rows_of(keys)[1], np.roll(rows_of(old_keys)[2], turn, axis=-1)
        )
        np.testing.assert_array_equal(
            rows_of(values)[1], np.roll(rows_of(old_values)[2], turn, axis=-2)
        )


@pytest.mark.parametrize("layers", [2, 10])
def test_a_ring_beside_shared_prompts_is_empty(layers):
    config = dataclasses.replace(GEMMA, layers=layers)
    given = prompts(config)
    ring = kv_cache.ring(given, config, rows=4, columns=COLUMNS)
    for prompt, row in zip(jax.tree.leaves(given), jax.tree.leaves(ring), strict=True):
        assert len(rows_of(row)) == 4 and row.dtype == prompt.dtype
        assert np.all(np.asarray(row) == (-1 if row.dtype == np.int32 else 0))
    keys, values = ring.blocks[0]["1"]
    assert keys.shape[-1] == values.shape[-2] == COLUMNS
    keys, values = ring.blocks[0]["0"]
    assert keys.shape[-1] == values.shape[-2] == GEMMA.window


def test_a_prompts_last_column_is_last():
    """Of 8 columns a window of 5 keeps 3 to 7, each at its place modulo 5."""
    given = prompts()
    turned = kv_cache.in_order(given, GEMMA, length=LENGTH)
    position = turned.position["sliding"]
    np.testing.assert_array_equal(position, given.position["full"][:, -GEMMA.window :])
    assert not np.array_equal(position, given.position["sliding"])
    for kind, place in (("sliding", "0"), ("full", "1")):
        pairs = zip(given.blocks[0][place], turned.blocks[0][place], (-1, -2))
        for before, after, axis in pairs:
            shift = -LENGTH if kind == "sliding" else 0
            np.testing.assert_array_equal(after, np.roll(before, shift, axis=axis))


@pytest.mark.parametrize("layers", [2, 10])
def test_taken(layers):
    before = prompts(dataclasses.replace(GEMMA, layers=layers))
    after = kv_cache.take(before, jnp.array([2, 0]))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
        np.testing.assert_array_equal(rows_of(new), rows_of(old)[[2, 0]])


def test_what_is_filled_is_read():
    assert kv_cache.widths(100) == (100,)
    assert kv_cache.widths(256) == (256,)
    assert kv_cache.widths(1000) == (256, 512, 1000)
    width = jax.jit(lambda column: kv_cache.over_filled(jnp.int32, 1000, column))
    for column, want in ((0, 256), (255, 256), (256, 512), (511, 512), (512, 1000)):
        assert width(column) == want
    assert width(1001) == 1000  # the ring has turned
