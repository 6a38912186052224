"""Which model a config names: its dimensions, its first parameters, its dtype."""

import dataclasses
import hashlib
import pathlib
from functools import partial

import jax
import jax.numpy as jnp

import limr_jax
from limr_jax import architectures, model, presets, weights
from limr_jax.errors import InputError, choose
from limr_jax.randomness import stream_key
from limr_jax.sharding import param_shardings

DIMENSIONS = ("width", "layers", "heads", "kv_heads", "head_dim", "mlp_width")
_KERNEL = {"auto": True, "xla": False}  # of model.attention
_DIGESTED, _PLACES = 2**26, 64  # bytes of a file that are looked at, and where
_DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}


def resolve(path: str) -> pathlib.Path:
    """A path as given, or else below the checkout that this package is in."""
    given = pathlib.Path(path).expanduser()
    inside = pathlib.Path(limr_jax.__file__).parents[1] / given
    return inside if not given.exists() and inside.exists() else given


def read_model_config(given, vocab_size: int) -> model.ModelConfig:
    """The checkpoint's config.json, or the config's own dimensions.

    A checkpoint's tensors are checked against it; nothing is loaded.
    """
    try:
        if given.init == "random":
            config = _random_model(given, vocab_size)
        else:
            config = weights.read_config(resolve(given.init))
            config = dataclasses.replace(config, **_wanted(given))
    except InputError:
        raise
    except ValueError as error:  # of ModelConfig
        raise InputError(f"model: {error}") from error
    if config.vocab_size < vocab_size:
        raise InputError(
            f"the model's vocabulary of {config.vocab_size} is smaller than the "
            f"tokenizer's {vocab_size}; give the checkpoint's own tokenizer"
            + (", or a larger model.vocab_size" if given.init == "random" else "")
        )
    if given.init != "random":
        weights.check_fits(resolve(given.init), config)
        if given.preset:
            _check_preset(given, config)
    return config


def preset_config(given) -> model.ModelConfig:
    """The published dimensions that `model.preset` names, with what else is given."""
    preset = choose(presets.PRESETS, given.preset, "model.preset")
    return dataclasses.replace(preset, **_wanted(given))


def _wanted(given) -> dict:
    # Runs of before there was a kernel have no such field.
    kernel = choose(_KERNEL, given.get("attention", "auto"), "model.attention")
    wanted = {n: given[n] for n in (*DIMENSIONS, "vocab_size") if given[n]}
    return wanted | {"attention_kernel": kernel}


def _check_preset(given, config: model.ModelConfig) -> None:
    """InputError where the checkpoint is not of the preset's dimensions."""
    preset = preset_config(given)
    for field in dataclasses.fields(config):
        here, there = getattr(config, field.name), getattr(preset, field.name)
        if here != there:
            raise InputError(
                f"model.preset={given.preset} has {field.name}={there}, but "
                f"{given.init} has {here}; give the preset of this checkpoint, or none"
            )


def _random_model(given, vocab_size: int) -> model.ModelConfig:
    if given.preset:
        return preset_config(given)
    missing = [name for name in DIMENSIONS if not given[name]]
    if missing:
        raise InputError(
            f"model.{missing[0]}={given[missing[0]]}: a random model needs "
            "model.preset, or all of "
            f"{', '.join('model.' + name for name in DIMENSIONS)}"
        )
    config = architectures.parse_config(
        {
            "model_type": given.architecture,
            "vocab_size": given.vocab_size or -(-vocab_size // 128) * 128,
            "hidden_size": given.width,
            "num_hidden_layers": given.layers,
            "num_attention_heads": given.heads,
            "num_key_value_heads": given.kv_heads,
            "head_dim": given.head_dim,
            "intermediate_size": given.mlp_width,
            "tie_word_embeddings": True,
        }
    )
    return dataclasses.replace(config, **_wanted(given))


def load_params(config, model_config: model.ModelConfig, mesh):
    """The first parameters: the checkpoint's, or random ones of the seed; fp32."""
    if config.model.init != "random":
        return weights.load_params(resolve(config.model.init), model_config, mesh)
    make = partial(model.init_params, model_config)
    shapes = jax.eval_shape(make, jax.random.key(0))
    make = jax.jit(make, out_shardings=param_shardings(mesh, shapes))
    return make(stream_key(config.seed, "init"))


def init_digest(init: str) -> str | None:
    """sha256 of what `model.init` holds; None for a random model, which the seed makes.

    Of the config, and of each file of weights its name, its size and its bytes: those
    of a large one in so many places, as two models of one shape differ everywhere.
    """
    if init == "random":
        return None
    digest, piece = hashlib.sha256(), _DIGESTED // _PLACES
    folder = resolve(init)
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _DIGESTED:
                digest.update(file.read())
                continue
            for i in range(_PLACES):
                file.seek(i * (size - piece) // (_PLACES - 1))
                digest.update(file.read(piece))
    return digest.hexdigest()


def compute_dtype(name: str, devices):
    """The dtype of compute by name; 'auto' is fp32 where the devices are CPUs."""
    if name == "auto":
        return jnp.float32 if devices[0].platform == "cpu" else jnp.bfloat16
    return choose(_DTYPES, name, "model.dtype")
