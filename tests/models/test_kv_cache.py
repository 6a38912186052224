"""Rows of the cache: repeated, put in, taken out, and written each at its column."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import GEMMA, LENGTH, QUICK, QWEN, prompts_of, random_params

from limr_jax.models import kv_cache, transformer

COLUMNS = 12
COUNTS = kv_cache.column_counts(GEMMA, COLUMNS)
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
    after = kv_cache.repeat(before, config, group=2, rows=5, counts=COUNTS)
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
def test_a_row_put_in_is_that_prompt_and_nothing_else(layers):
    """Whatever the row had before, behind the prompt too; the other rows as before."""
    config = dataclasses.replace(GEMMA, layers=layers)
    given = prompts(config)
    before = kv_cache.repeat(given, config, group=1, rows=3, counts=COUNTS)
    used = jax.tree.map(lambda x: jnp.full_like(x, 7), before)
    after = kv_cache.put(used, given, config, row=1, prompt=2)
    for old, new, want in zip(*map(jax.tree.leaves, (used, after, before))):
        old, new, want = rows_of(old), rows_of(new), rows_of(want)
        np.testing.assert_array_equal(new[[0, 2]], old[[0, 2]])
        np.testing.assert_array_equal(new[1], want[2])


COLUMN_B = np.array([0, 9, 4], np.int32)


@pytest.mark.parametrize("kind", ["full", "sliding"])
@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("index", [None, 1])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_each_row_writes_its_own_columns(monkeypatch, kind, tokens, index, platform):
    """A ring's go on at its beginning; what else there is stays as it was."""
    monkeypatch.setattr(kv_cache, "platform", lambda: platform)
    size, random = 14 if kind == "full" else 6, np.random.default_rng(tokens)
    stack = () if index is None else (3,)
    shapes = (*stack, 3, 2, 4, size), (*stack, 3, 2, size, 4)
    kv = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    shapes = (3, 2, 4, tokens), (3, 2, tokens, 4)
    new = [random.normal(size=shape).astype(np.float32) for shape in shapes]
    write = jax.jit(partial(kv_cache.write_columns, kind=kind))
    wanted = [x.copy() for x in kv]
    for b, column in enumerate(COLUMN_B):
        for j in range(tokens):
            at = (column + j) % size
            keys, values = (x if index is None else x[index] for x in wanted)
            keys[b, :, :, at], values[b, :, at] = new[0][b, :, :, j], new[1][b, :, j]
    for one, want in zip(write(kv, new, COLUMN_B, index), wanted, strict=True):
        np.testing.assert_array_equal(one, want)
    position_BS = np.full((3, size), -1, np.int32)
    position_BJ = COLUMN_B[:, None] + np.arange(tokens, dtype=np.int32)
    found = kv_cache.write_positions(position_BS, position_BJ, COLUMN_B, kind=kind)
    for b, column in enumerate(COLUMN_B):
        columns = column + np.arange(tokens)
        position_BS[b, columns % size] = columns
    np.testing.assert_array_equal(found, position_BS)


def test_a_window_has_room_for_the_tokens_of_a_step():
    """The last one's column takes the place of none that the first one sees."""
    counts = kv_cache.column_counts
    assert counts(GEMMA, 12) == {"full": 12, "sliding": 5}
    assert counts(GEMMA, 12, 4) == {"full": 12, "sliding": 8}
    assert counts(GEMMA, 7, 4) == {"full": 7, "sliding": 7}
    assert counts(QWEN, 12, 4) == {"full": 12, "sliding": 12}


@pytest.mark.parametrize("layers", [2, 10])
def test_rows_beside_shared_prompts_are_empty(layers):
    config = dataclasses.replace(GEMMA, layers=layers)
    given = prompts(config)
    rows = kv_cache.empty_rows(given, config, rows=4, counts=COUNTS)
    for prompt, row in zip(jax.tree.leaves(given), jax.tree.leaves(rows), strict=True):
        assert len(rows_of(row)) == 4 and row.dtype == prompt.dtype
        assert np.all(np.asarray(row) == (-1 if row.dtype == np.int32 else 0))
    keys, values = rows.blocks[0]["1"]
    assert keys.shape[-1] == values.shape[-2] == COLUMNS
    keys, values = rows.blocks[0]["0"]
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


@pytest.mark.parametrize("tokens", [2, 9])
def test_a_prompts_window_is_left(tokens):
    """Where a ring keeps more for the tokens of a step; of 8 columns, 6 or all."""
    how = {"config": GEMMA, "dtype": jnp.float32, "columns": LENGTH}
    wanted = kv_cache.in_order(prompts(), GEMMA, length=LENGTH)
    params = random_params(GEMMA)
    _, given = transformer.prefill(
        params, *prompts_of(range(3)), step_tokens=tokens, **how
    )
    assert given.position["sliding"].shape[1] == min(GEMMA.window + tokens - 1, LENGTH)
    found = kv_cache.in_order(given, GEMMA, length=LENGTH)
    for one, want in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(one, want, atol=1e-6)


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
    width = jax.jit(lambda filled: kv_cache.over_filled(jnp.int32, 1000, filled))
    for filled, want in ((0, 256), (256, 256), (257, 512), (512, 512), (513, 1000)):
        assert width(filled) == kv_cache.width_read(1000, filled) == want
    assert width(1001) == 1000  # a ring that has turned
