"""Every jitted program of a run, made once, with its shardings and donation.

A run calls these objects and no copies of them, so that what is compiled ahead, or
reported, is what runs. At its start: copy (with KL, but where the reference is reset
and so a part of the state), and of a new run init. For a held-out set: grade_eval, or
the hosts' graders. Then `train.one_step`,

    each round  draw, split, generate, join, grade (or the hosts' graders), join_grades,
                observe, collect
    each step   reference (with KL only), old (where old log-probabilities are computed
                again, without KL), values (with a critic only), thoughts (with JEPO
                only), update

split, join and join_grades are there where a round has several calls of generate,
collect and further rounds where groups are filtered or rollouts are given out in rounds
(then with empty, before the first). Without collect, reference, old
and values come before grade: so the devices work while hosts grade.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax.algorithms import grpo, jepo
from limr_jax.data.prompts import PromptBatch, Prompts, prompt_batch
from limr_jax.jit import jit
from limr_jax.learner import critic, logprobs
from limr_jax.learner import update as learner_update
from limr_jax.learner.batch import learned_rows
from limr_jax.learner.jepo import score_thoughts
from limr_jax.models import lora, transformer
from limr_jax.models.config import ComputeConfig
from limr_jax.prng import stream_key
from limr_jax.rewards import in_graph
from limr_jax.rewards.stats import rollout_stats
from limr_jax.rewards.types import Graded
from limr_jax.rollout import drafts, length_order
from limr_jax.rollout.generate import generate as generate_rollouts
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.samplers import group_buffer, importance
from limr_jax.samplers.interface import PromptSampler
from limr_jax.sharding import BATCH, REPLICATED, param_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run is at the end of a step; all of it is in the checkpoint."""

    step: jax.Array  # int32: steps done
    # The policy's parameters, with LoRA its adapters alone, and the optimiser.
    train: learner_update.TrainState
    # The critic's: all of it, or its adapters and value head. None: no critic.
    critic: learner_update.TrainState | None
    kl_coefficient: jax.Array  # fp32; of this step's KL to the reference
    sampler: Any  # the prompt sampler's state
    length_N: jax.Array  # fp32: mean tokens of each problem's last answers; 0: none yet
    # Groups that wait for the next step; None: all groups are learned from.
    surplus: group_buffer.GroupBuffer | None = None
    # The reference's parameters, with LoRA its adapters, where it is reset; else they
    # are the first policy's, which is no part of the state. None: no KL, or no reset.
    reference: Any = None
    # Rollouts of each problem, those written last, in which drafts are looked up, as
    # drafts.table_of has them. None: no drafts.
    drafts: Any = None


class Programs(NamedTuple):
    """The jitted programs, in the loop's order; None: the algorithm does without."""

    init: Callable  # (params, donated) → State
    draw: Callable  # (State, Prompts, seed) → sampler state, PromptBatch
    split: Callable | None  # (PromptBatch) → that of each call; None: there is one call
    # (params, step, PromptBatch, Sampling, seed, the state's drafts) → Rollout
    generate: Callable
    join: Callable | None  # (Rollouts of all calls) → Rollout
    join_grades: Callable | None  # (Graded of all calls) → Graded
    grade: Callable  # (Rollout, PromptBatch) → Graded
    grade_eval: Callable  # likewise, of held-out problems, whatever training knows
    # (length_N, PromptBatch, Rollout, Graded) → the next length_N, RolloutStats
    observe: Callable
    empty: Callable | None  # () → GroupBuffer; None: the state has one, or no rounds
    # (GroupBuffer, sampler state, step, PromptBatch, Rollout, Graded) → batch, surplus,
    # whether it is whole, the next sampler state, metrics
    collect: Callable | None
    # (params) → reference params; None: the state has them, or they are LoRA's base
    copy: Callable | None
    # (reference params, policy's or None, Rollout, Sampling) → [B, T] of each
    reference: Callable | None
    old: Callable | None  # (params, Rollout, Sampling) → [B, T]; None: not asked alone
    recompute: bool  # the policy's own log-probabilities are asked: by one of the two
    values: Callable | None  # (critic's params, Rollout) → [B, T]
    thoughts: Callable | None  # (params, Rollout, PromptBatch, Graded, …) → Thoughts
    # (State, PromptBatch, Rollout, Graded, Scores, Sampling, seed, LoRA's base or None)
    # → State, metrics
    update: Callable
    # (the state's drafts, donated; PromptBatch, Rollout) → the next; None: no drafts
    remember: Callable | None
    state: State  # shape, dtype and sharding of each array of the state
    base: Any  # likewise of LoRA's base, which is no part of it; None: no LoRA


def observe(
    length_N, drawn: PromptBatch, rollout: Rollout, graded: Graded, *, drafted: bool
):
    """A round's rollouts: `State.length_N` with their lengths, and RolloutStats."""
    length_N = length_order.remember(length_N, drawn.ids_P, rollout.mask_BT)
    return length_N, rollout_stats(rollout, graded, drafted=drafted)


def observed(sampler: PromptSampler, state, drawn: PromptBatch, graded: Graded):
    """The sampler's state after the rollouts of its last draw, and its metrics."""
    # Before the sampler learns: an epoch's end weighs anew.
    metrics = sampler.report(state, drawn.ids_P)
    state = sampler.update(state, drawn.ids_P, graded.correct_PG, graded.valid_PG)
    return state, metrics


def _grader(at: NamedSharding, *, phrase: tuple[int, ...], known: bool) -> Callable:
    """`in_graph.grade`, jitted."""
    grade = partial(in_graph.grade, phrase=phrase, known=known)
    return jit(at.mesh, grade, out_shardings=at)


def _writing(
    *,
    sampler: PromptSampler,
    generation: GenerateConfig,
    compute: ComputeConfig,
    calls: int,
) -> tuple[Callable, ...]:
    """(draw, split, generate, join, join_grades) of `Programs`; not jitted yet."""

    # The seed is traced, so that another one compiles nothing anew.
    def draw(state, prompts, seed):
        key = stream_key(seed, "sampler", state.step)
        sampler_state, ids_P = sampler.sample(state.sampler, key)
        drawn = prompt_batch(prompts, ids_P)
        weight_P = None
        if sampler.importance:
            weight_P = sampler.importance(state.sampler, key)
        asked_PG = None
        if sampler.ask:
            asked_PG = sampler.ask(sampler_state, ids_P)
        return sampler_state, dataclasses.replace(
            drawn,
            expected_P=state.length_N[ids_P],
            weight_P=weight_P,
            asked_PG=asked_PG,
        )

    def split(drawn):
        # A PromptBatch of lists becomes a list of PromptBatches.
        pieces = jax.tree.map(lambda x: jnp.split(x, calls), drawn)
        return jax.tree.transpose(
            jax.tree.structure(drawn), jax.tree.structure([0] * calls), pieces
        )

    def generate(params, step, drawn, sampling, seed, table_NDT=None):
        key = stream_key(seed, "rollout", step)
        draft_PDT = None
        if table_NDT is not None:
            draft_PDT = drafts.of_problems(table_NDT, drawn.ids_P)
        return generate_rollouts(
            params,
            drawn.prompt_PL,
            drawn.position_PL,
            drawn.ids_P,
            key,
            sampling,
            drawn.expected_P,
            drawn.asked_PG,
            draft_PDT,
            config=generation,
            compute=compute,
        )

    def join(parts):
        # One entry a device (M): calls are added up, not put one after another.
        names = "slot_steps_M", "steps_M", "row_steps_M"
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        return dataclasses.replace(join_grades(parts), **sums)

    def join_grades(parts):
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    return draw, split, generate, join, join_grades


def _reference(params, learning: learner_update.Learning):
    """A policy as a reference: a copy in the dtype of compute."""
    params = transformer.compute_params(params, learning.compute.dtype)
    return jax.tree.map(jnp.copy, params)  # the policy's own buffers are donated


def _scoring(learning: learner_update.Learning) -> tuple[Callable, ...]:
    """(copy, reference, old, values, thoughts) of `Programs`; not jitted yet."""
    scoring = {
        "compute": learning.compute,
        "micro_batch_rows": learning.micro_batch_rows,
        "row_responses": learning.row_responses,
    }

    def packed(rollout):
        response_length = rollout.response_BT.shape[1]
        return scoring | {
            "problem_B": rollout.problem_B,
            "response_length": response_length,
        }

    def copy(params):
        return _reference(params, learning)

    def old(params, rollout, sampling):
        tokens_BS, position_BS = rollout.sequences()
        return logprobs.response_logprobs(
            params, tokens_BS, position_BS, sampling.temperature, **packed(rollout)
        )

    def reference(params, policy, rollout, sampling):
        if policy is None:
            return old(params, rollout, sampling), None
        # One walk over the packed rows for both models.
        return old((params, policy), rollout, sampling)

    def values(params, rollout):
        tokens_BS, position_BS = rollout.sequences()
        return critic.values(params, tokens_BS, position_BS, **packed(rollout))

    def thoughts(params, rollout, drawn, graded, sampling):
        # Prompts with a right rollout are RLOO's, where the data is semi-verifiable.
        whole_P = ~jepo.unsolved(graded.correct_PG, graded.valid_PG)
        rows = learning.thoughts(
            rollout,
            drawn.answer_PA,
            drawn.answer_length_P,
            whole_P & learning.semi_verifiable,
        )
        return score_thoughts(params, rows, sampling.temperature, **scoring)

    return copy, reference, old, values, thoughts


def _learning(
    *,
    sampler: PromptSampler,
    problems: int,
    learning: learner_update.Learning,
    surplus: Callable,
    draft_table: Callable,
    reset_every: int,
    problems_alike: bool,
) -> tuple[Callable, Callable]:
    """(init, update) of `Programs`; not jitted yet.

    surplus: () → what waits before the first step. draft_table: () → the state's drafts
    before it. reset_every: steps after which the policy becomes the reference, again
    and again; 0: the state has no reference.
    problems_alike: as `build` has it.
    """

    def first_reference(params):
        if not reset_every:
            return None
        if lora.has_adapters(params):
            # Those of the base alone, with which any run by LoRA begins.
            params = jax.tree.map(jnp.zeros_like, params)
        return _reference(params, learning)

    def init(params):
        return State(
            step=jnp.int32(0),
            train=learner_update.init(params, learning.optimizer),
            critic=learning.critic(params),
            kl_coefficient=jnp.float32(learning.kl_coefficient),
            sampler=sampler.init(),
            length_N=jnp.zeros(problems, jnp.float32),
            surplus=surplus(),
            reference=first_reference(params),
            drafts=draft_table(),
        )

    def update(state, drawn, rollout, graded, scores, sampling, seed, base=None):
        batch, batch_metrics = learning.batch(
            rollout,
            graded.reward_PG,
            graded.valid_PG,
            scores,
            state.kl_coefficient,
            graded.taken_PG,
        )
        flat_P = grpo.zero_variance(graded.correct_PG, graded.valid_PG)
        batch_metrics["signal_groups"] = jnp.sum(~flat_P)
        if drawn.weight_P is not None:
            weight_B = jnp.repeat(drawn.weight_P, rollout.group)
            batch = dataclasses.replace(batch, problem_weight_B=weight_B)
            batch_metrics |= importance.metrics(drawn.weight_P)
        if problems_alike:
            rows_B = learned_rows(batch.mask_BT, rollout.group)
            batch = dataclasses.replace(batch, problem_rows_B=rows_B)
        (states, kl_coefficient), metrics = learning.learn(
            (state.train, state.critic),
            state.kl_coefficient,
            sampling.temperature,
            batch,
            batch_metrics,
            key=stream_key(seed, "minibatch", state.step),
            step=state.step,
            base=base,
        )
        if sampler.end_step:
            # It has learned from each round, and what is used may be of another step.
            sampler_state = sampler.end_step(state.sampler)
        else:
            sampler_state, numbers = observed(sampler, state.sampler, drawn, graded)
            metrics |= numbers
        policy, critic_state = states
        reference = state.reference
        if reset_every:
            reference = jax.lax.cond(
                (state.step + 1) % reset_every == 0,
                lambda: _reference(policy.params, learning),
                lambda: state.reference,
            )
        following = dataclasses.replace(
            state,
            step=state.step + 1,
            train=policy,
            critic=critic_state,
            kl_coefficient=kl_coefficient,
            sampler=sampler_state,
            reference=reference,
        )
        return following, metrics

    return init, update


def _remember(table_NDT, drawn: PromptBatch, rollout: Rollout):
    """The table of drafts with a round's rollouts, learned from or not."""
    return drafts.remember(table_NDT, drawn.ids_P, rollout.response_BT, rollout.mask_BT)


def _empty_buffer(generate, *, sampler: PromptSampler, params, prompts, phrase):
    """An empty buffer for the groups of a round."""

    def one_round(params, prompts):
        # Only shapes are asked for, so seed and step do not matter.
        state, ids_P = sampler.sample(sampler.init(), stream_key(0, "sampler"))
        drawn = prompt_batch(prompts, ids_P)
        if sampler.ask:
            drawn = dataclasses.replace(drawn, asked_PG=sampler.ask(state, ids_P))
        rollout = generate(params, 0, drawn, Sampling(), 0)
        graded = in_graph.grade(rollout, drawn, phrase=phrase)
        if sampler.take:
            graded = dataclasses.replace(graded, taken_PG=graded.valid_PG)
        return drawn, rollout, graded

    drawn, rollout, graded = jax.eval_shape(one_round, params, prompts)
    return group_buffer.empty(drawn, rollout, graded)


def _collector(
    sampler: PromptSampler, max_age: int, mask_truncated: bool, at
) -> Callable | None:
    """A round's end, jitted: the step's groups so far, and what the sampler learns.

    None where a step has one round.
    """

    def of_kept_groups(waiting, sampler_state, step, drawn, rollout, graded):
        batch, surplus, whole, metrics = group_buffer.collect(
            waiting, step, drawn, rollout, graded, keep=sampler.keep, max_age=max_age
        )
        sampler_state, numbers = observed(sampler, sampler_state, drawn, graded)
        return batch, surplus, whole, sampler_state, metrics | numbers

    def of_all_rollouts(before, sampler_state, step, drawn, rollout, graded):
        batch = group_buffer.add_round(before, drawn, rollout, graded)
        sampler_state, numbers = observed(sampler, sampler_state, drawn, graded)
        drawn, rollout, graded = batch.groups
        # What would not be learned takes no place of what would.
        may_B = ~(mask_truncated & rollout.truncated_B)
        taken_PG, whole, metrics = sampler.take(
            sampler_state, may_B.reshape(graded.valid_PG.shape)
        )
        graded = dataclasses.replace(graded, taken_PG=taken_PG)
        batch = dataclasses.replace(batch, groups=(drawn, rollout, graded))
        return batch, None, whole, sampler_state, metrics | numbers

    if sampler.keep:
        collect = of_kept_groups
    elif sampler.take:
        collect = of_all_rollouts
    else:
        return None
    return jit(at[-1].mesh, collect, out_shardings=at)


class _Layout(NamedTuple):
    """Where the arrays of a step lie on a mesh; all fields are shardings."""

    rows: NamedSharding  # divided, as a batch's rows are
    whole: NamedSharding  # the same on every device
    by_prompt: PromptBatch
    pooled: group_buffer.GroupBuffer

    @classmethod
    def on(cls, mesh) -> "_Layout":
        rows, whole = NamedSharding(mesh, BATCH), NamedSharding(mesh, REPLICATED)
        by_prompt = PromptBatch(
            # A device looks the ids up among the rows that it holds, so it needs all.
            ids_P=whole,
            prompt_PL=rows,
            position_PL=rows,
            answer_PA=rows,
            answer_length_P=rows,
            expected_P=rows,
            weight_P=rows,
            asked_PG=rows,
        )
        pooled = group_buffer.GroupBuffer(
            groups=(by_prompt, rows, rows), born_P=whole, kept_P=whole
        )
        return cls(rows, whole, by_prompt, pooled)


def _spread(mesh, rows: int) -> NamedSharding:
    """Rows over all devices, as the prompts' are; whole on each that do not divide."""
    axes = mesh.axis_names if rows % mesh.size == 0 else None
    return NamedSharding(mesh, PartitionSpec(axes))


def _placed(mesh, shapes: State, layout: _Layout) -> State:
    """The shapes with their shardings."""
    whole, pooled = layout.whole, layout.pooled
    shardings = State(
        step=whole,
        train=param_shardings(mesh, shapes.train),
        critic=param_shardings(mesh, shapes.critic),
        kl_coefficient=whole,
        sampler=jax.tree.map(lambda _: whole, shapes.sampler),
        length_N=whole,
        surplus=shapes.surplus and jax.tree.broadcast(pooled, shapes.surplus),
        reference=param_shardings(mesh, shapes.reference),
        drafts=shapes.drafts and _spread(mesh, shapes.drafts.shape[0]),
    )
    return _at(shapes, shardings)


def _at(shapes, shardings):
    return jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        shapes,
        shardings,
    )


def build(
    mesh,
    params,
    *,
    sampler: PromptSampler,
    problems: int,
    prompts: Prompts,
    max_age: int,
    generation: GenerateConfig,
    calls: int,
    learning: learner_update.Learning,
    phrase: tuple[int, ...],
    with_reference: bool,
    with_reward: bool,
    recompute: bool,
    reset_every: int,
    problems_alike: bool = False,
    mask_truncated: bool = False,
) -> Programs:
    """The programs of one run on `mesh`; `params`, `prompts` are arrays or shapes.

    params: all of the policy's; adapters among them are learned, and nothing else then.
    problems: of the data set; `prompts` may have more rows.
    max_age: steps that a group may wait, where groups are filtered.
    calls: how often a step generates, for as many of its problems each time.
    phrase: the tokens that introduce an answer.
    recompute: the learner computes the policy's old log-probabilities itself.
    reset_every: steps after which the reference is reset; 0: never.
    problems_alike: a problem's loss weighs as any other's, whatever its rollouts.
    mask_truncated: truncated rollouts are not learned, so that ada takes none.
    """
    draw, split, generate, join, join_grades = _writing(
        sampler=sampler,
        generation=generation,
        compute=learning.compute,
        calls=calls,
    )
    copy, reference, old, values, thoughts = _scoring(learning)
    empty = partial(
        _empty_buffer,
        generate,
        sampler=sampler,
        params=params,
        prompts=prompts,
        phrase=phrase,
    )
    init, update = _learning(
        sampler=sampler,
        problems=problems,
        learning=learning,
        surplus=empty if sampler.keep else lambda: None,
        draft_table=partial(
            drafts.table_of,
            generation,
            problems=problems,
            vocab_size=learning.compute.model.vocab_size,
        ),
        reset_every=reset_every,
        problems_alike=problems_alike,
    )
    rows, whole, by_prompt, pooled = layout = _Layout.on(mesh)
    base, learned = lora.split(params)
    if base is not None:
        base = _at(base, param_shardings(mesh, base))
    state = _placed(mesh, jax.eval_shape(init, learned), layout)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    grade_eval = _grader(rows, phrase=phrase, known=True)

    def jitted(function, at=rows, **options):
        return jit(mesh, function, out_shardings=at, **options)

    several = calls > 1
    copies = with_reference and not reset_every and base is None
    return Programs(
        # Donated: the loaded parameters become the state's; an update takes the old
        # state's memory.
        init=jitted(init, shardings, donate_argnums=0),
        draw=jitted(draw, (shardings.sampler, by_prompt)),
        split=jitted(split, [by_prompt] * calls) if several else None,
        generate=jitted(generate),
        join=jitted(join) if several else None,
        join_grades=jitted(join_grades) if several else None,
        grade=grade_eval if with_reward else _grader(rows, phrase=phrase, known=False),
        grade_eval=grade_eval,
        observe=jitted(partial(observe, drafted=generation.step_tokens > 1), whole),
        empty=jitted(empty, pooled) if sampler.take else None,
        collect=_collector(
            sampler,
            max_age,
            mask_truncated,
            (pooled, sampler.keep and pooled, whole, shardings.sampler, whole),
        ),
        copy=jitted(copy, shardings.train.params) if copies else None,
        reference=jitted(reference) if with_reference else None,
        old=jitted(old) if recompute and not with_reference else None,
        recompute=recompute,
        values=jitted(values) if state.critic else None,
        thoughts=jitted(thoughts) if learning.thoughts else None,
        update=jitted(update, (shardings, whole), donate_argnums=0),
        remember=jitted(_remember, shardings.drafts, donate_argnums=0)
        if state.drafts is not None
        else None,
        state=state,
        base=base,
    )
