"""Log-probabilities in chunks of columns: the same numbers, and less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_policy import GEMMA, QWEN, fp32, random_params

from limr_jax import chunking, sharding
from limr_jax.learner.logprobs import logprob_of
from limr_jax.models import transformer
from limr_jax.models.config import ComputeConfig

B, T = 3, 13
UNTIED = dataclasses.replace(QWEN, tied=False)


def inputs(config):
    random = np.random.default_rng(0)
    hidden_BTD = np.float32(random.standard_normal((B, T, config.width)))
    return hidden_BTD, random.integers(0, config.vocab_size, (B, T)).astype(np.int32)


def value_and_gradients(config, dtype=jnp.float32):
    """Both arrays, and the gradient of a sum of them to parameters and hidden state."""
    hidden_BTD, token_BT = inputs(config)
    weight_BT = np.random.default_rng(1).standard_normal((2, B, T)).astype(np.float32)

    def loss(params, hidden_BTD):
        both = logprob_of(
            params,
            hidden_BTD,
            token_BT,
            np.float32(0.7),
            compute=ComputeConfig(config, dtype),
        )
        return jnp.sum(weight_BT * jnp.stack(both)), both

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, both), grads = run(random_params(config), hidden_BTD)
    return both, grads


@pytest.mark.slow
@pytest.mark.parametrize("config", [QWEN, UNTIED, GEMMA])
@pytest.mark.parametrize("columns", [1, 5])
def test_chunks_change_nothing(config, columns, monkeypatch):
    whole = value_and_gradients(config)
    monkeypatch.setattr(chunking, "ELEMENTS", columns * B * config.vocab_size)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        value_and_gradients(config),
        whole,
    )


@pytest.mark.slow
def test_against_log_softmax():
    hidden_BTD, token_BT = inputs(QWEN)
    params = random_params(QWEN)
    logits = hidden_BTD.astype(float) @ params["embedder"]["embedding"].T.astype(float)
    log_BTV = logits / 0.7
    log_BTV -= np.log(np.exp(log_BTV).sum(axis=-1, keepdims=True))
    (logprob_BT, entropy_BT), _ = value_and_gradients(QWEN)
    expected = np.take_along_axis(log_BTV, token_BT[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logprob_BT, expected, atol=2e-6)
    np.testing.assert_allclose(
        entropy_BT, -(np.exp(log_BTV) * log_BTV).sum(axis=-1), atol=2e-6
    )


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_a_mesh_makes_chunks_of_its_own_rows_and_words(monkeypatch):
    """8 rows and 40 words over fsdp x tensor = 4 x 2: chunks of 2 rows and 20 words."""
    rows, columns = 8, 12
    random = np.random.default_rng(0)
    hidden_BTD = np.float32(random.standard_normal((rows, columns, QWEN.width)))
    token_BT = random.integers(0, 40, (rows, columns)).astype(np.int32)

    def loss(params, hidden_BTD, token_BT):
        both = logprob_of(params, hidden_BTD, token_BT, 0.7, compute=fp32(QWEN))
        return jnp.sum(both[0] + 0.1 * both[1])

    params = random_params(QWEN)
    whole = jax.jit(jax.grad(loss))(params, hidden_BTD, token_BT)
    mesh = sharding.make_mesh(1, 4, 2)
    monkeypatch.setattr(chunking, "ELEMENTS", 3 * rows * 40 // mesh.size)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(mesh, params))
        batch = jax.device_put(
            (hidden_BTD, token_BT), NamedSharding(mesh, sharding.BATCH)
        )
        compiled = jax.jit(jax.grad(loss)).lower(placed, *batch).compile()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            compiled(placed, *batch),
            whole,
        )
    text = compiled.as_text()
    assert "f32[2,3,20]" in text and "3,40]" not in text


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_anew")
def test_the_logits_of_all_columns_never_are():
    """Forward and backward at the size of the real vocabulary: 64 x 64 x 151,936."""
    config = dataclasses.replace(QWEN, vocab_size=151_936, width=8)
    rows, columns = 64, 64
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))

    def loss(params, hidden_BTD, token_BT):
        logprob_BT, entropy_BT = logprob_of(
            params, hidden_BTD, token_BT, 1.0, compute=fp32(config)
        )
        return jnp.sum(logprob_BT)

    compiled = (
        jax.jit(jax.grad(loss))
        .lower(
            shapes,
            jax.ShapeDtypeStruct((rows, columns, config.width), jnp.float32),
            jax.ShapeDtypeStruct((rows, columns), jnp.int32),
        )
        .compile()
    )
    all_logits = 4 * rows * columns * config.vocab_size  # bytes
    memory = compiled.memory_analysis().temp_size_in_bytes
    print(f"{memory / all_logits:.2f} of all logits")
    assert memory < 0.3 * all_logits
    assert f"{rows},{columns},{config.vocab_size}]" not in compiled.as_text()
