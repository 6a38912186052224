"""The TPU's attention kernel: XLA's numbers in interpret mode, and it compiles."""

import dataclasses
import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_policy import GEMMA, QUICK, QWEN, fp32, random_params

from limr_jax import sharding
from limr_jax.compilation import flops, slices
from limr_jax.learner.logprobs import logprob_of, response_logprob
from limr_jax.learner.packing import Layout
from limr_jax.models import transformer
from limr_jax.models.attention import dense, splash
from limr_jax.models.config import ComputeConfig

B, T = 2, 512
F32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
PLAIN = dataclasses.replace(QWEN, head_dim=64)
CAPPED = dataclasses.replace(PLAIN, attention_softcap=5.0, attention_scale=0.3)


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel on CPU, in blocks small enough that rows have several."""
    monkeypatch.setattr(splash, "INTERPRET", True)
    monkeypatch.setattr(splash, "QUERIES", (256,))


def packed_rows(rows, columns, seed=0):
    """Problems with up to four responses each, then padding."""
    random = np.random.default_rng(seed)
    position_BT = np.full((rows, columns), -1, np.int32)
    segment_BT, branch_BT = np.zeros((2, rows, columns), np.int32)
    for row in range(rows):
        column, segment = 0, 0
        while column < columns - 120:
            prompt, segment = random.integers(3, 60), segment + 1
            for branch in range(random.integers(1, 5)):
                start = 0 if branch == 0 else prompt
                length = prompt if branch == 0 else random.integers(1, 150)
                length = min(length, columns - 20 - column)
                here = (row, slice(column, column + length))
                position_BT[here] = start + np.arange(length)
                segment_BT[here], branch_BT[here] = segment, 7 * branch
                column += length
    return position_BT, segment_BT, branch_BT


def texts(rows, columns):
    """Several texts a row, each of its own segment."""
    position_BT, segment_BT, branch_BT = packed_rows(rows, columns)
    segment_BT = 100 * segment_BT + branch_BT
    for row in range(rows):
        for segment in np.unique(segment_BT[row]):
            here = (segment_BT[row] == segment) & (position_BT[row] >= 0)
            position_BT[row, here] = np.arange(here.sum())
    return position_BT, segment_BT, None


def left_padded(rows, columns):
    pads = columns * np.arange(1, rows + 1)[:, None] // (rows + 1)
    position_BT = np.arange(columns, dtype=np.int32)[None] - pads
    return np.maximum(position_BT, -1).astype(np.int32), None, None


CASES = {
    "packed": (packed_rows, None, PLAIN),
    "packed, window, soft cap": (packed_rows, 70, CAPPED),
    "texts, window": (texts, 70, PLAIN),
    "prompts": (left_padded, None, CAPPED),
}


def operands(position_BT, config, seed=1):
    """q, k, v as attention has them, and weights of a sum over what is no padding."""
    rows, columns = position_BT.shape
    random = np.random.default_rng(seed)
    H, K, C = config.heads, config.kv_heads, config.head_dim

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    weight = normal(rows, columns, H, C) * (position_BT >= 0)[..., None, None]
    qkv = (normal(rows, columns, H, C), normal(rows, K, C, columns))
    return (*qkv, normal(rows, K, columns, C)), weight


def by_kernel(q, k, v, lay, *, window, config):
    sight = splash.sight(*lay, config, window=window)
    return splash.attend(q, k, v, sight, config)


def by_xla(q, k, v, lay, *, window, config):
    position_BT, *apart = lay
    mask_BTT = dense.seen_mask(position_BT, position_BT, window)
    same_BTT = dense.same_text_mask(*apart)
    mask_BTT = mask_BTT if same_BTT is None else mask_BTT & same_BTT
    return dense.attend(q, k, v, mask_BTT, config)


def outputs_and_gradients(attend, lay, *, window, config, mesh=None):
    qkv, weight = operands(lay[0], config)
    lay = jax.tree.map(jnp.asarray, lay)

    def loss(q, k, v, weight, lay):
        out = weight * attend(q, k, v, lay, window=window, config=config)
        return jnp.sum(out), out

    run = jax.jit(
        jax.grad(loss, argnums=(0, 1, 2), has_aux=True), compiler_options=QUICK
    )
    if mesh is None:
        return run(*qkv, weight, lay)
    with jax.set_mesh(mesh):
        rows = NamedSharding(mesh, sharding.BATCH)
        return run(*jax.device_put((*qkv, weight, lay), rows))


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
        found,
        expected,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "window", "config"), CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_xla_s(interpreted, rows, window, config):
    """Four heads to two kv heads; padding before or after."""
    columns = T - 20 if rows is texts else T  # filled up to two blocks
    how = {"lay": rows(B, columns), "window": window, "config": config}
    assert_close(
        outputs_and_gradients(by_kernel, **how), outputs_and_gradients(by_xla, **how)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, heads",
    [((1, 4, 2), 4), ((1, 2, 4), 4), ((1, 2, 4), 16)],
    ids=["divided", "shared", "shared by many"],
)
def test_on_a_mesh(interpreted, monkeypatch, shape, heads):
    """Rows over 4 and heads over 2; heads over 4, kv heads both for two of them.

    Then a device has two rows, each at a time. Of 16 heads it has four, which could be
    shared by both kv heads, but have one.
    """
    monkeypatch.setattr(splash, "BLOCKS", 1)
    lay = packed_rows(4, 256)
    config = dataclasses.replace(PLAIN, heads=heads)
    how = {"lay": lay, "window": None, "config": config}
    mesh = sharding.make_mesh(*shape)
    assert_close(
        outputs_and_gradients(by_kernel, mesh=mesh, **how),
        outputs_and_gradients(by_xla, **how),
    )


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("rows", [packed_rows, texts, left_padded])
def test_a_block_is_visited_where_a_query_sees_a_key(interpreted, rows, window):
    position_BT, *apart = lay = jax.tree.map(jnp.asarray, rows(3, 1024))
    mask_BTT = dense.seen_mask(position_BT, position_BT, window)
    same_BTT = dense.same_text_mask(*apart)
    mask_BTT = mask_BTT if same_BTT is None else mask_BTT & same_BTT
    # The kernel divides by what a query sees: padding sees itself.
    mask_BTT |= jnp.eye(1024, dtype=bool)[None] & (position_BT < 0)[..., None]
    seen_BIJ = jnp.any(mask_BTT.reshape(3, 4, 256, 8, 128), axis=(2, 4))
    sight = splash.sight(*lay, PLAIN, window=window)
    np.testing.assert_array_equal(sight.visited_BIJ, seen_BIJ)
    assert not seen_BIJ.all()


@pytest.mark.slow
def test_a_model_reads_and_learns_the_same(interpreted, monkeypatch):
    """Log-probabilities of packed rows, their gradients, and a prompt's cache."""
    config = dataclasses.replace(GEMMA, head_dim=64, window=70)
    params = random_params(config)
    position_BT, segment_BT, branch_BT = map(jnp.asarray, packed_rows(B, T))
    tokens_BT = np.random.default_rng(2).integers(0, 40, (B, T)).astype(np.int32)
    from_BX = jnp.broadcast_to(jnp.arange(5, 400, 5), (B, 79))
    layout = Layout(branch_BT, tokens_BT[:, 5:400:5], from_BX)
    how = {"config": config, "dtype": jnp.float32}

    def loss(params):
        packed = (params, tokens_BT, position_BT, segment_BT, 0.7, layout)
        logprob_BX, _ = response_logprob(
            *packed, response_length=79, compute=fp32(config, remat=True)
        )
        live_BX = jnp.take_along_axis(position_BT, from_BX, axis=1) >= 0
        return jnp.sum(jnp.where(live_BX, logprob_BX, 0.0)) / live_BX.sum()

    prompts = (params, tokens_BT, jnp.asarray(left_padded(B, T)[0]))

    def both():
        hidden_BTD, cache = transformer.prefill(*prompts, columns=T + 3, **how)
        live_BT1 = prompts[-1][..., None] >= 0
        kept = {
            kind: [k * there, v * there.swapaxes(2, 3)]
            for kind, (k, v) in zip(config.pattern, cache.blocks[0].values())
            for there in [(cache.position[kind] >= 0)[:, None, None]]
        }
        return jax.value_and_grad(loss)(params), hidden_BTD * live_BT1, kept

    found = jax.jit(both, compiler_options=QUICK)
    text = str(found.trace().jaxpr)
    assert text.count("name=splash_mha") > 0
    monkeypatch.setattr(splash, "INTERPRET", False)
    expected = jax.jit(lambda: both(), compiler_options=QUICK)
    assert "splash_mha" not in str(expected.trace().jaxpr)
    assert_close(found(), expected())


def test_where_the_kernel_is_taken(monkeypatch):
    config = dataclasses.replace(QWEN, heads=28, kv_heads=4, head_dim=128)

    def fits(columns=4096, shared=True, tensor=1, **fields):
        with jax.set_mesh(sharding.make_mesh(1, -1, tensor)):
            like = dataclasses.replace(config, **fields)
            return splash.fits(columns, like, shared=shared)

    assert not fits()  # a mesh of CPUs
    monkeypatch.setattr(splash, "platform", lambda: "tpu")
    assert fits() and fits(tensor=4)
    assert fits(1000) and not fits(200)  # 256 are more than an eighth more
    assert splash.queries(4164, 128) == 512 and splash.queries(4096, 128) == 1024
    assert splash.queries(4096, 256) == 512  # larger ones do not compile for v4 in fp32
    assert not fits(head_dim=80) and not fits(attention_kernel=False)
    assert not fits(16_384) and fits(16_384, shared=False)
    # 12 heads over 4 devices: three that share one of 2 kv heads; of 6, half of them
    # would need two. 6 heads do not divide: every device has all of them.
    assert fits(tensor=4, heads=12, kv_heads=2)
    assert not fits(tensor=4, heads=12, kv_heads=6)
    assert fits(tensor=4, heads=6, kv_heads=2)


@pytest.mark.slow
def test_flops_and_bytes_by_hand(interpreted):
    """Rows of one text, 3 blocks of 256 queries by 6 of 128 keys: 12 of 18 visited."""
    rows, columns, C = 2, 768, 64
    position_BT = jnp.arange(columns, dtype=jnp.int32)[None].repeat(rows, 0)
    lay = (position_BT, None, None)
    sight = splash.sight(*lay, PLAIN, window=None)
    assert (sight.visited_BIJ.sum(axis=(1, 2)) == 12).all()
    qkv, _ = operands(position_BT, PLAIN)

    def out(q, k, v):
        return jnp.sum(by_kernel(q, k, v, lay, window=None, config=PLAIN))

    block = 4 * rows * 12 * 2 * 256 * 128 * C  # one product, 4 heads
    forward = jax.make_jaxpr(out)(*qkv)
    assert flops.flops(forward) == 2 * block
    both = jax.make_jaxpr(jax.grad(out, argnums=(0, 1, 2)))(*qkv)
    # Again the scores, then what their gradient, q's, k's and v's take; the scores and
    # their gradient in both kernels; beside them out · its gradient, once a query.
    beside = 2 * 4 * rows * columns * C
    assert flops.flops(both) == (2 + 3 + 4) * block + beside
    # Per head q is read and the output written once, with a code for 128 lanes; keys
    # and values of 2 rows by 12 blocks.
    once = 4 * rows * columns * (C + C + 128) * 4
    visited = 4 * rows * 12 * 128 * (C + C) * 4
    # Before 0.12 JAX's kernel also gives out its three running sums of a query block.
    results = flops._inside(
        forward,
        flops.Assumed(),
        lambda equation, _: (
            len(equation.outvars) if equation.primitive.name == "pallas_call" else None
        ),
    )
    sums = {1: 0, 4: 256 * (128 + 128 + C) * 4}[results]
    assert flops.kernel_bytes(forward) == once + visited + sums


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu, the TPU's compiler: pip install -e '.[tpu]'",
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize("slice_type", ["v4-8", "v5litepod-4", "v6e-4"])
def test_it_compiles_for(slice_type):
    """Forward and backward: packed rows with a window, a kv head for two devices."""
    mesh = sharding.make_mesh(1, 2, 2, devices=slices.devices(slice_type))
    config = dataclasses.replace(CAPPED, kv_heads=1, head_dim=128)

    def shape(dtype, *axes):
        at = NamedSharding(mesh, PartitionSpec(sharding.ROWS))
        return jax.ShapeDtypeStruct(axes, dtype, sharding=at)

    half, lay = partial(shape, jnp.bfloat16), [shape(jnp.int32, 2, T)] * 3
    qkv = half(2, T, 4, 128), half(2, 1, 128, T), half(2, 1, T, 128)

    def loss(q, k, v, *lay):
        assert splash.fits(T, config, shared=True)
        return jnp.sum(by_kernel(q, k, v, lay, window=70, config=config))

    with jax.set_mesh(mesh):
        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*qkv, *lay)
        text = lowered.compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    assert f"{T},{T}]" not in text  # nobody's scores


@pytest.mark.slow
@needs_libtpu
@pytest.mark.usefixtures("compiled_anew")
def test_two_unrolled_layers_against_cost_analysis(monkeypatch):
    """FLOPs within 5 % of the TPU compiler's, which knows nothing of a kernel's."""
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    mesh = sharding.make_mesh(1, 1, 1, devices=slices.devices("v5litepod-4")[:1])
    config = dataclasses.replace(
        QWEN, vocab_size=2048, width=512, head_dim=128, mlp_width=1024
    )
    shapes = jax.eval_shape(partial(transformer.init_params, config), jax.random.key(0))
    text = jax.ShapeDtypeStruct((B, T), jnp.int32)
    at = NamedSharding(mesh, sharding.REPLICATED)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), (shapes, text)
    )

    def logprobs(params, tokens_BT):
        compute = ComputeConfig(config, jnp.bfloat16)
        hidden_BTD = transformer.forward(
            params, tokens_BT, tokens_BT, config=config, dtype=compute.dtype
        )
        return logprob_of(params, hidden_BTD, tokens_BT, 1.0, compute=compute)

    with jax.set_mesh(mesh):
        traced = jax.jit(logprobs).trace(*shapes)
        compiled = traced.lower().compile()
    kernels = 2 * (4 * B * config.heads * T * T * config.head_dim)  # one block a row
    told = compiled.cost_analysis()["flops"]
    assert compiled.as_text().count("tpu_custom_call") == 2
    np.testing.assert_allclose(flops.flops(traced.jaxpr) - kernels, told, rtol=0.05)
