"""A run's policy, for programs that evaluate it: its config and its parameters."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from limr_jax.config import load
from limr_jax.config.config_file import nested, todays_fields
from limr_jax.errors import InputError
from limr_jax.learner.field_limits import check_fields
from limr_jax.models import hf_config, lora, transformer
from limr_jax.platform import launch_root, resolve
from limr_jax.sharding import param_shardings
from limr_jax.storage import array_digest, checkpoint
from limr_jax.storage.checkpoint_record import Damaged
from limr_jax.storage.workdir import read_run


def read_config(workdir) -> ConfigDict:
    """The config of a run: configs/base.py with what its run.json has of the fields.

    Raises InputError where there is no run.json, or none that can be read. Fields that
    were added since have their defaults, and a run of launch/sft.py has what
    reinforcement learning asks for.
    """
    stored = read_run(workdir).get("config")
    if not isinstance(stored, dict):
        raise InputError(f"{workdir}/run.json holds no config; give a run's workdir")
    argument = f"--config={launch_root() / 'configs/base.py'}"
    config_of_run, _ = load.load([argument], kind="base")
    with config_of_run.unlocked():
        try:
            _overlay(config_of_run, nested(todays_fields(stored)).to_dict())
        except TypeError as error:  # of ConfigDict, which keeps each field's type
            raise InputError(f"{workdir}/run.json: {error}") from error
    check_fields(config_of_run, f"{workdir}/run.json: {{}}".format)
    return config_of_run


def _overlay(section: ConfigDict, stored: Mapping) -> None:
    for name, value in stored.items():
        if name in section and isinstance(value, Mapping):
            _overlay(section[name], value)
        # Else it is a field of fine-tuning alone, which an evaluation does not read.
        elif name in section:
            section[name] = value


def latest_step(workdir) -> int:
    """The step of a run's newest whole checkpoint; InputError where there is none."""
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        step = saver.latest()
    if step is None:
        raise InputError(f"{workdir} holds no complete checkpoint yet; wait for one")
    return step


def check_same(workdir, section: ConfigDict) -> None:
    """InputError where `section`, a config's `model`, makes another policy of a run.

    What changes no shape is compared, for a checkpoint refuses the rest: LoRA's scale
    and, where model.init is another place and the run's is still there, the settings in
    both config.json. Weights may differ: of all but LoRA's base, whose digest the
    checkpoint has, the run has its own.
    """
    own = read_config(workdir).model
    changes = {}
    for name in ("alpha", "scaling") if own.lora.rank else ():
        if section.lora[name] != own.lora[name]:
            changes[f"model.lora.{name}"] = (section.lora[name], own.lora[name])
    if section.init == "random" and section.architecture != own.architecture:
        changes["model.architecture"] = (section.architecture, own.architecture)
    if "random" not in (section.init, own.init) and section.init != own.init:
        changes |= _settings_changed(resolve(section.init), resolve(own.init))
    for name, (here, there) in changes.items():
        raise InputError(
            f"{name}={here}, and {workdir} was trained with {there}: its parameters "
            f"would be another policy; leave {name} as it was"
        )


def _settings_changed(place: pathlib.Path, own: pathlib.Path) -> dict:
    """{model.init's setting: (here, there)}; nothing where the run's own is gone."""
    if not (own / "config.json").is_file():
        return {}
    here, there = (dataclasses.asdict(hf_config.read_config(x)) for x in (place, own))
    return {
        f"{name} of model.init": (here[name], there[name])
        for name in here
        if here[name] != there[name] and name != "max_length"  # changes no logit
    }


def load_params(
    workdir,
    step: int,
    model_config: transformer.ModelConfig,
    mesh,
    load_base: Callable[[], Any] = lambda: None,
):
    """The policy's parameters of a run's checkpoint, sharded over `mesh`.

    They are fp32, but for LoRA's base, which `load_base()` gives (None: no LoRA).
    Raises InputError where the checkpoint is damaged or was removed meanwhile, or where
    its adapters are of another base.
    """
    shapes = jax.eval_shape(  # no memory is taken
        partial(transformer.init_params, model_config), jax.random.key(0)
    )
    shapes = lora.split(shapes)[1]
    template = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        param_shardings(mesh, shapes),
    )
    # Without the optimiser's moments, which are twice as large.
    template = {"train": {"params": template}}
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        try:
            state, meta = saver.restore(step, template, partial=True)
        except Damaged as error:
            # checkpoint.keep takes old ones away as the run goes on.
            if step not in saver.steps():
                raise InputError(
                    f"{workdir}: the checkpoint of step {step} was removed while it "
                    "was read, for the run goes on; give the same command again"
                ) from error
            others = [x for x in saver.steps() if x != step]
            remedy = f"give --step with one of {others}" if others else "copy it again"
            raise InputError(f"{error}; {remedy}") from error
    base = load_base()
    digest = None if base is None else array_digest.of_tree(base)
    checkpoint.refuse_other_base(workdir, meta, digest)
    return lora.join(base, state["train"]["params"])
