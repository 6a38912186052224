"""Every jitted program of a run, made once, with its shardings and donation.

`train.py` calls exactly these objects, in this order: draw, generate, verify (or the
host's graders), observe, collect (with a sampler that keeps only some groups: these
five once a round), reference (with KL only), values (with a critic only), thoughts
(with JEPO only), update. Where a step has several calls of generate, split comes before
the first, join after the last, and join_grades when all are graded.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from limr_jax import (
    critic,
    data,
    expected,
    learner,
    logprob,
    model,
    pool,
    rollout,
    thoughts,
    token_reward,
)
from limr_jax.algorithms import jepo
from limr_jax.compiling import jit
from limr_jax.prompt_sampler import PromptSampler
from limr_jax.randomness import stream_key
from limr_jax.sharding import BATCH, REPLICATED, param_shardings
from limr_jax.tally import tally


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What a run is at the end of a step; all of it is in the checkpoint."""

    step: jax.Array  # int32: steps done
    train: learner.TrainState  # the policy's parameters and optimiser
    critic: learner.TrainState | None  # likewise; None: the algorithm has none
    kl_coefficient: jax.Array  # fp32; of this step's KL to the reference
    sampler: Any  # the prompt sampler's state
    length_N: jax.Array  # fp32: mean tokens of each problem's last answers; 0: none yet
    # Groups that wait for the next step; None: the sampler keeps whatever it draws.
    surplus: pool.Pool | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """The problems of one step, ready to be answered."""

    ids_P: jax.Array  # int32: index in the data set
    prompt_PL: jax.Array  # int32, left-padded
    position_PL: jax.Array  # int32, -1 = padding
    answer_PA: jax.Array  # int32, right-padded reference answers
    answer_length_P: jax.Array  # int32
    # fp32: `State.length_N` of each; None: held out, or in a pool.
    expected_P: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graded:
    """What the rollouts were worth; row p, column g is rollout p · G + g."""

    reward_PG: jax.Array  # fp32: what the learner sees, shaped or not
    correct_PG: jax.Array  # fp32: raw correctness, what samplers and filters see
    valid_PG: jax.Array  # bool: False where it could not be graded
    well_formed_PG: jax.Array  # bool: an answer was given as it should be
    # fp32, of the hosts' graders: each part of the reward by name, before its weight;
    # not a number where the part had no value.
    parts: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


class Programs(NamedTuple):
    """The jitted programs, in the loop's order; None: the algorithm does without."""

    init: Callable  # (params, donated) → State
    draw: Callable  # (State, Prompts, seed) → sampler state, Drawn
    split: Callable | None  # (Drawn) → that of each call; None: there is one call
    generate: Callable  # (params, step, Drawn, Sampling, seed) → Rollout
    join: Callable | None  # (Rollouts of all calls) → Rollout
    join_grades: Callable | None  # (Graded of all calls) → Graded
    verify: Callable  # (Rollout, Drawn) → Graded
    examine: Callable  # likewise, of held-out problems, whatever training knows
    observe: Callable  # (length_N, Drawn, Rollout, Graded) → the next length_N, Tally
    # (Pool, sampler state, step, Drawn, Rollout, Graded) → batch, surplus, metrics
    collect: Callable | None
    copy: Callable | None  # (params) → reference params
    reference: Callable | None  # (reference params, Rollout, Sampling) → [B, T]
    values: Callable | None  # (critic's params, Rollout) → [B, T]
    thoughts: Callable | None  # (params, Rollout, Drawn, Graded, …) → Thoughts
    # (State, sampler state, surplus, Drawn, Rollout, …) → State, metrics
    update: Callable
    state: State  # shape, dtype and sharding of each array of the state


def pick(prompts: data.Prompts, ids_P: jax.Array) -> Drawn:
    """These problems of the set, left-padded."""
    rows = data.gather(prompts, ids_P)
    prompt_PL, position_PL = data.left_pad(rows.prompt_NL, rows.prompt_length_N)
    return Drawn(ids_P, prompt_PL, position_PL, rows.answer_NA, rows.answer_length_N)


def verify(written: rollout.Rollout, drawn: Drawn, *, phrase, known=True) -> Graded:
    """The in-graph verifier over a step's rollouts; not `known`: of no reward at all.

    Then every rollout is invalid, and only whether it is well formed is told.
    """
    group = written.group
    right_B, well_formed_B = token_reward.verify(
        written.response_BT,
        written.mask_BT,
        written.truncated_B,
        jnp.repeat(drawn.answer_PA, group, axis=0),
        jnp.repeat(drawn.answer_length_P, group),
        phrase=phrase,
    )
    right_PG = (right_B & known).reshape(-1, group).astype(jnp.float32)
    # An empty reference grades nothing.
    valid_B = jnp.repeat(known & (drawn.answer_length_P > 0), group)
    return Graded(
        reward_PG=right_PG,
        correct_PG=right_PG,
        valid_PG=valid_B.reshape(-1, group),
        well_formed_PG=well_formed_B.reshape(-1, group),
    )


def observe(length_N, drawn: Drawn, written: rollout.Rollout, graded: Graded):
    """What a round's rollouts look like: `State.length_N` with them, and a Tally."""
    length_N = expected.remember(length_N, drawn.ids_P, written.mask_BT)
    return length_N, tally(written, graded)


def _verifier(at: NamedSharding, **given) -> Callable:
    """`verify`, jitted."""
    return jit(at.mesh, partial(verify, **given), out_shardings=at)


def _writing(*, sampler: PromptSampler, generation: dict, calls: int) -> dict:
    """How problems are drawn and answered, by name; not jitted yet."""

    # The seed is traced, so that another one compiles nothing anew.
    def draw(state, prompts, seed):
        key = stream_key(seed, "sampler", state.step)
        sampler_state, ids_P = sampler.sample(state.sampler, key)
        drawn = pick(prompts, ids_P)
        expected_P = state.length_N[ids_P]
        return sampler_state, dataclasses.replace(drawn, expected_P=expected_P)

    def split(drawn):
        pieces = jax.tree.map(lambda x: jnp.split(x, calls), drawn)
        return jax.tree.transpose(
            jax.tree.structure(drawn), jax.tree.structure([0] * calls), pieces
        )

    def generate(params, step, drawn, sampling, seed):
        key = stream_key(seed, "rollout", step)
        asked = drawn.prompt_PL, drawn.position_PL, drawn.ids_P
        return rollout.generate(
            params, *asked, key, sampling, drawn.expected_P, **generation
        )

    def join(parts):
        slot_steps_D = sum(part.slot_steps_D for part in parts)
        return dataclasses.replace(join_grades(parts), slot_steps_D=slot_steps_D)

    def join_grades(parts):
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    return {f.__name__: f for f in (draw, split, generate, join, join_grades)}


def _scoring(learning: learner.Learning) -> dict:
    """What is asked about the answers before they are learned from, by name."""
    scoring = learning.model_options | learning.packed

    def packed(written):
        response_length = written.response_BT.shape[1]
        return scoring | {
            "problem_B": written.problem_B,
            "response_length": response_length,
        }

    def copy(params):
        """The reference: the first policy in the dtype of compute."""
        params = model.compute_params(params, learning.model_options["dtype"])
        return jax.tree.map(jnp.copy, params)  # the policy's own buffers are donated

    def reference(params, written, sampling):
        scored = (*written.sequences(), sampling.temperature)
        return logprob.response_logprobs(params, *scored, **packed(written))

    def values(params, written):
        return critic.values(params, *written.sequences(), **packed(written))

    def score_thoughts(params, written, drawn, graded, sampling):
        whole_P = ~jepo.unsolved(graded.correct_PG, graded.valid_PG)
        rows = learning.thoughts(
            written,
            drawn.answer_PA,
            drawn.answer_length_P,
            whole_P & learning.semi_verifiable,
        )
        return thoughts.score(params, rows, sampling.temperature, **scoring)

    return {f.__name__: f for f in (copy, reference, values, score_thoughts)}


def _learning(
    *,
    sampler: PromptSampler,
    problems: int,
    learning: learner.Learning,
    surplus: Callable,
) -> dict:
    """How the answers are learned from, by name; not jitted yet.

    surplus: () → what waits before the first step.
    """

    def init(params):
        return State(
            step=jnp.int32(0),
            train=learner.init(params, learning.optimizer),
            critic=learning.critic(params),
            kl_coefficient=jnp.float32(learning.kl_coefficient),
            sampler=sampler.init(),
            length_N=jnp.zeros(problems, jnp.float32),
            surplus=surplus(),
        )

    def update(state, sampler_state, surplus, drawn, written, graded, scores, sampling):
        seen = (graded.reward_PG, graded.valid_PG, scores)
        kl_coefficient = state.kl_coefficient
        (states, kl_coefficient), metrics = learning.learn(
            (state.train, state.critic),
            kl_coefficient,
            sampling.temperature,
            *learning.batch(written, *seen, kl_coefficient),
        )
        # Before the sampler learns: an epoch's end weighs anew.
        metrics |= sampler.report(sampler_state, drawn.ids_P)
        sampler_state = sampler.update(
            sampler_state, drawn.ids_P, graded.correct_PG, graded.valid_PG
        )
        known = kl_coefficient, sampler_state, state.length_N
        return State(state.step + 1, *states, *known, surplus), metrics

    return {f.__name__: f for f in (init, update)}


def _nothing_waits(generate, *, sampler: PromptSampler, params, prompts, phrase):
    """An empty pool for what a round draws, writes and grades; None without `keep`."""
    if not sampler.keep:
        return None

    def one_round(params, prompts):
        _, ids_P = sampler.sample(sampler.init(), stream_key(0, "sampler"))
        drawn = pick(prompts, ids_P)
        written = generate(params, 0, drawn, rollout.Sampling(), 0)
        return drawn, written, verify(written, drawn, phrase=phrase, known=True)

    return pool.empty(*jax.eval_shape(one_round, params, prompts))


def _collector(sampler: PromptSampler, max_age: int, at) -> Callable | None:
    """`pool.collect`, jitted; None where the sampler keeps whatever it draws."""
    if not sampler.keep:
        return None
    collect = partial(pool.collect, keep=sampler.keep, max_age=max_age)
    return jit(at[-1].mesh, collect, out_shardings=at)


def _placed(mesh, shapes: State, pooled: pool.Pool) -> State:
    """The shapes with their shardings; `pooled`: those of a pool's arrays."""
    whole = NamedSharding(mesh, REPLICATED)
    shardings = State(
        step=whole,
        train=param_shardings(mesh, shapes.train),
        critic=param_shardings(mesh, shapes.critic),
        kl_coefficient=whole,
        sampler=jax.tree.map(lambda _: whole, shapes.sampler),
        length_N=whole,
        surplus=shapes.surplus and jax.tree.broadcast(pooled, shapes.surplus),
    )
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
    prompts: data.Prompts,
    max_age: int,
    generation: dict,
    calls: int,
    learning: learner.Learning,
    phrase: tuple[int, ...],
    with_reference: bool,
    with_reward: bool,
) -> Programs:
    """The programs of one run on `mesh`; `params`, `prompts` are arrays or shapes.

    problems: of the data set; `prompts` may have more rows.
    max_age: steps that a group may wait, where the sampler keeps only some.
    generation: what `rollout.generate` takes beside arrays; `calls`: how often a step
      it is called, for as many of the problems each time.
    phrase: the tokens that introduce an answer.
    """
    compute = _writing(sampler=sampler, generation=generation, calls=calls)
    rounds = {"sampler": sampler, "prompts": prompts, "phrase": phrase}
    surplus = partial(_nothing_waits, compute["generate"], params=params, **rounds)
    compute |= _learning(
        sampler=sampler, problems=problems, learning=learning, surplus=surplus
    )
    compute |= _scoring(learning)
    rows = NamedSharding(mesh, BATCH)
    whole = NamedSharding(mesh, REPLICATED)
    examine = _verifier(rows, phrase=phrase, known=True)
    by_prompt = Drawn(whole, rows, rows, rows, rows, rows)
    pooled = pool.Pool((by_prompt, rows, rows), whole, whole)
    state = _placed(mesh, jax.eval_shape(compute["init"], params), pooled)
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def jitted(name, wanted=True, at=rows, **options):
        given = {"out_shardings": at, **options}
        return jit(mesh, compute[name], **given) if wanted else None

    return Programs(
        init=jitted("init", at=shardings, donate_argnums=0),
        draw=jitted("draw", at=(shardings.sampler, by_prompt)),
        split=jitted("split", calls > 1, at=[by_prompt] * calls),
        generate=jitted("generate"),
        join=jitted("join", calls > 1),
        join_grades=jitted("join_grades", calls > 1),
        verify=examine if with_reward else _verifier(rows, phrase=phrase, known=False),
        examine=examine,
        observe=jit(mesh, observe, out_shardings=whole),
        collect=_collector(sampler, max_age, (pooled, pooled, whole)),
        copy=jitted("copy", with_reference, at=shardings.train.params),
        reference=jitted("reference", with_reference),
        values=jitted("values", state.critic),
        thoughts=jitted("score_thoughts", learning.thoughts),
        update=jitted("update", at=(shardings, whole), donate_argnums=(0, 1, 2)),
        state=state,
    )
