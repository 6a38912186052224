"""The rotary settings of a config.json, in both generations of key names.

`rope_theta` with `rope_scaling` came first; transformers 5 writes `rope_parameters`,
for Gemma 3 with one entry for each kind of layer. Where a file has both, transformers 5
lets `rope_scaling` win. What the model does not do is refused by name: a setting that
were left out would be another model.
"""

import math
from typing import Any

from limr_jax.data import jsonl
from limr_jax.errors import InputError
from limr_jax.models.config import Rope

# config.json's names of the kinds of attention → the model's.
KINDS = {"full_attention": "full", "sliding_attention": "sliding"}
_TYPES = ("rope_type", "type")
_ORIGINAL = "original_max_position_embeddings"
# What each rope type needs beside rope_theta.
_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        _ORIGINAL,
    ),
}
# What changes nothing where the rope type does not read it. None (null) never does.
_NEUTRAL = {"factor": 1, "attention_factor": 1, "partial_rotary_factor": 1}


def read_ropes(
    family: str, written: dict, *, base: float, local_base: float
) -> tuple[Rope, Rope]:
    """The rotary settings of full and of sliding attention.

    written: the whole config.json; base, local_base: the family's `rope_theta` of full
    and of sliding layers where the file is silent.

    Raises:
      InputError: a rope type or a key of it that the model does not have, a value that
        is none, or two keys that contradict each other.
    """
    pairs = {}
    for key in ("rope_scaling", "rope_parameters"):
        parameters = written.get(key)
        if parameters is not None and not isinstance(parameters, dict):
            raise InputError(f"{key}={parameters!r} is not an object")
        # null and {} say as little as no key at all.
        if parameters:
            pairs[key] = _pair(family, key, written, base=base, local_base=local_base)
    if len(set(pairs.values())) > 1:
        raise InputError(
            "rope_scaling and rope_parameters contradict each other; keep the one that "
            "the model was trained with"
        )
    if pairs:
        return next(iter(pairs.values()))
    return _pair(family, None, written, base=base, local_base=local_base)


def _pair(family, key, written, *, base, local_base) -> tuple[Rope, Rope]:
    """(full, sliding) as one of the two keys has them; None: there is neither."""
    parameters = written.get(key) or {}
    # By kind of layer: {"full_attention": {…}, "sliding_attention": {…}}.
    nested = {name: value or {} for name, value in parameters.items() if name in KINDS}
    surplus = [name for name in parameters if nested and name not in nested]
    if surplus:
        raise InputError(f"{key} has {surplus[0]} beside settings by kind of layer")
    for name, value in nested.items():
        if not isinstance(value, dict):
            raise InputError(f"{name}={value!r} of {key} is not an object")
    by_kind = family == "gemma3_text"
    if by_kind and key == "rope_parameters" and not nested:
        raise InputError(
            f"rope_parameters of a {family} must have an entry for each of "
            f"{', '.join(KINDS)}"
        )
    if nested:
        # KINDS has full attention first.
        full, sliding = (nested.get(kind) for kind in KINDS)
    else:
        # Gemma 3 scales its full layers only.
        full, sliding = parameters, None if by_kind else parameters
    full_base = _base(full, written, name="rope_theta", default=base)
    full_rope = _rope(full, key=key, written=written, base=full_base)
    if by_kind:
        local = _base(sliding, written, name="rope_local_base_freq", default=local_base)
        return full_rope, _rope(sliding, key=key, written=written, base=local)
    # Of a family with one rope for all layers, both entries must say the same.
    if nested and sliding is not None:
        local = _base(sliding, written, name="rope_theta", default=base)
        if _rope(sliding, key=key, written=written, base=local) != full_rope:
            raise InputError(
                f"{key}: sliding_attention differs from full_attention, which a "
                f"{family} does not have"
            )
    return full_rope, full_rope


def _base(parameters, written, name: str, default: float) -> float:
    """The base: of the rope's own settings, of the file, or the family's."""
    values = [
        positive(source[field], field)
        for source, field in ((parameters or {}, "rope_theta"), (written, name))
        if source.get(field) is not None
    ]
    if len(set(values)) > 1:
        raise InputError(
            f"{name}={values[1]:g} contradicts the rope_theta={values[0]:g} of the "
            "rope's own settings; keep the one that the model was trained with"
        )
    return values[0] if values else default


def _rope(parameters, key, written, base: float) -> Rope:
    values = {k: v for k, v in (parameters or {}).items() if v is not None}
    # `type` is the older name of rope_type; a file may have both, if they agree.
    kinds = {str(values.pop(name)) for name in _TYPES if name in values} or {"default"}
    if len(kinds) > 1:
        raise InputError(
            f"{key}: rope_type and type differ: {', '.join(sorted(kinds))}"
        )
    (kind,) = kinds
    if kind not in _NEEDS:
        raise InputError(
            f"rope type {kind!r} of {key} is not supported; one of {', '.join(_NEEDS)}"
        )
    # `_base` has read it. What is still in `values` at the end has been read by nobody.
    values.pop("rope_theta", None)
    partial = written.get("partial_rotary_factor")
    if partial is not None:
        values.setdefault("partial_rotary_factor", partial)
    original = written.get(_ORIGINAL)
    if original is not None and values.setdefault(_ORIGINAL, original) != original:
        raise InputError(
            f"{_ORIGINAL}={original!r} contradicts that of {key}; keep the one that "
            "the model was trained with"
        )
    absent = [name for name in _NEEDS[kind] if name not in values]
    if absent:
        raise InputError(f"rope type {kind!r} of {key} lacks {', '.join(absent)}")
    read = {name: positive(values.pop(name), name) for name in _NEEDS[kind]}
    values.pop(_ORIGINAL, None)  # a note, for other types
    for name, value in values.items():
        if value != _NEUTRAL.get(name):
            raise InputError(
                f"{name}={value!r} with rope type {kind!r} is not supported"
            )
    if kind != "llama3":
        return Rope(base=base, factor=read.get("factor", 1.0))
    low, high = read["low_freq_factor"], read["high_freq_factor"]
    if low >= high:
        raise InputError(f"low_freq_factor={low} is not below high_freq_factor={high}")
    return Rope(
        base=base,
        factor=read["factor"],
        low_frequency=low,
        high_frequency=high,
        original_length=int(read[_ORIGINAL]),
    )


def positive(value: Any, name: str) -> float:
    """The number itself, as a float; InputError unless it is above 0 and finite."""
    if not jsonl.is_number(value) or not 0 < value < math.inf:
        raise InputError(f"{name}={value!r} is not a number above 0")
    # 10**400 is a number in JSON and below inf, but no float.
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{name}={value!r} is too large") from None


def describe_rope(rope: Rope) -> dict | None:
    """The `rope_scaling` from which `read_ropes` makes the rope, its base apart."""
    if rope.original_length is not None:
        return {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_frequency,
            "high_freq_factor": rope.high_frequency,
            _ORIGINAL: rope.original_length,
        }
    if rope.factor != 1.0:
        return {"rope_type": "linear", "factor": rope.factor}
    return None
