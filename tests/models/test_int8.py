"""int8 kernels: how they are quantised, and that all programs read the same weights."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    GEMMA,
    QWEN,
    decode_greedily,
    drift,
    fp32,
    leaves_of,
    logits_of,
    quick,
    random_params,
)

from limr_jax.compilation import hlo_cost
from limr_jax.models import hf_weights, int8, lora, transformer
from limr_jax.models.config import ComputeConfig, Lora
from limr_jax.sharding import make_mesh, param_rows, param_shardings

ADAPTED = Lora(rank=3, alpha=6.0)
ADAPTED_QWEN = dataclasses.replace(QWEN, lora=ADAPTED)
# Stacks of two positions, and a tail.
ADAPTED_GEMMA = dataclasses.replace(GEMMA, layers=3, lora=ADAPTED)
families = pytest.mark.parametrize(
    "config", [ADAPTED_QWEN, ADAPTED_GEMMA], ids=["qwen", "gemma"]
)


def both(config):
    """Random parameters over an int8 base, and over the same base dequantised."""
    params = int8.quantise_params(random_params(config))
    base, adapters = lora.split(params)
    return params, lora.join(lora.merge(base, None), adapters)


# --- Quantisation -----------------------------------------------------------------


@pytest.mark.parametrize("array", [np.array, jnp.array], ids=["numpy", "jax"])
def test_by_hand(array):
    """Columns: scale 2; scale 1 by a negative; all zeros; one number alone."""
    kernel = array(
        [
            [254.0, 3.4, 0.0, 0.0],
            [-2.0, -127.0, 0.0, 0.5],
            [2.9, 0.6, 0.0, 0.0],
            [-254.0, 0.4, 0.0, 0.0],
        ],
        jnp.float32,
    )
    steps, scale = int8.quantise(kernel, (0,))
    assert steps.dtype == jnp.int8 and scale.dtype == jnp.float32
    np.testing.assert_allclose(scale, [2, 1, 0, 0.5 / 127], rtol=1e-6)
    np.testing.assert_array_equal(
        steps, [[127, 3, 0, 0], [-1, -127, 0, 127], [1, 1, 0, 0], [-127, 0, 0, 0]]
    )
    again = int8.dequantise(steps, scale, (0,))
    np.testing.assert_array_equal(again[:, 2], 0)
    np.testing.assert_allclose(again[1], [-2, -127, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("axes", [(0,), (0, 1), (1,), (1, 2)])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_no_weight_is_off_by_more_than_half_a_step(axes, array):
    random = np.random.default_rng(0)
    kernel = np.float32(
        random.standard_normal((6, 5, 7)) * 10.0 ** random.integers(-9, 9, (6, 5, 7))
    )
    steps, scale = int8.quantise(array(kernel), axes)
    assert scale.shape == tuple(n for a, n in enumerate((6, 5, 7)) if a not in axes)
    # Every channel's largest weight is at the end of the range, and none is beyond.
    np.testing.assert_array_equal(np.abs(np.int32(steps)).max(axes), 127)
    error = np.abs(np.float64(int8.dequantise(steps, scale, axes)) - kernel)
    step = np.expand_dims(np.float64(scale), axes)
    # The half is exact; what is above it is fp32's rounding of quotient and product.
    assert np.all(error <= step * (0.5 + 127 * 2.0**-22))
    assert error.max() > 0


def test_weights_of_subnormal_scale_are_finite():
    for kernel in (np.float32([[1e-44], [-1e-45]]), np.float32([[1e-38], [0]])):
        for array in (np.asarray, jnp.asarray):
            steps, scale = int8.quantise(array(kernel), (0,))
            again = np.asarray(int8.dequantise(steps, scale, (0,)))
            assert np.isfinite(again).all() and np.abs(again).max() <= 1.1e-38


@families
def test_the_projections_are_quantised_and_nothing_else(config):
    full = random_params(config)
    params = leaves_of(int8.quantise_params(full))
    kernels = {name for name, x in params.items() if x.dtype == np.int8}
    layers = len(config.pattern) + len(config.tail)
    assert len(kernels) == 7 * layers
    scales = {name.replace("kernel", int8.SCALE) for name in kernels}
    assert params.keys() == leaves_of(full).keys() | scales
    for name, x in leaves_of(full).items():
        if name not in kernels:
            assert params[name] is x, name
    rows = leaves_of(param_rows(int8.quantise_params(full)))
    assert all(rows[name].fp32 and not rows[name].decay for name in scales)
    # Scales are of a few numbers a kernel.
    size = {np.int8: 1, np.float32: 4}
    small = sum(params[name].size * size[np.int8] for name in kernels)
    small += sum(params[name].size * size[np.float32] for name in scales)
    assert small < 0.6 * sum(4 * params[name].size for name in kernels)


def test_bytes_at_a_models_width():
    """Kernels and scales, of those in fp32: a quarter, and 1 / rows of a kernel."""
    config = dataclasses.replace(
        QWEN, width=896, heads=14, head_dim=64, mlp_width=4864, vocab_size=100
    )
    full = jax.eval_shape(
        partial(transformer.init_params, config), jax.eval_shape(jax.random.key, 0)
    )
    shapes = jax.eval_shape(int8.quantise_params, full)

    def size(tree):
        return sum(
            x.size * x.dtype.itemsize
            for name, x in leaves_of(tree).items()
            if "kernel" in name
        )

    assert 0.25 < size(shapes) / size(full) < 0.26


def test_scales_lie_as_the_kernels_channels():
    params = int8.quantise_params(random_params(QWEN))
    at = param_shardings(make_mesh(2, 2, 2), params)["blocks"]["0"]
    for name, spec in (
        ("q", (None, "tensor", None)),
        ("k", (None, "tensor", None)),
        ("o", (None, "fsdp")),
    ):
        assert tuple(at["attention"][name][int8.SCALE].spec) == spec
    assert tuple(at["mlp"]["up"][int8.SCALE].spec) == (None, "tensor")
    assert tuple(at["mlp"]["down"][int8.SCALE].spec) == (None, "fsdp")


@families
def test_random_parameters_are_those_in_fp32_quantised(config):
    """A layer at a time; no number of the random base is another."""
    make = partial(transformer.init_params, config.base)
    key = jax.random.key(3)
    ours = leaves_of(quick(partial(make, int8=True))(key))
    theirs = leaves_of(quick(lambda key: int8.quantise_params(make(key)))(key))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        assert x.dtype == theirs[name].dtype
        if x.dtype == jnp.int8:
            off = np.abs(np.int32(x) - np.int32(theirs[name]))
            # A weight may lie on the border of two steps in its last fp32 digit.
            assert off.max() <= 1 and off.mean() < 1e-3, name
        else:
            np.testing.assert_allclose(x, theirs[name], rtol=1e-5, atol=1e-7)


def test_compute_leaves_int8_and_scales_as_they_are():
    params = int8.quantise_params(random_params(QWEN))
    half = leaves_of(transformer.compute_params(params, jnp.bfloat16))
    for name, x in leaves_of(params).items():
        if x.dtype == np.int8 or name.endswith((int8.SCALE, "/scale")):
            assert half[name] is x, name
        else:
            assert half[name].dtype == jnp.bfloat16, name


@families
@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_a_checkpoint_is_quantised_as_it_is_read(config, mesh, tmp_path):
    """On every mesh as on one device: a channel's scale is of all its weights."""
    full = random_params(config.base)
    hf_weights.save_params(tmp_path / "out", full, config.base)
    mesh = make_mesh(*mesh, jax.devices()[: np.prod(mesh)])
    loaded = hf_weights.load_params(
        tmp_path / "out",
        config.base,
        mesh,
        dtype=jnp.bfloat16,
        keep_fp32=True,
        int8=True,
    )
    expected = transformer.compute_params(int8.quantise_params(full), jnp.bfloat16)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    ours, theirs = leaves_of(loaded), leaves_of(expected)
    for name, place in leaves_of(param_shardings(mesh, expected)).items():
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].sharding.is_equivalent_to(place, ours[name].ndim), name
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# --- Programs ---------------------------------------------------------------------


@families
@pytest.mark.parametrize("adapters", [True, False], ids=["adapters", "base"])
def test_the_product_is_that_of_the_dequantised_base(config, adapters):
    ours, theirs = both(config)
    if not adapters:
        ours, theirs = lora.split(ours)[0], lora.split(theirs)[0]
    one, other = (quick(partial(logits_of, config=config))(x) for x in (ours, theirs))
    assert np.abs(one).max() > 0.3
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    # The base that was quantised is another, by more than rounding.
    full = random_params(config)
    full = full if adapters else lora.split(full)[0]
    original = quick(partial(logits_of, config=config))(full)
    assert np.abs(one - original).max() > 1e-4


@families
def test_merged_is_unmerged(config):
    ours, _ = both(config)
    merged = lora.merge(ours, config.lora)
    assert not int8.is_quantised(merged) and not lora.has_adapters(merged)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {np.dtype(np.float32)}
    one = quick(partial(logits_of, config=config))(ours)
    other = quick(partial(logits_of, config=config.base))(merged)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "config, remat",
    [
        pytest.param(ADAPTED_QWEN, False, id="qwen-kept"),
        pytest.param(ADAPTED_GEMMA, True, id="gemma-remat"),
        pytest.param(ADAPTED_QWEN, True, id="qwen-remat", marks=pytest.mark.soak),
        pytest.param(ADAPTED_GEMMA, False, id="gemma-kept", marks=pytest.mark.soak),
    ],
)
def test_gradients_are_those_over_the_dequantised_base(config, remat):
    weight_BTV = np.random.default_rng(2).standard_normal((2, 7, 40))

    def gradient(params):
        base, adapters = lora.split(params)

        def loss(adapters):
            whole = lora.join(base, adapters)
            return jnp.sum(weight_BTV * logits_of(whole, config=config, remat=remat))

        return leaves_of(quick(jax.grad(loss))(adapters))

    ours, theirs = map(gradient, both(config))
    assert len(ours) == 14 * (len(config.pattern) + len(config.tail))
    for name, y in theirs.items():
        largest = np.abs(y).max()
        assert largest > 0, name
        np.testing.assert_allclose(ours[name], y, rtol=0, atol=1e-5 * largest)


def quantised(config, seed=0):
    return int8.quantise_params(random_params(config, seed))


@families
def test_rollouts_log_probabilities_are_the_learners(config):
    found = drift(quantised(config), fp32(config))
    assert len(found) > 20
    assert found.max() < 1e-5


@families
def test_in_bf16_they_are_the_learners_but_for_a_rounding(config):
    """A sum that differs in fp32's last bit may be rounded to another bf16 number."""
    compute = ComputeConfig(config, jnp.bfloat16)
    ours = [drift(quantised(config, seed), compute).max() for seed in range(6)]
    assert np.median(ours) < 1e-5
    assert np.max(ours) < 2.0**-8  # bf16's step at 1


def test_what_goes_round_decodes_loop_is_int8():
    """XLA:CPU would cast the kernels before it, and keep them in fp32."""
    config, tokens_BL = QWEN, np.zeros((4, 8), np.int32)
    params = int8.quantise_params(random_params(config))
    how = {"config": config, "dtype": jnp.float32}
    _, cache = transformer.prefill(params, tokens_BL, tokens_BL, columns=16, **how)

    def write(params, token_B, cache, steps):
        params = transformer.unstack(params, config)
        return decode_greedily(params, token_B, cache, steps, first=8, **how)

    compiled = jax.jit(write).lower(params, tokens_BL[:, 0], cache, 3).compile()
    computations, entry = hlo_cost.parse(compiled.as_text())
    (loop,) = (x for x in computations[entry].values() if x.opcode == "while")
    # Gate and up of two layers, and down.
    kinds = re.findall(r"(\w+)\[(?:16,24|24,16)\]", loop.type)
    assert kinds == ["s8"] * 6


@pytest.mark.parametrize(
    ("kernels", "kept"), [("int8", {"int8"}), ("float32", set()), ("all", set())]
)
def test_the_backward_pass_has_no_cast_copy_of_the_base(kernels, kept):
    """Of bf16 products; without remat a scan hands on what its layers keep.

    On a CPU int8's barrier makes a copy of it; what comes as it is has none.
    """
    config = dataclasses.replace(QWEN, lora=None if kernels == "all" else ADAPTED)
    params = random_params(config)
    base, learned = lora.split(
        int8.quantise_params(params) if kernels == "int8" else params
    )

    def loss(learned, base):
        whole = lora.join(base, learned)
        return jnp.sum(logits_of(whole, config=config, dtype=jnp.bfloat16))

    def scans(jaxpr):
        for line in jaxpr.eqns:
            if line.primitive.name == "scan":
                yield line
            elif "jaxpr" in line.params:
                yield from scans(line.params["jaxpr"].jaxpr)

    forward, _ = scans(jax.make_jaxpr(jax.grad(loss))(learned, base).jaxpr)
    stacks = {(2, *shape) for shape in ((16, 24), (24, 16), (16, 4, 8), (4, 8, 16))}
    found = {x.aval.dtype.name for x in forward.outvars if x.aval.shape in stacks}
    assert found == kept
