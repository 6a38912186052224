"""Every program of a run, compiled for a TPU slice that is not there.

The programs are the jitted objects that `train.py` calls, made by the same
constructor (`setup.make_programs`), and a step's are those that `train.one_step` calls
when a recording takes its calls; only their arguments are shapes.
"""

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax import setup, train
from limr_jax.check import check, check_batch
from limr_jax.compilation import decode_traffic, slices
from limr_jax.data.problems import Problems
from limr_jax.data.prompts import PromptBatch, Prompts
from limr_jax.data.special_tokens import SpecialTokens, make_special_tokens
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation import evaluator
from limr_jax.models import from_config, kv_cache
from limr_jax.models.attention import ragged_decode
from limr_jax.models.config import ComputeConfig, ModelConfig
from limr_jax.platform import resolve
from limr_jax.prng import stream_key
from limr_jax.rewards import host, host_grader
from limr_jax.rewards.from_config import is_base, make_judge
from limr_jax.rewards.judge import SharedParams
from limr_jax.rewards.types import Graded
from limr_jax.rollout import drafts
from limr_jax.rollout.sampling import sampling_of
from limr_jax.rollout.slots import SlotPlan
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.samplers.from_config import stand_ins
from limr_jax.sharding import REPLICATED, make_mesh
from limr_jax.step import Frozen, Recording, StepParts


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
    # How often attention to the cache reads each of `kv_cache.widths`, then; or how
    # often an update stays as it is, and learns.
    shares: tuple[float, ...] = ()
    decoded: ragged_decode.Rounds | None = None  # steps of decode's kernel, likewise
    # Of the loops over decode, one for each number of slots: tokens that a step tries.
    step_tokens: tuple[int, ...] = ()
    times: int = 1  # of a step


@dataclasses.dataclass(frozen=True)
class Judged:
    """A judge's one program, and how often a step asks it."""

    mesh: jax.sharding.Mesh
    program: Any
    args: tuple  # shapes with shardings
    params: Any  # shapes of its own copy; None where it is LoRA's base
    times: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """The run that the config describes, on a slice that is not there."""

    mesh: jax.sharding.Mesh
    chip: slices.Chip
    generation: GenerateConfig
    compute: ComputeConfig
    slots: SlotPlan  # of the training rollouts
    prompt_length: int  # L, columns
    shared: bool  # decode's rows read their prompts where these are, and have no copy
    calls: list[Call]
    # Decode's steps by number of slots, lengths simulated; none: not known.
    decoded: list[decode_traffic.Steps]


def plan(config) -> Plan:
    """The programs of this config's run on `slice.type`; InputError in one line."""
    check(config)
    if config.rollout.calls > 1:
        raise InputError(
            f"rollout.calls={config.rollout.calls}: the compile report is of one "
            "generation a step; set it to 1"
        )
    devices = slices.devices(config.slice.type)
    mesh = make_mesh(**config.mesh, devices=devices)
    check_batch(config, mesh)
    special_tokens, vocab_size = planned_tokens(config)
    model_config = planned_model(config.model, vocab_size)
    problems, prompts = _problems(config, mesh)
    generation, compute, jitted = setup.make_programs(
        config, mesh, model_config, special_tokens, problems, prompts
    )
    examined = {"evaluate": 1, "evaluate sampled": train.sampled_responses(config)}
    evaluators = {
        name: evaluator.program(
            mesh, count=len(problems), k=k, generation=generation, compute=compute
        )
        for name, k in examined.items()
        if k and config.data.eval
    }
    length, parts = config.rollout.max_prompt_length, reward_parts(config)
    sampling = sampling_of(**setup.training_sampling(config))
    slots = generation.slot_plan(
        config.prompts_per_step, mesh.shape["data"] * mesh.shape["fsdp"]
    )
    return Plan(
        mesh=mesh,
        chip=slices.CHIPS[slices.SLICES[config.slice.type].chip],
        generation=generation,
        compute=compute,
        slots=slots,
        prompt_length=length,
        shared=decode_traffic.shares(mesh, length, generation, compute.model),
        calls=calls(
            StepParts(
                programs=jitted,
                grade=jitted.grade if parts is None else GradedByHosts(mesh, parts),
                max_rounds=1,
                sampling=jax.tree.map(partial(_like, mesh), sampling),
                seed=_whole(mesh, jnp.uint32),
                fingerprint={},
            ),
            mesh,
            prompts,
            generation=generation,
            compute=compute,
            evaluators=evaluators,
            eval_prompts=prompts,
            micro_batches=planned_micro_batches(config),
            minibatches=config.minibatches_per_step,
            judge=_judge(config, mesh, devices, base=jitted.base),
        ),
        decoded=decode_traffic.planned(
            mesh, length, config.prompts_per_step, generation, compute.model, slots
        ),
    )


def longest_first(calls: list[Call]) -> list[Call]:
    """The calls in the order in which to compile them, two at a time.

    Update and generate come first: they take as long as all the others together.
    """
    return sorted(calls, key=lambda call: call.name not in ("update", "generate"))


def reward_parts(config) -> tuple[str, ...] | None:
    """The parts of a reward that hosts give; None where the graph's verifier grades."""
    if config.reward in ("token", "none"):
        return None
    overlong = ("overlong",) if config.overlong.buffer else ()
    return (*host.parse_spec(config.reward), *overlong)


def _judge(config, mesh, devices, *, base) -> Judged | None:
    """What the report is told of the judge; None without one.

    base: shapes of LoRA's base on the run's `mesh`, which the judge may be.

    With reward=judge a host asks about each of its rollouts; else about those that the
    rules call wrong, and the one question that is counted stands for them.
    """
    if not config.judge.init:
        return None
    if not resolve(config.judge.init).exists():
        raise InputError(
            f"judge.init={config.judge.init} is not on this machine; the report needs "
            "its config.json, tokenizer and tensors' sizes"
        )
    # Each host has a judge of its own, on its own devices.
    here = [d for d in devices if d.process_index == devices[0].process_index]
    shared = SharedParams(mesh, lambda: base) if is_base(config, devices) else None
    own_mesh, program, args = make_judge(config, here, shared=shared).program()
    rollouts = config.prompts_per_step * config.group_size
    # A host's share of the rollouts over the judge's rows, both rounded up.
    questions = -(-rollouts * len(here) // len(devices) // args[1].shape[0])
    return Judged(
        mesh=own_mesh,
        program=program,
        args=args,
        params=None if shared else args[0],
        times=questions if "judge" in host.parse_spec(config.reward) else 1,
    )


def planned_micro_batches(config) -> int:
    """Micro-batches of an update, where every response is as long as it may be."""
    rows = config.prompts_per_step * config.group_size // config.minibatches_per_step
    size = config.micro_batch_rows or rows
    # A packed row holds `row_responses` of full length.
    return -(-rows // (config.row_responses * size))


def planned_tokens(config) -> tuple[SpecialTokens, int]:
    """What programs need of the tokenizer, and its vocabulary; or stand-ins."""
    path = resolve(config.tokenizer)
    if path.exists():
        tokenizer = load_tokenizer(path)
        return make_special_tokens(config, tokenizer), tokenizer.vocab_size
    # Which ids they are changes a program's constants, not its shapes.
    stand_in = SpecialTokens(stop_ids=(0, 1), pad_id=0, eos_id=1, answer_phrase=(2, 3))
    return stand_in, 0


def planned_model(model, vocab_size: int) -> ModelConfig:
    """The checkpoint's model; model.preset's where that is not on this machine."""
    if model.init == "random" or resolve(model.init).exists():
        config = from_config.read_model_config(model, vocab_size)
        if model.lora.init and resolve(model.lora.init).exists():
            from_config.check_adapters(model, config)
        return config
    if not model.preset:
        raise InputError(
            f"model.init={model.init} is not on this machine; give model.preset for "
            "the dimensions of its model"
        )
    return from_config.preset_config(model)


def _problems(config, mesh) -> tuple[Problems, Prompts]:
    """Stand-ins for the data set: its length, and its shapes on the devices."""
    count, answer = config.slice.problems, config.slice.answer_length
    if count < config.prompts_per_step or answer < 1:
        raise InputError(
            f"slice.problems={count} (at least prompts_per_step="
            f"{config.prompts_per_step}) and slice.answer_length={answer} (at least "
            "1) stand in for data.train; give both"
        )
    length = config.rollout.max_prompt_length
    shapes = prompt_shapes(mesh, count, length, answer)
    return stand_ins(config.sampler, count), shapes


def prompt_shapes(mesh, count: int, length: int, answer_length: int) -> Prompts:
    """`put_prompts` of so many problems, as shapes."""
    # `put_prompts` fills N up to a multiple of the devices.
    rows = -(-count // mesh.size) * mesh.size
    at = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def shape(*columns):
        return jax.ShapeDtypeStruct((rows, *columns), jnp.int32, sharding=at)

    return Prompts(shape(length), shape(), shape(answer_length), shape())


def _like(mesh, scalar) -> jax.ShapeDtypeStruct:
    return _whole(mesh, scalar.dtype)


def _whole(mesh, like, *axes) -> jax.ShapeDtypeStruct:
    """The same on every device, of this dtype."""
    at = NamedSharding(mesh, REPLICATED)
    return jax.ShapeDtypeStruct(axes, jnp.dtype(like), sharding=at)


def calls(
    run: StepParts,
    mesh,
    prompts: Prompts,
    *,
    generation: GenerateConfig,
    compute: ComputeConfig,
    micro_batches: int,
    minibatches: int,
    evaluators: dict[str, tuple] | None = None,
    eval_prompts: Prompts | None = None,
    judge: Judged | None = None,
) -> list[Call]:
    """The programs of a run in the order of their first calls.

    Those of a step are what `train.one_step` calls. run: its sampling and seed are
    shapes; prompts: shapes of a set. evaluators: by name, what `evaluator.program`
    gives; "evaluate" is greedy.
    """
    length = prompts.prompt_NL.shape[1]
    before, frozen, alive = _before_steps(
        run,
        mesh,
        prompts,
        evaluators=evaluators or {},
        eval_prompts=eval_prompts,
        # Without a table of drafts.
        evaluation_loops=_loops(length, dataclasses.replace(generation, step_tokens=1)),
        judge_params=judge and judge.params,
    )
    recording = Recording()
    with jax.set_mesh(mesh):
        train.one_step(run, recording, run.programs.state, frozen, prompts)
    loops = _loops_of_learning(micro_batches, minibatches)
    in_step = []
    donated: set[int] = set()
    for called in recording.calls:
        leaves = jax.tree.leaves((alive, called.results))
        alive_now = tuple(x for x in leaves if id(x) not in donated)
        step_call = partial(Call, phase="step", alive=alive_now)
        if called.name == "update":  # the old state's memory is the new one's then
            donated = {id(x) for x in jax.tree.leaves(called.args[0])}
        if called.name == "generate":
            rows = len(called.args[2].ids_P)
            rounds = _rounds(mesh, rows, length, generation, compute.model)
            tokens = _step_tokens(mesh, rows, generation)
            loops["generate"] = _loops(length, generation, rounds, tokens)
        if called.name == "observe" and judge:  # the hosts' grades are there by then
            in_step.append(
                step_call(
                    "judge",
                    mesh=judge.mesh,
                    program=judge.program,
                    args=judge.args,
                    times=judge.times,
                )
            )
        in_step.append(
            step_call(
                called.name,
                mesh=mesh,
                program=called.program,
                args=called.args,
                **loops.get(called.name, {}),
            )
        )
    return before + in_step


def _before_steps(
    run: StepParts,
    mesh,
    prompts: Prompts,
    *,
    evaluators: dict[str, tuple],
    eval_prompts: Prompts | None,
    evaluation_loops: dict,
    judge_params,
) -> tuple[list[Call], Frozen, list]:
    """(the calls of set-up and evaluation, what no step changes, what lies in HBM).

    evaluation_loops: how often an evaluation's loops turn, as fields of `Call`.
    judge_params: shapes of a judge's own; None without one.
    """
    calls, state, programs = [], run.programs.state, run.programs
    learned = state.train.params
    alive: list[Any] = []

    def call(name, phase, program, *, args, **loops):
        calls.append(
            Call(
                name,
                phase=phase,
                mesh=mesh,
                program=program,
                args=args,
                # A copy, as it is at this call: the list grows below.
                alive=tuple(alive),
                **loops,
            )
        )
        with jax.set_mesh(mesh):
            return program.eval_shape(*args)

    reference = programs.base if programs.reference else None
    if programs.copy:
        reference = call("copy", "set-up", programs.copy, args=(learned,))
    frozen = Frozen(programs.base, reference)
    # Not twice, where the base is the reference.
    alive += [programs.base or reference]
    call("init", "set-up", programs.init, args=(learned,))
    alive += [state, prompts, judge_params]
    greedy = jax.tree.map(partial(_like, mesh), sampling_of(temperature=0.0))
    for name, (program, chunk) in evaluators.items():
        alive += [eval_prompts]
        args = (
            frozen.policy(state),
            eval_prompts,
            _whole(mesh, jnp.int32, chunk),
            greedy if name == "evaluate" else run.sampling,
            _key(mesh),
        )
        drawn, rollout = call(
            name, "evaluation", program, args=args, **evaluation_loops
        )
        # Where hosts grade in training they grade the held-out set too.
        if hasattr(run.grade, "lower"):
            name = f"{name}: grade_eval"
            call(name, "evaluation", programs.grade_eval, args=(rollout, drawn))
    return calls, frozen, alive


@dataclasses.dataclass(frozen=True)
class GradedByHosts:
    """In the place of a HostGrader: the shapes of its grades."""

    mesh: jax.sharding.Mesh
    parts: tuple[str, ...]  # of the reward

    def eval_shape(self, rollout: Rollout, drawn: PromptBatch) -> Graded:
        return host_grader.shapes(
            self.mesh, len(drawn.ids_P), rollout.group, parts=self.parts
        )


def _key(mesh) -> jax.ShapeDtypeStruct:
    """The key of a random stream, as a shape."""
    key = jax.eval_shape(lambda: stream_key(0, "eval"))
    at = NamedSharding(mesh, REPLICATED)
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=at)


def _rounds(
    mesh, prompts: int, length: int, generation: GenerateConfig, model_config
) -> tuple[int, ...]:
    """Rounds of refilling, and prompts that a device copies in one, if it copies any.

    An empty tuple: there is a slot for every rollout, so that none is refilled.
    """
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = prompts * generation.paid_group // devices
    slots = generation.slot_plan(prompts, devices).per_device
    if rows <= slots:
        return ()
    shared = decode_traffic.shares(mesh, length, generation, model_config)
    copies = () if shared else (slots,)
    return (-(-rows // slots), *copies)


def _loops_of_learning(micro_batches: int, minibatches: int) -> dict[str, dict]:
    """How often the loops over packed rows turn, by the name of a step's program."""
    # These go over all rollouts of a step, an update over those of a minibatch.
    several_rows = {"turns": (micro_batches * minibatches,)}
    return {
        "reference": several_rows,
        "old": several_rows,
        "values": several_rows,
        "thoughts": several_rows,
        # Its scan over minibatches shows its length. Its conditional asks whether there
        # is anything to learn: the second branch is the one that does.
        "update": {"turns": (micro_batches,), "shares": (0.0, 1.0)},
    }


def _step_tokens(mesh, prompts: int, generation: GenerateConfig) -> tuple[int, ...]:
    """Tokens of a row that a decode step tries, by number of slots."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    with jax.set_mesh(mesh):
        return drafts.loop_tokens(generation, prompts, devices)


def decode_turns(step_tokens: int, *, steps: int = 0, drafted: int = 0):
    """The turns of one loop over decode: of steps of one token, and of several.

    Where a step tries one token alone there is one loop; else one around those two.
    """
    return (steps,) if step_tokens == 1 else (1, drafted, steps)


def _loops(
    length: int,
    generation: GenerateConfig,
    rounds: tuple[int, ...] = (),
    step_tokens: tuple[int, ...] = (1,),
) -> dict:
    """How often `generate.generate`'s loops turn, every response as long as allowed.

    rounds: of refilling, as `_rounds` has them. Turns are these, then decode steps of
    one token; the loops over fewer slots do not turn where all rows end together, and
    drafts are not counted on. step_tokens: by number of slots. Shares are
    of the widths of the cache that attention reads: prompts fill `length` columns. Two
    widths would be taken for a conditional that is on or off: then nothing is said.
    """
    # A rollout's first token comes from its prompt, without a decode step.
    steps = generation.response_length - 1
    turns = (*rounds, *decode_turns(step_tokens[0], steps=steps), 0)
    columns = length + generation.response_length + generation.step_tokens - 1
    choices = kv_cache.widths(columns)
    if not steps:
        return {"turns": turns}
    decoded = ragged_decode.Rounds(length, steps, generation.paid_group)
    loops = {"turns": turns, "decoded": decoded, "step_tokens": step_tokens}
    if len(choices) < 3:
        return loops
    # Prompts of 500, responses of 100, widths 256, 512 and 600: no step reads the
    # first, 12 read the second, and 87 the last.
    ends = (max(0, min(width - length, steps)) for width in choices[:-1])
    pairs = itertools.pairwise((0, *ends, steps))
    return loops | {"shares": tuple((end - start) / steps for start, end in pairs)}
