"""Settings that cannot work, refused by name before anything is loaded."""

import math

from limr_jax import objectives, selection, thoughts
from limr_jax.errors import InputError, choose, within
from limr_jax.policy import DIMENSIONS
from limr_jax.slots import LOOPS

_SOME, _ANY = (1, math.inf), (0, math.inf)
# Field → the least and the largest value that make sense: of every config, …
_COMMON = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("num_steps", "checkpoint.every", "checkpoint.keep"), _SOME),
    **dict.fromkeys((f"model.{name}" for name in (*DIMENSIONS, "vocab_size")), _ANY),
    "optimizer.learning_rate": _ANY,
    "optimizer.warmup_steps": _ANY,
    "optimizer.decay_steps": _ANY,
    "optimizer.decay_to": (0, 1),
    "optimizer.weight_decay": _ANY,
    "optimizer.clip_norm": _ANY,
}
# … of launch/sft.py's, …
_FINE_TUNING = _COMMON | {
    "micro_batch_rows": _ANY,
    **dict.fromkeys(("rows", "columns", "log_every"), _SOME),
}
# … and of all others.
_LIMITS = _COMMON | {
    "prompts_per_step": _SOME,
    "group_size": _SOME,
    "minibatches_per_step": _SOME,
    "updates_per_minibatch": _SOME,
    "rollout.max_prompt_length": _SOME,
    "rollout.max_response_length": _SOME,
    "rollout.shrinks": (0, LOOPS - 1),
    "clip.low": (0, 1),
    "clip.high": _ANY,
    "grader.workers": _ANY,
    "grader.memory_mib": _SOME,
    "overlong.buffer": _ANY,
    "overlong.weight": _ANY,
    "judge.max_length": _SOME,
    "judge.rows": _SOME,
    "evaluation.every": _ANY,
    "evaluation.samples": _ANY,
    "dump.max_bytes": _ANY,
    "dump.rows_per_step": _ANY,
}
_POSITIVE = ("grader.wall_seconds", "grader.cpu_seconds")


def check(config) -> None:
    """Settings that are wrong whatever the data and the machine."""
    within(config.to_dict(), _LIMITS, above_0=_POSITIVE)
    _check_names(config)
    _check_optimizer(config.optimizer)
    _check_rollout(config.rollout)
    choose({**objectives.ADVANTAGES, "jepo": 0}, config.algorithm, "algorithm")
    choose(objectives.NORMALISERS, config.loss_normaliser, "loss_normaliser")
    choose({"all": 0, "kept": 0}, config.filter.normaliser, "filter.normaliser")
    if config.group_size == 1 and config.algorithm not in ("reinforce_pp", "ppo"):
        raise InputError(
            f"algorithm={config.algorithm} compares the rollouts of a group, but "
            "group_size=1; raise it or take reinforce_pp"
        )
    _check_reward(config)
    _check_kl(config.kl)
    _check_critic(config)
    _check_jepo(config)
    selection.check(config)


def check_fine_tuning(config) -> None:
    """The same of a config of launch/sft.py."""
    within(config.to_dict(), _FINE_TUNING)
    _check_names(config)
    _check_optimizer(config.optimizer)


def _check_names(config) -> None:
    for name, value in (
        ("tokenizer", config.tokenizer),
        ("data.train", config.data.train),
    ):
        if not value:
            raise InputError(f"{name} is empty; give --config.{name}=…")


def _check_optimizer(given) -> None:
    for name in ("b1", "b2"):
        if not 0 <= given[name] < 1:
            raise InputError(
                f"optimizer.{name}={given[name]} must be 0 or more, and below 1"
            )
    within(given, {}, above_0=["epsilon"], section="optimizer.")
    if 0 < given.decay_steps <= given.warmup_steps:
        raise InputError(
            f"optimizer.decay_steps={given.decay_steps} must be more than "
            f"optimizer.warmup_steps={given.warmup_steps}, which it counts in; 0 is no "
            "decay"
        )


def _check_rollout(given) -> None:
    if given.temperature <= 0:
        raise InputError(
            f"rollout.temperature={given.temperature}: training samples, so "
            "it must be above 0"
        )


def _check_reward(config) -> None:
    """What is for rewards graded on the hosts only."""
    if config.reward in ("token", "none") and config.overlong.buffer:
        raise InputError(
            f"overlong.buffer={config.overlong.buffer} with reward={config.reward}: "
            "the penalty is for rewards graded on the hosts; set it to 0"
        )
    if config.reward in ("token", "none") and config.judge.init:
        raise InputError(
            f"judge.init={config.judge.init} with reward={config.reward}, which asks "
            "no judge; leave it empty, or take reward=math"
        )


def _check_kl(given) -> None:
    choose(objectives.KL_ESTIMATORS, given.estimator, "kl.estimator")
    choose({"loss": 0, "reward": 0}, given.placement, "kl.placement")
    for name in ("coefficient", "target"):
        if given[name] < 0:
            raise InputError(f"kl.{name}={given[name]} must be 0 or more")
    if (given.estimator, given.placement) == ("k1", "loss"):
        raise InputError(
            "kl.estimator=k1 with kl.placement=loss has no gradient in expectation; "
            "take k2 or k3, or kl.placement=reward"
        )
    if given.target and not given.coefficient:
        raise InputError(
            f"kl.target={given.target} with kl.coefficient=0: there is no KL to adapt; "
            "give the first coefficient, or kl.target=0"
        )
    if not 0 < given.gain < 5:
        raise InputError(f"kl.gain={given.gain} must be above 0 and below 5")


def _check_critic(config) -> None:
    given = config.critic
    if config.algorithm != "ppo":
        if given.learning_rate:
            raise InputError(
                f"critic.learning_rate={given.learning_rate} with "
                f"algorithm={config.algorithm}, which has no critic; take ppo, or 0"
            )
        return
    if given.learning_rate <= 0:
        raise InputError(
            f"critic.learning_rate={given.learning_rate}: algorithm=ppo learns a "
            "critic, so it must be above 0"
        )
    if config.filter.tau >= 0:
        raise InputError(
            f"filter.tau={config.filter.tau} with algorithm=ppo: the filter drops "
            "rollouts by their one advantage, and a critic gives each token its own; "
            "set filter.tau=-1"
        )
    for name in ("gamma", "lam"):
        if not 0 <= given[name] <= 1:
            raise InputError(f"critic.{name}={given[name]} must be from 0 to 1")
    for name, least in (("value_clip", 1e-6), ("reward_clip", 0)):
        if given[name] < least:
            raise InputError(f"critic.{name}={given[name]} must be at least {least}")


def _check_jepo(config) -> None:
    given = config.jepo
    choose(thoughts.ESTIMATORS, given.estimator, "jepo.estimator")
    for name in ("beta_sup", "format_penalty"):
        if given[name] < 0:
            raise InputError(f"jepo.{name}={given[name]} must be 0 or more")
    jepo, ungraded = config.algorithm == "jepo", config.reward == "none"
    if ungraded and not jepo:
        raise InputError(
            f"reward=none with algorithm={config.algorithm}, which learns from "
            "rewards; take algorithm=jepo or another reward"
        )
    if ungraded and config.sampler.name != "uniform":
        raise InputError(
            f"sampler.name={config.sampler.name} with reward=none: there are no "
            "rewards to draw by; take uniform"
        )
    if given.semi_verifiable and (ungraded or not jepo):
        raise InputError(
            f"jepo.semi_verifiable=True with algorithm={config.algorithm}, "
            f"reward={config.reward}: it needs jepo and a verifier; set it to False"
        )
    for name, wrong, remedy in (
        ("filter.tau", config.filter.tau >= 0, "set it to -1"),
        ("mask_truncated", config.mask_truncated, "set it to False"),
        ("loss_normaliser", config.loss_normaliser == "sequence", "take rollout"),
        (
            "kl.placement",
            config.kl.coefficient and config.kl.placement == "reward",
            "take loss",
        ),
    ):
        if jepo and wrong:
            section, _, field = name.rpartition(".")
            value = config[section][field] if section else config[field]
            raise InputError(
                f"{name}={value} with algorithm=jepo, whose gradients of thought and "
                f"answer go together and have no such thing; {remedy}"
            )


def check_batch(config, mesh) -> None:
    """The batch, its slots and its micro-batches divide as they must."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.prompts_per_step * config.group_size
    if config.prompts_per_step % devices:
        raise InputError(
            f"prompts_per_step={config.prompts_per_step} does not divide over "
            f"data x fsdp = {devices} devices; use a multiple of {devices}"
        )
    calls = config.rollout.calls
    if calls < 1 or config.prompts_per_step % (calls * devices):
        raise InputError(
            f"rollout.calls={calls} must divide the "
            f"{config.prompts_per_step // devices} problems that each of {devices} "
            "devices has of a step; 1 is one generation for all"
        )
    slots = config.rollout.slots
    if slots < 0 or slots % devices:
        raise InputError(
            f"rollout.slots={slots} must be a multiple of data x fsdp = {devices} "
            "devices, which have as many each; 0 is all of the step's rollouts"
        )
    minibatches = config.minibatches_per_step
    if rows % (minibatches * devices):
        raise InputError(
            f"minibatches_per_step={minibatches} must divide the {rows // devices} "
            f"rollouts that each of {devices} devices has of a step"
        )
    if not 1 <= config.row_responses <= config.group_size:
        raise InputError(
            f"row_responses={config.row_responses} must be from 1 to group_size="
            f"{config.group_size}: a row has room for so many answers to a prompt"
        )
    _check_micro_batch(config, rows // minibatches, devices, "rollouts")


def check_rows(config, mesh) -> None:
    """Fine-tuning's rows and micro-batches divide as they must."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.rows % devices:
        raise InputError(
            f"rows={config.rows} does not divide over data x fsdp = {devices} "
            f"devices; use a multiple of {devices}"
        )
    _check_micro_batch(config, config.rows, devices, "packed rows")


def _check_micro_batch(config, rows: int, devices: int, name: str) -> None:
    micro = config.micro_batch_rows or rows
    if micro < 0 or micro % devices or rows % micro:
        raise InputError(
            f"micro_batch_rows={micro} must divide the {rows} {name} of an update "
            f"and be a multiple of {devices}, the devices that share the batch"
        )
