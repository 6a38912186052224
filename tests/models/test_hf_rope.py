"""Rotary settings of config.json: each type, each key, both generations."""

import pytest

from limr_jax.errors import InputError
from limr_jax.models.hf_config import parse_config
from limr_jax.models.transformer import Rope

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 6,
    "vocab_size": 100,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
# Each type with all that it needs, and the rope that it is here; None: it is refused.
TYPES = {
    "default": ({}, Rope(base=5e5)),
    "linear": ({"factor": 4.0}, Rope(base=5e5, factor=4.0)),
    "llama3": (LLAMA3, Rope(base=5e5, factor=8.0, original_length=8192)),
    "dynamic": ({"factor": 2.0}, None),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 32768}, None),
    "longrope": (LONG | {"original_max_position_embeddings": 4096}, None),
    "su": (LONG, None),
    "mrope": ({"mrope_section": [2, 3, 3]}, None),
    "proportional": ({"factor": 1.0}, None),
}
PARAMETERS = {"rope_type": "default", "rope_theta": 5e5}


def small(model_type, **changes):
    return parse_config({"model_type": model_type} | SMALL | changes)


def said(model_type, **changes) -> str:
    with pytest.raises(InputError) as caught:
        small(model_type, **changes)
    return str(caught.value)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma2"])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("word", ["type", "rope_type"])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "both"])
def test_every_type_in_either_key(family, kind, word, key):
    needs, rope = TYPES[kind]
    settings = {word: kind} | needs
    written = {key: settings, "rope_theta": 5e5}
    if key == "both":
        written = {"rope_scaling": settings, "rope_parameters": PARAMETERS}
    if rope is None:
        key = "rope_scaling" if key == "both" else key
        assert said(family, **written) == (
            f"rope type {kind!r} of {key} is not supported; one of default, linear, "
            "llama3"
        )
    elif key == "both":
        # transformers 5 takes rope_scaling, and not the base beside it.
        assert "rope_scaling and rope_parameters contradict" in said(family, **written)
    else:
        assert small(family, **written).rope == rope
        del written["rope_theta"]
        written[key] = settings | {"rope_theta": 5e5}
        assert small(family, **written).rope == rope


def test_the_fault_yarn_beside_rope_parameters():
    """transformers 5 runs this checkpoint with YaRN; it was run without a word."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    yarn |= {"original_max_position_embeddings": 32768}
    written = {"rope_parameters": PARAMETERS, "rope_scaling": yarn}
    assert said("qwen2", **written) == (
        "rope type 'yarn' of rope_scaling is not supported; one of default, linear, "
        "llama3"
    )


def test_two_keys_that_say_the_same():
    linear = {"type": "linear", "factor": 2.0}
    both = {"rope_scaling": linear, "rope_parameters": linear | {"rope_theta": 5e5}}
    rope = small("llama", rope_theta=5e5, **both).rope
    assert rope == Rope(base=5e5, factor=2.0)
    # Here transformers 5 computes with a base of 10,000.
    assert "contradict" in said("llama", **both)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"rope_type": "linear"}, "rope type 'linear' of rope_scaling lacks factor"),
        ({"type": "llama3", "factor": 8.0}, "lacks low_freq_factor, high_freq"),
        ({"type": "linear", "rope_type": "yarn"}, "rope_type and type differ: linear"),
        ({"type": "linear", "factor": 0}, "factor=0 is not a number above 0"),
        ({"type": "linear", "factor": "2"}, "factor='2' is not a number"),
        ({"type": "linear", "factor": True}, "factor=True is not a number"),
        ({"type": "linear", "factor": float("inf")}, "factor=inf is not a number"),
        ({"type": "linear", "factor": 10**400}, "is too large"),
        ({"type": "linear", "factor": 2.0, "attention_factor": 0.8}, "attention_fact"),
        ({"factor": 4.0}, "factor=4.0 with rope type 'default'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"mrope_section": [1, 2]}, "mrope_section"),
        ({"rope_type": ["linear"]}, "is not supported"),
        (LLAMA3 | {"type": "llama3", "low_freq_factor": 4.0}, "is not below"),
        (LLAMA3 | {"type": "llama3", "beta_fast": 32}, "beta_fast=32"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0 is not a number above 0"),
        ({"rope_theta": 1e6}, r"rope_theta=500000 contradicts the rope_theta=1e\+06"),
        ("yarn", "rope_scaling='yarn' is not an object"),
        (["yarn"], "is not an object"),
        ({"full_attention": "yarn"}, "full_attention='yarn' of rope_scaling is not an"),
        ({"full_attention": {}, "factor": 2}, "factor beside settings by kind"),
        (
            {"full_attention": {}, "sliding_attention": {"rope_theta": 1e4}},
            "rope_theta=500000 contradicts",
        ),
        (
            {
                "full_attention": {},
                "sliding_attention": {"type": "linear", "factor": 2},
            },
            "sliding_attention differs from full_attention, which a llama",
        ),
    ],
)
def test_what_the_model_does_not_do(settings, named):
    with pytest.raises(InputError, match=named) as caught:
        small("llama", rope_theta=5e5, rope_scaling=settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("theta", [0, "1e6", float("nan"), [1]])
def test_a_base_that_is_none(theta):
    assert said("qwen2", rope_theta=theta) == (
        f"rope_theta={theta!r} is not a number above 0"
    )


def test_a_length_beside_the_settings():
    """transformers 5 lets the one at top level win, as Phi 3's files want it."""
    settings = LLAMA3 | {"type": "llama3"}
    name = "original_max_position_embeddings"
    assert "contradicts" in said("llama", rope_scaling=settings, **{name: 4096})
    assert small("llama", rope_scaling=settings, **{name: 8192}).rope == Rope(
        factor=8.0, original_length=8192
    )
    del settings[name]
    rope = small("llama", rope_scaling=settings, **{name: 4096}).rope
    assert rope == Rope(factor=8.0, original_length=4096)


def test_gemma_3_by_kind_of_layer():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = small("gemma3_text", rope_parameters=kinds, num_hidden_layers=6)
    assert config.rope == Rope(base=1e6, factor=8.0)
    assert config.local_rope == Rope(base=1e4)
    kinds["sliding_attention"] = {"rope_type": "yarn", "factor": 2.0}
    assert "'yarn'" in said("gemma3_text", rope_parameters=kinds)
    # transformers 5 does not read these at all.
    flat = {"rope_type": "linear", "factor": 8.0}
    assert said("gemma3_text", rope_parameters=flat) == (
        "rope_parameters of a gemma3_text must have an entry for each of "
        "full_attention, sliding_attention"
    )
