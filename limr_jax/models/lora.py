"""LoRA (arXiv:2106.09685): parameters as a frozen base, and adapters that are learned.

A model's parameters are one nested dict. Split, it is two with the same paths: the
adapters `lora_a` and `lora_b` beside the kernels in one, all else in the other. Arrays
are never copied.
"""

from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.errors import InputError
from limr_jax.models import int8
from limr_jax.models.config import TARGETS, Lora, ModelConfig
from limr_jax.sharding import param_shardings

_NAMES = ("lora_a", "lora_b")


def has_adapters(params) -> bool:
    """Whether any of the parameters (arrays or shapes) is an adapter's."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return any(getattr(path[-1], "key", None) in _NAMES for path, _ in leaves)


def split(params):
    """(base, adapters) of a model's parameters; (None, params) where it has none.

    The second of the two is what an update changes, with adapters or without.
    """
    if not has_adapters(params):
        return None, params
    return _part(params, adapters=False), _part(params, adapters=True)


def _part(tree: dict, *, adapters: bool) -> dict:
    part = {}
    for name, x in tree.items():
        if isinstance(x, dict):
            if inside := _part(x, adapters=adapters):
                part[name] = inside
        elif (name in _NAMES) == adapters:
            part[name] = x
    return part


def join(base, adapters):
    """The model's parameters, as `split` had them; base None: `adapters` are all."""
    if base is None:
        return adapters
    joined = dict(base)
    for name, x in adapters.items():
        # An adapter itself, or a part of the tree that both may have.
        joined[name] = join(base.get(name), x) if isinstance(x, dict) else x
    return joined


def merge(params, lora: Lora | None):
    """The parameters of the same model without adapters, fp32.

    A kernel W, dequantised where it is int8, is then W + scale · A·B. lora: of the
    model's config; None: it has none.
    """

    def merged(tree: dict, path: str):
        stacked, whole = path.startswith("blocks/"), {}
        for name, x in tree.items():
            if isinstance(x, dict):
                whole[name] = merged(x, f"{path}/{name}" if path else name)
            elif name not in (*_NAMES, int8.SCALE):
                whole[name] = x.astype(jnp.float32)
        if int8.SCALE in tree:
            whole["kernel"] = int8.dequantise(
                tree["kernel"], tree[int8.SCALE], int8.summed_axes(path)
            )
        if "lora_a" in tree:
            product = jax.vmap(_product) if stacked else _product  # of each layer
            moved = lora.scale * product(tree["lora_a"], tree["lora_b"])
            whole["kernel"] = whole["kernel"] + moved
        return whole

    return merged(params, path="")


def merge_on(mesh, params, config: ModelConfig):
    """The parameters without adapters, laid out on `mesh`, and the config of these.

    Both are as they were where the config has no adapters.
    """
    if config.lora is None:
        return params, config
    merged = partial(merge, lora=config.lora)
    at = param_shardings(mesh, jax.eval_shape(merged, params))
    return jax.jit(merged, out_shardings=at)(params), config.base


def _product(a, b):
    return jnp.tensordot(a, b, 1, precision="highest")


def parse_targets(text: str) -> tuple[str, ...]:
    """The projections that `model.lora.targets` names, in `TARGETS`' order."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in TARGETS]
    if unknown or len({*names}) < len(names):
        wrong = f"{unknown[0]!r} is none" if unknown else "one is named twice"
        raise InputError(
            f"model.lora.targets={text!r}: {wrong}; write some of {','.join(TARGETS)}, "
            "each once, with commas"
        )
    return tuple(name for name in TARGETS if name in names)


def check_section(section) -> None:
    """Refuse adapters' settings that say nothing: a base that is not frozen, say.

    section: the config's section `model`. Raises InputError for a target that is none,
    and for a dtype of the base or first adapters where the rank is 0.
    """
    if section.get("lora") is None:  # of a config that is older
        return
    parse_targets(section.lora.targets)
    if section.lora.rank:
        return
    for name, value, default in (
        ("base_dtype", section.base_dtype, "float32"),
        ("lora.init", section.lora.init, ""),
    ):
        if value != default:
            raise InputError(
                f"model.{name}={value} with model.lora.rank=0, which has no "
                f"adapters and no frozen base; give a rank, or model.{name}="
                f"{default or repr(default)}"
            )


def check_rank(config: ModelConfig) -> None:
    """InputError where the rank is larger than a kernel that it is to be beside."""
    if config.lora is None:
        return
    for name in config.lora.targets:
        shape = config.projection_shape(name)
        if config.lora.rank > min(shape):
            raise InputError(
                f"model.lora.rank={config.lora.rank} is larger than {min(shape)}, a "
                f"dimension of {name}'s kernel of {shape[0]} x {shape[1]}; lower it, "
                f"or leave {name} out of model.lora.targets"
            )
