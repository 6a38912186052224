"""Decode's kernel for TPU, in its own interpreter: what it reads, and what of it."""

import dataclasses
import importlib.util
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec
from rollout.test_generate import generate_on_mesh, same
from tiny_policy import (
    GEMMA,
    QUICK,
    QWEN,
    SHAPE,
    fp32,
    generate,
    key_of,
    prompts_of,
    random_params,
)
from tiny_policy import LENGTH as LENGTH_OF_PROMPTS
from tiny_policy import sampling as sampling_of

from limr_jax.compilation import slices
from limr_jax.models.attention import dense, ragged_decode
from limr_jax.models.config import ModelConfig
from limr_jax.rollout import generate as rollout
from limr_jax.sharding import make_mesh

COLUMNS = 512


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (128,))


def own_seen(column, own_B):
    """bool [B, S]: the columns of the ring that rows with so many have."""
    age_S = (column - np.arange(COLUMNS)) % COLUMNS
    return age_S[None] < np.clip(own_B, 0, COLUMNS)[:, None]


CONFIG = ModelConfig(
    vocab_size=8, width=8, layers=1, heads=6, kv_heads=2, head_dim=16, mlp_width=8
)
LENGTH = 256  # columns of a prompt
LAST_P = np.array([200, 100, LENGTH - 1])  # positions of their last tokens
PROMPT_B = np.array([2, 0, 0, 1, 2, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "softcap, stacked, window",
    [(None, True, None), (2.0, False, None), (None, True, 512), (None, True, 600)],
)
@pytest.mark.parametrize("whole", [False, True])  # a prompt is one block
def test_it_is_attention_to_what_a_row_has(
    interpreted, monkeypatch, softcap, stacked, window, whole
):
    """Before the ring turns, as it does, and after."""
    config = dataclasses.replace(CONFIG, attention_softcap=softcap)
    monkeypatch.setattr(ragged_decode, "MOST", 2 * 128 * (LENGTH if whole else 128))
    index = 1 if stacked else None

    @jax.jit
    def attend(q_BHC, prompts, own, at):
        cuts = ragged_decode.cuts(LENGTH, COLUMNS, config)
        assert (cuts[0].blocks == 1) == whole
        read = ragged_decode.read_list(at, *cuts, window)
        given = q_BHC, prompts, own, read, at.column, index
        return ragged_decode.attend(*given, config)

    wanted_of = jax.jit(partial(dense.attend, config=config))
    for column in (130, 511, 512, 700, 1500):
        random = np.random.default_rng(column)
        own_B = np.minimum([1, 120, COLUMNS, COLUMNS - 3, 300, 0], column + 1)
        q_B1HC = random.normal(size=(6, 1, 6, 16)).astype(np.float32)
        prompts, own = (random_kv(random, *x) for x in ((3, LENGTH), (6, COLUMNS)))
        live_B = own_B > 0
        last_B = LAST_P[PROMPT_B]
        seen_B = last_B + 1
        own_mask = own_seen(column, own_B)
        if window:
            seen_B = np.minimum(seen_B, window - own_B)
            own_mask &= own_seen(column, np.full(6, window))
        before = np.arange(LENGTH) >= LENGTH - np.where(live_B, seen_B, 0)[:, None]
        mask_B1S = np.concatenate([before, own_mask], axis=1)[:, None]
        joined = [
            np.concatenate([x[1][PROMPT_B], y[1]], axis=axis)
            for x, y, axis in zip(prompts, own, (-1, -2))
        ]
        wanted = wanted_of(q_B1HC, *joined, mask_B1S)[:, 0]
        if not stacked:
            prompts, own = [x[1] for x in prompts], [x[1] for x in own]
        position_B = np.where(live_B, last_B + own_B, -1)
        at = ragged_decode.RowPlaces(
            *map(jnp.asarray, (position_B, PROMPT_B, LAST_P)), jnp.int32(column)
        )
        found = np.asarray(attend(q_B1HC[:, 0], prompts, own, at))
        assert np.all(np.isfinite(found)), column
        np.testing.assert_allclose(
            found[live_B], wanted[live_B], atol=1e-6, err_msg=f"column {column}"
        )
    assert attend._cache_size() == 1


def random_kv(random, rows, columns):
    """Keys and values of three layers."""
    shapes = (3, rows, 2, 16, columns), (3, rows, 2, columns, 16)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


OWN, PROMPT = ragged_decode.Cut(COLUMNS, 128), ragged_decode.Cut(LENGTH, 128)
ONE = ragged_decode.Cut(LENGTH, LENGTH)


@pytest.mark.slow
def test_the_list_by_hand():
    """Blocks of 128, a ring of 512; column 700 lies in block 5, which is block 1.

    Of their prompts of 256 columns rows see 1, 129, none, all and 100; the second and
    the last have the same, and so follow one another.
    """
    own_B, seen_B = np.array([1, 200, 0, 512, 1]), np.array([1, 129, -3, 256, 100])
    prompt_B = np.array([4, 0, 2, 1, 0])
    given = (jnp.asarray(x) for x in (own_B, seen_B, prompt_B))
    read = ragged_decode.list_entries(*given, jnp.int32(700), PROMPT, OWN)
    count = int(read.count_1[0])
    assert read.row_I[:count].tolist() == [1, 1, 1, 2, 4, 3, 3, 3, 3, 0]
    assert read.nth_I[: count + 1].tolist() == [0, 1, 2, 0, 0, 0, 1, 2, 3, 0, 0]
    assert read.prompt_B.tolist() == [4, 0, 0, 1, 0]
    assert read.own_from_B.tolist() == [700, 501, 700, 189, 700]
    assert read.prompt_from_B.tolist() == [255, 127, 256, 0, 156]
    given = own_B, seen_B.clip(0), prompt_B, 700
    assert columns_of(given, PROMPT) == [256, 640, 128, 768, 256]
    # Read whole, the prompt of the second and the last row is read once.
    assert columns_of(given, ONE) == [384, 640, 128, 768, 128]


def columns_of(given, prompt):
    return ragged_decode.columns_read(*given, prompt, OWN).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("prompt", [PROMPT, ONE], ids=["two blocks", "one"])
def test_what_is_read_is_what_the_kernel_fetches(interpreted, monkeypatch, prompt):
    """Its index maps walked, for rows by chance: a block stays while it is wanted."""
    maps, original = [], pl.BlockSpec
    monkeypatch.setattr(
        pl,
        "BlockSpec",
        lambda shape, place: maps.append(place) or original(shape, place),
    )
    B, P = 24, 6
    monkeypatch.setattr(ragged_decode, "MOST", prompt.size * 2 * 128)
    for seed in range(8):
        random = np.random.default_rng(seed)
        column = int(random.integers(1, 1500))
        own_B = random.integers(0, min(column + 1, COLUMNS) + 1, B)
        prompt_B = random.integers(0, P, B)
        last_P = random.integers(0, LENGTH, P)
        live_B = own_B > 0
        position_B = np.where(live_B, last_P[prompt_B] + own_B, -1)
        given = (jnp.asarray(x) for x in (position_B, prompt_B, last_P))
        at = ragged_decode.RowPlaces(*given, jnp.int32(column))
        read = ragged_decode.read_list(at, prompt, OWN)
        maps.clear()
        jax.eval_shape(
            partial(ragged_decode.attend, index=0, config=CONFIG),
            jnp.zeros((B, 6, 16)),
            kv_shapes(P, LENGTH),
            kv_shapes(B, COLUMNS),
            read,
            at.column,
        )
        of_prompts, of_ring = (
            fetched(place, read, column) for place in (maps[1], maps[3])
        )
        seen_B = np.where(live_B, last_P[prompt_B] + 1, 0)
        told = ragged_decode.columns_read(own_B, seen_B, prompt_B, column, prompt, OWN)
        ring = ragged_decode.own_read(own_B, column, OWN)
        assert of_ring * OWN.size == ring.sum()
        # Counted twice: a prompt's last block where rows side by side see only that.
        # Not counted: one where a row that sees none of its prompt comes first.
        counted = (told - ring).sum() / prompt.size
        again = B if prompt.blocks > 1 else 0
        assert counted - again <= of_prompts <= counted + 1


def kv_shapes(rows, columns):
    shapes = (1, rows, 2, 16, columns), (1, rows, 2, columns, 16)
    return [jnp.zeros(shape) for shape in shapes]


def fetched(place, read, column) -> int:
    """Blocks that an index map asks for anew."""
    lists = (read.row_I, read.nth_I, read.own_from_B, read.prompt_from_B, read.prompt_B)
    scalars = [np.zeros(1, int), *map(np.asarray, lists), np.array([column])]
    walked = [tuple(map(int, place(i, *scalars))) for i in range(int(read.count_1[0]))]
    return 1 + sum(a != b for a, b in itertools.pairwise(walked))


def test_only_for_a_tpu_and_rings_that_blocks_divide(monkeypatch):
    config = QWEN
    assert ragged_decode.fits(512, config) == 0
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    assert ragged_decode.fits(512, config) == 512
    assert ragged_decode.fits(640, config) == 128
    assert ragged_decode.fits(500, config) == 0


replaced = dataclasses.replace
MODELS = {
    "full": (QWEN, 8),
    "scanned": (replaced(QWEN, layers=10), 8),
    "sliding, whose ring the prompts have turned": (replaced(GEMMA, window=8), 12),
    "a short window, and a tail": (replaced(GEMMA, window=4, layers=3), 12),
    "a window of a prompt": (replaced(GEMMA, window=12), 12),
}
IN_CI = ("scanned", "a short window, and a tail")


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, length",
    [
        # Layers that are unrolled and full: on a mesh, below.
        pytest.param(*x, id=name, marks=[] if name in IN_CI else pytest.mark.soak)
        for name, x in MODELS.items()
    ],
)
def test_rollouts_by_it_are_the_same(monkeypatch, config, length):
    """16 rollouts in 4 slots: rows come and go, and the ring of 24 columns turns."""
    shape = dataclasses.replace(SHAPE, response_length=24, slots=4)
    problem_P = np.arange(8, dtype=np.int32)

    def write():
        generate = jax.jit(
            partial(rollout.generate, config=shape, compute=fp32(config)),
            compiler_options=QUICK,
        )
        given = (problem_P, key_of(), sampling_of())
        return generate(random_params(config), *prompts_of(problem_P, length), *given)

    wanted = write()
    assert not ragged_decode.shares(config, length=length, columns=24)
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))
    assert ragged_decode.shares(config, length=length, columns=24)
    found = write()
    assert wanted.slot_steps_M[0] > 4 * 24
    np.testing.assert_array_equal(found.response_BT, wanted.response_BT)
    np.testing.assert_allclose(found.logprob_BT, wanted.logprob_BT, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, slots",
    [
        pytest.param((2, 1, 1), 4, marks=pytest.mark.soak),
        pytest.param((1, 4, 2), 8, marks=pytest.mark.soak),
        ((2, 2, 2), 12),
        ((2, 1, 4), 4),
    ],
)
def test_rollouts_by_it_on_a_mesh_are_the_same(monkeypatch, shape, slots):
    """Each device's rows read the prompts that it holds; 4 parts share 2 kv heads."""
    wanted = generate()
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))
    devices = jax.devices()[: math.prod(shape)]
    with jax.set_mesh(make_mesh(*shape, devices=devices)):
        columns = SHAPE.response_length
        assert ragged_decode.shares(QWEN, length=LENGTH_OF_PROMPTS, columns=columns)
    same(wanted, generate_on_mesh(shape, slots=slots))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU's compiler: pip install -e '.[tpu]'",
)
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("slice_type", ["v4-8", "v5litepod-4", "v6e-4"])
@pytest.mark.parametrize(
    "kv_heads, head_dim, dtype",
    [
        pytest.param(1, 128, "bfloat16", marks=pytest.mark.soak),
        (16, 64, "bfloat16"),
        pytest.param(8, 128, "float32", marks=pytest.mark.soak),
        (4, 256, "float32"),
    ],
)
def test_it_compiles_for(slice_type, kv_heads, head_dim, dtype):
    """What fits fits into a chip's VMEM too: the blocks of many heads, and of few."""
    mesh = make_mesh(1, 1, 1, devices=slices.devices(slice_type)[:1])
    config = dataclasses.replace(
        CONFIG, heads=2 * kv_heads, kv_heads=kv_heads, head_dim=head_dim
    )
    L, S, P, B = 1024, 2048, 3, 8

    def shape(*axes, dtype=jnp.int32):
        at = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(axes, dtype, sharding=at)

    def kv(rows, columns):
        heads = 3, rows, kv_heads
        return [
            shape(*heads, *last, dtype=dtype)
            for last in ((head_dim, columns), (columns, head_dim))
        ]

    def attend(q_BHC, prompts, own, at, index):
        cuts = ragged_decode.cuts(L, S, config)
        assert all(cut.size for cut in cuts)
        read = ragged_decode.read_list(at, *cuts)
        return ragged_decode.attend(q_BHC, prompts, own, read, at.column, index, config)

    at = ragged_decode.RowPlaces(shape(B), shape(B), shape(P), shape())
    q_BHC = shape(B, 2 * kv_heads, head_dim, dtype=dtype)
    with jax.set_mesh(mesh):
        lowered = jax.jit(attend).lower(q_BHC, kv(P, L), kv(B, S), at, shape())
        assert 'custom_call_target="tpu_custom_call"' in lowered.compile().as_text()
