"""The published checkpoints' true dimensions, as `model=` names them.

Each is what config.json of that checkpoint on the Hub says.
"""

import dataclasses

from limr_jax.models.transformer import ModelConfig, Rope

_QWEN2_5_0_5B = ModelConfig(
    vocab_size=151_936,
    width=896,
    layers=24,
    heads=14,
    kv_heads=2,
    head_dim=64,
    mlp_width=4864,
    max_length=32_768,
    rope=Rope(base=1e6),
    qkv_bias=True,
)
_QWEN2_5_1_5B = dataclasses.replace(
    _QWEN2_5_0_5B,
    width=1536,
    layers=28,
    heads=12,
    head_dim=128,
    mlp_width=8960,
    max_length=131_072,
)
_QWEN2_5_7B = dataclasses.replace(
    _QWEN2_5_1_5B,
    vocab_size=152_064,  # the same tokenizer, its embedding filled up further
    width=3584,
    heads=28,
    kv_heads=4,
    mlp_width=18_944,
    tied=False,
)
# What Qwen2.5-Math has otherwise than Qwen2.5 of its size.
_MATH = {"max_length": 4096, "rope": Rope(base=1e4)}
_QWEN3_0_6B = ModelConfig(
    vocab_size=151_936,
    width=1024,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    mlp_width=3072,
    max_length=40_960,
    rope=Rope(base=1e6),
    qk_norm=True,
)

PRESETS = {
    "qwen2.5-0.5b": _QWEN2_5_0_5B,
    "qwen2.5-1.5b": _QWEN2_5_1_5B,
    "qwen2.5-7b": _QWEN2_5_7B,
    "qwen2.5-math-1.5b": dataclasses.replace(_QWEN2_5_1_5B, **_MATH),
    "qwen2.5-math-7b": dataclasses.replace(_QWEN2_5_7B, **_MATH),
    "qwen3-0.6b": _QWEN3_0_6B,
    "qwen3-1.7b": dataclasses.replace(_QWEN3_0_6B, width=2048, mlp_width=6144),
    "qwen3-8b": dataclasses.replace(
        _QWEN3_0_6B, width=4096, layers=36, heads=32, mlp_width=12_288, tied=False
    ),
    "llama-3.1-8b": ModelConfig(
        vocab_size=128_256,
        width=4096,
        layers=32,
        heads=32,
        kv_heads=8,
        head_dim=128,
        mlp_width=14_336,
        max_length=131_072,
        rope=Rope(base=5e5, factor=8.0, original_length=8192),
        norm_eps=1e-5,
        tied=False,
    ),
    "gemma-2-2b": ModelConfig(
        vocab_size=256_000,
        width=2304,
        layers=26,
        heads=8,
        kv_heads=4,
        head_dim=256,
        mlp_width=9216,
        max_length=8192,
        pattern=("sliding", "full"),
        window=4096,
        activation="gelu_tanh",
        norm_plus_one=True,
        out_norms=True,
        scale_embedding=True,
        attention_softcap=50.0,
        logit_softcap=30.0,
    ),
    "gemma-3-1b": ModelConfig(
        vocab_size=262_144,
        width=1152,
        layers=26,
        heads=4,
        kv_heads=1,
        head_dim=256,
        mlp_width=6912,
        max_length=32_768,
        pattern=("sliding",) * 5 + ("full",),
        window=512,
        rope=Rope(base=1e6),
        local_rope=Rope(base=1e4),
        activation="gelu_tanh",
        qk_norm=True,
        norm_plus_one=True,
        out_norms=True,
        scale_embedding=True,
    ),
}
