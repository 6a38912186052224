"""A gradient added where it arises is the gradient, and takes no second array."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import GEMMA, QWEN, fp32, random_params

from limr_jax.learner.logprobs import response_logprob
from limr_jax.models import summed, transformer
from limr_jax.models.config import Lora

# Stacks of two positions, and a tail.
CONFIGS = {
    "qwen": QWEN,
    "gemma": dataclasses.replace(GEMMA, layers=3),
    "adapters": dataclasses.replace(QWEN, lora=Lora(rank=3, alpha=6.0)),
}


def loss_of(config, remat=False):
    """(params) → (mean log-probability of a text, the same doubled)."""
    token_BS = jnp.asarray(
        np.random.default_rng(0).integers(3, config.vocab_size, (2, 12)), jnp.int32
    )
    position_BS = jnp.broadcast_to(jnp.arange(12), (2, 12)).at[1, 9:].set(-1)

    def loss(params):
        logprob_BT, _ = response_logprob(
            params,
            token_BS,
            position_BS,
            segment_BS=None,
            temperature=1.0,
            response_length=8,
            compute=dataclasses.replace(fp32(config), remat=remat),
        )
        return jnp.mean(logprob_BT), 2 * jnp.mean(logprob_BT)

    return loss


def plainly(loss, params, so_far):
    value, gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, jax.tree.map(jnp.add, so_far, gradient)


@pytest.mark.parametrize(
    ("name", "remat"),
    [
        ("qwen", False),
        pytest.param("qwen", True, marks=pytest.mark.slow),
        pytest.param("gemma", False, marks=pytest.mark.slow),
        pytest.param("adapters", False, marks=pytest.mark.slow),
    ],
)
def test_is_the_sum_so_far_and_the_gradient(name, remat):
    config = CONFIGS[name]
    loss = loss_of(config, remat)
    params = jax.tree.map(jnp.asarray, random_params(config))
    so_far = jax.tree.map(lambda x: 0.1 * x, params)
    value, total = jax.jit(partial(summed.add_gradient, loss))(params, so_far)
    expected_value, expected = jax.jit(partial(plainly, loss))(params, so_far)
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        total,
        expected,
    )
    # The sum itself counts once, whatever the gradient is.
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), total, so_far)
    assert min(jax.tree.leaves(moved["blocks"])) > 0


@pytest.mark.parametrize("times", [0, 2])
def test_a_loss_that_reads_the_layers_not_once_is_refused(times):
    """Else the sum so far would be lost, or counted twice, without a word."""
    loss = loss_of(QWEN)
    params = jax.tree.map(jnp.asarray, random_params(QWEN))

    def several(params):
        values = [loss(params) for _ in range(times)]
        return sum(
            (value for value, _ in values),
            0.0 * jnp.sum(params["embedder"]["embedding"]),
        ), ()

    with pytest.raises(ValueError, match=f"reads the layers {times} times"):
        jax.eval_shape(partial(summed.add_gradient, several), params, params)


def test_there_is_no_second_array_of_the_layers():
    config = dataclasses.replace(QWEN, layers=32)
    loss = loss_of(config)
    params = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))

    def temporaries(add):
        """Bytes beside arguments and results, of a loop over four of them."""

        def four(params, so_far):
            def one(_, so_far):
                return add(loss, params, so_far)[1]

            return jax.lax.fori_loop(0, 4, one, so_far)

        compiled = jax.jit(four, donate_argnums=1).lower(params, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    layers = sum(x.size * 4 for x in jax.tree.leaves(params["blocks"]))
    saved = temporaries(plainly) - temporaries(summed.add_gradient)
    assert saved > 0.8 * layers
