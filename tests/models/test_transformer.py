"""The model against other people's outputs, and against itself."""

import contextlib
import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import QUICK

from limr_jax import chunking
from limr_jax.models import kv_cache as cache_lib
from limr_jax.models import transformer
from limr_jax.models.attention.dense import rotation
from limr_jax.models.hf_weights import load_params, read_config
from limr_jax.models.transformer import ModelConfig, Rope
from limr_jax.sharding import BATCH, make_mesh, param_shardings

GOLDEN = (
    "qwen2-tiny",
    "qwen2-untied-bf16",
    "qwen3-tiny",
    "llama3-tiny",
    "gemma2-tiny",
    "gemma3-tiny",
)
TOLERANCE = 1e-4  # the issue's
# Every field that changes the computation, in one small model: two groups of
# sliding and full attention, and one layer of tail.
EVERYTHING = ModelConfig(
    vocab_size=40,
    width=16,
    layers=5,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=24,
    pattern=("sliding", "full"),
    window=5,
    rope=Rope(base=1e6, factor=8.0),
    local_rope=Rope(),
    activation="gelu_tanh",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    qk_norm=True,
    tied=False,
    norm_plus_one=True,
    out_norms=True,
    scale_embedding=True,
    attention_scale=0.3,
    attention_softcap=5.0,
    logit_softcap=3.0,
)


def jit(f, *static):
    return jax.jit(f, static_argnames=static, compiler_options=QUICK)


# One cache of compiled programs for all tests.
FORWARD = jit(transformer.forward, "config", "dtype", "remat")
PREFILL = jit(transformer.prefill, "config", "dtype", "columns")
DECODE = jit(transformer.decode, "config", "dtype")
UNEMBED = jit(transformer.unembed, "config", "dtype")


@functools.cache
def one_device():
    return make_mesh(1, 1, 1, jax.devices()[:1])


def left_padded(rows_BT, lengths):
    width = rows_BT.shape[1]
    return np.stack([np.roll(row, width - n) for row, n in zip(rows_BT, lengths)])


def random_batch(config, B=4, T=12, seed=0):
    """Tokens and positions of right-padded rows of several lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(T // 2, T + 1, B)
    column = np.arange(T)[None]
    position_BT = np.where(column < lengths[:, None], column, -1).astype(np.int32)
    return random.integers(0, config.vocab_size, (B, T)), position_BT, lengths


def random_params(config, seed=0):
    """Like init_params, but nothing at 0 or 1 and large enough to matter."""
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    leaves, treedef = jax.tree.flatten(shapes)
    random = np.random.default_rng(seed)
    return treedef.unflatten(
        [np.float32(0.2 * random.standard_normal(leaf.shape)) for leaf in leaves]
    )


def logits_of(params, tokens_BT, position_BT, config):
    how = {"config": config, "dtype": jnp.float32}
    return UNEMBED(params, FORWARD(params, tokens_BT, position_BT, **how), **how)


def greedy(params, tokens_BL, position_BL, steps, config):
    """Greedy continuation of left-padded prompts through prefill and decode."""
    how = {"config": config, "dtype": jnp.float32}
    L = tokens_BL.shape[1]
    columns = L + steps - 1  # the last token need not be read
    hidden_BLD, cache = PREFILL(params, tokens_BL, position_BL, columns=columns, **how)
    hidden_BD, length_B, chosen = hidden_BLD[:, -1], position_BL[:, -1] + 1, []
    for i in range(steps):
        chosen.append(np.argmax(UNEMBED(params, hidden_BD, **how), axis=-1))
        if i < steps - 1:
            hidden_BJD, cache = DECODE(
                params,
                chosen[-1][:, None],
                (length_B + np.int32(i))[:, None],
                cache,
                np.full(len(length_B), L + i, np.int32),
                **how,
            )
            hidden_BD = hidden_BJD[:, 0]
    return np.stack(chosen, axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(shared, name):
    directory = shared / "models" / name
    config = read_config(directory)
    params = load_params(directory, config, one_device())
    golden = np.load(directory / "golden.npz")
    tokens_BT, lengths = golden["input_ids"], golden["lengths"]
    column = np.arange(tokens_BT.shape[1])[None]
    position_BT = np.where(column < lengths[:, None], column, -1).astype(np.int32)
    logits = np.asarray(logits_of(params, tokens_BT, position_BT, config))
    error = np.abs(logits - golden["logits"])[position_BT >= 0].max()
    assert error < TOLERANCE
    continued = greedy(
        params,
        left_padded(tokens_BT, lengths),
        left_padded(position_BT, lengths),
        golden["greedy"].shape[1],
        config,
    )
    np.testing.assert_array_equal(continued, golden["greedy"])


KINDS = EVERYTHING.pattern
LONG = ("sliding", "full", "sliding") + ("full",) * 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, narrowest, kinds",
    [(5, 256, KINDS), (9, 256, KINDS), (9, 4, KINDS), (11, 256, LONG)],
)
def test_prefill_and_decode_are_forward(layers, narrowest, kinds, monkeypatch):
    """Decode unrolled and scanned; rings too: 12 columns over a window of 5.

    With a narrowest of 4, attention reads 4, then 8, then all of 16 columns. A pattern
    of 11 keeps its order, though by name the eleventh comes before the third.
    """
    monkeypatch.setattr(cache_lib, "NARROWEST", narrowest)
    decode = jit(partial(transformer.decode), "config", "dtype")  # traced here
    config = dataclasses.replace(EVERYTHING, layers=layers, pattern=kinds)
    params = random_params(config)
    tokens_BT, position_BT, lengths = random_batch(config, B=4, T=12)
    tokens_BT = left_padded(tokens_BT, lengths)
    position_BT = left_padded(position_BT, lengths)
    want = np.asarray(logits_of(params, tokens_BT, position_BT, config))
    how = {"config": config, "dtype": jnp.float32}
    for L in (4, 7):  # within the window, and beyond it
        hidden_BLD, cache = PREFILL(
            params, tokens_BT[:, :L], position_BT[:, :L], columns=16, **how
        )
        got = [UNEMBED(params, hidden_BLD, **how)]
        for column in range(L, 12):
            token_BJ, position_BJ = (
                x[:, column, None] for x in (tokens_BT, position_BT)
            )
            column_B = np.full(4, column, np.int32)
            hidden_BJD, cache = decode(
                params, token_BJ, position_BJ, cache, column_B, **how
            )
            got.append(UNEMBED(params, hidden_BJD, **how))
        got = np.concatenate(got, axis=1)
        valid = position_BT >= 0
        np.testing.assert_allclose(got[valid], want[valid], atol=5e-5)
    check_cache(config, cache)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize(
    "layers, narrowest, shape",
    [(5, 256, None), (10, 4, None), (5, 256, (1, 2, 2)), (10, 4, (2, 2, 2))],
)
def test_tokens_of_a_step_are_as_many_steps(
    tokens, layers, narrowest, shape, monkeypatch
):
    """Rows at their own columns, whose drafts are wrong from a token on by chance.

    What a rejected draft leaves behind is huge, and the row goes on over it; a window
    of 5 is crossed within a step.
    """
    monkeypatch.setattr(cache_lib, "NARROWEST", narrowest)
    config = dataclasses.replace(EVERYTHING, layers=layers)
    params, random = random_params(config), np.random.default_rng(tokens)
    B, L, T = 8, 7, 12
    tokens_BT, _, _ = random_batch(config, B=B, T=L + T)
    shift_B = random.integers(0, L - 1, B)
    place_T = np.arange(L + T, dtype=np.int32)
    position_BT = np.maximum(place_T - shift_B[:, None], -1).astype(np.int32)
    want = np.asarray(
        FORWARD(params, tokens_BT, position_BT, config=config, dtype=jnp.float32)
    )
    how = {"config": config, "dtype": jnp.float32}
    with on_mesh(shape):
        _, cache = jit(
            transformer.prefill, "config", "columns", "dtype", "step_tokens"
        )(
            params,
            tokens_BT[:, :L],
            position_BT[:, :L],
            columns=L + T + tokens - 1,
            step_tokens=tokens,
            **how,
        )
        assert cache.position["sliding"].shape[1] == min(5 + tokens - 1, L + T)
        decode = jit(partial(transformer.decode), "config", "dtype")  # traced here
        column_B, seen = np.full(B, L, np.int32), 0
        while np.any(column_B < L + T):
            live_B = column_B < L + T
            at_BJ = column_B[:, None] + np.arange(tokens, dtype=np.int32)
            # A row's right tokens, then others; the first is always right.
            right_B = random.integers(1, tokens + 1, B)
            right_B = np.minimum(right_B, np.maximum(L + T - column_B, 1))
            good_BJ = np.arange(tokens) < right_B[:, None]
            known_BJ = np.minimum(at_BJ, L + T - 1)
            token_BJ = np.take_along_axis(tokens_BT, known_BJ, axis=1)
            token_BJ = np.where(good_BJ, token_BJ, (token_BJ + 1) % config.vocab_size)
            position_BJ = at_BJ - shift_B[:, None].astype(np.int32)
            position_BJ = np.where(live_B[:, None], position_BJ, -1)
            hidden_BJD, cache = decode(
                params, token_BJ, position_BJ, cache, column_B, **how
            )
            check_BJ = good_BJ & live_B[:, None]
            wanted = np.take_along_axis(want, known_BJ[..., None], axis=1)
            np.testing.assert_allclose(
                np.asarray(hidden_BJD)[check_BJ], wanted[check_BJ], atol=5e-5
            )
            cache = with_huge_drafts(cache, column_B, right_B, tokens)
            column_B = column_B + np.where(live_B, right_B, 0).astype(np.int32)
            seen += check_BJ.sum()
    assert seen == B * T


def on_mesh(shape):
    if shape is None:
        return contextlib.nullcontext()
    devices = jax.devices()[: math.prod(shape)]
    return jax.set_mesh(make_mesh(*shape, devices=devices))


def with_huge_drafts(cache, column_B, right_B, tokens):
    """The cache with huge numbers in the columns of the tokens that were not right."""

    def huge(x, axis):
        x = np.moveaxis(np.array(x), (x.ndim == 5, axis), (0, 1))
        for row, column, right in zip(x, column_B, right_B, strict=True):
            row[(column + np.arange(right, tokens)) % len(row)] = 1e4
        return jnp.asarray(np.moveaxis(x, (0, 1), (x.ndim == 5, axis)))

    def kv(layer):
        return tuple(huge(x, axis) for x, axis in zip(layer, (-1, -2), strict=True))

    return dataclasses.replace(
        cache,
        blocks=tuple({k: kv(x) for k, x in group.items()} for group in cache.blocks),
        tail={k: kv(x) for k, x in cache.tail.items()},
    )


def check_cache(config, cache):
    """Its shapes, keys and values each as they are contracted."""
    # Of a scan, else of one layer.
    stack = (config.groups,) if len(cache.blocks) == 1 else ()
    for place, columns in (("0", 5), ("1", 16)):
        k, v = cache.blocks[0][place]
        assert k.shape == (*stack, 4, 2, 8, columns)  # B, K, C, S
        assert v.shape == (*stack, 4, 2, columns, 8)  # B, K, S, C
    assert jax.tree.map(jnp.shape, cache.position) == {
        "full": (4, 16),
        "sliding": (4, 5),
    }


def test_stopped_row_leaves_the_others_alone():
    config, params = EVERYTHING, random_params(EVERYTHING)
    tokens_BT, _, _ = random_batch(config, B=4, T=12)
    position_BT = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    how = {"config": config, "dtype": jnp.float32}

    def last(stops):
        _, cache = PREFILL(
            params, tokens_BT[:, :7], position_BT[:, :7], columns=16, **how
        )
        for column in range(7, 12):
            position_B = np.where(stops, -1, position_BT[:, column])
            hidden_BJD, cache = DECODE(
                params,
                tokens_BT[:, column, None],
                position_B[:, None],
                cache,
                np.full(4, column, np.int32),
                **how,
            )
        return np.asarray(hidden_BJD[:, 0])

    running = last(np.array([False] * 4))
    stopped = last(np.array([False, True, False, True]))
    np.testing.assert_array_equal(running[::2], stopped[::2])
    assert np.isfinite(stopped).all()


def test_padding_side_and_width_change_nothing():
    config, params = EVERYTHING, random_params(EVERYTHING)
    tokens_BT, position_BT, lengths = random_batch(config, B=4, T=12)
    right = np.asarray(logits_of(params, tokens_BT, position_BT, config))
    tokens_BT = left_padded(tokens_BT, lengths)
    position_BT = left_padded(position_BT, lengths)
    left = np.asarray(logits_of(params, tokens_BT, position_BT, config))
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(left[row, -n:], right[row, :n], atol=2e-5)
    assert min(lengths) < max(lengths)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_remat_is_no_remat(monkeypatch, dtype):
    """Nor what keeps a layer's products, which takes less memory than all of it."""
    config = dataclasses.replace(EVERYTHING, pattern=("full",), layers=2)
    params = random_params(config)
    tokens_BT, position_BT, _ = random_batch(config)

    def compiled(remat):
        def loss(params):
            hidden_BTD = transformer.forward(
                params,
                tokens_BT,
                position_BT,
                config=config,
                dtype=dtype,
                remat=remat,
            )
            return jnp.sum(jnp.square(hidden_BTD) * (position_BT >= 0)[..., None])

        jitted = jax.jit(jax.grad(loss), compiler_options=QUICK)
        return jitted.lower(params).compile()

    plain, remat = compiled(False), compiled(True)
    monkeypatch.setattr(transformer, "_MANY", 0)
    products = compiled(False)
    gradients = plain(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    for other in (products, remat):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            gradients,
            other(params),
        )
    kept = [x.memory_analysis().temp_size_in_bytes for x in (remat, products, plain)]
    assert kept == sorted(set(kept))


@pytest.mark.slow
def test_chunks_of_queries_are_all_at_once(monkeypatch):
    """10 queries by 4, 4 and 2: values and gradients."""
    config = dataclasses.replace(EVERYTHING, pattern=("full",), layers=1)
    params = random_params(config)
    tokens_BT, position_BT, _ = random_batch(config, T=10)

    def value_and_gradient():
        def loss(params):
            hidden_BTD = transformer.forward(
                params, tokens_BT, position_BT, config=config, dtype=jnp.float32
            )
            return jnp.sum(jnp.square(hidden_BTD) * (position_BT >= 0)[..., None])

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

    want = value_and_gradient()
    monkeypatch.setattr(chunking, "ELEMENTS", 4 * len(tokens_BT) * config.heads * 10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        value_and_gradient(),
        want,
    )


def test_packed_rows_are_rows_apart():
    """Two texts in one row, each with positions from 0, see only themselves."""
    config, params = EVERYTHING, random_params(EVERYTHING)
    tokens_BT, _, _ = random_batch(config, B=4, T=12)
    position_BT = np.broadcast_to(np.arange(12, dtype=np.int32), (4, 12))
    how = {"config": config, "dtype": jnp.float32}
    packed_position = np.broadcast_to(np.int32([*range(7), *range(5)]), (4, 12))
    segment = np.broadcast_to(np.int32([0] * 7 + [1] * 5), (4, 12))
    packed = FORWARD(params, tokens_BT, packed_position, segment, **how)
    shifted = np.roll(tokens_BT, -7, axis=1)  # the second text first
    first = FORWARD(params, tokens_BT, position_BT, **how)
    second = FORWARD(params, shifted, position_BT, **how)
    np.testing.assert_allclose(packed[:, :7], first[:, :7], atol=2e-5)
    np.testing.assert_allclose(packed[:, 7:], second[:, :5], atol=2e-5)


def test_compute_params_changes_no_bit():
    config = dataclasses.replace(EVERYTHING, pattern=("full",), layers=1)
    params = random_params(config)
    tokens_BT, position_BT, _ = random_batch(config)
    cast = transformer.compute_params(params, jnp.bfloat16)
    assert cast["embedder"]["embedding"].dtype == jnp.bfloat16
    assert cast["final_norm"]["scale"].dtype == np.float32
    how = {"config": config, "dtype": jnp.bfloat16}
    np.testing.assert_array_equal(
        FORWARD(cast, tokens_BT, position_BT, **how),
        FORWARD(params, tokens_BT, position_BT, **how),
    )


def test_llama3_rope_by_hand():
    """Wavelengths 2π·base^(2i/C): short kept, long divided by 8, between blended."""
    rope = Rope(base=1e4, factor=8.0, original_length=64)

    def angles_at_1(rope):
        cos, sin = rotation(jnp.ones((1, 1), jnp.int32), rope, 4)
        return np.arctan2(sin, cos)[0, 0]

    # Pair 0: wavelength 6.28 < 64 / 4, kept. Pair 1: 628 > 64, divided.
    np.testing.assert_allclose(angles_at_1(rope), [1.0, 0.01 / 8], rtol=1e-6)
    rope = dataclasses.replace(rope, base=25.0)
    # Pair 1: 64 · 0.2 / 2π = 2.0372 turns: a blend of (2.0372 - 1) / 3 = 0.34572.
    want = 0.2 * (0.34572 + (1 - 0.34572) / 8)
    np.testing.assert_allclose(angles_at_1(rope)[1], want, rtol=1e-4)


def test_init_params():
    init = jax.jit(transformer.init_params, static_argnums=0, compiler_options=QUICK)
    params = init(EVERYTHING, jax.random.key(1))
    assert params["blocks"]["0"]["attention"]["q"]["kernel"].shape == (2, 16, 4, 8)
    assert params["tail"]["0"]["attention"]["k"]["kernel"].shape == (16, 2, 8)
    assert set(params["tail"]) == {"0"} and set(params["blocks"]) == {"0", "1"}
    scale = params["final_norm"]["scale"]
    np.testing.assert_array_equal(scale, 0.0)  # multiplies by 1 + scale
    kernels = [
        params["blocks"][i]["mlp"]["up"]["kernel"].ravel() for i in params["blocks"]
    ]
    spread = np.std(np.concatenate(kernels))
    assert 0.018 < spread < 0.022
    assert not np.allclose(kernels[0], kernels[1])


def test_unsupported_configurations_are_refused():
    with pytest.raises(ValueError, match="window"):
        dataclasses.replace(EVERYTHING, window=None)
    with pytest.raises(ValueError, match="kv heads"):
        dataclasses.replace(EVERYTHING, kv_heads=3)
    with pytest.raises(ValueError, match="pattern"):
        dataclasses.replace(EVERYTHING, layers=1)
    params = random_params(EVERYTHING)
    tokens_BT, position_BT, _ = random_batch(EVERYTHING)
    with pytest.raises(ValueError, match="11 columns are too few"):
        transformer.prefill(
            params,
            tokens_BT,
            position_BT,
            config=EVERYTHING,
            columns=11,
            dtype=jnp.float32,
        )


def check_sharded(config, one, mesh, run):
    tokens_BT, position_BT, lengths = random_batch(config, B=8, T=12)
    batch = left_padded(tokens_BT, lengths), left_padded(position_BT, lengths)
    want = jax.jit(run, compiler_options=QUICK)(one, *batch)
    params = jax.device_put(one, param_shardings(mesh, one))
    with jax.set_mesh(mesh):
        rows = jax.NamedSharding(mesh, BATCH)
        run = jax.jit(run, compiler_options=QUICK)
        got = run(params, *jax.device_put(batch, rows))
    for a, b in zip(got, want):
        assert len(a.sharding.device_set) == 8
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shape", list(zip(GOLDEN, 2 * [(2, 2, 2), (1, 2, 4), (1, 8, 1)]))
)
def test_sharded_is_one_device(shared, name, shape):
    directory = shared / "models" / name
    config = read_config(directory)
    how = {"config": config, "dtype": jnp.float32}

    def run(params, tokens_BT, position_BT):
        hidden_BTD = transformer.forward(params, tokens_BT, position_BT, **how)
        return [transformer.unembed(params, hidden_BTD, **how)]

    one = load_params(directory, config, one_device())
    check_sharded(config, one, make_mesh(*shape), run)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, 2, 4), pytest.param((2, 2, 2), marks=pytest.mark.soak)]
)
def test_sharded_decode_is_one_device(shape):
    """2 kv heads over a tensor axis of 4 and of 2."""
    how = {"config": EVERYTHING, "dtype": jnp.float32}

    def run(params, tokens_BT, position_BT):
        before_BLD, cache = transformer.prefill(
            params, tokens_BT[:, :-1], position_BT[:, :-1], columns=12, **how
        )
        column_B = jnp.full(8, 11, jnp.int32)
        last_BJD, cache = transformer.decode(
            params, tokens_BT[:, -1:], position_BT[:, -1:], cache, column_B, **how
        )
        return before_BLD, last_BJD, cache.blocks[1]["1"][0]

    check_sharded(EVERYTHING, random_params(EVERYTHING), make_mesh(*shape), run)
