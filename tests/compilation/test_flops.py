"""FLOPs from the jaxpr: by hand, and against XLA's count of an unrolled program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import fp32

from limr_jax.compilation import flops, hlo_cost
from limr_jax.learner import logprobs
from limr_jax.models import transformer
from limr_jax.models.attention import ragged_decode
from limr_jax.models.config import ModelConfig

pytestmark = pytest.mark.usefixtures("compiled_anew")

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


@pytest.mark.slow
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
    params = jax.eval_shape(partial(transformer.init_params, config), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 64), jnp.int32)

    def loss(params, tokens_BT, position_BT):
        compute = fp32(config)
        hidden_BTD = transformer.forward(
            params,
            tokens_BT,
            position_BT,
            remat=True,
            config=config,
            dtype=compute.dtype,
        )
        logprob_BT, _ = logprobs.logprob_of(
            params, hidden_BTD[:, :-1], tokens_BT[:, 1:], 1.0, compute=compute
        )
        return jnp.sum(logprob_BT)

    return loss, params, tokens, tokens


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
def test_two_unrolled_layers_against_cost_analysis(backward, monkeypatch):
    """FLOPs and bytes within 5 % of XLA's, which has no loop to miscount here."""
    monkeypatch.setattr(jax.lax, "scan", partial(jax.lax.scan, unroll=True))
    loss, *shapes = _loss(2)
    traced = jax.jit(jax.grad(loss) if backward else loss).trace(*shapes)
    # Without its emitters XLA:CPU makes a loop of a scatter.
    emitters = {"xla_cpu_use_fusion_emitters": True}
    compiled = traced.lower().compile(compiler_options=emitters)
    told, moved = compiled.cost_analysis(), hlo_cost.cost(compiled.as_text())
    assert " while(" not in compiled.as_text()
    np.testing.assert_allclose(flops.flops(traced.jaxpr), told["flops"], rtol=0.05)
    np.testing.assert_allclose(moved.all_bytes, told["bytes accessed"], rtol=0.05)


@pytest.mark.slow
def test_decodes_kernel_by_hand(monkeypatch):
    """Two rows of 512 columns, blocks of 128: prompts of 300 of 384, 4 tokens each.

    So three blocks of the prompt, and one of its own, in 3 steps; in 384, which begin
    at the columns 0 to 383, 1, 2 or 3 of its own.
    """
    monkeypatch.setattr(ragged_decode, "INTERPRET", True)
    monkeypatch.setattr(ragged_decode, "BLOCKS", (128,))
    B, K, G, C, L, S, layers = 2, 2, 3, 16, 384, 512, 5
    config = ModelConfig(
        vocab_size=8, width=8, layers=1, heads=K * G, kv_heads=K, head_dim=C,
        mlp_width=8,
    )  # fmt: skip

    monkeypatch.setattr(ragged_decode, "MOST", 128 * K * 128)

    def decode(q_BJHC, prompts, own, new, at):
        cuts = ragged_decode.cuts(L, S, config, tokens=q_BJHC.shape[1])
        read = ragged_decode.read_list(at, *cuts)
        return ragged_decode.attend(q_BJHC, prompts, own, new, read, 1, config)

    def kv(rows, columns, layers=(layers,)):
        shapes = (*layers, rows, K, C, columns), (*layers, rows, K, columns, C)
        return tuple(map(F32, shapes))

    def ints(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def shapes(J):
        at = ragged_decode.RowPlaces(ints(B), ints(B), ints(B), ints(1))
        return F32((B, J, K * G, C)), kv(1, L), kv(B, S), kv(B, J, ()), at

    block, one = 2 * 128 * K * C * 4, 2 * K * C * 4  # of keys and values
    for J in (1, 3):
        jaxpr = jax.make_jaxpr(lambda *given: decode(*given))(*shapes(J))
        # Queries, results, new tokens, and the part that is written back: two where
        # they begin in the last J − 1 columns of 128.
        ends = B * (2 * J * K * G * C * 4 + J * one + block * (1 + (J - 1) / 128))
        # Both products of each column and of each new token, of every head; and those
        # that bring keys and values to their columns.
        column = 2 * 2 * J * K * G * C
        beside = J * column + 2 * 2 * K * J * C * (128 + J - 1)
        # The last column of a step of 3 begins a block two columns sooner.
        for steps, blocks in ((3, 3 + 1), (384, 3 + 2 + (J - 1) * 3 / 384)):
            given = {"decoded": ragged_decode.Rounds(300, steps)}
            counted = flops.flops(jaxpr, **given)
            wanted = B * (blocks * 128 * column + beside)
            assert counted == pytest.approx(wanted, rel=1e-12)
            moved = flops.kernel_bytes(jaxpr, **given)
            assert moved == pytest.approx(B * blocks * block + ends, rel=1e-12)
        assert flops.kernel_bytes(jaxpr) == B * (3 + 4) * block + ends
        read = ragged_decode.ColumnsRead(5 * 128)
        assert flops.kernel_bytes(jaxpr, decoded=read) == B * 5 * block + ends
    # Prompts in one block are fetched once for the rows that have them.
    monkeypatch.setattr(ragged_decode, "MOST", L * K * 128)
    jaxpr = jax.make_jaxpr(lambda *given: decode(*given))(*shapes(3))
    given = {"decoded": ragged_decode.Rounds(300, 3, group=2)}
    counted = flops.flops(jaxpr, **given)
    assert counted == pytest.approx(B * (4 * 128 * column + beside), rel=1e-12)
    assert flops.kernel_bytes(jaxpr, **given) == (3 + B * 1) * block + ends
    # A prompt of full length is read whole, of a window the columns that it still sees:
    # in blocks of 128 those of 511 to 0 are 4, 3, 2, 1 and, at last 0. Of its own half
    # in the mean, and half a block beside.
    decoded, cut = ragged_decode.Rounds(1024, 3071), ragged_decode.Cut
    assert decoded.prompt_columns(cut(1024, 512)) == 1024
    blocks = (127 * 4 + 128 * (3 + 2 + 1)) / 3071
    assert decoded.prompt_columns(cut(512, 128)) == pytest.approx(blocks * 128)
    own = decoded.own_columns(ragged_decode.OwnCut(3072, 512))
    assert own == pytest.approx((3072 + 512) / 2, rel=1e-3)
