"""Config → everything a run needs, checked before anything is compiled or written.

This is the door at which the config stops: below it functions take plain arguments.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import identity, programs
from limr_jax.algorithms import kl
from limr_jax.check import check, check_batch, warn_of_filters, warn_of_old_names
from limr_jax.config.diff import config_digest, from_defaults
from limr_jax.data.overlap import refuse_held_out
from limr_jax.data.problems import (
    Problems,
    TokenizedProblems,
    load_problems,
    refuse_unanswered,
    tokenize,
)
from limr_jax.data.prompts import Prompts, host_prompts, put_prompts
from limr_jax.data.special_tokens import SpecialTokens, make_special_tokens
from limr_jax.data.tokenizer import Tokenizer, load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation.evaluator import Evaluator, make_evaluator
from limr_jax.learner import advantages, jepo, losses, update
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.learner.optimizer import make_optimizer
from limr_jax.models.attention import kernel_check
from limr_jax.models.config import ComputeConfig, ModelConfig
from limr_jax.models.from_config import (
    check_adapters,
    check_length,
    compute_config,
    compute_dtype,
    load_base,
    load_learned,
    param_shapes,
    read_model_config,
)
from limr_jax.multihost import agree
from limr_jax.multihost.arrays import put
from limr_jax.platform import resolve
from limr_jax.rewards import host
from limr_jax.rewards.from_config import is_base, make_host_reward
from limr_jax.rewards.host_grader import HostGrader
from limr_jax.rollout import drafts
from limr_jax.rollout.sampling import Sampling, put_sampling
from limr_jax.rollout.types import GenerateConfig
from limr_jax.samplers import from_config
from limr_jax.samplers.allocation import ALLOCATIONS, largest_group
from limr_jax.sharding import REPLICATED, make_mesh
from limr_jax.step import StepParts


@dataclasses.dataclass(frozen=True)
class Run(StepParts):
    """The parts of one run; nothing in it changes while it runs."""

    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    train_set: TokenizedProblems
    eval_set: TokenizedProblems | None
    generation: GenerateConfig
    compute: ComputeConfig
    grade_eval: Callable  # (Rollout, PromptBatch) → Graded, of the held-out set
    load_params: Callable[[], Any]  # the first of the parameters that are learned
    load_base: Callable[[], Any]  # LoRA's frozen base; None without LoRA
    close: Callable[[], None]  # ends the graders' processes; they may start again
    identity: dict  # whose workdir it is
    # What was found of the kernels of attention; empty where none fits, as on a CPU.
    kernels: tuple[kernel_check.Finding, ...] = ()


def set_up(config) -> Run:
    """Check the whole config and make the run's parts; InputError in one line."""
    # What costs least is refused first: the config, the mesh, then what must be read.
    check(config)
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    sampling = put_sampling(mesh, **training_sampling(config))

    def read_base():
        return load_base(config, model_config, mesh)

    if is_base(config, mesh.devices.flat):
        read_base = functools.cache(read_base)  # once: the judge is it, too
    # These two stay on the devices: answers are compared as tokens, or not at all.
    in_graph = config.reward in ("token", "none")
    host_reward = None if in_graph else make_host_reward(config, mesh, read_base)
    # Held-out answers are right or wrong: what shapes the reward is left out.
    held_out_reward = host_reward and host_reward.verifier()
    tokenizer = load_tokenizer(resolve(config.tokenizer))
    train_set, eval_set = load_sets(config, tokenizer)
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    check_adapters(config.model, model_config)
    model_config, kernels = settle_kernels(config, model_config, mesh)
    generation, compute, jitted = make_programs(
        config,
        mesh,
        model_config,
        make_special_tokens(config, tokenizer),
        train_set.problems,
        # Only shapes are read here; `train` puts the arrays on the devices.
        host_prompts(train_set),
    )

    def grader(problem_set, by_tokens, reward):
        if reward is None or problem_set is None:
            return by_tokens
        return HostGrader(
            mesh, tokenizer, problems=problem_set.problems, host_reward=reward
        )

    warn_of_filters(config.rollout)
    warn_of_old_names(config)
    return Run(
        mesh=mesh,
        tokenizer=tokenizer,
        train_set=train_set,
        eval_set=eval_set,
        generation=generation,
        compute=compute,
        programs=jitted,
        max_rounds=_max_rounds(config),
        grade=grader(train_set, jitted.grade, host_reward),
        grade_eval=grader(eval_set, jitted.grade_eval, held_out_reward),
        sampling=sampling,
        # On the devices once: in the loop a NumPy value in a call is an error.
        seed=put(np.uint32(config.seed), NamedSharding(mesh, REPLICATED)),
        # Not yet loaded: without KL a run that goes on needs its checkpoint alone.
        load_params=partial(load_learned, config, model_config, mesh),
        load_base=read_base,
        close=host_reward.close if host_reward else lambda: None,
        identity=identity.of_run(config, train_set, eval_set),
        fingerprint=fingerprint(config),
        kernels=tuple(kernels),
    )


def settle_kernels(
    config, model_config: ModelConfig, mesh
) -> tuple[ModelConfig, list[kernel_check.Finding]]:
    """The model with the kernels that agree with XLA's attention, and what was found.

    Raises what `kernel_check.settle` raises.
    """
    rollout = config.rollout
    # What stops a rollout changes nothing here.
    generation = _generate_config(config, stop_ids=(), pad_id=0)
    return kernel_check.settle(
        model_config,
        mesh,
        compute_dtype(config.model.dtype, mesh.devices.flat),
        rows=kernel_check.of_training(
            rollout.max_prompt_length,
            rollout.max_response_length,
            row_responses=config.row_responses,
            step_tokens=_loop_tokens(config, mesh, generation),
            most_tokens=generation.step_tokens,
        ),
        attention=config.model.attention,
    )


def _generate_config(config, *, stop_ids: tuple[int, ...], pad_id: int):
    group = largest_group(config)
    return GenerateConfig(
        group=group,
        mean_group=config.group_size if group != config.group_size else None,
        response_length=config.rollout.max_response_length,
        # 0: every rollout of the step has its own slot.
        slots=config.rollout.slots or config.prompts_per_step * config.group_size,
        compactions=config.rollout.compactions,
        step_tokens=1 + config.rollout.drafts,
        drafts_kept=config.rollout.drafts_kept,
        int8=config.model.base_dtype == "int8",
        stop_ids=stop_ids,
        pad_id=pad_id,
    )


def _loop_tokens(config, mesh, generation: GenerateConfig) -> list[int]:
    """J of each loop over decode that tries drafts, and 1, which takes turns."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    prompts = config.prompts_per_step // config.rollout.calls
    with jax.set_mesh(mesh):
        tried = drafts.loop_tokens(generation, prompts, rows)
    return sorted({1, *tried})


def _require_drafts(config, mesh, generation: GenerateConfig) -> None:
    """Refuse drafts that no loop over decode would try, for it has too many slots."""
    if not config.rollout.drafts:
        return
    if _loop_tokens(config, mesh, generation) == [1]:
        rows = mesh.shape["data"] * mesh.shape["fsdp"]
        prompts = config.prompts_per_step // config.rollout.calls
        fewest = generation.slot_plan(prompts, rows).sizes[-1]
        most = drafts.most_slots(int8=generation.int8)
        raise InputError(
            f"rollout.drafts={config.rollout.drafts}: no decode step of more than "
            f"{most} slots a device tries a draft, and the last loop has {fewest:,}; "
            f"give rollout.slots={most * rows} or fewer, or rollout.drafts=0"
        )


def make_programs(
    config,
    mesh,
    model_config,
    special_tokens: SpecialTokens,
    problems: Problems,
    prompts: Prompts,
) -> tuple[GenerateConfig, ComputeConfig, programs.Programs]:
    """How rollouts are written and computed, and the run's programs on `mesh`.

    prompts: the set's arrays or their shapes. Nothing is put on the mesh's devices: it
    may be a slice that is not there.
    """
    prompt_length = config.rollout.max_prompt_length
    response_length = config.rollout.max_response_length
    check_length(
        config.model,
        model_config,
        tokens=prompt_length + response_length,
        what=f"rollout.max_prompt_length={prompt_length} + "
        f"rollout.max_response_length={response_length}",
    )
    compute = compute_config(config.model, model_config, mesh)
    generation = _generate_config(
        config, stop_ids=special_tokens.stop_ids, pad_id=special_tokens.pad_id
    )
    _require_drafts(config, mesh, generation)
    jitted = programs.build(
        mesh,
        param_shapes(config.model, model_config),
        sampler=from_config.make_sampler(
            config.sampler,
            problems,
            prompts=config.prompts_per_step,
            group=config.group_size,
            seed=config.seed,
            groups=from_config.group_filter(config),
            max_rounds=config.filter.max_rounds,
            allocation=config.allocation,
            most=generation.group,
        ),
        problems=len(problems),
        learning=_learning(config, compute, special_tokens),
        prompts=prompts,
        max_age=config.filter.max_age,
        generation=generation,
        calls=config.rollout.calls,
        phrase=special_tokens.answer_phrase,
        with_reference=config.kl.coefficient > 0,
        with_reward=config.reward != "none",
        recompute=config.mismatch.recompute,
        reset_every=config.kl.reset_every,
        problems_alike=(
            config.allocation.name == "knapsack"
            and config.allocation.knapsack.weigh == "problems"
        ),
        mask_truncated=config.mask_truncated,
    )
    return generation, compute, jitted


def fingerprint(config) -> dict[str, str]:
    """Seed, config and code, as the processes of one run compare them."""
    return {
        "seed": config.seed,
        "config": config_digest(config),
        "code": agree.code_digest(),
    }


def training_sampling(config) -> dict[str, float]:
    """What `sampling_of` takes, of the training rollouts."""
    # The section `rollout` has a field for each of Sampling's, of the same name.
    names = [field.name for field in dataclasses.fields(Sampling)]
    return {name: config.rollout[name] for name in names}


def evaluator(run: Run, k: int, seed: int) -> Evaluator:
    """The evaluator of the run's held-out set with k responses a problem."""
    return make_evaluator(
        run.mesh,
        put_prompts(run.eval_set, run.mesh),
        count=len(run.eval_set),
        k=k,
        seed=seed,
        generation=run.generation,
        compute=run.compute,
        grade=run.grade_eval,
    )


def load_sets(config, tokenizer):
    """The training set and the held-out one (or None), tokenized; they are disjoint."""
    data = config.data
    places = {
        "data_dir": resolve(data.cache_dir),
        "manual_dir": resolve(data.manual_dir) if data.manual_dir else None,
    }

    def fit(problems):
        return tokenize(
            problems,
            tokenizer,
            max_prompt_length=config.rollout.max_prompt_length,
            too_long=data.too_long,
        )

    train_set = load_problems(data.train, **places)
    eval_set = load_problems(data.eval, **places) if data.eval else None
    # Before `fit` leaves out long prompts, so that these are compared as well.
    if not data.allow_overlap:
        refuse_held_out(train_set, eval_set, **places)
    train_set, eval_set = fit(train_set), fit(eval_set) if eval_set else None
    # These compare with a reference; a function of a user's need not.
    compares = {"token", "math", "limr", "judge"} & host.parse_spec(
        config.reward
    ).keys()
    if compares or ALGORITHMS[config.algorithm].learns_answers:
        refuse_unanswered(train_set)
    if compares and eval_set:
        refuse_unanswered(eval_set)
    if config.prompts_per_step > len(train_set):
        raise InputError(
            f"prompts_per_step={config.prompts_per_step} is more than the "
            f"{len(train_set)} problems of {data.train}; lower it"
        )
    return train_set, eval_set


def _learning(
    config, compute: ComputeConfig, special_tokens: SpecialTokens
) -> update.Learning:
    """What the update is put together from."""
    kl_config = config.kl
    algorithm = ALGORITHMS[config.algorithm]
    # Where none is named: k3 in the loss, k1 in the reward.
    kl_estimator = kl_config.estimator or losses.KL_PLACEMENTS[kl_config.placement]
    placed = {"kl_estimator": kl_estimator, "kl_placement": kl_config.placement}
    adapt_kl = partial(kl.adapt, target=kl_config.target, gain=kl_config.gain)
    optimizer, critic_rate = dict(config.optimizer), config.critic.learning_rate
    objective = partial(
        losses.policy_gradient,
        loss=config.loss,
        **_prefixed("clip", config.clip),
        correction=_correction(config.mismatch),
        entropy_coefficient=config.entropy_coefficient,
        **placed,
    )
    if algorithm.learns_answers:
        parts = _jepo(config, objective, kl_estimator, special_tokens)
    else:
        parts = {"objective": objective, "batch": _rl_batch(config, placed)}
    return update.Learning(
        kl_coefficient=kl_config.coefficient,
        adapt_kl=adapt_kl if kl_config.target else None,
        optimizer=make_optimizer(**optimizer),
        # The policy's optimiser, but for its learning rate.
        critic_optimizer=(
            make_optimizer(**optimizer | {"learning_rate": critic_rate})
            if algorithm.needs_critic
            else None
        ),
        value_clip=config.critic.value_clip,
        pretrain_steps=config.critic.pretrain_steps,
        normaliser=_normaliser(config),
        group=largest_group(config),
        minibatches=config.minibatches_per_step,
        passes=config.updates_per_minibatch,
        micro_batch_rows=_micro_batch_rows(config),
        row_responses=config.row_responses,
        compute=compute,
        **parts,
    )


def _max_rounds(config) -> int:
    """Draws of a step at most: more than one where groups are filtered, or with ada."""
    if ALLOCATIONS[config.allocation.name].rounds:
        return config.allocation[config.allocation.name].rounds
    return 1 if from_config.group_filter(config) == "none" else config.filter.max_rounds


def _micro_batch_rows(config) -> int:
    """Packed rows of a backward pass; 0: all rows of a minibatch.

    Where a problem has rows for more rollouts than are written, all that are written of
    a minibatch, on average.
    """
    if config.micro_batch_rows or config.allocation.name == "fixed":
        return config.micro_batch_rows
    return config.prompts_per_step * config.group_size // config.minibatches_per_step


def _normaliser(config) -> str:
    return advantages.normaliser(config.loss_normaliser, config.algorithm, config.loss)


def _correction(mismatch) -> Callable | None:
    """What a token's loss is weighed by where sampler and learner differ."""
    row = losses.CORRECTIONS[mismatch.correction]
    if row.weight is None:
        return None
    return partial(row.weight, **{name: mismatch[name] for name in row.bounds})


def _prefixed(section: str, fields) -> dict:
    """A section's fields as arguments, `clip.low` as `clip_low`.

    All of them, so that a new field needs no line here: a function that does not take
    it raises TypeError.
    """
    return {f"{section}_{name}": fields[name] for name in fields}


def _rl_batch(config, placed: dict) -> Callable:
    """How rewards become advantages."""
    algorithm = ALGORITHMS[config.algorithm]
    # The numbers of the algorithm's own, which `advantage` takes by these names.
    own = {name: config[algorithm.section][name] for name in algorithm.own}
    return partial(
        advantages.rl_batch,
        advantage=partial(algorithm.advantage, **own),
        mask_truncated=config.mask_truncated,
        entropy_coefficient=config.entropy_coefficient,
        filter_tau=config.filter.tau,
        filter_normaliser=config.filter.normaliser,
        filter_keep_kl=config.filter.keep_kl,
        **placed,
    )


def _jepo(
    config, objective: Callable, kl_estimator: str, special_tokens: SpecialTokens
) -> dict:
    """JEPO's parts of the learner."""
    estimator = jepo.ESTIMATORS[config.jepo.estimator]
    own = {name: config.jepo[name] for name in estimator.own}
    return {
        "objective": partial(jepo.jensen_loss, objective=objective),
        "batch": partial(
            jepo.jepo_batch,
            estimator=partial(estimator.coefficients, **own),
            kl_estimator=kl_estimator,
        ),
        "thoughts": partial(
            jepo.make_thoughts,
            phrase=special_tokens.answer_phrase,
            eos_id=special_tokens.eos_id,
            forced=estimator.forced,
        ),
        "semi_verifiable": config.jepo.semi_verifiable,
    }


def describe(run: Run, config, *, whole: bool = False) -> str:
    """The config, the mesh, the data and the sizes, as a few lines.

    whole: every field of the config, not those alone that differ from base.py.
    """
    learned = sum(x.size for x in jax.tree.leaves(run.programs.state.train.params))
    frozen = sum(x.size for x in jax.tree.leaves(run.programs.base))
    reference = "loaded" if run.programs.reference else "none (no KL)"
    if run.programs.reference and frozen:
        reference = "the base"
        if run.programs.state.reference:
            reference += ", with a copy of the policy's adapters from each reset on"
    critic = "a copy of the policy" if run.programs.values else "none"
    if run.programs.values and frozen:
        critic = "adapters and a value head of its own, beside the same base"
    shape = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    dtype = jnp.dtype(run.compute.dtype).name
    lines = [
        str(config).strip() if whole else from_defaults(config, "base"),
        f"mesh: {shape} on {run.mesh.devices.flat[0].device_kind}",
        f"policy: {learned + frozen:,} parameters, compute in {dtype}",
        *_adapted(config.model, learned=learned if frozen else 0),
        f"reference: {reference}",
        "old log-probabilities: "
        + ("the learner's own" if run.programs.recompute else "the rollout's"),
        f"critic: {critic}",
        f"loss: {config.loss}, normalised as {_normaliser(config)}",
        f"problems: {len(run.train_set):,} of {config.data.train}",
        *kernel_check.lines(run.kernels),
    ]
    if run.eval_set:
        lines.append(f"held out: {len(run.eval_set):,} of {config.data.eval}")
    for tokenized in filter(None, (run.train_set, run.eval_set)):
        if left_out := tokenized.left_out:
            # A few ids here; the file has all of them.
            more = "; all: left_out.json" * (len(left_out) > 5)
            named = ", ".join(left_out[:5]) + more
            lines.append(
                f"left out of {tokenized.problems.source}, prompts too long: "
                f"{len(left_out):,} ({named})"
            )
    return "\n".join(lines)


def _adapted(model, learned: int) -> list[str]:
    """A line on the adapters, where they are what is learned."""
    if not learned:
        return []
    return [
        f"learned: {learned:,} of them, adapters of rank {model.lora.rank} beside "
        f"{model.lora.targets}; the base is frozen, {model.base_dtype}"
    ]
