"""A GGUF model as a checkpoint in the Hugging Face layout.

llama.cpp's converter changes what it takes over: rows of Llama's q and k are in another
order, Gemma's norms have one added, Llama 3's rotary scaling is a tensor of factors.
Each is put back here. What a GGUF file does not say (which activation, whether a query
is scaled by something else than its head's size) follows from the family, as in
llama.cpp itself. What cannot be converted is named.

Source: the metadata keys of llama.cpp's docs/gguf.md and what its converter
(convert_hf_to_gguf.py) does to each family.
"""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from limr_jax.data import gguf_tokenizer
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError, shown
from limr_jax.models import hf_config, hf_files, hf_names, hf_writer
from limr_jax.models.config import ModelConfig
from limr_jax.models.gguf_files import NEUTRAL, GgufModel

# GGUF's name of a family → model_type and architecture of a config.json.
FAMILIES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
# Gemma norms attention's output too, and that norm has the other families' MLP name.
_GEMMA_LAYER = _LAYER | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_IN_LAYER = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
# Keys that may have a value for each layer.
_BY_LAYER = ("attention.sliding_window_pattern",)
_ROPE_FACTORS = "rope_freqs.weight"
# Layers of the two Gemmas whose queries are scaled by width / heads, not by head size.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


def convert(model: GgufModel, folder: pathlib.Path, dtype: str) -> dict:
    """Write the model's config, weights and tokenizer into `folder`; → what it is.

    dtype: of the safetensors, "float32" or "bfloat16". One tensor is in memory at a
    time.

    Raises:
      InputError: a family, a setting, a tensor or a tokenizer that cannot be converted.
    """
    family = model.metadata.get("general.architecture")
    if family not in FAMILIES:
        raise InputError(
            f"the GGUF file's architecture {shown(repr(family))} cannot be converted; "
            f"one of {', '.join(FAMILIES)} can"
        )
    written = _config(family, model)
    try:
        config = hf_config.parse_config(written)
    except ValueError as error:  # InputError, or ModelConfig's own
        raise InputError(f"the GGUF file: {shown(error, limit=400)}") from None
    tokens = gguf_tokenizer.convert(model.metadata)
    ids = tokens.token_ids
    about = written | ids | {"torch_dtype": dtype}
    hf_writer.write_json(folder / "config.json", about)
    hf_writer.write_json(folder / "generation_config.json", ids)
    for name, content in tokens.files.items():
        (folder / name).write_bytes(content)
    _check_tokenizer(folder, config)
    entries = list(_entries(family, model, config=config, dtype=dtype))
    hf_writer.write_tensors(folder, entries)
    return {
        "architecture": written["architectures"][0],
        "parameters": sum(math.prod(entry.shape) for entry in entries),
        "quantised": sorted({model.kind(name) for name in model.names()}),
        "vocabulary": written["vocab_size"],
    }


def _check_tokenizer(folder: pathlib.Path, config: ModelConfig) -> None:
    """InputError where no run could begin with the tokenizer that lies in `folder`."""
    try:
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        # Without the remedy, and the folder, which is gone when this is read.
        reason = str(error).partition(";")[0].replace(f"{folder}/", "")
        raise InputError(
            f"the GGUF file's tokenizer cannot be used ({reason}); take another file"
        ) from None
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"the GGUF file's tokenizer has {tokenizer.vocab_size} tokens for "
            f"{config.vocab_size} rows of token_embd.weight; fetch it again"
        )


# --- config.json ------------------------------------------------------------------


def _config(family: str, model: GgufModel) -> dict:
    """The config.json that the metadata and the tensors' shapes describe."""
    metadata = _Metadata(family, model.metadata)
    model_type, architecture = FAMILIES[family]
    heads = metadata.needed("attention.head_count")
    width = metadata.needed("embedding_length")
    head_dim = metadata.get("attention.key_length", width // max(1, heads))
    if metadata.get("attention.value_length", head_dim) != head_dim:
        raise InputError(
            f"{family}: keys of {head_dim} and values of "
            f"{metadata.get('attention.value_length')} cannot be converted"
        )
    if metadata.get("rope.dimension_count", head_dim) != head_dim:
        raise InputError(
            f"{family}.rope.dimension_count turns a part of each head only, which "
            "cannot be converted"
        )
    if metadata.get("expert_count", 0):
        raise InputError(f"{family} with experts cannot be converted")
    for name, neutral in NEUTRAL.items():
        if metadata.get(name, neutral) != neutral:
            raise InputError(
                f"{family}.{name}={metadata.get(name)} is a factor that {family} does "
                "not have here, and cannot be converted"
            )
    names = set(model.names())
    written = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": _vocabulary(model),
        "hidden_size": width,
        "num_hidden_layers": metadata.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": metadata.needed("feed_forward_length"),
        "max_position_embeddings": metadata.needed("context_length"),
        "rms_norm_eps": metadata.needed("attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("rope.freq_base", 10_000.0),
        # llama.cpp leaves a head out that is the embedding.
        "tie_word_embeddings": "output.weight" not in names,
        # Qwen2 has its biases by family, the others have none.
        "attention_bias": family == "llama" and "blk.0.attn_q.bias" in names,
    }
    if family == "llama":
        written["mlp_bias"] = "blk.0.ffn_gate.bias" in names
    if (scaling := _rope_scaling(metadata, model)) is not None:
        written["rope_scaling"] = scaling
    if family.startswith("gemma"):
        written |= _gemma_settings(family, metadata, written)
    else:
        written["hidden_act"] = "silu"
    return written


class _Metadata:
    """The keys of one family, numbers as they were before they became fp32."""

    def __init__(self, family: str, values: dict):
        self.family, self._values = family, values

    def get(self, name: str, default=None):
        value = self._values.get(f"{self.family}.{name}", default)
        if isinstance(value, list) and name not in _BY_LAYER:
            raise InputError(
                f"{self.family}.{name} has a value for each layer, which cannot be "
                "converted"
            )
        if isinstance(value, float):
            # 1e-5 lies in the file as 9.99999975e-06: the shortest number that is the
            # same in fp32 is the one that the converter was given.
            return float(str(np.float32(value)))
        return value

    def needed(self, name: str):
        value = self.get(name)
        if value is None:
            raise InputError(
                f"the GGUF file has no {self.family}.{name}; fetch it again"
            )
        return value


def _vocabulary(model: GgufModel) -> int:
    if "token_embd.weight" not in model.names():
        raise InputError("the GGUF file has no token_embd.weight; fetch it again")
    return model.shape("token_embd.weight")[0]


def _gemma_settings(family: str, metadata: _Metadata, written: dict) -> dict:
    layers, width = written["num_hidden_layers"], written["hidden_size"]
    scalar = written["head_dim"]
    if layers == _SCALED_BY_WIDTH[family]:
        scalar = width // written["num_attention_heads"]
    settings = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": metadata.needed("attention.sliding_window"),
        # Gemma 2's own, which llama.cpp too takes where a file does not name them.
        "attn_logit_softcapping": metadata.get(
            "attn_logit_softcapping", 50.0 if family == "gemma2" else None
        ),
        "final_logit_softcapping": metadata.get(
            "final_logit_softcapping", 30.0 if family == "gemma2" else None
        ),
    }
    if family == "gemma3":
        every = metadata.get("attention.sliding_window_pattern", 6)
        if isinstance(every, list):  # of each layer, whether its window slides
            kinds = ["sliding_attention" if x else "full_attention" for x in every]
            settings["layer_types"] = kinds
        else:
            settings["sliding_window_pattern"] = every
        base = metadata.get("rope.freq_base_swa", 10_000.0)
        settings["rope_local_base_freq"] = base
    return settings


def _rope_scaling(metadata: _Metadata, model: GgufModel) -> dict | None:
    # As llama.cpp: without a type linear, with the older name of its factor.
    kind = metadata.get("rope.scaling.type", "linear")
    factor = metadata.get("rope.scaling.factor", metadata.get("rope.scale_linear", 1.0))
    scaled = kind == "linear" and factor not in (0, 1)
    if kind not in ("none", "linear"):
        raise InputError(
            f"{metadata.family}.rope.scaling.type={shown(repr(kind))} cannot be "
            "converted; none, linear and Llama 3's can"
        )
    if _ROPE_FACTORS in model.names():
        if scaled:
            raise InputError(
                f"the GGUF file scales rotary frequencies by {factor:g} and by "
                f"{_ROPE_FACTORS}, which cannot be converted together"
            )
        return _llama3_scaling(metadata, model)
    if scaled:
        return {"rope_type": "linear", "factor": factor}
    return None


def _llama3_scaling(metadata: _Metadata, model: GgufModel) -> dict:
    """Llama 3's settings from the tensor of factors that llama.cpp computes of them.

    A frequency that turns less than once in the original length is slowed by the whole
    factor, one that turns more than four times by none, between them by a part: those
    are the limits of every Llama 3, and of the parts follows the original length.
    """
    factors = model.read(_ROPE_FACTORS).astype(float)
    factor, low, high = float(factors.max()), 1.0, 4.0
    base = metadata.get("rope.freq_base", 10_000.0)
    wavelengths = 2 * np.pi * base ** (np.arange(len(factors)) / len(factors))
    # Only the frequencies between the limits depend on the original length.
    within = (factors > 1.001) & (factors < factor * 0.999)
    original = 8192  # Llama 3's, where none lies between
    if within.any():
        part = (1 / factors - 1 / factor) / (1 - 1 / factor)
        turns = low + part * (high - low)
        # Each of them tells it, but for fp32's rounding.
        original = round(float(np.median((turns * wavelengths)[within])))
    # From the settings back to the factors: a tensor of another scaling is refused.
    part = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    if not np.allclose(1 / factors, (1 - part) / factor + part, rtol=1e-3):
        raise InputError(
            f"{_ROPE_FACTORS} does not hold the factors of Llama 3's rotary scaling, "
            "and cannot be converted"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# --- Tensors ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor to write, as `hf_files.write_tensors` asks for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def array(self) -> np.ndarray:
        array = self.read()
        if not np.isfinite(array).all():
            raise InputError(f"tensor {self.name} is not finite; fetch the file again")
        return array.astype(hf_writer.DTYPES[self.dtype])


def _entries(
    family: str, model: GgufModel, config: ModelConfig, dtype: str
) -> Iterator[_Entry]:
    """Each tensor of the GGUF file under its Hugging Face name, in the file's order.

    InputError: one is missing, has no place in the model, or is of another shape.
    """
    # The factors are a setting in config.json (`_rope_scaling`), and no tensor there.
    names = [name for name in model.names() if name != _ROPE_FACTORS]
    theirs = {_hf_name(family, name): name for name in names}
    hf_files.check_shapes(
        "the GGUF file",
        {name: model.shape(ours) for name, ours in theirs.items()},
        hf_names.file_shapes(config),
    )
    for name, ours in theirs.items():
        read = functools.partial(model.read, ours)
        if family == "llama" and ".q_proj." in name:
            read = functools.partial(_halves_again, read, config.heads)
        if family == "llama" and ".k_proj." in name:
            read = functools.partial(_halves_again, read, config.kv_heads)
        if config.norm_plus_one and name.endswith("norm.weight"):
            read = functools.partial(_one_less, read)
        yield _Entry(name=name, shape=model.shape(ours), dtype=DTYPES[dtype], read=read)


def _hf_name(family: str, name: str) -> str:
    """Hugging Face's name of a tensor; one that it does not have keeps its own."""
    if name in _TOP:
        return _TOP[name]
    match = _IN_LAYER.fullmatch(name)
    stems = _GEMMA_LAYER if family.startswith("gemma") else _LAYER
    if match is None or match[2] not in stems:
        return name
    return f"model.layers.{match[1]}.{stems[match[2]]}.{match[3]}"


def _halves_again(read: Callable[[], np.ndarray], heads: int) -> np.ndarray:
    """q or k as Hugging Face's rotary embedding wants it.

    llama.cpp turns neighbouring rows of a head together, (0, 1), (2, 3), …; Hugging
    Face a head's first half with its second, (0, C/2), (1, C/2 + 1), …
    """
    rows = read()  # [heads·C, …]
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _one_less(read: Callable[[], np.ndarray]) -> np.ndarray:
    return read() - 1
