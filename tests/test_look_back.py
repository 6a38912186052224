"""Decode's kernel for TPU, in its own interpreter: what it reads, and what of it."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_rollout import generate_on_mesh, same
from tiny_policy import (
    GEMMA,
    QUICK,
    QWEN,
    SHAPE,
    generate,
    key_of,
    prompts_of,
    random_params,
)
from tiny_policy import LENGTH as LENGTH_OF_PROMPTS
from tiny_policy import sampling as sampling_of

from limr_jax import cache, layers, look_back, rollout
from limr_jax.sharding import make_mesh

COLUMNS = 512


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (128,))


def own_seen(column, own_B):
    """bool [B, S]: the columns of the ring that rows with so many have."""
    age_S = (column - np.arange(COLUMNS)) % COLUMNS
    return age_S[None] < np.clip(own_B, 0, COLUMNS)[:, None]


CONFIG = layers.ModelConfig(
    vocab_size=8, width=8, layers=1, heads=6, kv_heads=2, head_dim=16, mlp_width=8
)
LENGTH = 256  # columns of a prompt
LAST_P = np.array([200, 100, LENGTH - 1])  # positions of their last tokens
PROMPT_B = np.array([2, 0, 0, 1, 2, 1])


@pytest.mark.parametrize("column", [130, 511, 512, 700, 1500])
@pytest.mark.parametrize(
    "softcap, stacked, window",
    [(None, True, None), (2.0, False, None), (None, True, 512), (None, True, 600)],
)
def test_it_is_attention_to_what_a_row_has(
    interpreted, column, softcap, stacked, window
):
    config = dataclasses.replace(CONFIG, attention_softcap=softcap)
    random = np.random.default_rng(column)
    own_B = np.minimum([1, 120, COLUMNS, COLUMNS - 3, 300, 0], column + 1)

    def kv(rows, columns):
        shapes = (3, rows, 2, 16, columns), (3, rows, 2, columns, 16)
        return [jnp.asarray(random.normal(size=x), jnp.float32) for x in shapes]

    q_B1HC = jnp.asarray(random.normal(size=(6, 1, 6, 16)), jnp.float32)
    prompts, own = kv(3, LENGTH), kv(6, COLUMNS)
    live_B = own_B > 0
    last_B = LAST_P[PROMPT_B]
    seen_B = last_B + 1
    own_mask = own_seen(column, own_B)
    if window:
        seen_B = np.minimum(seen_B, window - own_B)
        own_mask &= own_seen(column, np.full(6, window))
    before = np.arange(LENGTH) >= LENGTH - np.where(live_B, seen_B, 0)[:, None]
    mask_B1S = jnp.asarray(np.concatenate([before, own_mask], axis=1))[:, None]
    joined = [
        jnp.concatenate([x[1][PROMPT_B], y[1]], axis=axis)
        for x, y, axis in zip(prompts, own, (-1, -2))
    ]
    wanted = layers.attend(q_B1HC, *joined, mask_B1S, config)[:, 0]
    index = 1
    if not stacked:
        prompts, own, index = [x[1] for x in prompts], [x[1] for x in own], None
    at = look_back.At(
        *(jnp.asarray(x) for x in (np.where(live_B, last_B + own_B, -1), PROMPT_B)),
        jnp.asarray(LAST_P),
        jnp.int32(column),
    )
    found = jax.jit(
        partial(look_back.attend, config=config, index=index, window=window)
    )(q_B1HC[:, 0], prompts, own, at)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[live_B], wanted[live_B], atol=1e-6)


OWN, PROMPT = look_back.Cut(COLUMNS, 128), look_back.Cut(LENGTH, 128)


def test_the_list_by_hand():
    """Blocks of 128, a ring of 512; column 700 lies in block 5, which is block 1.

    Of their prompts of 256 columns rows see 1, 129, none, all and 100; the second and
    the last have the same, and so follow one another.
    """
    own_B, seen_B = np.array([1, 200, 0, 512, 1]), np.array([1, 129, -3, 256, 100])
    prompt_B = np.array([4, 0, 2, 1, 0])
    given = (jnp.asarray(x) for x in (own_B, seen_B, prompt_B))
    read = look_back.entries(*given, jnp.int32(700), OWN, PROMPT)
    count = int(read.count)
    assert read.row_I[:count].tolist() == [1, 1, 1, 4, 3, 3, 3, 3, 2, 0]
    assert read.nth_I[:count].tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 0, 0]
    assert read.row_I[count] == 5
    assert read.own_from_B.tolist() == [700, 501, 700, 189, 700]
    assert read.prompt_from_B.tolist() == [255, 127, 256, 0, 156]
    given = own_B, seen_B.clip(0), prompt_B, 700, OWN, PROMPT
    columns = look_back.columns_read(*given)
    assert columns.tolist() == [256, 640, 128, 768, 256]


def test_a_prompt_of_one_block_is_read_once():
    """By the first of its rows; the second prompt's two blocks by each of its own."""
    seen_B, prompt_B = np.array([100, 129, 0, 256, 100]), np.array([0, 1, 0, 1, 0])
    given = np.ones(5, int), seen_B, prompt_B, 700, OWN, PROMPT
    columns = look_back.columns_read(*given)
    assert columns.tolist() == [256, 384, 128, 384, 128]


def test_only_for_a_tpu_and_rings_that_blocks_divide(monkeypatch):
    config = QWEN
    assert look_back.fits(512, config) == 0
    monkeypatch.setattr(look_back, "INTERPRET", True)
    assert look_back.fits(512, config) == 512
    assert look_back.fits(640, config) == 128
    assert look_back.fits(500, config) == 0


@pytest.mark.parametrize(
    "config, length",
    [(QWEN, 8), (dataclasses.replace(GEMMA, window=8), 12)],
    ids=["full", "full and sliding, whose ring the prompts have turned"],
)
def test_rollouts_by_it_are_the_same(monkeypatch, config, length):
    """16 rollouts in 4 slots: rows come and go, and the ring of 24 columns turns."""
    shape = SHAPE | {"response_length": 24, "slots": 4}
    problem_P = np.arange(8, dtype=np.int32)

    def write():
        generate = jax.jit(
            partial(rollout.generate, config=config, **shape), compiler_options=QUICK
        )
        given = (problem_P, key_of(), sampling_of())
        return generate(random_params(config), *prompts_of(problem_P, length), *given)

    wanted = write()
    assert not cache.shares(config, length=length, columns=24)
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (4,))
    assert cache.shares(config, length=length, columns=24)
    found = write()
    assert wanted.slot_steps_D[0] > 4 * 24
    np.testing.assert_array_equal(found.response_BT, wanted.response_BT)
    np.testing.assert_allclose(found.logprob_BT, wanted.logprob_BT, atol=1e-5)


@pytest.mark.parametrize(
    "shape, slots", [((8, 1, 1), 8), ((1, 4, 2), 8), ((2, 2, 2), 12), ((2, 1, 4), 4)]
)
def test_rollouts_by_it_on_a_mesh_are_the_same(monkeypatch, shape, slots):
    """Each device's rows read the prompts that it holds; 4 parts share 2 kv heads."""
    wanted = generate()
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (4,))
    with jax.set_mesh(make_mesh(*shape)):
        columns = SHAPE["response_length"]
        assert cache.shares(QWEN, length=LENGTH_OF_PROMPTS, columns=columns)
    same(wanted, generate_on_mesh(shape, slots=slots))
