"""Adapters that we write open in peft and give the same logits; and the other way.

Runs where torch, transformers and peft are installed (`pip install limr_jax[parity]`);
elsewhere test_lora.py compares with the merged model.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import random_params

from limr_jax.models import hf_weights, int8, lora, peft, transformer
from limr_jax.models.config import Lora
from limr_jax.models.hf_config import parse_config
from limr_jax.sharding import make_mesh

torch = pytest.importorskip("torch", reason="needs the extra [parity]: torch")
transformers = pytest.importorskip(
    "transformers", reason="needs the extra [parity]: transformers"
)
theirs = pytest.importorskip("peft", reason="needs the extra [parity]: peft")
# Other people's deprecations are not what these tests are of.
pytestmark = pytest.mark.filterwarnings("default")

FAMILIES = {
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "llama": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 24},
    # A group of 6 layers, and 2 that fill none.
    "gemma3_text": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 16,
        "num_key_value_heads": 1,
        "num_hidden_layers": 8,
    },
}
TOKENS_BT = np.random.default_rng(0).integers(0, 96, (2, 9))


def adapted(family, scaling="plain"):
    """The config of a small model with adapters."""
    small = {
        "model_type": family,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 4,
        "head_dim": 16,
        "vocab_size": 96,
        "max_position_embeddings": 256,
    }
    config = parse_config(small | FAMILIES[family])
    adapters = Lora(rank=3, alpha=6.0, scaling=scaling)
    return dataclasses.replace(config, lora=adapters)


def our_logits(params, config):
    position_BT = np.tile(np.arange(9), (2, 1))
    how = {"config": config, "dtype": jnp.float32}
    hidden_BTD = transformer.forward(params, TOKENS_BT, position_BT, **how)
    return transformer.unembed(params, hidden_BTD, **how)


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )


def their_logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS_BT)).logits.numpy()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", ["plain", "rs"])
def test_peft_gives_our_logits(family, scaling, tmp_path):
    config = adapted(family, scaling)
    params = random_params(config)
    base, adapters = lora.split(params)
    hf_weights.save_params(tmp_path / "base", base, config)
    peft.save(
        tmp_path / "peft",
        adapters,
        config,
        base_name=str(tmp_path / "base"),
        base=None,
    )
    model = theirs.PeftModel.from_pretrained(
        opened(tmp_path / "base"), tmp_path / "peft"
    )
    expected = their_logits(model)
    ours = our_logits(params, config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    # The adapters do something.
    assert np.abs(ours - our_logits(base, config)).max() > 0.1
    # What peft writes is read.
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / peft.CONFIG).read_text())
    assert written["r"] == 3
    peft.check_fits(tmp_path / "again", config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    again = peft.load(tmp_path / "again", config, mesh)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    # And merged by peft it is what we merge.
    merged = our_logits(lora.merge(params, config.lora), config.base)
    np.testing.assert_allclose(
        merged, their_logits(model.merge_and_unload()), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_opens_what_is_merged_over_an_int8_base(family, tmp_path):
    config = adapted(family)
    params = int8.quantise_params(random_params(config))
    merged = lora.merge(params, config.lora)
    hf_weights.save_params(tmp_path / "merged", merged, config.base)
    expected = their_logits(opened(tmp_path / "merged"))
    np.testing.assert_allclose(our_logits(params, config), expected, rtol=0, atol=1e-4)
