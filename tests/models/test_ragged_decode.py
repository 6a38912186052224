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
    tokens_of,
    wrong_at_the_end,
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


CONFIG = ModelConfig(
    vocab_size=8, width=8, layers=1, heads=6, kv_heads=2, head_dim=16, mlp_width=8
)
LENGTH = 256  # columns of a prompt
LAST_P = np.array([200, 100, LENGTH - 1])  # positions of their last tokens
PROMPT_B = np.array([2, 0, 0, 1, 2, 1])


@dataclasses.dataclass(frozen=True)
class Step:
    """Tokens of rows at columns that they are given, and what is in the cache."""

    tokens: int
    window: int | None
    columns: int  # of a row
    column_B: np.ndarray
    live_B: np.ndarray
    q: np.ndarray
    prompts: list
    own: list
    new: list

    @classmethod
    def random(cls, tokens, window, columns, column_B, live_B, seed):
        random, B = np.random.default_rng(seed), len(column_B)
        shapes = (B, 2, 16, tokens), (B, 2, tokens, 16)
        return cls(
            tokens=tokens,
            window=window,
            columns=columns,
            column_B=np.asarray(column_B, np.int32),
            live_B=np.asarray(live_B),
            q=random.normal(size=(B, tokens, 6, 16)).astype(np.float32),
            prompts=random_kv(random, len(LAST_P), LENGTH),
            own=random_kv(random, B, columns),
            new=[random.normal(size=shape).astype(np.float32) for shape in shapes],
        )

    @property
    def at(self):
        """As the kernel's list takes it."""
        given = self.column_B, self.live_B.astype(np.int32), PROMPT_B, LAST_P
        return ragged_decode.RowPlaces(*map(jnp.asarray, given))

    def written(self, layer=1):
        """The cache with the new columns, those behind a row's last dropped."""
        keys, values = (x.copy() for x in self.own)
        ring = self.window and self.columns >= self.window + self.tokens - 1
        for b, column in enumerate(np.where(self.live_B, self.column_B, 0)):
            for j in range(self.tokens):
                if ring or column + j < self.columns:
                    at = (column + j) % self.columns
                    keys[layer, b, :, :, at] = self.new[0][b, :, :, j]
                    values[layer, b, :, at] = self.new[1][b, :, j]
        return keys, values

    def out(self, config, layer=1):
        """Attention to each row's text, its columns in their order, by XLA."""
        B, S = len(self.column_B), int(self.column_B.max()) + self.tokens
        last_B = LAST_P[PROMPT_B]
        # Prompt, own columns from 0 on, and the new ones in their place.
        keys, values = (np.zeros((B, 2, *x)) for x in ((16, S), (S, 16)))
        for b, column in enumerate(self.column_B):
            at = np.arange(column) % self.columns
            keys[b, :, :, :column] = self.own[0][layer, b][:, :, at]
            values[b, :, :column] = self.own[1][layer, b][:, at]
            keys[b, :, :, column : column + self.tokens] = self.new[0][b]
            values[b, :, column : column + self.tokens] = self.new[1][b]
        prompts = [x[layer][PROMPT_B] for x in self.prompts]
        joined = [
            np.concatenate([a, b], axis=axis).astype(np.float32)
            for a, b, axis in zip(prompts, (keys, values), (-1, -2))
        ]
        place_L = np.arange(1 - LENGTH, 1)
        key_BX = np.concatenate(
            [
                np.maximum(last_B[:, None] + place_L, -1),
                last_B[:, None] + 1 + np.arange(S),
            ],
            axis=1,
        )
        query_BJ = (last_B + 1 + self.column_B)[:, None] + np.arange(self.tokens)
        mask_BJX = dense.seen_mask(query_BJ, key_BX, self.window)
        return dense.attend(self.q, *joined, mask_BTS=mask_BJX, config=config)

    def check(self, attend, config, layer=1):
        """That the kernel gives the same, and changes nothing else in the cache."""
        prompts, own = self.prompts, self.own
        if layer is None:
            prompts, own = ([x[1] for x in kv] for kv in (prompts, own))
        found, kept = attend(self.q, prompts, own, self.new, self.at)
        assert np.all(np.isfinite(found))
        np.testing.assert_allclose(
            found[self.live_B], self.out(config)[self.live_B], atol=2e-6
        )
        for one, want in zip(kept, self.written()):
            np.testing.assert_array_equal(one, want if layer is not None else want[1])


def kernel_of(config, *, tokens, window, columns, layer=1):
    @jax.jit
    def attend(q_BJHC, prompts, own, new, at):
        cuts = ragged_decode.cuts(LENGTH, columns, config, tokens=tokens, window=window)
        read = ragged_decode.read_list(at, *cuts)
        given = q_BJHC, prompts, own, new, read, layer
        return ragged_decode.attend(*given, config, window)

    return attend


LIVE_B = np.array([True, True, True, True, True, False])


@pytest.mark.slow
@pytest.mark.parametrize(
    "softcap, stacked, window",
    [(None, True, None), (2.0, False, None), (None, True, 380), (None, True, 600)],
)
@pytest.mark.parametrize("whole", [False, True])  # a prompt is one block
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_it_is_attention_to_what_a_row_has(
    interpreted, monkeypatch, softcap, stacked, window, whole, tokens
):
    """In a row, in a window's ring, and in one that never turns (of 600).

    Within blocks, over the border of two, at the end of a row and round a ring's; what
    lies behind in the cache is random.
    """
    config = dataclasses.replace(CONFIG, attention_softcap=softcap)
    monkeypatch.setattr(ragged_decode, "MOST", 2 * 128 * (LENGTH if whole else 128))
    prompt, own = ragged_decode.cuts(LENGTH, COLUMNS, config)
    assert (prompt.blocks == 1) == whole and own.blocks == 4
    layer = 1 if stacked else None
    how = {"tokens": tokens, "window": window, "columns": COLUMNS}
    attend = kernel_of(config, layer=layer, **how)
    places = [(0, 126, 127, 300, COLUMNS - tokens, 40)]
    places += [(1, 255, 128, 383, COLUMNS - 1, 511)]
    if window and window + tokens - 1 <= COLUMNS:
        places += [(511, 512, 1500, 700, 639, 40), (510, 1021, 1023, 890, 892, 891)]
    for seed, column_B in enumerate(places):
        Step.random(column_B=column_B, live_B=LIVE_B, seed=seed, **how).check(
            attend, config, layer
        )
    assert attend._cache_size() == 1


@pytest.mark.parametrize(
    "tokens, window", [pytest.param(5, None, marks=pytest.mark.slow), (2, 380)]
)
def test_tokens_of_a_step_are_as_many_steps(interpreted, tokens, window):
    """Also where huge numbers lie behind, as a rejected draft may have left them."""
    how = {"window": window, "columns": COLUMNS}
    column_B = np.array([0, 126, 127, 300, 200, 40])
    step = Step.random(tokens=tokens, column_B=column_B, live_B=LIVE_B, seed=3, **how)
    ahead_BS = np.arange(COLUMNS) >= column_B[:, None]
    own = [
        np.where(ahead_BS[:, None, None], 1e4, step.own[0]).astype(np.float32),
        np.where(ahead_BS[:, None, :, None], 1e4, step.own[1]).astype(np.float32),
    ]
    given = step.q, step.prompts, own, step.new, step.at
    wanted, kept = kernel_of(CONFIG, tokens=tokens, **how)(*given)
    one = kernel_of(CONFIG, tokens=1, **how)
    for j in range(tokens):
        now = slice(j, j + 1)
        new = [step.new[0][..., now], step.new[1][:, :, now]]
        at = dataclasses.replace(step.at, column_B=step.at.column_B + j)
        found, own = one(step.q[:, now], step.prompts, own, new, at)
        np.testing.assert_allclose(
            found[LIVE_B, 0], wanted[LIVE_B, j], atol=2e-6, err_msg=str(j)
        )
    for x, y in zip(own, kept, strict=True):
        np.testing.assert_array_equal(x[:, LIVE_B], y[:, LIVE_B])


def random_kv(random, rows, columns):
    """Keys and values of three layers."""
    shapes = (3, rows, 2, 16, columns), (3, rows, 2, columns, 16)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


PROMPT = ragged_decode.Cut(LENGTH, 128)
ONE = ragged_decode.Cut(LENGTH, LENGTH)


def ring(tokens, window=380):
    return ragged_decode.OwnCut(COLUMNS, 128, tokens=tokens, window=window)


@pytest.mark.slow
def test_the_list_by_hand():
    """Blocks of 128, rows of 512 columns, steps of three tokens.

    Of their prompts of 256 columns rows see 1, 129, none, all and 100; the second and
    the last have the same, and so follow one another.
    """
    own = ragged_decode.OwnCut(COLUMNS, 128, tokens=3)
    column_B, seen_B = np.array([0, 254, 0, 511, 125]), np.array([1, 129, -3, 256, 100])
    prompt_B = np.array([4, 0, 2, 1, 0])
    given = [jnp.asarray(x) for x in (column_B, seen_B, prompt_B)]
    read = ragged_decode.list_entries(*given, PROMPT, own)
    count = int(read.count_1[0])
    assert read.row_I[:count].tolist() == [1, 1, 1, 2, 4, 3, 3, 3, 3, 0]
    assert read.nth_I[: count + 1].tolist() == [0, 1, 2, 0, 0, 0, 1, 2, 3, 0, 0]
    assert read.prompt_B.tolist() == [4, 0, 0, 1, 0]
    assert read.column_B.tolist() == column_B.tolist()
    assert read.prompt_from_B.tolist() == [255, 127, 256, 0, 156]
    given = column_B, seen_B.clip(0), prompt_B
    columns = lambda prompt: ragged_decode.columns_read(*given, prompt, own).tolist()  # noqa: E731
    assert columns(PROMPT) == [256, 640, 128, 768, 256]
    # Read whole, the prompt of the second and the last row is read once.
    assert columns(ONE) == [384, 640, 128, 768, 128]


def test_a_rings_blocks_by_hand():
    """A window of 380 in 512 columns, blocks of 128; a step of one token and of 5."""
    column_B = np.array([0, 379, 380, 508, 700])
    assert ring(1).first(column_B).tolist() == [0, 0, 1, 129, 321]
    assert ring(1).last(column_B).tolist() == [0, 379, 380, 508, 700]
    assert ring(5).last(column_B).tolist() == [4, 383, 384, 512, 704]
    assert ragged_decode.own_read(column_B, ring(1)).tolist() == [
        128,
        384,
        384,
        384,
        512,
    ]
    # 508 to 512 lie in two blocks, of which the second is block 0 again.
    assert ragged_decode.own_read(column_B, ring(5)).tolist() == [
        128,
        384,
        512,
        512,
        512,
    ]
    # From 511 to 890: the newest lie in the block of the oldest, which is read once.
    assert ragged_decode.own_read(np.array([890, 895, 896]), ring(1)).tolist() == [
        512,
        384,
        512,
    ]
    # Columns behind the last of a row that is no ring are dropped.
    assert not ring(5, window=600).wraps and not ring(5, window=None).wraps
    assert ring(5, window=600).last(np.array([510])).tolist() == [511]


@pytest.mark.slow
@pytest.mark.parametrize("tokens, window", [(1, None), (3, None), (3, 380)])
@pytest.mark.parametrize("prompt", [PROMPT, ONE], ids=["two blocks", "one"])
def test_what_is_read_is_what_the_kernel_fetches(
    interpreted, monkeypatch, prompt, tokens, window
):
    """Its index maps walked, for rows by chance: a block stays while it is wanted."""
    maps, original = [], pl.BlockSpec

    def recording(shape=None, place=None, **options):
        maps.append(place)
        return original(shape, place, **options)

    monkeypatch.setattr(pl, "BlockSpec", recording)
    B, P = 24, 6
    monkeypatch.setattr(ragged_decode, "MOST", prompt.size * 2 * 128)
    own = ring(tokens, window)
    for seed in range(8):
        random = np.random.default_rng(seed)
        column_B = random.integers(0, 1500 if window else COLUMNS, B)
        live_B = random.integers(0, 8, B) > 0
        prompt_B = random.integers(0, P, B)
        last_P = random.integers(0, LENGTH, P)
        given = column_B, live_B.astype(np.int32), prompt_B, last_P
        at = ragged_decode.RowPlaces(*map(jnp.asarray, given))
        read = ragged_decode.read_list(at, prompt, own)
        maps.clear()
        jax.eval_shape(
            partial(ragged_decode.attend, index=0, config=CONFIG, window=window),
            jnp.zeros((B, tokens, 6, 16)),
            kv_shapes(P, LENGTH),
            kv_shapes(B, COLUMNS),
            [jnp.zeros((B, 2, 16, tokens)), jnp.zeros((B, 2, tokens, 16))],
            read,
        )
        # The new tokens' comes first.
        of_prompts, of_rows = (fetched(place, read) for place in (maps[3], maps[5]))
        seen_B = last_P[prompt_B] + 1
        if window:
            seen_B = np.clip(seen_B, 0, np.maximum(window - column_B - 1, 0))
        seen_B, column_B = (np.where(live_B, x, 0) for x in (seen_B, column_B))
        told = ragged_decode.columns_read(column_B, seen_B, prompt_B, prompt, own)
        own_columns = ragged_decode.own_read(column_B, own)
        assert of_rows * own.size == own_columns.sum()
        # Counted twice: a prompt's last block where rows side by side see only that.
        # Not counted: one where a row that sees none of its prompt comes first.
        counted = (told - own_columns).sum() / prompt.size
        again = B if prompt.blocks > 1 else 0
        assert counted - again <= of_prompts <= counted + 1


def kv_shapes(rows, columns):
    shapes = (1, rows, 2, 16, columns), (1, rows, 2, columns, 16)
    return [jnp.zeros(shape) for shape in shapes]


def fetched(place, read) -> int:
    """Blocks that an index map asks for anew."""
    lists = read.row_I, read.nth_I, read.column_B, read.prompt_from_B, read.prompt_B
    scalars = [np.zeros(1, int), *map(np.asarray, lists), np.asarray(read.count_1)]
    walked = [tuple(map(int, place(i, *scalars))) for i in range(int(read.count_1[0]))]
    return 1 + sum(a != b for a, b in itertools.pairwise(walked))


def test_only_for_a_tpu_and_rows_that_blocks_divide(monkeypatch):
    config = QWEN
    assert ragged_decode.fits(512, config) == 0
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    assert ragged_decode.fits(512, config) == 512
    assert ragged_decode.fits(640, config) == 128
    assert ragged_decode.fits(500, config) == 0


def test_a_ring_is_of_whole_blocks():
    """The window's columns, those that a step's tokens need beside, and filling."""
    config = dataclasses.replace(GEMMA, window=512)
    counts = ragged_decode.row_counts
    assert counts(config, 2048) == {"full": 2048, "sliding": 512}
    assert counts(config, 2048, 2) == {"full": 2048, "sliding": 640}
    assert counts(config, 512, 2) == {"full": 512, "sliding": 512}


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
@pytest.mark.parametrize("step_tokens", [1, 3])
@pytest.mark.parametrize(
    "config, length",
    [
        # Layers that are unrolled and full: on a mesh, below.
        pytest.param(*x, id=name, marks=[] if name in IN_CI else pytest.mark.soak)
        for name, x in MODELS.items()
    ],
)
def test_rollouts_by_it_are_the_same(monkeypatch, config, length, step_tokens):
    """16 rollouts in 4 slots: rows come and go, and a window's ring turns.

    In steps of three tokens, too, of drafts that are wrong at their end.
    """
    shape = dataclasses.replace(
        SHAPE, response_length=24, slots=4, step_tokens=step_tokens
    )
    problem_P = np.arange(8, dtype=np.int32)

    def write(draft_PDT=None):
        generate = jax.jit(
            partial(rollout.generate, config=shape, compute=fp32(config)),
            compiler_options=QUICK,
        )
        given = (problem_P, key_of(), sampling_of(), None, None, draft_PDT)
        return generate(random_params(config), *prompts_of(problem_P, length), *given)

    wanted = write()
    assert not ragged_decode.shares(config, length=length, columns=24)
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (4,))
    assert ragged_decode.shares(config, length=length, columns=24)
    found = write(wrong_at_the_end(tokens_of(wanted)) if step_tokens > 1 else None)
    assert wanted.slot_steps_M[0] > 4 * 24
    assert (found.row_steps_M[0] < wanted.row_steps_M[0]) == (step_tokens > 1)
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
    draft_PDT = wrong_at_the_end(tokens_of(wanted))
    how = {"slots": slots, "draft_PDT": draft_PDT, "step_tokens": 4}
    drafted = generate_on_mesh(shape, **how)
    same(wanted, drafted)
    assert drafted.row_steps_M.sum() < wanted.row_steps_M.sum()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU's compiler: pip install -e '.[tpu]'",
)
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("slice_type", ["v4-8", "v5litepod-4", "v6e-4"])
@pytest.mark.parametrize(
    "kv_heads, head_dim, dtype, tokens, window",
    [
        pytest.param(1, 128, "bfloat16", 1, None, marks=pytest.mark.soak),
        (16, 64, "bfloat16", 5, None),
        pytest.param(8, 128, "float32", 9, 1024, marks=pytest.mark.soak),
        (4, 256, "float32", 1, 1024),
    ],
)
def test_it_compiles_for(slice_type, kv_heads, head_dim, dtype, tokens, window):
    """What fits fits into a chip's VMEM too: the blocks of many heads, and of few."""
    mesh = make_mesh(1, 1, 1, devices=slices.devices(slice_type)[:1])
    config = dataclasses.replace(
        CONFIG, heads=2 * kv_heads, kv_heads=kv_heads, head_dim=head_dim
    )
    L, S, P, B = 1024, 2048, 3, 8

    def shape(*axes, dtype=jnp.int32):
        at = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(axes, dtype, sharding=at)

    def kv(rows, columns, layers=(3,)):
        heads = *layers, rows, kv_heads
        return [
            shape(*heads, *last, dtype=dtype)
            for last in ((head_dim, columns), (columns, head_dim))
        ]

    def attend(q_BJHC, prompts, own, new, at, index):
        cuts = ragged_decode.cuts(L, S, config, tokens=tokens, window=window)
        assert all(cut.size for cut in cuts)
        read = ragged_decode.read_list(at, *cuts)
        given = q_BJHC, prompts, own, new, read, index
        return ragged_decode.attend(*given, config, window)

    at = ragged_decode.RowPlaces(shape(B), shape(B), shape(B), shape(P))
    q_BJHC = shape(B, tokens, 2 * kv_heads, head_dim, dtype=dtype)
    with jax.set_mesh(mesh):
        given = q_BJHC, kv(P, L), kv(B, S), kv(B, tokens, ()), at, shape()
        lowered = jax.jit(attend).lower(*given)
        assert 'custom_call_target="tpu_custom_call"' in lowered.compile().as_text()
