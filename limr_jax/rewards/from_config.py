"""Config → the reward that hosts grade with, and the judge that it asks."""

import jax

from limr_jax.models.from_config import compute_dtype
from limr_jax.platform import resolve
from limr_jax.rewards import host, judge


def make_host_reward(config) -> host.HostReward:
    """The `HostReward` of a config whose `reward` is not token or none.

    Raises InputError where the fields make no sense together.
    """
    return host.host_reward(
        config.reward,
        # On this process's devices alone: each process asks as often as its rows need.
        judge=make_judge(config, jax.local_devices()),
        workers_count=config.grader.workers or None,  # 0: as many as cores
        wall_seconds=config.grader.wall_seconds,
        cpu_seconds=config.grader.cpu_seconds,
        memory_mib=config.grader.memory_mib,
        overlong_buffer=config.overlong.buffer or None,  # 0: no penalty
        overlong_weight=config.overlong.weight,
        max_response_length=config.rollout.max_response_length,
    )


def make_judge(config, devices) -> judge.Judge | None:
    """The judge at `config.judge.init`, on these devices; None where that is empty.

    Raises InputError where there is no checkpoint that it can use.
    """
    fields = config.judge
    if not fields.init:
        return None
    return judge.Judge(
        resolve(fields.init),
        max_length=fields.max_length,
        rows=fields.rows,
        dtype=compute_dtype(config.model.dtype, devices),
        devices=devices,
    )
