"""Which tensors of a Hugging Face checkpoint make which parameter, and how they lie."""

import dataclasses
import math
import re

import jax

from limr_jax.models.transformer import ModelConfig, init_params

# Parameter of a layer → (tensor of the file, which of our axes make each of its axes).
# A file's weight is [out, in]: q_proj, [H · C, D], is our [D, H, C], of which axes 1
# and 2 make its first and 0 its second.
_LAYER = {
    "attention/q/kernel": ("self_attn.q_proj.weight", ((1, 2), (0,))),
    "attention/k/kernel": ("self_attn.k_proj.weight", ((1, 2), (0,))),
    "attention/v/kernel": ("self_attn.v_proj.weight", ((1, 2), (0,))),
    "attention/o/kernel": ("self_attn.o_proj.weight", ((2,), (0, 1))),
    "attention/q/bias": ("self_attn.q_proj.bias", ((0, 1),)),
    "attention/k/bias": ("self_attn.k_proj.bias", ((0, 1),)),
    "attention/v/bias": ("self_attn.v_proj.bias", ((0, 1),)),
    "attention/o/bias": ("self_attn.o_proj.bias", ((0,),)),
    "attention/q_norm/scale": ("self_attn.q_norm.weight", ((0,),)),
    "attention/k_norm/scale": ("self_attn.k_norm.weight", ((0,),)),
    "mlp/gate/kernel": ("mlp.gate_proj.weight", ((1,), (0,))),
    "mlp/up/kernel": ("mlp.up_proj.weight", ((1,), (0,))),
    "mlp/down/kernel": ("mlp.down_proj.weight", ((1,), (0,))),
    "mlp/gate/bias": ("mlp.gate_proj.bias", ((0,),)),
    "mlp/up/bias": ("mlp.up_proj.bias", ((0,),)),
    "mlp/down/bias": ("mlp.down_proj.bias", ((0,),)),
    "attention_norm/scale": ("input_layernorm.weight", ((0,),)),
}
# LoRA's adapters by PEFT's names: lora_A is [r, in], lora_B [out, r].
_ADAPTERS = {
    f"{room}/{name}/{ours}": (f"{stem}.{name}_proj.{theirs}.weight", axes)
    for room, stem, name, a_axes, b_axes in (
        ("attention", "self_attn", "q", ((1,), (0,)), ((1, 2), (0,))),
        ("attention", "self_attn", "k", ((1,), (0,)), ((1, 2), (0,))),
        ("attention", "self_attn", "v", ((1,), (0,)), ((1, 2), (0,))),
        ("attention", "self_attn", "o", ((2,), (0, 1)), ((1,), (0,))),
        ("mlp", "mlp", "gate", ((1,), (0,)), ((1,), (0,))),
        ("mlp", "mlp", "up", ((1,), (0,)), ((1,), (0,))),
        ("mlp", "mlp", "down", ((1,), (0,)), ((1,), (0,))),
    )
    for ours, theirs, axes in (
        ("lora_a", "lora_A", a_axes),
        ("lora_b", "lora_B", b_axes),
    )
}
# The norm before the MLP has Gemma's name where attention's output is normed too.
_MLP_NORM = {
    "mlp_norm/scale": ("post_attention_layernorm.weight", ((0,),)),
}
_MLP_NORM_GEMMA = {
    "attention_out_norm/scale": ("post_attention_layernorm.weight", ((0,),)),
    "mlp_norm/scale": ("pre_feedforward_layernorm.weight", ((0,),)),
    "mlp_out_norm/scale": ("post_feedforward_layernorm.weight", ((0,),)),
}
_TOP = {
    "embedder/embedding": ("model.embed_tokens.weight", ((0,), (1,))),
    "final_norm/scale": ("model.norm.weight", ((0,),)),
    "head/kernel": ("lm_head.weight", ((1,), (0,))),
}
# Buffers that old Llama files carry; they follow from the configuration.
BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the file and how it lies in a parameter."""

    name: str
    axes: tuple[tuple[int, ...], ...]  # our axes that make each axis of the file's
    shape: tuple[int, ...]  # ours, without the stacked axis

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.shape[a] for a in axes) for axes in self.axes)


def tensors(path: str, shape: tuple[int, ...], config: ModelConfig) -> list[Tensor]:
    """The file's tensors that make one parameter, in the order they are stacked."""
    if path in _TOP:
        name, axes = _TOP[path]
        return [Tensor(name, axes, shape)]
    norm = _MLP_NORM_GEMMA if config.out_norms else _MLP_NORM
    names = _LAYER | _ADAPTERS | norm
    root, position, name = path.split("/", 2)
    stem, axes = names[name]
    period = len(config.pattern)
    if root == "blocks":
        # A stack is one position p of the pattern: layers p, p + period, p + 2 period …
        layers = range(int(position), config.groups * period, period)
        shape = shape[1:]  # without the axis of the groups
    else:
        layers = [config.groups * period + int(position)]
    return [Tensor(f"model.layers.{i}.{stem}", axes, shape) for i in layers]


def param_shapes(config: ModelConfig):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def file_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of each tensor that a checkpoint of this model has."""
    return {
        tensor.name: tensor.file_shape
        for path, leaf in by_path(param_shapes(config)).items()
        for tensor in tensors(path, leaf.shape, config)
    }


def by_path(tree) -> dict:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in flat
    }
