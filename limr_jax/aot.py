"""Every program of a run, compiled for a TPU slice that is not there.

The programs are the jitted objects that `train.py` calls, made by the same
constructor (`run.make_programs`); only their arguments are shapes.
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax import (
    cache,
    chips,
    data,
    evaluate,
    live_columns,
    policy,
    reward,
    rollout,
    run,
    text,
)
from limr_jax.check import check, check_batch
from limr_jax.errors import InputError
from limr_jax.objectives import Scores
from limr_jax.programs import Graded, Programs
from limr_jax.randomness import stream_key
from limr_jax.sharding import BATCH, REPLICATED, make_mesh
from limr_jax.words import Words, words_of


@dataclasses.dataclass(frozen=True)
class Call:
    """One program of a run and the shapes that it is called with."""

    name: str
    phase: str  # 'set-up', 'evaluation' or 'step'
    mesh: jax.sharding.Mesh
    program: Any  # the jitted object that train.py calls
    args: tuple  # shapes with shardings
    alive: tuple  # what else lies in HBM meanwhile; may repeat what is in args
    # Of the loops whose number of turns depends on data, in the order in which they
    # begin, where every response is as long as allowed and every row is kept.
    turns: tuple[int, ...] = (1,)
    # How often attention to the cache reads each of `cache.widths`, then.
    shares: tuple[float, ...] = ()
    decoded: live_columns.Decoded | None = None  # steps of decode's kernel, likewise
    times: int = 1  # of a step


@dataclasses.dataclass(frozen=True)
class Plan:
    """The run that the config describes, on a slice that is not there."""

    mesh: jax.sharding.Mesh
    chip: chips.Chip
    generation: dict  # what `rollout.generate` takes beside arrays
    prompt_length: int  # L, columns
    shared: bool  # decode's rows read their prompts where these are, and have no copy
    calls: list[Call]
    # Decode's steps by number of slots, lengths simulated; none: not known.
    decoded: list[live_columns.Steps]


def plan(config) -> Plan:
    """The programs of this config's run on `slice.type`; InputError in one line."""
    check(config)
    if config.rollout.calls > 1:
        raise InputError(
            f"rollout.calls={config.rollout.calls}: the compile report is of one "
            "generation a step; set it to 1"
        )
    devices = chips.devices(config.slice.type)
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batch(config, mesh)
    words, vocab_size = _words(config)
    model_config = _model_config(config.model, vocab_size)
    problems, prompts = _problems(config, mesh)
    generation, made = run.make_programs(
        config, mesh, model_config, words, problems, prompts
    )
    examined = {"evaluate": 1, "evaluate sampled": config.evaluation.samples}
    evaluators = {
        name: evaluate.program(mesh, count=len(problems), k=k, generation=generation)
        for name, k in examined.items()
        if k and config.data.eval
    }
    return Plan(
        mesh,
        chips.CHIPS[chips.SLICES[config.slice.type].chip],
        generation,
        config.rollout.max_prompt_length,
        live_columns.shares(mesh, config.rollout.max_prompt_length, generation),
        calls(
            mesh,
            made,
            prompts,
            parts=_parts(config),
            generation=generation,
            sampling=run.sampling_of(**run.training_sampling(config)),
            evaluators=evaluators,
            eval_prompts=prompts,
            micro_batches=_micro_batches(config),
            minibatches=config.minibatches_per_step,
            judge=_judge(config, devices),
        ),
        live_columns.planned(config, mesh, generation),
    )


def step_calls(made: run.Run, config, prompts: data.Prompts) -> list[Call]:
    """The programs that a step of this run calls, but for a judge's."""
    found = calls(
        made.mesh,
        made.programs,
        prompts,
        parts=_parts(config),
        generation=made.generation,
        sampling=made.sampling,
        micro_batches=_micro_batches(config),
        minibatches=config.minibatches_per_step,
    )
    return [call for call in found if call.phase == "step"]


def longest_first(calls: list[Call]) -> list[Call]:
    """For compiling side by side: two take as long as all the others together."""
    return sorted(calls, key=lambda call: call.name not in ("update", "generate"))


def _parts(config) -> tuple[str, ...] | None:
    """The parts of a reward that hosts give; None where the graph's verifier grades."""
    if config.reward in ("token", "none"):
        return None
    overlong = ("overlong",) if config.overlong.buffer else ()
    return (*reward.parse_spec(config.reward), *overlong)


def _judge(config, devices) -> tuple | None:
    """(what `Judge.program` gives, how often a step asks it); None without a judge.

    With reward=judge a host asks about each of its rollouts; else about those that the
    rules call wrong, and the one question that is counted stands for them.
    """
    if not config.judge.init:
        return None
    if not policy.resolve(config.judge.init).exists():
        raise InputError(
            f"judge.init={config.judge.init} is not on this machine; the report needs "
            "its config.json, tokenizer and tensors' sizes"
        )
    here = [d for d in devices if d.process_index == devices[0].process_index]
    program = run.make_judge(config, here).program()
    rollouts = config.prompts_per_step * config.group_size
    asked = -(-rollouts * len(here) // len(devices) // program[2][1].shape[0])
    return program, asked if "judge" in reward.parse_spec(config.reward) else 1


def _micro_batches(config) -> int:
    """Of one update, where every response is as long as it may be."""
    rows = config.prompts_per_step * config.group_size // config.minibatches_per_step
    size = config.micro_batch_rows or rows
    return -(-rows // (config.row_responses * size))


def _words(config) -> tuple[Words, int]:
    """What programs need of the tokenizer, and its vocabulary; or stand-ins."""
    path = policy.resolve(config.tokenizer)
    if path.exists():
        tokenizer = text.load_tokenizer(path)
        return words_of(config, tokenizer), tokenizer.vocab_size
    # Which ids they are changes a program's constants, not its shapes.
    return Words(stop_ids=(0, 1), pad_id=0, eos_id=1, phrase=(2, 3)), 0


def _model_config(given, vocab_size: int):
    if given.init == "random" or policy.resolve(given.init).exists():
        return policy.read_model_config(given, vocab_size)
    if not given.preset:
        raise InputError(
            f"model.init={given.init} is not on this machine; give model.preset for "
            "the dimensions of its model"
        )
    return policy.preset_config(given)


def _problems(config, mesh) -> tuple[data.Problems, data.Prompts]:
    """Stand-ins for the data set: its length, and its shapes on the devices."""
    count, answer = config.slice.problems, config.slice.answer_length
    if count < config.prompts_per_step or answer < 1:
        raise InputError(
            f"slice.problems={count} (at least prompts_per_step="
            f"{config.prompts_per_step}) and slice.answer_length={answer} (at least "
            "1) stand in for data.train; give both"
        )
    names = tuple(map(str, range(count)))
    problems = data.Problems("stand-ins", names, names, (None,) * count, names, {})
    length = config.rollout.max_prompt_length
    return problems, prompt_shapes(mesh, count, length, answer)


def prompt_shapes(mesh, count: int, length: int, answer_length: int) -> data.Prompts:
    """`data.put` of so many problems, as shapes."""
    rows = -(-count // mesh.size) * mesh.size
    at = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def shape(*columns):
        return jax.ShapeDtypeStruct((rows, *columns), jnp.int32, sharding=at)

    return data.Prompts(shape(length), shape(), shape(answer_length), shape())


def _whole(mesh, like, *axes) -> jax.ShapeDtypeStruct:
    """The same on every device, of this dtype."""
    at = NamedSharding(mesh, REPLICATED)
    return jax.ShapeDtypeStruct(axes, jnp.dtype(like), sharding=at)


def calls(
    mesh,
    made: Programs,
    prompts: data.Prompts,
    *,
    parts: tuple[str, ...] | None,
    generation: dict,
    sampling: rollout.Sampling,
    micro_batches: int,
    minibatches: int,
    evaluators: dict[str, tuple] | None = None,
    eval_prompts: data.Prompts | None = None,
    judge: tuple | None = None,
) -> list[Call]:
    """The programs of a run in the order of their first calls.

    prompts: shapes of a set. parts: of a reward graded on the hosts; None: the graph's
    verifier grades. sampling: of the training rollouts, its values whatever they are.
    evaluators: by name, what `evaluate.program` gives; "evaluate" is greedy. judge:
    what `_judge` gives.
    """
    found, alive, state = [], [], made.state
    params, length = state.train.params, prompts.prompt_NL.shape[1]
    whole = functools.partial(_whole, mesh)

    def call(name, phase, program, *args, mesh=mesh, **loops):
        found.append(Call(name, phase, mesh, program, args, tuple(alive), **loops))
        with jax.set_mesh(mesh):
            return program.eval_shape(*args)

    key, ways = _key(mesh), (sampling, run.sampling_of(temperature=0.0))
    sampling, greedy = jax.tree.map(lambda x: whole(x.dtype), ways)
    reference = call("copy", "set-up", made.copy, params) if made.copy else None
    alive += [reference]
    call("init", "set-up", made.init, params)
    alive += [state, prompts, judge and judge[0][2][0]]
    for name, (program, chunk) in (evaluators or {}).items():
        alive += [eval_prompts]
        way = greedy if name == "evaluate" else sampling
        args = (params, eval_prompts, whole(jnp.int32, chunk), way, key)
        told = call(name, "evaluation", program, *args, **_loops(length, generation))
        if parts is None:
            call(f"{name}: examine", "evaluation", made.examine, *told[::-1])
    args = (state, prompts, whole(jnp.uint32))
    sampler_state, drawn = call("draw", "step", made.draw, *args)
    alive += [sampler_state, drawn]
    args = (params, state.step, drawn, sampling, args[-1])
    loops = _loops(length, generation, *_rounds(mesh, drawn, length, generation))
    written = call("generate", "step", made.generate, *args, **loops)
    alive += [written]
    graded = _graded(call, made, mesh, written, drawn, parts, judge)
    new = (drawn, written, graded)
    call("observe", "step", made.observe, state.length_N, *new)
    surplus, batch = _collected(call, made, state, sampler_state, *new)
    alive += [graded, surplus, batch]
    asked = (state, reference, batch, sampling, (micro_batches * minibatches,))
    scores = _scores(call, made, *asked)
    args = (state, sampler_state, surplus, *batch, scores, sampling)
    call("update", "step", made.update, *args, turns=(micro_batches,))
    return found


def _key(mesh) -> jax.ShapeDtypeStruct:
    """The key of a random stream, as a shape."""
    key = jax.eval_shape(lambda: stream_key(0, "eval"))
    at = NamedSharding(mesh, REPLICATED)
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=at)


def _graded(call, made: Programs, mesh, written, drawn, parts, judge) -> Graded:
    """The verifier's grades; or the hosts', who may have asked the judge."""
    if judge:
        (own_mesh, ask, args), times = judge
        call("judge", "step", ask, *args, mesh=own_mesh, times=times)
    if parts is None:
        return call("verify", "step", made.verify, written, drawn)
    shape = (written.prompt_PL.shape[0], written.group)
    at = NamedSharding(mesh, BATCH)
    real, truth = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=at)
        for dtype in (jnp.float32, jnp.bool_)
    )
    return Graded(real, real, truth, truth, dict.fromkeys(parts, real))


def _collected(call, made: Programs, state, sampler_state, *new):
    """(what is over, the batch), where groups are collected; else all that is new."""
    if not made.collect:
        return None, new
    args = (state.surplus, sampler_state, state.step, *new)
    batch, surplus, _ = call("collect", "step", made.collect, *args)
    return surplus, batch.groups


def _scores(call, made: Programs, state, reference, batch, sampling, turns) -> Scores:
    """What other models are asked of the (problems, rollouts, grades) to learn from."""
    drawn, written, graded = batch
    scores = {}
    if made.reference:
        args = (reference, written, sampling)
        scores["reference_BT"] = call(
            "reference", "step", made.reference, *args, turns=turns
        )
    if made.values:
        args = (state.critic.params, written)
        scores["value_BT"] = call("values", "step", made.values, *args, turns=turns)
    if made.thoughts:
        args = (state.train.params, written, drawn, graded, sampling)
        scores["thoughts"] = call("thoughts", "step", made.thoughts, *args, turns=turns)
    return Scores(**scores)


def _rounds(mesh, drawn, length: int, generation: dict) -> tuple[int, ...]:
    """Rounds of refilling, and prompts that a device copies in one, if it copies any.

    None: no refill.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = drawn.ids_P.size * generation["group"] // devices
    slots = min(generation["slots"] // devices, rows)
    if rows <= slots:
        return ()
    copies = () if live_columns.shares(mesh, length, generation) else (slots,)
    return (-(-rows // slots), *copies)


def _loops(length: int, generation: dict, *rounds: int) -> dict:
    """How often `rollout.generate`'s loops turn, every response as long as allowed.

    Turns are rounds, then decode steps of one; the loops over fewer slots do not turn
    where all rows end together. Shares are of the widths of the cache that attention
    reads: prompts fill `length` columns, and once the ring has turned all are read. Two
    widths would be taken for a conditional that is on or off: then nothing is said.
    """
    steps = generation["response_length"] - 1
    turns, times = (*rounds, steps, 0), rounds[0] if rounds else 1
    choices = cache.widths(length + generation["response_length"])
    if not steps:
        return {"turns": turns}
    decoded = live_columns.Decoded(length, steps, times, generation["group"])
    found = {"turns": turns, "decoded": decoded}
    if len(choices) < 3:
        return found
    steps *= times
    ends = (max(0, min(width - length, steps)) for width in choices[:-1])
    pairs = itertools.pairwise((0, *ends, steps))
    return found | {"shares": tuple((end - start) / steps for start, end in pairs)}
