"""Exported checkpoints open in transformers and give the same logits.

Runs where torch and transformers are installed (`pip install limr_jax[parity]`);
elsewhere the golden files of ../shared stand for it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.models import hf_names, hf_weights, transformer
from limr_jax.models.hf_config import parse_config
from limr_jax.sharding import make_mesh

torch = pytest.importorskip("torch", reason="needs the extra [parity]: torch")
transformers = pytest.importorskip(
    "transformers", reason="needs the extra [parity]: transformers"
)
# Other people's deprecations are not what these tests are of.
pytestmark = pytest.mark.filterwarnings("default")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
    "head_dim": 16,
    "vocab_size": 96,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CHECKPOINTS = {
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 with windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 5,
    },
    "qwen3": {"model_type": "qwen3", "rope_theta": 1e6},
    "qwen3 with biases": {"model_type": "qwen3", "attention_bias": True},
    "llama 2": {"model_type": "llama", "num_key_value_heads": 4},
    "llama 3.1": {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "llama with linear rope": {
        "model_type": "llama",
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "llama with biases": {
        "model_type": "llama",
        "attention_bias": True,
        "mlp_bias": True,
    },
    "gemma 2": {
        "model_type": "gemma2",
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "num_hidden_layers": 5,
    },
    "gemma 3": {
        "model_type": "gemma3_text",
        "sliding_window": 6,
        "query_pre_attn_scalar": 16,
        "num_key_value_heads": 1,
    },
    "gemma 3 with linear rope": {
        "model_type": "gemma3_text",
        "sliding_window": 6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def random_params(config):
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * random.standard_normal(leaf.shape), jnp.float32),
        hf_names.param_shapes(config),
    )


def their_logits(directory, tokens_BT):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return theirs.eval()(torch.tensor(tokens_BT)).logits.numpy()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_transformers_gives_the_same_logits(tmp_path, name):
    config = parse_config(SMALL | CHECKPOINTS[name])
    params = random_params(config)
    hf_weights.save_params(
        tmp_path / "out", params, config, token_ids={"eos_token_id": 1}
    )
    tokens_BT = np.random.default_rng(1).integers(0, config.vocab_size, (2, 40))
    position_BT = np.broadcast_to(np.arange(40, dtype=np.int32), (2, 40))
    how = {"config": config, "dtype": jnp.float32}
    hidden_BTD = transformer.forward(params, tokens_BT, position_BT, **how)
    ours = np.asarray(transformer.unembed(params, hidden_BTD, **how))
    np.testing.assert_allclose(
        ours, their_logits(tmp_path / "out", tokens_BT), atol=1e-4, rtol=1e-4
    )
    assert np.abs(ours).max() > 0.1


def test_what_transformers_writes_is_read(tmp_path):
    """Its own config.json and weights, split over files."""
    config = parse_config(SMALL | CHECKPOINTS["gemma 3"])
    hf_weights.save_params(tmp_path / "ours", random_params(config), config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    read = hf_weights.read_config(tmp_path / "theirs")
    assert dataclasses.replace(read, max_length=config.max_length) == config
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    again = hf_weights.load_params(tmp_path / "theirs", read, mesh)
    jax.tree.map(np.testing.assert_array_equal, again, random_params(config))
