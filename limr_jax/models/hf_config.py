"""config.json of a checkpoint ↔ ModelConfig, by meaning.

Both generations of key names are read (`rope_theta` + `rope_scaling`, and
`rope_parameters`); a missing key has the default of its family in transformers; what
the model does not do is refused by name.
"""

import pathlib

from limr_jax.data import jsonl
from limr_jax.errors import InputError, shown
from limr_jax.models.hf_rope import KINDS, describe_rope, positive, read_ropes
from limr_jax.models.transformer import ModelConfig

# What each family reads, and assumes where config.json is silent. None in
# num_key_value_heads and head_dim: as many as heads, and hidden_size / heads.
_COMMON = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "vocab_size": 151936,
    "head_dim": None,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
    "attention_bias": False,
    "layer_types": None,
}
_QWEN = _COMMON | {
    "hidden_act": "silu",
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA = _COMMON | {
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}
_DEFAULTS = {
    "qwen2": _QWEN,
    "qwen3": _QWEN | {"head_dim": 128},
    "llama": _COMMON
    | {
        "vocab_size": 32000,
        "intermediate_size": 11008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "mlp_bias": False,
    },
    "gemma2": _GEMMA
    | {
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": _GEMMA
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
}
_NULLABLE = ("num_key_value_heads", "head_dim", "sliding_window")
_SIZES = dict.fromkeys(  # whole numbers, each with the largest that is no mistake
    (
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "vocab_size",
    ),
    2**24,
) | {
    "num_hidden_layers": 10_000,
    "max_position_embeddings": 2**31 - 1,
    "sliding_window": 2**31 - 1,
    "sliding_window_pattern": 2**31 - 1,
}
_NUMBERS = ("rms_norm_eps", "query_pre_attn_scalar")
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_FLAGS = ("tie_word_embeddings", "use_sliding_window", "attention_bias", "mlp_bias")
# Keys that change what is computed without another tensor, of related models (Granite,
# MiniCPM, Cohere, GLM, Llama 4, …) and of patched ones; each with the values that
# change nothing, as absence and null do. Where tensors differ, counting them tells.
# Dropout is not here: reinforcement learning has none.
_NEUTRAL = {
    "alibi": [False],
    "attention_chunk_size": [],
    "attention_multiplier": [],
    "attention_scale": [],
    "attn_temperature_tuning": [False],
    "clip_qkv": [],
    "compression_config": [{}],
    "dim_model_base": [],
    "dual_chunk_attention_config": [],
    "embedding_multiplier": [1],
    "is_causal": [True],
    "is_encoder_decoder": [False],
    "logit_scale": [1],
    "logits_scaling": [1],
    "mlp_bias": [False],
    "no_rope_layer_interval": [],
    "no_rope_layers": [[]],
    "parallel_attn": [False],
    "per_layer_config": [{}],
    "pruned_heads": [{}],
    "qk_layernorm": [False],
    "qk_norm": [False],
    "quantization": [{}],
    "residual_multiplier": [1],
    "rope_interleave": [False],
    "rope_interleaved": [False],
    "rope_ratio": [1],
    "rotary_pct": [1],
    "scale_depth": [],
    "scale_emb": [1],
    "sliding_window": [],
    "use_alibi": [False],
    "use_bidirectional_attention": [False],
    "use_mrope": [False],
    "use_parallel_residual": [False],
    "use_qk_norm": [False],
    **dict.fromkeys(_CAPS, []),
}
_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def read_config(directory) -> ModelConfig:
    """The architecture that `directory`/config.json describes.

    Raises:
      InputError: no readable config.json, an architecture or setting that the model
        does not have (named), or values that contradict each other.
    """
    path = pathlib.Path(directory) / "config.json"
    try:
        written = jsonl.read_object(path)
    except InputError as error:
        if path.with_name("adapter_config.json").is_file():
            raise InputError(
                f"{directory} is no checkpoint but PEFT's adapters; give it as "
                "model.lora.init, and as model.init the base that they are of"
            ) from None
        raise InputError(f"{directory} is not a checkpoint: {error}") from None
    try:
        return parse_config(written)
    except ValueError as error:  # InputError, or ModelConfig's own
        raise InputError(f"{path}: {shown(error, limit=400)}") from None


def parse_config(written: dict) -> ModelConfig:
    """`read_config` of an already parsed config.json."""
    family = _family(written)
    values = _checked(family, written)
    layers, width = values["num_hidden_layers"], values["hidden_size"]
    heads = values["num_attention_heads"]
    gemma = family.startswith("gemma")
    pattern = _pattern(family, values, layers)
    rope, local_rope = read_ropes(
        family,
        written,
        base=_DEFAULTS[family]["rope_theta"],
        local_base=_DEFAULTS[family].get("rope_local_base_freq", 0.0),
    )
    # None where it changes nothing: equal models have equal configs, which
    # `describe_config` and a preset's check compare.
    if "sliding" not in pattern or local_rope == rope:
        local_rope = None
    bias = values["attention_bias"]
    if not values["head_dim"] and width % heads:
        raise InputError(f"hidden_size={width} is no multiple of {heads} heads")
    head_dim = values["head_dim"] or width // heads
    scalar = values["query_pre_attn_scalar"] if gemma else head_dim
    return ModelConfig(
        vocab_size=values["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=values["num_key_value_heads"] or heads,
        head_dim=head_dim,
        mlp_width=values["intermediate_size"],
        max_length=values["max_position_embeddings"],
        pattern=pattern,
        window=values["sliding_window"] if "sliding" in pattern else None,
        rope=rope,
        local_rope=local_rope,
        norm_eps=values["rms_norm_eps"],
        activation=_activation(gemma, values),
        # Qwen2 has biases on q, k and v and none on o, whatever attention_bias says.
        qkv_bias=bias or family == "qwen2",
        o_bias=bias and family != "qwen2",
        mlp_bias=family == "llama" and values["mlp_bias"],
        qk_norm=family in ("qwen3", "gemma3_text"),
        tied=values["tie_word_embeddings"],
        norm_plus_one=gemma,
        out_norms=gemma,
        scale_embedding=gemma,
        attention_scale=None if scalar == head_dim else scalar**-0.5,
        attention_softcap=values["attn_logit_softcapping"] if gemma else None,
        logit_softcap=values["final_logit_softcapping"] if gemma else None,
    )


def _checked(family: str, written: dict) -> dict:
    """The file's values and the family's own.

    InputError: a value that cannot be, or a key that the family does not read and that
    changes what is computed.
    """
    # A null of the file comes along: below it is the default, allowed, or refused.
    values = _DEFAULTS[family] | written
    if "sliding_window_pattern" not in written:  # transformers' own name for it
        values["sliding_window_pattern"] = written.get("_sliding_window_pattern", 6)
    for name in _FLAGS:
        if values.get(name) is None:
            values[name] = _DEFAULTS[family].get(name)
        # 1 and "false" are not taken for what they may mean.
        elif type(values[name]) is not bool:
            raise InputError(f"{name}={values[name]!r} is neither true nor false")
    for name in _DEFAULTS[family]:
        value = values[name]
        if value is None and name in (*_NULLABLE, *_CAPS):
            continue
        # type, not isinstance: true is an int to Python.
        if name in _SIZES and not (type(value) is int and 1 <= value <= _SIZES[name]):
            raise InputError(
                f"{name}={value!r} is not a positive number, whole and up to "
                f"{_SIZES[name]:,}"
            )
        if name in (*_NUMBERS, *_CAPS):
            values[name] = positive(value, name)
    # Keys of other families, with the value that says what this one does anyway.
    neutral = _NEUTRAL | {
        "hidden_act": [each for each in _ACTIVATIONS if each.startswith("gelu")],
        "hidden_activation": [values.get("hidden_act")],
        "query_pre_attn_scalar": [values["head_dim"]],
        "rope_local_base_freq": [values["rope_theta"]],
    }
    # − binds before &: keys that matter somewhere and that this family does not read.
    for name in written.keys() & neutral.keys() - _DEFAULTS[family].keys():
        if written[name] is not None and written[name] not in neutral[name]:
            raise InputError(f"{name}={written[name]!r} is not supported in a {family}")
    return values


def _activation(gemma: bool, values: dict) -> str:
    name = values["hidden_activation" if gemma else "hidden_act"]
    name = name or "gelu_pytorch_tanh"  # null, in some Gemma files
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        _refuse("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def _refuse(what, value, choices):
    raise InputError(f"{what} {value!r} is not supported; one of {', '.join(choices)}")


def _family(written: dict) -> str:
    """The model_type, from it or from `architectures`; refuses what is not here."""
    classes, family = written.get("architectures") or [], written.get("model_type")
    if not isinstance(classes, list):
        raise InputError(f"architectures={classes!r} is not a list")
    by_class = {name.lower(): family for family, name in _CLASSES.items()}
    if family is None and classes:
        family = by_class.get(str(classes[0]).lower())
        if family is None:
            _refuse("architecture", classes[0], _CLASSES.values())
    if not isinstance(family, str) or family not in _DEFAULTS:
        _refuse("model_type", family, _DEFAULTS)
    # model_type and architectures must name one family.
    if classes and by_class.get(str(classes[0]).lower()) != family:
        _refuse("architecture", classes[0], [_CLASSES[family]])
    if quantised := written.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise InputError(
            f"quantization_config ({method or 'unnamed'}) is not supported; "
            "take the unquantised checkpoint"
        )
    return family


def _pattern(family: str, values: dict, layers: int) -> tuple[str, ...]:
    """The shortest repeating pattern of the layers' attention kinds."""
    # Llama has no window; Qwen has one only where use_sliding_window is on.
    windowed = values["sliding_window"] if family != "llama" else None
    if family.startswith("qwen") and not values["use_sliding_window"]:
        windowed = None
    types = values["layer_types"]
    if types is not None:
        if not isinstance(types, list):
            raise InputError(f"layer_types={types!r} is not a list")
        unknown = [kind for kind in types if str(kind) not in KINDS]
        if unknown:
            _refuse("layer type", unknown[0], KINDS)
        if len(types) != layers:
            raise InputError(f"{len(types)} layer_types for {layers} layers")
        kinds = [KINDS[kind] for kind in types]
    elif family == "gemma2":
        # Gemma 2 alternates, a sliding layer first.
        kinds = ["full" if i % 2 else "sliding" for i in range(layers)]
    elif family == "gemma3_text":
        # Gemma 3: five sliding layers, then a full one, at a pattern of 6.
        every = values["sliding_window_pattern"]
        kinds = ["sliding" if (i + 1) % every else "full" for i in range(layers)]
    else:
        # Qwen's first max_window_layers layers see everything, the others a window.
        first = values.get("max_window_layers") if windowed else layers
        if type(first) is not int or first < 0:
            raise InputError(f"max_window_layers={first!r} is not a whole number")
        kinds = ["sliding" if i >= first else "full" for i in range(layers)]
    if "sliding" in kinds and not windowed:
        raise InputError(
            "layer_types has sliding_attention but no sliding_window is on"
        )
    periods = range(1, layers + 1)
    # Moved on by a period the layers are the same; p = layers always is one.
    period = next(p for p in periods if kinds[p:] == kinds[: layers - p])
    return tuple(kinds[:period])


def describe_config(config: ModelConfig) -> dict:
    """A config.json's content from which `parse_config` makes `config` again.

    Older key names, which every reader knows.

    Raises:
      InputError: no family has this combination of settings.
    """
    family = _family_of(config)
    # Reversed, so that of two names the first in the table stays: "silu", not "swish".
    named = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    kinds = {ours: theirs for theirs, ours in KINDS.items()}
    written = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope.base,
        "attention_bias": config.o_bias,
        "mlp_bias": config.mlp_bias,
        "hidden_act": named[config.activation],
    }
    if (scaling := describe_rope(config.rope)) is not None:
        written["rope_scaling"] = scaling
    if family != "llama":
        types = (config.pattern * config.layers)[: config.layers]
        written["layer_types"] = [kinds[kind] for kind in types]
        written["sliding_window"] = config.window
        written["use_sliding_window"] = "sliding" in config.pattern
    if family.startswith("gemma"):
        scale = config.attention_scale or config.head_dim**-0.5
        # Rounded below: 144 comes back as 144.00000000000003.
        scalar = scale**-2
        written |= {
            "hidden_activation": named[config.activation],
            "query_pre_attn_scalar": round(scalar) if scalar > 1 else scalar,
            "attn_logit_softcapping": config.attention_softcap,
            "final_logit_softcapping": config.logit_softcap,
        }
    if family == "gemma3_text":
        written["rope_local_base_freq"] = (config.local_rope or config.rope).base
    # What no family says would be lost in silence: reading it back shows it.
    if parse_config(written) != config:
        raise InputError(
            f"no published architecture has this configuration: {config}; "
            f"the nearest is {_CLASSES[family]}"
        )
    return written


def _family_of(config: ModelConfig) -> str:
    if config.out_norms:
        return "gemma3_text" if config.qk_norm else "gemma2"
    if config.qk_norm:
        return "qwen3"
    return "qwen2" if config.qkv_bias and not config.o_bias else "llama"
