"""FLOPs from the jaxpr: by hand, and against XLA's count of an unrolled program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import flops, hlo, logprob, look_back, model
from limr_jax.model import ModelConfig

F32 = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
CONFIG = ModelConfig(
    vocab_size=2048,
    width=256,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=64,
    mlp_width=1024,
    qkv_bias=True,
)


def of(function, *shapes, **more):
    return flops.flops(jax.make_jaxpr(function)(*shapes), **more)


def test_products_by_hand():
    assert of(jnp.matmul, F32((3, 5)), F32((5, 7))) == 2 * 3 * 5 * 7
    batched = partial(jnp.einsum, "bij,bjk->bik")
    assert of(batched, F32((4, 3, 5)), F32((4, 5, 7))) == 4 * 2 * 3 * 5 * 7


def test_loops_count_their_bodies_by_their_trips():
    x = F32((3, 3))

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=11)[0]

    def counted(x):
        return jax.lax.fori_loop(0, 5, lambda i, c: c @ x, x)

    def until(x, n):
        return jax.lax.fori_loop(0, n, lambda i, c: c @ x, x)

    one = 2 * 3**3
    assert of(scanned, x) == 11 * one
    assert of(counted, x) == 5 * one
    n = jax.ShapeDtypeStruct((), jnp.int32)
    assert of(until, x, n, turns=(7,)) == 7 * one

    def nested(x, n):
        inner = lambda i, c: until(c, n)  # noqa: E731
        return until(jax.lax.fori_loop(0, n, inner, x), n)

    # Two rounds of three, then five: in the order in which the loops begin.
    assert of(nested, x, n, turns=(2, 3, 5)) == (2 * 3 + 5) * one


def test_the_cheapest_branch_counts_or_all_in_their_shares():
    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)

    def one_of_three(x, i):
        branches = [lambda x, k=k: x[:k].T @ x[:k] for k in (1, 2, 4)]
        return jax.lax.switch(i, branches, either(x))

    x, i = F32((4, 4)), jax.ShapeDtypeStruct((), jnp.int32)
    assert of(either, x) == 0
    assert of(one_of_three, x, i) == 2 * 16
    shares = (0.5, 0.25, 0.25)
    assert of(one_of_three, x, i, shares=shares) == 2 * 16 * (0.5 + 0.5 + 1)


def test_layers_count_by_their_number():
    """A scan over 12 layers costs what one layer costs, 12 times."""
    counts = [of(*_loss(layers)) for layers in (1, 2, 12)]
    assert counts[2] - counts[0] == pytest.approx(11 * (counts[1] - counts[0]), 1e-9)
    # By hand, forward only: 2 x weights a token, and both products of attention.
    c, tokens, columns = CONFIG, 8 * 64, 64
    heads = c.heads * c.head_dim
    weights = c.width * (2 * heads + 2 * c.kv_heads * c.head_dim + 3 * c.mlp_width)
    layer = 2 * tokens * weights + 4 * tokens * columns * heads
    assert counts[1] - counts[0] == layer


def _loss(layers: int):
    """(loss, shapes) of log-probabilities."""
    config = CONFIG.__class__(**{**vars(CONFIG), "layers": layers})
    params = jax.eval_shape(partial(model.init_params, config), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def loss(params, tokens_BT, position_BT):
        how = {"config": config, "dtype": jnp.float32}
        hidden_BTD = model.forward(params, tokens_BT, position_BT, remat=True, **how)
        logprob_BT, _ = logprob.logprob_of(
            params, hidden_BTD[:, :-1], tokens_BT[:, 1:], 1.0, **how
        )
        return jnp.sum(logprob_BT)

    return loss, params, tokens, tokens


@pytest.mark.parametrize("backward", [False, True])
def test_two_unrolled_layers_against_cost_analysis(backward, monkeypatch):
    """FLOPs and bytes within 5 % of XLA's, which has no loop to miscount here."""
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    loss, *shapes = _loss(2)
    traced = jax.jit(jax.grad(loss) if backward else loss).trace(*shapes)
    compiled = traced.lower().compile()
    told, moved = compiled.cost_analysis(), hlo.cost(compiled.as_text())
    assert " while(" not in compiled.as_text()
    np.testing.assert_allclose(flops.flops(traced.jaxpr), told["flops"], rtol=0.05)
    np.testing.assert_allclose(moved.all_bytes, told["bytes accessed"], rtol=0.05)


def test_decodes_kernel_by_hand(monkeypatch):
    """Two rows in a ring of 512, blocks of 128: prompts of 300, 3 tokens each.

    So 301 and 302 columns, up to column 300 + 2 a round: in 42 rounds they lie in
    blocks 0 to 2, then 1 to 3; in the 43rd, from column 84 to 385, in four blocks.
    """
    monkeypatch.setattr(look_back, "INTERPRET", True)
    monkeypatch.setattr(look_back, "BLOCKS", (128,))
    B, K, G, C, S, layers = 2, 2, 3, 16, 512, 5
    config = ModelConfig(
        vocab_size=8, width=8, layers=1, heads=K * G, kv_heads=K, head_dim=C,
        mlp_width=8,
    )  # fmt: skip

    def decode(q_BHC, keys, values, count_B, column):
        return look_back.attend(q_BHC, (keys, values), count_B, column, 1, config)

    whole = jax.ShapeDtypeStruct((), jnp.int32)
    jaxpr = jax.make_jaxpr(decode)(
        F32((B, K * G, C)),
        F32((layers, B, K, C, S)),
        F32((layers, B, K, S, C)),
        jax.ShapeDtypeStruct((B,), jnp.int32),
        whole,
    )
    for rounds, blocks in ((1, 3), (42, 3), (43, (42 * 3 + 4) / 43)):
        given = {"decoded": look_back.Decoded(300, 2, rounds)}
        # Both products of each block, of every head; queries and results once a row.
        products = B * blocks * 2 * 2 * 128 * K * G * C
        assert flops.flops(jaxpr, **given) == pytest.approx(products, rel=1e-12)
        moved = B * blocks * 2 * 128 * K * C * 4 + 2 * B * K * G * C * 4
        assert flops.kernel_bytes(jaxpr, **given) == pytest.approx(moved, rel=1e-12)
    # At full length a ring is (L + T / 2) / (L + T) full in the mean; a row reads up
    # to a block and a half beside: its first column is nearly a block's last.
    share = look_back.Decoded(1024, 3071, 32)(4096, 512) / 4096
    assert 5 / 8 < share < 5 / 8 + 1.5 * 512 / 4096
    whole_ring = B * 4 * 2 * 128 * K * C * 4 + 2 * B * K * G * C * 4
    assert flops.kernel_bytes(jaxpr) == whole_ring
