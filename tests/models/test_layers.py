"""The layers' parts against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_policy import GEMMA

from limr_jax.jit import EVERY
from limr_jax.models import cpu, layers
from limr_jax.models.attention import dense


@pytest.mark.parametrize("last", [False, True])
def test_a_kernels_gradient_is_not_transposed(last):
    """As `cpu.contract` writes it out; the numbers are those of JAX's own."""
    x_BTD, kernel = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 3, 4), (5, 6, 4) if last else (4, 5, 6)])
    )

    def plain(x, kernel):
        return jnp.tensordot(x, kernel, ((2,), (2 if last else 0,)))

    def ours(x, kernel):
        return cpu.contract(x, kernel, 1, last=last)

    def total(contract, x, kernel):
        return jnp.sum(jnp.sin(contract(x, kernel)))

    found, expected = (
        jax.grad(partial(total, contract), argnums=(0, 1))(x_BTD, kernel)
        for contract in (ours, plain)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    gradients = jax.grad(partial(total, ours), argnums=(0, 1))
    assert "transpose" not in str(jax.make_jaxpr(gradients)(x_BTD, kernel))


def test_nor_is_a_projections():
    graph, weights = nnx.split(layers.Projection((4, 5, 6), rngs=nnx.Rngs(0)))
    x_BTD = jax.random.normal(jax.random.key(0), (2, 3, 4))

    def loss(weights):
        return jnp.sum(jnp.sin(nnx.merge(graph, weights)(x_BTD)))

    assert "transpose" not in str(jax.make_jaxpr(jax.grad(loss))(weights))


@pytest.mark.parametrize("last", [False, True])
def test_bf16_is_rounded_once(last):
    """Products of bf16 and their gradients are fp32 sums, rounded at the end."""
    random = np.random.default_rng(0)
    x_BTD = jnp.array(random.standard_normal((3, 5, 64)), jnp.bfloat16)
    shape = (7, 64) if last else (64, 7)
    kernel = jnp.array(random.standard_normal(shape), jnp.bfloat16)
    weight = jnp.array(random.standard_normal((3, 5, 7)), jnp.bfloat16)

    def total(x, kernel):
        y = cpu.contract(x, kernel, 1, last=last)
        return jnp.sum((weight * y).astype(jnp.float32)), y

    (_, y), of_both = jax.jit(
        jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=EVERY
    )(x_BTD, kernel)
    x, k, w = (np.asarray(a, np.float64) for a in (x_BTD, kernel, weight))
    k_DF = k.T if last else k
    of_kernel = np.einsum("btd,btf->df", x, w)
    exact = (x @ k_DF, w @ k_DF.T, of_kernel.T if last else of_kernel)
    for rounded, sums in zip((y, *of_both), exact, strict=True):
        assert rounded.dtype == jnp.bfloat16
        # Half a step of bf16's eight digits, and what fp32 sums differ by.
        np.testing.assert_allclose(
            np.asarray(rounded, np.float64), sums, rtol=2**-8, atol=1e-5
        )


def test_a_cache_of_bf16_is_fp32_on_a_cpu():
    """Attention then gives what it gives of the same numbers in bf16."""
    random = np.random.default_rng(0)
    q, k, v = (
        jnp.array(random.standard_normal(shape), jnp.bfloat16)
        for shape in ((2, 1, 4, 8), (2, 2, 8, 16), (2, 2, 16, 8))
    )
    mask_BTS = jnp.arange(16)[None, None] < jnp.array([9, 16])[:, None, None]
    attend = jax.jit(partial(dense.attend, config=GEMMA), compiler_options=EVERY)
    bf16, cached = (
        attend(q, *kv, mask_BTS) for kv in ((k, v), (cpu.cached(k), cpu.cached(v)))
    )
    assert cpu.cached(k).dtype == jnp.float32
    assert cached.dtype == bf16.dtype == jnp.bfloat16
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (bf16, cached)))


def test_queries_in_parts_are_all_queries_at_once():
    """640 columns are four parts: outputs and gradients, one row beginning late."""
    random = np.random.default_rng(0)
    B, S, H, K, C = 2, 640, 4, 2, 8
    q, k, v = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((B, S, H, C), (B, K, C, S), (B, K, S, C))
    )
    position_BT = np.arange(S) - np.array([[0], [100]])
    mask_BTT = dense.seen_mask(position_BT, position_BT, None)
    weight = random.standard_normal((B, S, H, C)) * (position_BT >= 0)[..., None, None]

    def loss(qkv, attend):
        out = attend(*qkv, mask_BTT, GEMMA)
        return jnp.sum(weight * out), jnp.where(
            position_BT[..., None, None] < 0, 0, out
        )

    found = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    whole, parts = (found((q, k, v), f) for f in (dense.attend, dense.attend_causal))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)
