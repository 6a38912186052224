"""Which model a config names: its dimensions, its first parameters, its dtype."""

import dataclasses
import hashlib
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.errors import InputError, choose
from limr_jax.models import (
    hf_config,
    hf_files,
    hf_weights,
    lora,
    peft,
    presets,
    transformer,
)
from limr_jax.models.config import ComputeConfig, Lora, ModelConfig
from limr_jax.models.int8 import quantise_params
from limr_jax.platform import resolve
from limr_jax.prng import stream_key
from limr_jax.sharding import param_shardings

DIMENSIONS = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
# Of model.attention: whether kernels are taken where they fit. A name of one: it must
# be (attention/kernel_check.py).
_KERNEL = {"auto": True, "xla": False, "splash": True, "ragged": True}
_DIGESTED, _PLACES = 2**26, 64  # bytes hashed of a large file; in how many pieces
_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
# Of the frozen base: what is not quantised is bf16 with int8.
_BASE_DTYPES = _DTYPES | {"int8": jnp.bfloat16}


def read_model_config(section, vocab_size: int) -> ModelConfig:
    """The model that the config's section `model` names; nothing of it is loaded.

    It is what the checkpoint's config.json says or, with init=random, the section
    itself. vocab_size: ids that the tokenizer has.

    Raises:
      InputError: the checkpoint cannot be read, its tensors are not of that model, or
        it is another than model.preset's; dimensions that are missing or make no
        model; a vocabulary smaller than the tokenizer's; adapters that do not fit.
    """
    lora.check_section(section)
    try:
        if section.init == "random":
            config = _random_model(section, vocab_size)
        else:
            config = hf_weights.read_config(resolve(section.init))
            config = dataclasses.replace(config, **_dimensions_of(section))
    except InputError:  # a ValueError too, with its message complete
        raise
    except ValueError as error:  # of ModelConfig
        raise InputError(f"model: {error}") from error
    if config.vocab_size < vocab_size:
        raise InputError(
            f"the model's vocabulary of {config.vocab_size} is smaller than the "
            f"tokenizer's {vocab_size}; give the checkpoint's own tokenizer"
            + (", or a larger model.vocab_size" if section.init == "random" else "")
        )
    if section.init != "random":
        hf_weights.check_fits(resolve(section.init), config.base)
        if section.preset:
            _check_preset(section, config)
    lora.check_rank(config)
    return config


def check_adapters(section, config: ModelConfig) -> None:
    """InputError where `model.lora.init` does not fit; nothing is kept of it."""
    if config.lora is not None and section.lora.init:
        base = init_digest(section.init) or "random"
        peft.check_fits(resolve(section.lora.init), config, base=base)


def preset_config(section) -> ModelConfig:
    """The dimensions that `model.preset` names, but for those that the section sets."""
    preset = choose(presets.PRESETS, section.preset, "model.preset")
    config = dataclasses.replace(preset, **_dimensions_of(section))
    lora.check_rank(config)
    return config


def _dimensions_of(section) -> dict:
    # A config that was saved without the field means its default.
    kernel = choose(_KERNEL, section.get("attention", "auto"), "model.attention")
    names = (*DIMENSIONS, "vocab_size", "max_length")
    dimensions = {name: section[name] for name in names if section.get(name)}
    return dimensions | {"attention_kernel": kernel, "lora": _lora(section.get("lora"))}


def _lora(section) -> Lora | None:
    """The adapters of the section `model.lora`; None: of rank 0, or no such section."""
    if section is None or not section.rank:
        return None
    return Lora(
        rank=section.rank,
        alpha=section.alpha,
        targets=lora.parse_targets(section.targets),
        scaling=section.scaling,
    )


def check_length(section, config: ModelConfig, tokens: int, what: str) -> None:
    """InputError where texts are longer than the checkpoint was trained for.

    section: config.model. tokens: of the longest text. what: what makes it so long.
    Positions that were never trained are nonsense to most models. A random model is
    trained for whatever length it is set up for.
    """
    if section.init != "random" and tokens > config.max_length:
        raise InputError(
            f"{what} = {tokens} tokens, but {section.init} was trained for "
            f"{config.max_length} (max_position_embeddings); lower that, or allow it "
            f"with --config.model.max_length={tokens}"
        )


def _check_preset(section, config: ModelConfig) -> None:
    """InputError where the checkpoint is not of the preset's dimensions."""
    preset = preset_config(section)
    for field in dataclasses.fields(config):
        here, there = getattr(config, field.name), getattr(preset, field.name)
        if here != there:
            raise InputError(
                f"model.preset={section.preset} has {field.name}={there}, but "
                f"{section.init} has {here}; give the preset of this checkpoint, or "
                "none"
            )


def _random_model(section, vocab_size: int) -> ModelConfig:
    if section.preset:
        return preset_config(section)
    missing = [name for name in DIMENSIONS if not section[name]]
    if missing:
        raise InputError(
            f"model.{missing[0]}={section[missing[0]]}: a random model needs "
            "model.preset, or all of "
            f"{', '.join('model.' + name for name in DIMENSIONS)}"
        )
    # Like a checkpoint's config.json, so that the family's own settings come along.
    config = hf_config.parse_config(
        {
            "model_type": section.architecture,
            # Rounded up to the 128 lanes of a TPU; no token has the ids beyond.
            "vocab_size": section.vocab_size or -(-vocab_size // 128) * 128,
            "hidden_size": section.width,
            "num_hidden_layers": section.layers,
            "num_attention_heads": section.heads,
            "num_key_value_heads": section.kv_heads,
            "head_dim": section.head_dim,
            "intermediate_size": section.mlp_width,
            "tie_word_embeddings": True,
        }
    )
    return dataclasses.replace(config, **_dimensions_of(section))


def param_shapes(section, model_config: ModelConfig):
    """A model's first parameters as shapes; no weight is made or read for them.

    They are what `load_base` and `load_learned` give, joined.
    """
    make = partial(transformer.init_params, model_config)
    base, learned = lora.split(jax.eval_shape(make, jax.random.key(0)))
    if base is not None:
        base = frozen_shapes(base, *_base_dtype(section))
    return lora.join(base, learned)


def frozen_shapes(shapes, dtype, int8: bool):
    """Of parameters that are only read: as `hf_weights.load_params(keep_fp32=True)`."""
    if int8:
        shapes = jax.eval_shape(quantise_params, shapes)
    return jax.eval_shape(partial(transformer.compute_params, dtype=dtype), shapes)


def load_base(config, model_config: ModelConfig, mesh):
    """LoRA's frozen base in `model.base_dtype`; None where all parameters are learned.

    Laid on the mesh as sharding.py's table says. What the model reads in fp32 is fp32.
    int8 is of the projections' kernels: embedding, head and biases are bf16 beside
    them. Raises InputError where the checkpoint cannot be read.
    """
    if model_config.lora is None:
        return None
    dtype, int8 = _base_dtype(config.model)
    if config.model.init != "random":
        return hf_weights.load_params(
            resolve(config.model.init),
            model_config.base,
            mesh,
            dtype=dtype,
            keep_fp32=True,
            int8=int8,
        )

    def init_params(key):
        params = transformer.init_params(model_config.base, key, int8=int8)
        return transformer.compute_params(params, dtype)

    return _random_params(init_params, config.seed, mesh)


def load_learned(config, model_config: ModelConfig, mesh):
    """The first of the parameters that are learned, fp32: LoRA's adapters, or all.

    They are the checkpoint's or, with model.init=random, made from the seed, and laid
    on the mesh as sharding.py's table says. Raises InputError where a checkpoint cannot
    be read.
    """
    section = config.model
    if model_config.lora is not None and section.lora.init:
        check_adapters(section, model_config)
        return peft.load(resolve(section.lora.init), model_config, mesh)
    if model_config.lora is None and section.init != "random":
        return hf_weights.load_params(resolve(section.init), model_config, mesh)

    def init_params(key):
        return lora.split(transformer.init_params(model_config, key))[1]

    return _random_params(init_params, config.seed, mesh)


def _random_params(make, seed: int, mesh):
    """Random parameters, of the run's seed."""
    shapes = jax.eval_shape(make, jax.random.key(0))
    # Laid out by the program that makes them, so nothing has to be moved after.
    make = jax.jit(make, out_shardings=param_shardings(mesh, shapes))
    return make(stream_key(seed, "init"))


def _base_dtype(section):
    """The dtype of the frozen base, and whether its projections' kernels are int8."""
    name = section.base_dtype
    return choose(_BASE_DTYPES, name, "model.base_dtype"), name == "int8"


def init_digest(init: str) -> str | None:
    """sha256 of what `model.init` holds; None for a random model, which the seed makes.

    Of the config, and of each file that weights are read from its name, its size and
    its bytes: those of a large one in so many places, as two models of one shape differ
    everywhere.
    """
    if init == "random":
        return None
    digest, piece = hashlib.sha256(), _DIGESTED // _PLACES
    folder = resolve(init)
    for path in [folder / "config.json", *hf_files.files_of(folder)]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _DIGESTED:
                digest.update(file.read())
                continue
            for i in range(_PLACES):
                # Evenly spread, the first piece at the start and the last at the end.
                file.seek(i * (size - piece) // (_PLACES - 1))
                digest.update(file.read(piece))
    return digest.hexdigest()


def compute_dtype(name: str, devices):
    """The dtype of compute that model.dtype names.

    'auto' is fp32 where the devices, a sequence, are CPUs, and bf16 elsewhere. Raises
    InputError for a name that is none.
    """
    if name == "auto":
        return jnp.float32 if devices[0].platform == "cpu" else jnp.bfloat16
    return choose(_DTYPES, name, "model.dtype")


def compute_config(section, model_config: ModelConfig, mesh) -> ComputeConfig:
    """How a model is computed on a mesh; section: config.model."""
    return ComputeConfig(
        model=model_config,
        dtype=compute_dtype(section.dtype, mesh.devices.flat),
        remat=section.remat,
    )
