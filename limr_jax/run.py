"""Config → everything a run needs, checked before anything is compiled or written.

This is the door at which the config stops: below it functions take plain arguments.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

import limr_jax
from limr_jax import (
    data,
    evaluate,
    hosts,
    judge,
    learner,
    model,
    objectives,
    programs,
    reward,
    rollout,
    selection,
    text,
    thoughts,
)
from limr_jax.algorithms import kl
from limr_jax.check import check, check_batch
from limr_jax.config import config_digest
from limr_jax.errors import InputError
from limr_jax.host_grader import HostGrader
from limr_jax.policy import (
    compute_dtype,
    init_digest,
    load_params,
    read_model_config,
    resolve,
)
from limr_jax.sharding import REPLICATED, make_mesh
from limr_jax.words import Words, words_of


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of one run; nothing in it changes while it runs."""

    mesh: jax.sharding.Mesh
    tokenizer: text.Tokenizer
    train_set: data.TokenizedProblems
    eval_set: data.TokenizedProblems | None
    model_config: model.ModelConfig
    generation: dict  # what rollout.generate takes beside arrays
    programs: programs.Programs
    max_rounds: int  # generations of a step; more than 1 where not all is kept
    grade: Callable  # (Rollout, Drawn) → Graded, of the training set
    grade_eval: Callable  # likewise, of the held-out set
    sampling: rollout.Sampling  # of the training rollouts, on the devices
    seed: jax.Array  # uint32, on the devices
    load_params: Callable[[], Any]  # the policy's first parameters
    identity: dict  # whose workdir it is
    fingerprint: dict[str, str]  # what all hosts must have in common, shortly


def set_up(config) -> Run:
    """Check the whole config and make the run's parts; InputError in one line."""
    check(config)
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    sampling = put_sampling(mesh, **training_sampling(config))
    in_graph = config.reward in ("token", "none")
    host_reward = None if in_graph else make_host_reward(config)
    tokenizer = text.load_tokenizer(resolve(config.tokenizer))
    train_set, eval_set = load_sets(config, tokenizer)
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    generation, made = make_programs(
        config,
        mesh,
        model_config,
        words_of(config, tokenizer),
        train_set.problems,
        data.on_host(train_set),
    )

    def grader(problem_set, by_tokens):
        if host_reward is None or problem_set is None:
            return by_tokens
        return HostGrader(mesh, tokenizer, problem_set.problems, host_reward)

    return Run(
        mesh=mesh,
        tokenizer=tokenizer,
        train_set=train_set,
        eval_set=eval_set,
        model_config=model_config,
        generation=generation,
        programs=made,
        max_rounds=config.sampler.dynamic.max_rounds if made.collect else 1,
        grade=grader(train_set, made.verify),
        grade_eval=grader(eval_set, made.examine),
        sampling=sampling,
        seed=hosts.put(np.uint32(config.seed), NamedSharding(mesh, REPLICATED)),
        load_params=partial(load_params, config, model_config, mesh),
        identity=_identity(config, train_set, eval_set),
        fingerprint=fingerprint(config),
    )


def make_programs(
    config,
    mesh,
    model_config,
    words: Words,
    problems: data.Problems,
    prompts: data.Prompts,
) -> tuple[dict, programs.Programs]:
    """(what `rollout.generate` takes beside arrays, the run's programs) on `mesh`.

    prompts: the set's arrays or their shapes. Nothing is put on the mesh's devices: it
    may be a slice that is not there.
    """
    dtype = compute_dtype(config.model.dtype, mesh.devices.flat)
    generation = {
        "config": model_config,
        "group": config.group_size,
        "response_length": config.rollout.max_response_length,
        "slots": config.rollout.slots or config.prompts_per_step * config.group_size,
        "shrinks": config.rollout.shrinks,
        "stop_ids": words.stop_ids,
        "pad_id": words.pad_id,
        "dtype": dtype,
    }
    shapes = jax.eval_shape(partial(model.init_params, model_config), jax.random.key(0))
    return generation, programs.build(
        mesh,
        shapes,
        sampler=selection.sampler(
            config.sampler,
            problems,
            prompts=config.prompts_per_step,
            seed=config.seed,
        ),
        problems=len(problems),
        learning=_learning(config, model_config, dtype, words.phrase, words.eos_id),
        prompts=prompts,
        max_age=config.sampler.dynamic.max_age,
        generation=generation,
        calls=config.rollout.calls,
        phrase=words.phrase,
        with_reference=config.kl.coefficient > 0,
        with_reward=config.reward != "none",
    )


def _identity(config, train_set, eval_set) -> dict:
    """What must not change under a workdir (but for a growing num_steps)."""
    return {
        "config": config.to_dict(),
        "data": {
            "train": train_set.problems.digest_with_columns,
            "eval": eval_set.problems.digest_with_columns if eval_set else None,
        },
        "init": init_digest(config.model.init),
        "version": limr_jax.__version__,
    }


def fingerprint(config) -> dict[str, str]:
    """Seed, config and code, as the processes of one run compare them."""
    return {
        "seed": config.seed,
        "config": config_digest(config),
        "code": hosts.code_digest(),
    }


def training_sampling(config) -> dict[str, float]:
    """What `sampling_of` takes, of the training rollouts."""
    names = ("temperature", "top_p", "top_k", "min_p")
    return {name: config.rollout[name] for name in names}


def put_sampling(mesh, **values: float) -> rollout.Sampling:
    """`sampling_of` on the devices."""
    everywhere = NamedSharding(mesh, REPLICATED)
    return jax.tree.map(lambda x: hosts.put(x, everywhere), sampling_of(**values))


def sampling_of(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0) -> rollout.Sampling:
    """`Sampling`, filters that are off as None; InputError where a value is wrong."""
    for name, value, good in (
        ("temperature", temperature, temperature >= 0),
        ("top_p", top_p, 0 < top_p <= 1),
        ("top_k", top_k, top_k >= 0),
        ("min_p", min_p, 0 <= min_p < 1),
    ):
        if not good:
            raise InputError(
                f"rollout.{name}={value} is out of range; see configs/base.py"
            )
    return rollout.Sampling(
        temperature=np.float32(temperature),
        top_p=np.float32(top_p) if top_p < 1 else None,
        top_k=np.int32(top_k) if top_k else None,
        min_p=np.float32(min_p) if min_p else None,
    )


def evaluator(run: Run, k: int, seed: int) -> evaluate.Evaluator:
    """The evaluator of the run's held-out set with k responses a problem."""
    return evaluate.make(
        run.mesh,
        data.put(run.eval_set, run.mesh),
        count=len(run.eval_set),
        k=k,
        seed=seed,
        generation=run.generation,
        grade=run.grade_eval,
    )


def load_sets(config, tokenizer):
    """The training set and the held-out one (or None), tokenized; they are disjoint."""
    given = config.data
    places = {
        "data_dir": resolve(given.cache_dir),
        "manual_dir": resolve(given.manual_dir) if given.manual_dir else None,
    }

    def fit(problems):
        return data.tokenize(
            problems,
            tokenizer,
            max_prompt_length=config.rollout.max_prompt_length,
            too_long=given.too_long,
        )

    train_set = data.load_problems(given.train, **places)
    eval_set = data.load_problems(given.eval, **places) if given.eval else None
    if not given.allow_overlap:
        data.refuse_held_out(train_set, *filter(None, [eval_set]), **places)
    train_set, eval_set = fit(train_set), fit(eval_set) if eval_set else None
    empty = np.flatnonzero(train_set.answer_length_N == 0)
    if config.algorithm == "jepo" and len(empty):
        raise InputError(
            f"algorithm=jepo learns from reference answers, but {len(empty)} of "
            f"{len(train_set)} problems of {given.train} have none, first "
            f"{train_set.problems.ids[empty[0]]!r}; add them or leave those out"
        )
    if config.prompts_per_step > len(train_set):
        raise InputError(
            f"prompts_per_step={config.prompts_per_step} is more than the "
            f"{len(train_set)} problems of {given.train}; lower it"
        )
    return train_set, eval_set


def make_host_reward(config) -> reward.HostReward:
    """The reward whose workers grade on the hosts; InputError if it makes no sense."""
    overlong = config.overlong
    return reward.host_reward(
        config.reward,
        judge=make_judge(config, jax.local_devices()),
        workers_count=config.grader.workers or None,
        wall_seconds=config.grader.wall_seconds,
        cpu_seconds=config.grader.cpu_seconds,
        memory_mib=config.grader.memory_mib,
        overlong_buffer=overlong.buffer or None,
        overlong_weight=overlong.weight,
        max_response_length=config.rollout.max_response_length,
    )


def make_judge(config, devices) -> judge.Judge | None:
    """The model that is asked for its opinion, on these; None where none is named."""
    given = config.judge
    if not given.init:
        return None
    return judge.Judge(
        resolve(given.init),
        max_length=given.max_length,
        rows=given.rows,
        dtype=compute_dtype(config.model.dtype, devices),
        devices=devices,
    )


def _learning(config, model_config, dtype, phrase, eos_id) -> learner.Learning:
    """What the update is put together from."""
    given = config.kl
    placed = {"kl_estimator": given.estimator, "kl_placement": given.placement}
    optimizer, critic_rate = dict(config.optimizer), config.critic.learning_rate
    objective = partial(
        objectives.policy_gradient,
        clip_low=config.clip.low,
        clip_high=config.clip.high,
        entropy_coefficient=config.entropy_coefficient,
        **placed,
    )
    made = {"objective": objective, "batch": _rl_batch(config, placed)}
    if config.algorithm == "jepo":
        made = _jepo(config, objective, phrase, eos_id)
    return learner.Learning(
        kl_coefficient=given.coefficient,
        adapt_kl=(
            partial(kl.adapt, target=given.target, gain=given.gain)
            if given.target
            else None
        ),
        optimizer=learner.make_optimizer(**optimizer),
        critic_optimizer=(
            learner.make_optimizer(**optimizer | {"learning_rate": critic_rate})
            if config.algorithm == "ppo"
            else None
        ),
        value_clip=config.critic.value_clip,
        minibatches=config.minibatches_per_step,
        passes=config.updates_per_minibatch,
        micro_batch_rows=config.micro_batch_rows,
        row_responses=config.row_responses,
        model_options={
            "config": model_config,
            "dtype": dtype,
            "remat": config.model.remat,
        },
        **made,
    )


def _rl_batch(config, placed: dict) -> Callable:
    """How rewards become advantages and weights."""
    names = ("gamma", "lam", "reward_clip", "whiten")
    critic = {name: config.critic[name] for name in names}
    advantage = objectives.ADVANTAGES.get(config.algorithm)
    if config.algorithm == "ppo":
        advantage = partial(advantage, **critic)
    return partial(
        objectives.rl_batch,
        advantage=advantage,
        normaliser=config.loss_normaliser,
        mask_truncated=config.mask_truncated,
        entropy_coefficient=config.entropy_coefficient,
        filter_tau=config.filter.tau,
        filter_normaliser=config.filter.normaliser,
        filter_keep_kl=config.filter.keep_kl,
        minibatches=config.minibatches_per_step,
        **placed,
    )


def _jepo(config, objective: Callable, phrase, eos_id: int) -> dict:
    """JEPO's parts of the learner."""
    given = config.jepo
    estimator = partial(thoughts.ESTIMATORS[given.estimator], beta_sup=given.beta_sup)
    if given.estimator == "practical":
        estimator = partial(estimator, format_penalty=given.format_penalty)
    return {
        "objective": partial(thoughts.jensen_loss, objective=objective),
        "batch": partial(
            thoughts.jepo_batch,
            estimator=estimator,
            normaliser=config.loss_normaliser,
            kl_estimator=config.kl.estimator,
            minibatches=config.minibatches_per_step,
        ),
        "thoughts": partial(thoughts.make, phrase=phrase, eos_id=eos_id),
        "semi_verifiable": given.semi_verifiable,
    }


def describe(run: Run, config) -> str:
    """The resolved config, the mesh, the data and the sizes, as a few lines."""
    shapes = jax.tree.leaves(run.programs.state.train.params)
    parameters = sum(x.size for x in shapes)
    shape = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    dtype = jnp.dtype(run.generation["dtype"]).name
    lines = [
        str(config).strip(),
        f"mesh: {shape} on {run.mesh.devices.flat[0].device_kind}",
        f"policy: {parameters:,} parameters, compute in {dtype}",
        f"reference: {'loaded' if run.programs.reference else 'none (no KL)'}",
        f"critic: {'a copy of the policy' if run.programs.values else 'none'}",
        f"problems: {len(run.train_set):,} of {config.data.train}",
    ]
    if run.eval_set:
        lines.append(f"held out: {len(run.eval_set):,} of {config.data.eval}")
    for tokenized in (run.train_set, *([run.eval_set] if run.eval_set else [])):
        if left_out := tokenized.left_out:
            named = ", ".join(left_out[:5]) + (
                "; all: left_out.json" if len(left_out) > 5 else ""
            )
            lines.append(
                f"left out of {tokenized.problems.source}, prompts too long: "
                f"{len(left_out):,} ({named})"
            )
    return "\n".join(lines)
