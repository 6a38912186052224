"""config.json by meaning, and the presets against what is published."""

import dataclasses
import functools
import json
import math
import os

import jax
import pytest

from limr_jax.errors import InputError
from limr_jax.models import transformer
from limr_jax.models.hf_config import describe_config, parse_config, read_config
from limr_jax.models.presets import PRESETS
from limr_jax.models.transformer import Rope

# What the Hub's config.json files say, less what no reader needs.
PUBLISHED = {
    "qwen2.5-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "qwen2.5-math-7b": {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_position_embeddings": 4096,
        "max_window_layers": 28,
        "model_type": "qwen2",
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 152064,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "gemma-2-2b": {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "model_type": "gemma2",
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gemma-3-1b": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 26,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "vocab_size": 262144,
    },
}
# Parameters as the model cards count them (tied heads once).
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-math-1.5b": 1_543_714_304,
    "qwen2.5-math-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-8b": 8_190_735_360,
    "llama-3.1-8b": 8_030_261_248,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b": 999_885_952,
}
SMALL = {  # of any family
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 100,
}


def small(model_type, **changes):
    return parse_config({"model_type": model_type} | SMALL | changes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_the_preset(name):
    assert parse_config(PUBLISHED[name]) == PRESETS[name]


@pytest.mark.slow
def test_presets_have_the_published_parameter_counts():
    counted = {}
    for name, config in PRESETS.items():
        init = functools.partial(transformer.init_params, config)
        shapes = jax.tree.leaves(jax.eval_shape(init, jax.random.key(0)))
        counted[name] = sum(math.prod(leaf.shape) for leaf in shapes)
    assert counted == PARAMETERS


@pytest.mark.parametrize("name", PRESETS)
def test_described_config_is_read_back(name):
    written = json.loads(json.dumps(describe_config(PRESETS[name])))
    assert parse_config(written) == PRESETS[name]


def test_every_shared_config_is_described_and_read_back(shared):
    directories = sorted((shared / "models").glob("*/"))
    assert len(directories) >= 8
    for directory in directories:
        config = read_config(directory)
        assert parse_config(describe_config(config)) == config


def test_families_differ_where_they_should():
    qwen2, qwen3, llama = (small(name) for name in ("qwen2", "qwen3", "llama"))
    assert qwen2.qkv_bias and not qwen2.o_bias and not qwen2.qk_norm
    assert qwen3.qk_norm and not qwen3.qkv_bias
    assert not llama.qkv_bias and not llama.qk_norm
    assert (qwen2.head_dim, qwen3.head_dim, llama.head_dim) == (16, 128, 16)
    assert not any(config.tied for config in (qwen2, qwen3, llama))
    gemma2, gemma3 = small("gemma2"), small("gemma3_text")
    assert gemma2.tied and gemma3.tied and gemma2.head_dim == 256
    assert (gemma2.attention_softcap, gemma2.logit_softcap) == (50.0, 30.0)
    assert (gemma3.attention_softcap, gemma3.logit_softcap) == (None, None)
    assert gemma2.pattern == ("sliding", "full")
    assert gemma3.pattern == ("sliding",) * 5 + ("full",)
    assert gemma2.local_rope is None and gemma2.rope == Rope(base=1e4)
    assert (gemma3.rope, gemma3.local_rope) == (Rope(base=1e6), Rope(base=1e4))


def test_biases():
    assert small("llama", attention_bias=True, mlp_bias=True).mlp_bias
    assert small("llama", attention_bias=True).o_bias
    qwen3 = small("qwen3", attention_bias=True)
    assert qwen3.qkv_bias and qwen3.o_bias
    assert not small("qwen2", attention_bias=True).o_bias  # as transformers has it


def test_missing_and_null_keys():
    config = small("llama", num_key_value_heads=None, head_dim=None)
    assert (config.kv_heads, config.head_dim) == (4, 16)
    assert small("llama", rope_scaling=None).rope == Rope(base=1e4)
    assert small("gemma2", hidden_activation=None).activation == "gelu_tanh"
    assert parse_config({"model_type": "llama"}).kv_heads == 32  # Llama 2 7B's
    by_class = parse_config(SMALL | {"architectures": ["LlamaForCausalLM"]})
    assert by_class == small("llama")


def test_rope_in_both_generations():
    llama3 = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    want = Rope(base=5e5, factor=32.0, original_length=8192)
    old = small("llama", rope_theta=5e5, rope_scaling=llama3)
    new = small("llama", rope_parameters=llama3 | {"rope_theta": 5e5})
    assert old.rope == new.rope == want
    linear = {"type": "linear", "factor": 4.0}
    assert small("llama", rope_scaling=linear).rope == Rope(base=1e4, factor=4.0)
    # Gemma 3 scales its full layers only.
    old = small("gemma3_text", rope_scaling={"rope_type": "linear", "factor": 8.0})
    new = small(
        "gemma3_text",
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    assert old == new
    assert (old.rope, old.local_rope) == (Rope(base=1e6, factor=8.0), Rope(base=1e4))


def test_sliding_windows():
    assert small("qwen2", sliding_window=8).pattern == ("full",)  # not in use
    windowed = small(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=4
    )
    assert windowed.pattern == ("full",) * 4 + ("sliding",) * 2
    assert windowed.window == 8
    types = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    listed = small("gemma3_text", layer_types=types)
    assert listed.pattern == ("sliding", "sliding", "full") and listed.groups == 2
    short = small("gemma3_text", num_hidden_layers=4)
    assert short.pattern == ("sliding",) and short.groups == 4
    assert small("gemma3_text", sliding_window_pattern=2).pattern == ("sliding", "full")


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": ["qwen2"]}, "model_type"),
        ({"architectures": ["Qwen2ForSequenceClassification"]}, "SequenceClass"),
        ({"architectures": "Qwen2ForCausalLM"}, "is not a list"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_act": ["silu"]}, "activation"),
        ({"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": "gptq"}, "quantization_config"),
        ({"layer_types": ["linear_attention"] * 6}, "linear_attention"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding_window"),
        ({"layer_types": ["full_attention"] * 3}, "3 layer_types"),
        ({"layer_types": ["full_attention"] * 7}, "7 layer_types"),
        ({"layer_types": [["full_attention"]] * 6}, "layer type"),
        ({"layer_types": "full_attention"}, "is not a list"),
        ({"num_key_value_heads": 3}, "kv heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "no multiple of 3"),
        ({"head_dim": 16.0}, "head_dim=16.0"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": 2**70}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"max_position_embeddings": None}, "max_position_embeddings"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false' is neither"),
        ({"use_sliding_window": 1}, "use_sliding_window=1 is neither"),
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": "4"},
            "max_window_layers",
        ),
        ({"use_bidirectional_attention": True}, "bidirectional"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"query_pre_attn_scalar": 224}, "query_pre_attn_scalar=224"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"logit_scale": 0.0625}, "logit_scale"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"dual_chunk_attention_config": {"chunk_size": 1}}, "dual_chunk"),
        ({"model_type": "llama", "sliding_window": 4096}, "sliding_window=4096"),
        ({"model_type": "gemma2", "hidden_act": "silu"}, "hidden_act='silu'"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn"),
        ({"model_type": "gemma2", "attn_logit_softcapping": 0}, "softcapping=0"),
        ({"model_type": "gemma2", "sliding_window": "8"}, "sliding_window='8'"),
        ({"model_type": "gemma2", "sliding_window": None}, "no sliding_window"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "_pattern=0"),
        ({"model_type": "gemma3_text", "_sliding_window_pattern": "6"}, "='6'"),
    ],
)
def test_unsupported_settings_are_refused_by_name(tmp_path, changes, named):
    written = {"model_type": "qwen2"} | SMALL | changes
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=named) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.json: ")
    assert "\n" not in str(caught.value)


def test_a_refusal_names_key_value_and_family():
    with pytest.raises(InputError) as caught:
        small("qwen2", final_logit_softcapping=30.0)
    assert str(caught.value) == (
        "final_logit_softcapping=30.0 is not supported in a qwen2"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"use_bidirectional_attention": None, "pruned_heads": {}, "use_mrope": False},
        {"attn_logit_softcapping": None, "query_pre_attn_scalar": 16},
        {"hidden_activation": "silu", "rope_local_base_freq": 10000},
        {"mlp_bias": False, "logit_scale": 1.0, "attention_dropout": 0.1},
        {"rope_scaling": {}, "rope_parameters": None, "partial_rotary_factor": 1},
        {"tie_word_embeddings": None, "unsloth_fixed": True, "auto_map": {"a": "b"}},
    ],
)
def test_what_changes_nothing_is_read(changes):
    assert small("qwen2", head_dim=16, **changes) == small("qwen2", head_dim=16)


def test_what_is_no_checkpoint(tmp_path):
    for content, said in (
        (None, "no such file; check path and rights"),
        (
            "{",
            "not JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)); fetch the file again",
        ),
        ("[]", "holds no JSON object; fetch the file again"),
    ):
        path = tmp_path / "config.json"
        if content:
            path.write_text(content)
        with pytest.raises(InputError) as caught:
            read_config(tmp_path)
        assert str(caught.value) == f"{tmp_path} is not a checkpoint: {path}: {said}"


def test_adapters_are_not_a_checkpoint(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="PEFT's adapters; give it as model.lora.init"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b'{"a": ' + b"[" * 100_000, b'{"\xff": 1}', b"\0" * 9, b"1" * 5000],
    ids=["deep", "not UTF-8", "zeros", "long"],
)
def test_bytes_that_are_no_configuration(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="config.json: not JSON") as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_no_file(tmp_path):
    (tmp_path / "config.json").symlink_to("blobs/absent")
    with pytest.raises(InputError, match="a link to blobs/absent, which is not there"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")  # to open it would wait for ever
    with pytest.raises(InputError, match="config.json: not a regular file"):
        read_config(tmp_path)


def test_a_configuration_of_no_family_cannot_be_described():
    odd = dataclasses.replace(small("llama"), logit_softcap=30.0)
    with pytest.raises(InputError, match="no published architecture"):
        describe_config(odd)
