"""The layers' parts against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tiny_policy import GEMMA

from limr_jax.models import cpu, layers
from limr_jax.models.attention import dense


def test_a_kernels_gradient_is_not_transposed():
    """As `cpu.contract` writes it out; the numbers are those of JAX's own."""
    x_BTD, kernel_DHC = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(2, 3, 4), (4, 5, 6)])
    )

    def total(contract, x, kernel):
        return jnp.sum(jnp.sin(contract(x, kernel, 1)))

    found, expected = (
        jax.grad(partial(total, contract), argnums=(0, 1))(x_BTD, kernel_DHC)
        for contract in (cpu.contract, jnp.tensordot)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    project = layers.Projection((4, 5, 6), rngs=nnx.Rngs(0))
    graph, weights = nnx.split(project)

    def loss(weights):
        return jnp.sum(jnp.sin(nnx.merge(graph, weights)(x_BTD)))

    assert "transpose" not in str(jax.make_jaxpr(jax.grad(loss))(weights))


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
