"""Adapters that we write open in peft and give the same logits; and the other way.

Runs where torch, transformers and peft are installed (`pip install limr_jax[parity]`);
elsewhere test_lora.py compares with the merged model.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import random_params

from limr_jax.models import hf_weights, lora, peft, transformer
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
    "llama": {"num_key_value_heads": 4},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 24},
}
TOKENS_BT = np.random.default_rng(0).integers(0, 96, (2, 9))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scaling", ["plain", "rs"])
def test_peft_gives_our_logits(family, scaling, tmp_path):
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
    adapted = Lora(rank=3, alpha=6.0, scaling=scaling)
    config = parse_config(small | FAMILIES[family])
    config = config.__class__(**vars(config) | {"lora": adapted})
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
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, attn_implementation="eager"
    )
    model = theirs.PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS_BT)).logits.numpy()
    position_BT = np.tile(np.arange(9), (2, 1))
    hidden_BTD = transformer.forward(
        params, TOKENS_BT, position_BT, config=config, dtype=jnp.float32
    )
    ours = transformer.unembed(params, hidden_BTD, config=config, dtype=jnp.float32)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
    # What peft writes is read.
    model.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / peft.CONFIG).read_text())
    assert written["r"] == 3
    peft.check_fits(tmp_path / "again", config)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    again = peft.load(tmp_path / "again", config, mesh)
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
