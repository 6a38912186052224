"""Adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors."""

import hashlib
import itertools
import pathlib

import jax
import jax.numpy as jnp

from limr_jax.data import jsonl
from limr_jax.errors import InputError, shown
from limr_jax.models import hf_weights, hf_writer, lora
from limr_jax.models.config import ModelConfig
from limr_jax.models.hf_files import TensorFiles
from limr_jax.models.hf_names import by_path, param_shapes, tensors
from limr_jax.sharding import param_shardings
from limr_jax.storage.files import new_folder

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of tensors: PEFT's model around transformers'
# What we write of the fields that ask for what our adapters do not have.
_PLAIN = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "modules_to_save": None,
    "layer_replication": None,
}
# Fields of adapter_config.json that may have any value: those of `_check_config`, and
# what says nothing of the function that base and adapters are. All others must ask for
# nothing, for PEFT's releases add kinds of adapters by fields of their own.
_ANY = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "target_modules"),
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode"),
    *("base_model_name_or_path", "exclude_modules", "layers_pattern", "eva_config"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
}
# How A and B began, where the base stayed as it was. By the other ways (pissa, olora,
# corda, loftq, …) PEFT changes the base as well.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal", "eva")


def save(directory, adapters, config: ModelConfig, *, base_name: str, base: str | None):
    """Write adapters as PEFT and vLLM open them.

    base_name: the base model's directory, as adapter_config.json names it. base: the
    digest of it (`from_config.init_digest`), for who reads them back; None: unknown.
    With several processes all call this, process 0 writes.

    Raises:
      InputError: `directory` is there already, or cannot be written.
    """
    writes, adapted = jax.process_index() == 0, config.lora
    alpha = adapted.alpha
    written = _PLAIN | {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapted.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": adapted.scaling == "rs",
        "target_modules": [f"{name}_proj" for name in adapted.targets],
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    with new_folder(directory, writes=writes) as folder:
        if writes:
            hf_writer.write_json(folder / CONFIG, written)
            hf_writer.write_json(folder / hf_weights.ABOUT, {"base": base})
        hf_writer.write_tensors(
            folder,
            hf_weights.tensor_entries(
                adapters, config, kept={}, dtype=None, prefix=_PREFIX
            ),
            max_file_bytes=2**63,  # PEFT knows no index
            writes=writes,
            stem=WEIGHTS.partition(".")[0],
        )


def load(directory, config: ModelConfig, mesh):
    """The adapters of PEFT's directory on `mesh`, fp32; `check_fits` says whose.

    Raises:
      InputError: as `check_fits`, or a number in them is not finite.
    """
    files, expected = _expected(directory, config)
    shapes = _shapes(config)
    return hf_weights.load_tensors(
        files,
        expected,
        shapes=shapes,
        shardings=param_shardings(mesh, shapes),
        dtypes=jax.tree.map(lambda _: jnp.float32, shapes),
    )


def check_fits(directory, config: ModelConfig, *, base: str | None = None) -> None:
    """Refuse a directory whose adapters are not of this model.

    base: the digest of the base model, "random" for one that is not a checkpoint's;
    compared where the directory has one.

    Raises:
      InputError: no such directory; adapters of another rank, scale, targets or shapes,
        of another base, of a kind that we do not have, or not finite.
    """
    directory = pathlib.Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise InputError(
                f"model.lora.init={directory} has no {name}; give a directory of "
                "PEFT's, or leave it empty"
            )
    _check_config(directory / CONFIG, config)
    files, expected = _expected(directory, config)
    # Once more than is needed: what is not finite is refused before a run begins.
    for tensor in itertools.chain(*expected.values()):
        files.read(tensor, [(0, size) for size in tensor.shape])
    about = directory / hf_weights.ABOUT
    trained_on = jsonl.read_object(about).get("base") if about.is_file() else None
    if base and trained_on and base != trained_on:
        raise InputError(
            f"model.lora.init={directory} was trained on a base of the digest "
            f"{shown(trained_on)[:18]}, and model.init is {base[:16]}; give the base "
            "that it was trained on"
        )


def digest(directory) -> str:
    """sha256 of the adapters that a directory holds."""
    sha = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        content = (pathlib.Path(directory) / name).read_bytes()
        sha.update(f"{name} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()


def _check_config(path: pathlib.Path, config: ModelConfig) -> None:
    """InputError where adapter_config.json is not what the section model.lora says."""
    theirs, ours = jsonl.read_object(path), config.lora
    if theirs.get("peft_type") != "LORA":
        raise InputError(
            f"{path}: peft_type is {shown(str(theirs.get('peft_type')))}, not LORA; "
            "give LoRA adapters"
        )
    begun = theirs.get("init_lora_weights")
    if begun not in _BEGINNINGS:
        raise InputError(
            f"{path}: init_lora_weights={shown(str(begun))} has adapters beside "
            "another base than model.init; have PEFT convert them to plain LoRA "
            "(save_pretrained's path_initial_model_for_weight_conversion)"
        )
    for name in sorted(theirs.keys() - _ANY - {"init_lora_weights"}):
        plain = _PLAIN.get(name)
        if theirs[name] not in (plain, None, False, {}, []):
            raise InputError(
                f"{path}: {shown(name)}={shown(str(theirs[name]))} is not among what "
                f"can be read; only {plain!r} is"
            )
    modules = theirs.get("target_modules")
    if not isinstance(modules, list):  # a regular expression, or 'all-linear'
        modules = [str(modules)]
    targets = {str(name).rpartition(".")[2].removesuffix("_proj") for name in modules}
    if targets == {"all-linear"}:
        targets = set(ours.targets)  # the tensors' names say the rest
    scaling = "rs" if theirs.get("use_rslora") else "plain"
    for field, their, our in (
        ("rank", theirs.get("r"), ours.rank),
        ("alpha", theirs.get("lora_alpha"), ours.alpha),
        ("scaling", scaling, ours.scaling),
        ("targets", ",".join(sorted(targets)), ",".join(sorted(ours.targets))),
    ):
        if their != our:
            raise InputError(
                f"model.lora.{field}={our}, but the adapters of model.lora.init have "
                f"{shown(str(their))} ({path}); give the same"
            )


def _shapes(config: ModelConfig):
    return lora.split(param_shapes(config))[1]


def _expected(directory, config: ModelConfig):
    """The files, and the tensors that make each adapter; InputError unless all fit."""
    path = pathlib.Path(directory) / WEIGHTS
    files = TensorFiles(directory, {"": path})
    named = {
        parameter: [
            hf_weights.renamed(tensor, _PREFIX)
            for tensor in tensors(parameter, leaf.shape, config)
        ]
        for parameter, leaf in by_path(_shapes(config)).items()
    }
    place_of = {x.name: x.file_shape for each in named.values() for x in each}
    for name in sorted(place_of.keys() | files.shape_of.keys()):
        shape, place = (
            list(shapes[name]) if name in shapes else "nothing"
            for shapes in (files.shape_of, place_of)
        )
        if shape != place:
            raise InputError(
                f"{path}: of {shown(name)} there is {shape}, and the model of "
                f"model.init has a place for {place}; give adapters of this model"
            )
    files.check([x for each in named.values() for x in each], config)
    return files, named
