"""Config → the reward that hosts grade with, and the judge that it asks."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from limr_jax.errors import InputError
from limr_jax.models import hf_config
from limr_jax.models.from_config import DIMENSIONS, compute_dtype
from limr_jax.platform import resolve
from limr_jax.rewards import host, judge
from limr_jax.storage import files


def make_host_reward(config, mesh, load_base: Callable) -> host.HostReward:
    """The `HostReward` of a config whose `reward` is not token or none.

    load_base() gives LoRA's frozen base on `mesh`, which the judge may be (`is_base`).

    Raises InputError where the fields make no sense together.
    """
    shared = None
    if is_base(config, mesh.devices.flat):
        shared = judge.SharedParams(mesh, load_base)
    return host.host_reward(
        config.reward,
        # On this process's devices alone: each process asks as often as its rows need.
        judge=make_judge(config, jax.local_devices(), shared=shared),
        workers_count=config.grader.workers or None,  # 0: as many as cores
        wall_seconds=config.grader.wall_seconds,
        cpu_seconds=config.grader.cpu_seconds,
        memory_mib=config.grader.memory_mib,
        overlong_buffer=config.overlong.buffer or None,  # 0: no penalty
        overlong_weight=config.overlong.weight,
        max_response_length=config.rollout.max_response_length,
    )


def is_base(config, devices) -> bool:
    """Whether the judge at `judge.init` is LoRA's frozen base, and no copy of it.

    It is where both have the same values in the dtype of compute. devices: those of the
    run. Of several processes none may ask by itself what lies on the devices of all.
    """
    section, lora = config.model, config.model.get("lora")
    # A config that is older has no adapters, and no dtype of a judge.
    if not (lora and lora.rank and config.judge.init) or section.init == "random":
        return False
    place, base = resolve(config.judge.init), resolve(section.init)
    bf16 = compute_dtype(section.dtype, devices) == jnp.bfloat16
    return (
        files.real(place) == files.real(base)
        and (_int8(config) == (section.base_dtype == "int8"))
        and (section.base_dtype != "bfloat16" or bf16)
        and len({device.process_index for device in devices}) == 1
        and _has_its_dimensions(section, place)
    )


def _has_its_dimensions(section, directory) -> bool:
    """Whether what the section sets is what the checkpoint's config.json says."""
    own = hf_config.read_config(directory)
    # A config that is older lacks some.
    return all(
        not section.get(name) or section[name] == getattr(own, name)
        for name in DIMENSIONS
    )


def int8_base(config, devices) -> dict[str, str]:
    """Field → value of a run whose frozen base is int8, with the judge that it had."""
    changes = {"model.base_dtype": "int8"}
    # Of other numbers than the base it would be a copy beside it.
    return changes | ({"judge.dtype": "int8"} if is_base(config, devices) else {})


def _int8(config) -> bool:
    return config.judge.get("dtype") == "int8"


def make_judge(
    config, devices, *, shared: judge.SharedParams | None = None
) -> judge.Judge | None:
    """The judge at `config.judge.init`, on these devices; None where that is empty.

    shared: LoRA's base, where `is_base`.

    Raises InputError where there is no checkpoint that it can use.
    """
    fields = config.judge
    if not fields.init:
        return None
    if not (resolve(fields.init) / "config.json").is_file():
        raise InputError(
            f"judge.init={fields.init} has no config.json; give a checkpoint's "
            "directory"
        )
    return judge.Judge(
        resolve(fields.init),
        max_length=fields.max_length,
        rows=fields.rows,
        dtype=compute_dtype(config.model.dtype, devices),
        int8=_int8(config),
        devices=devices,
        shared=shared,
    )
