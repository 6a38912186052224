"""Decode's kernel for TPU, in its own interpreter: what it reads, and what of it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import GEMMA, QUICK, QWEN, SHAPE, key_of, prompts_of, random_params
from tiny_policy import sampling as sampling_of

from limr_jax import layers, look_back, rollout

COLUMNS = 512


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (128,))


def ring(column, count_B):
    """bool [B, S]: the columns of the ring that rows with so many have."""
    age_S = (column - np.arange(COLUMNS)) % COLUMNS
    return age_S[None] < np.clip(count_B, 0, COLUMNS)[:, None]


@pytest.mark.parametrize("column", [130, 511, 512, 700, 1500])
@pytest.mark.parametrize("softcap, stacked", [(None, True), (2.0, False)])
def test_it_is_attention_to_what_a_row_has(interpreted, column, softcap, stacked):
    config = layers.ModelConfig(
        vocab_size=8, width=8, layers=1, heads=6, kv_heads=2, head_dim=16, mlp_width=8,
        attention_softcap=softcap,
    )  # fmt: skip
    random = np.random.default_rng(column)
    count_B = np.minimum([1, 120, COLUMNS, COLUMNS - 3, 300], column + 1)
    q_B1HC, keys, values = (
        jnp.asarray(random.normal(size=shape), jnp.float32)
        for shape in ((5, 1, 6, 16), (3, 5, 2, 16, COLUMNS), (3, 5, 2, COLUMNS, 16))
    )
    mask_B1S = jnp.asarray(ring(column, count_B))[:, None]
    wanted = layers.attend(q_B1HC, keys[1], values[1], mask_B1S, config)[:, 0]
    kv, index = ((keys, values), 1) if stacked else ((keys[1], values[1]), None)
    found = jax.jit(partial(look_back.attend, config=config), static_argnums=4)(
        q_B1HC[:, 0], kv, jnp.asarray(count_B), jnp.int32(column), index
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_the_list_by_hand():
    """Blocks of 128, a ring of 512; column 700 lies in block 5, which is block 1."""
    count_B = jnp.array([1, 200, 0, 512])
    read = look_back.entries(count_B, jnp.int32(700), COLUMNS, 128)
    count = int(read.count)
    assert read.row_I[:count].tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3]
    assert read.block_I[:count].tolist() == [5, 3, 4, 5, 5, 1, 2, 3, 4]
    assert read.row_I[count] == 4 and read.from_B.tolist() == [700, 501, 700, 189]
    columns = look_back.columns_read(np.array(count_B), 700, COLUMNS, 128)
    assert columns.tolist() == [128, 384, 128, 512]


def test_only_for_a_tpu_and_rings_that_blocks_divide(monkeypatch):
    config = QWEN
    assert look_back.fits(512, config) == 0
    monkeypatch.setattr(look_back, "INTERPRET", True)
    assert look_back.fits(512, config) == 512
    assert look_back.fits(640, config) == 128
    assert look_back.fits(500, config) == 0


@pytest.mark.parametrize("config", [QWEN, GEMMA], ids=["full", "full and sliding"])
def test_rollouts_by_it_are_the_same(monkeypatch, config):
    """16 rollouts in 4 slots: rows come and go, and the ring of 32 columns turns."""
    shape = SHAPE | {"response_length": 24, "slots": 4}
    problem_P = np.arange(8, dtype=np.int32)

    def write():
        generate = jax.jit(
            partial(rollout.generate, config=config, **shape), compiler_options=QUICK
        )
        given = (*prompts_of(problem_P), problem_P, key_of(), sampling_of())
        return generate(random_params(config), *given)

    wanted = write()
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (8,))
    found = write()
    assert wanted.slot_steps_D[0] > 4 * 32
    np.testing.assert_array_equal(found.response_BT, wanted.response_BT)
    np.testing.assert_allclose(found.logprob_BT, wanted.logprob_BT, atol=1e-5)
