"""Every program of a run, compiled for a TPU slice that is not there.

The programs are the jitted objects that `train.py` calls, made by the same
constructor (`run.make_programs`); only their arguments are shapes.
"""

import concurrent.futures
import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax import (
    chips,
    data,
    evaluate,
    flops,
    hlo,
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
    program: Any  # the jitted object that train.py calls
    args: tuple  # shapes with shardings
    alive: tuple  # what else lies in HBM meanwhile; may repeat what is in args
    # Of the loops whose number of turns depends on data, in the order in which they
    # begin, where every response is as long as allowed and every row is kept.
    turns: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The run that the config describes, on a slice that is not there."""

    mesh: jax.sharding.Mesh
    chip: chips.Chip
    generation: dict  # what `rollout.generate` takes beside arrays
    prompt_length: int  # L, columns
    calls: list[Call]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program; bytes and FLOPs are of one chip."""

    name: str
    phase: str
    seconds: float  # tracing, lowering and compiling
    error: str  # of a program that does not fit; else empty
    arguments: int
    output: int  # what is not an argument's buffer anew
    temporaries: int
    code: int
    elsewhere: int  # in HBM meanwhile, but no argument
    flops: float
    hbm_bytes: float
    collectives: dict[str, tuple[float, float]]  # kind → (how often, bytes sent)

    @property
    def total(self) -> int:
        """Bytes in HBM at once while it runs, its own and others'."""
        own = self.arguments + self.output + self.temporaries + self.code
        return own + self.elsewhere

    def bound(self, chip: chips.Chip) -> dict[str, float]:
        """Seconds that computing, HBM and the interconnect take at least."""
        sent = sum(size for _, size in self.collectives.values())
        return {
            "compute": self.flops / chip.flops,
            "memory": self.hbm_bytes / chip.hbm_bandwidth,
            "interconnect": sent / chip.ici_bandwidth,
        }


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
    parts = None
    if config.reward not in ("token", "none"):
        parts = tuple(reward.parse_spec(config.reward))
        parts += ("overlong",) if config.overlong.buffer else ()
    return Plan(
        mesh,
        chips.CHIPS[chips.SLICES[config.slice.type].chip],
        generation,
        config.rollout.max_prompt_length,
        calls(
            mesh,
            made,
            prompts,
            parts=parts,
            generation=generation,
            evaluators=evaluators,
            eval_prompts=prompts,
            micro_batches=_micro_batches(config),
            minibatches=config.minibatches_per_step,
        ),
    )


def _micro_batches(config) -> int:
    """Of one update."""
    rows = config.prompts_per_step * config.group_size // config.minibatches_per_step
    return rows // (config.micro_batch_rows or rows)


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


def _graded(mesh, written, parts) -> Graded:
    """What the hosts' graders give, as shapes."""
    shape = (written.prompt_PL.shape[0], written.group)
    at = NamedSharding(mesh, BATCH)
    real, truth = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=at)
        for dtype in (jnp.float32, jnp.bool_)
    )
    return Graded(real, real, truth, truth, dict.fromkeys(parts, real))


def calls(
    mesh,
    made: Programs,
    prompts: data.Prompts,
    *,
    parts: tuple[str, ...] | None,
    generation: dict,
    micro_batches: int,
    minibatches: int,
    evaluators: dict[str, tuple] | None = None,
    eval_prompts: data.Prompts | None = None,
) -> list[Call]:
    """The programs of a run in the order of their first calls.

    prompts: shapes of a set. parts: of a reward graded on the hosts; None: the graph's
    verifier grades. evaluators: by name, what `evaluate.program` gives.
    """
    found, alive, state = [], [], made.state
    params = state.train.params

    def whole(like, *axes):
        like, at = jnp.dtype(like), NamedSharding(mesh, REPLICATED)
        return jax.ShapeDtypeStruct(axes, like, sharding=at)

    def call(name, phase, program, *args, turns=(1,)):
        found.append(Call(name, phase, program, args, tuple(alive), turns))
        with jax.set_mesh(mesh):
            return program.eval_shape(*args)

    real, key = whole(jnp.float32), _key(mesh)
    sampling = rollout.Sampling(real, real, top_k=whole(jnp.int32), min_p=real)
    reference = call("copy", "set-up", made.copy, params) if made.copy else None
    alive += [reference]
    call("init", "set-up", made.init, params)
    alive += [state, prompts]
    for name, (program, chunk) in (evaluators or {}).items():
        alive += [eval_prompts]
        args = (params, eval_prompts, whole(jnp.int32, chunk), sampling, key)
        steps = (generation["response_length"] - 1, 0)
        drawn, written = call(name, "evaluation", program, *args, turns=steps)
        if parts is None:
            call(f"{name}: examine", "evaluation", made.examine, written, drawn)
    args = (state, prompts, whole(jnp.uint32))
    sampler_state, drawn = call("draw", "step", made.draw, *args)
    alive += [sampler_state, drawn]
    args = (params, state.step, drawn, sampling, args[-1])
    steps = _decode_turns(mesh, drawn.ids_P.size, generation)
    written = call("generate", "step", made.generate, *args, turns=steps)
    alive += [written]
    graded = _graded(mesh, written, parts) if parts is not None else None
    graded = graded or call("verify", "step", made.verify, written, drawn)
    call("observe", "step", made.observe, written, graded)
    new = (drawn, written, graded)
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


def _decode_turns(mesh, prompts: int, generation: dict) -> tuple[int, ...]:
    """Turns of the loops of `rollout.generate`, every response as long as allowed.

    Rounds of refilling, rows that a device refills in one, decode steps of one; the
    loops over fewer slots do not turn where all rows end together.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = prompts * generation["group"] // devices
    slots = min(generation["slots"] // devices, rows)
    steps = generation["response_length"] - 1
    rounds = (-(-rows // slots), slots) if rows > slots else ()
    return (*rounds, steps, 0)


def compile_all(made: Plan, tell=lambda compiled: None) -> list[Compiled]:
    """Compile every program, two at a time; `tell` is called as each is done."""
    done = {}
    # The largest first: they take as long as all the others together.
    order = sorted(made.calls, key=lambda call: call.name not in ("update", "generate"))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {pool.submit(_compile, call, made.mesh): call for call in order}
        for future in concurrent.futures.as_completed(futures):
            compiled = future.result()
            done[futures[future].name] = compiled
            tell(compiled)
    return [done[call.name] for call in made.calls]


def _compile(call: Call, mesh) -> Compiled:
    begun, error, memory, moved = time.perf_counter(), "", None, hlo.Cost()
    with jax.set_mesh(mesh):
        traced = call.program.trace(*call.args)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as failed:
            error = " ".join(str(failed).split())
            if "RESOURCE_EXHAUSTED" not in error:
                raise
        else:
            memory = compiled.memory_analysis()
            moved = hlo.cost(compiled.as_text(), turns=call.turns)
    given = jax.tree.leaves(call.args)
    ids = {id(shape) for shape in given}
    others = {
        id(shape): chip_bytes(shape)
        for shape in jax.tree.leaves(call.alive)
        if id(shape) not in ids
    }
    sizes = {
        "arguments": sum(map(chip_bytes, given)),
        "output": 0,
        "temporaries": wanted(error),
        "code": 0,
    }
    if memory:
        sizes = {
            "arguments": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }
    return Compiled(
        name=call.name,
        phase=call.phase,
        seconds=time.perf_counter() - begun,
        error=error,
        **sizes,
        elsewhere=sum(others.values()),
        flops=flops.flops(traced.jaxpr, turns=call.turns) / mesh.size,
        hbm_bytes=moved.hbm_bytes
        + flops.kernel_bytes(traced.jaxpr, turns=call.turns) / mesh.size,
        collectives=moved.collectives,
    )


def wanted(error: str) -> int:
    """Bytes that the compiler says a program would have needed; 0: it does not say."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds", error) or re.search(
        r"Used ([\d.]+)([KMG]) of", error
    )
    if not found:
        return 0
    return int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])


def chip_bytes(shape: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one chip."""
    count = 1
    for size in shape.sharding.shard_shape(shape.shape):
        count *= size
    return count * shape.dtype.itemsize
