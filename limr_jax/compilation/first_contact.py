"""The first minutes on devices that nobody has measured yet.

What is there against what the config says; what the devices give at best; whether the
kernels of attention hold; then a few steps of the run's own programs, with random
weights and short responses, each held against the compile report's bound. Neither the
data nor the tokenizer nor a checkpoint's weights need be there, and the workdir is not
touched. All processes of the run call `run`, and each gets the same result.
"""

import contextlib
import copy
import dataclasses
import datetime
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import limr_jax
from limr_jax import console, setup, train
from limr_jax.check import check_batch
from limr_jax.compilation import calls, compile, decode_traffic, peaks, slices
from limr_jax.compilation.compile import Compiled
from limr_jax.compilation.slices import Chip
from limr_jax.data.prompts import Prompts
from limr_jax.errors import InputError
from limr_jax.jit import jit
from limr_jax.models import from_config
from limr_jax.models.attention import kernel_check
from limr_jax.models.config import ModelConfig
from limr_jax.multihost import agree, preemption
from limr_jax.multihost.arrays import put
from limr_jax.rewards.types import Graded
from limr_jax.rollout.sampling import put_sampling
from limr_jax.samplers.from_config import stand_ins
from limr_jax.sharding import BATCH, REPLICATED, make_mesh
from limr_jax.step import Frozen, StepParts

STEPS = 3  # the first one compiles, and is not counted
RESPONSE = 128  # tokens of a response at most
GIB = 2**30
# fp32 numbers that are copied, and sides of matrices: of an accelerator, and of a CPU,
# whose figures are of no interest.
_LARGE, _SMALL = (2**28, 8192), (2**18, 128)


def run(config, say: Callable[[str], None] = console.say) -> dict:
    """All that is found, as JSON has it; `say` is told each part as it is there.

    Raises:
      InputError: the devices are not those of `slice.type`, or the mesh does not lie on
        them; the batch does not divide; the model's dimensions are not known here.
    """
    devices = jax.devices()
    if config.slice.type:
        slices.refuse_other(config.slice.type, devices)
    mesh = make_mesh(**config.mesh)
    check_batch(config, mesh)
    special_tokens, vocab_size = calls.planned_tokens(config)
    model = calls.planned_model(config.model, vocab_size)
    report = {"date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"}
    report |= _versions() | {"devices": _devices(mesh)}
    say(_devices_text(report["devices"]))
    numbers, size = _SMALL if devices[0].platform == "cpu" else _LARGE
    report["peaks"] = {
        "devices": _everywhere(
            "peaks",
            [peaks.rates(x, numbers=numbers, size=size) for x in mesh.local_devices],
        ),
        "collectives": _slowest(peaks.collectives(mesh, numbers=numbers)),
    }
    published = slices.CHIPS.get(slices.chip_of(devices[0]) or "")
    say(_peaks_text(report["peaks"], published))
    model, kernels = _settled(config, model, mesh)
    report["kernels"] = [finding.as_json() for finding in kernels]
    say("\n".join(kernel_check.lines(kernels)) or "kernels: none fits here")
    # Where nothing is published the bound is by what was measured just now.
    chip = published or _measured_chip(report["peaks"])
    report["bound_by"] = "published peaks" if published else "measured peaks"
    short = shortened(config, mesh)
    report["steps"] = _steps(
        short, mesh, model, chip=chip, special_tokens=special_tokens, say=say
    )
    report["config"] = config.to_dict()
    say(_programs_text(report["steps"], report["bound_by"]))
    return report


def shortened(config, mesh):
    """A copy of the config with short responses, and no more prompts than are needed.

    Where slots are set: as many prompts as fill them once, as far as the batch divides.
    """
    short = copy.deepcopy(config)
    with short.unlocked():
        short.rollout.max_response_length = min(
            RESPONSE, config.rollout.max_response_length
        )
        # The report is of one generation a step.
        short.rollout.calls = 1
        short.num_steps = STEPS
        # The model is made, not read.
        short.model.init, short.model.lora.init = "random", ""
    if not config.rollout.slots:
        return short
    unit = mesh.shape["data"] * mesh.shape["fsdp"] * config.minibatches_per_step
    least = -(-config.rollout.slots // config.group_size)
    for prompts in range(-(-least // unit) * unit, config.prompts_per_step, unit):
        smaller = copy.deepcopy(short)
        with smaller.unlocked():
            smaller.prompts_per_step = prompts
        with contextlib.suppress(InputError):  # it does not divide
            check_batch(smaller, mesh)
            return smaller
    return short


def _versions() -> dict[str, Any]:
    return {
        "version": limr_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        # libtpu's, or XLA's.
        "platform_version": jax.devices()[0].client.platform_version[:200],
    }


# --- What is there ------------------------------------------------------------------


def _devices(mesh) -> dict[str, Any]:
    devices = list(mesh.devices.flat)
    return {
        "kind": devices[0].device_kind,
        "chip": slices.chip_of(devices[0]),
        "count": len(devices),
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        # Of each, in the mesh's order; a CPU has none.
        "coordinates": [getattr(x, "coords", None) for x in devices],
        "memory": _everywhere("memory", [_memory(x) for x in mesh.local_devices]),
    }


def _memory(device) -> dict[str, float | None]:
    """GiB that a program may use, and that are free; None where JAX does not say."""
    stats = device.memory_stats() or {}
    limit, used = stats.get("bytes_limit"), stats.get("bytes_in_use", 0)
    if limit is None:
        return {"limit_gib": None, "free_gib": None}
    return {"limit_gib": limit / GIB, "free_gib": (limit - used) / GIB}


def _everywhere(name: str, rows: list) -> list:
    """The rows of all processes, one after another."""
    return [row for rows in agree.exchange(name, rows) for row in rows]


def _slowest(rates: dict) -> dict:
    """Of all processes the least of each rate: of one axis and kind of collective."""
    reports = agree.exchange("collectives", rates)
    return {
        axis: {kind: min(report[axis][kind] for report in reports) for kind in kinds}
        for axis, kinds in rates.items()
    }


def _settled(config, model: ModelConfig, mesh):
    """The model with the kernels that hold, at the lengths of the config itself.

    A kernel that the config demands and that fails is reported here, and ends nothing.
    """
    tolerant = copy.deepcopy(config)
    if config.model.attention in kernel_check.KERNELS:
        with tolerant.unlocked():
            tolerant.model.attention = "auto"
    return setup.settle_kernels(tolerant, model, mesh)


def _measured_chip(measured: dict) -> Chip:
    """What was measured, in the place of published peaks: of the slowest device."""
    sent = [x for kinds in measured["collectives"].values() for x in kinds.values()]
    return Chip(
        flops=min(x["flops_per_second"] for x in measured["devices"]),
        hbm_bandwidth=min(x["bytes_per_second"] for x in measured["devices"]),
        # One device sends nothing.
        ici_bandwidth=min(sent, default=math.inf),
        hbm_gib=math.inf,
    )


# --- The steps ----------------------------------------------------------------------


class Timed:
    """In the place of `step.Phases`: each program by itself, run to its end."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def __call__(self, name, program, *args):
        begun = time.perf_counter()
        out = jax.block_until_ready(program(*args))
        spent = time.perf_counter() - begun
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        return out

    start = queue = __call__

    def wait(self, name, arrays):
        return arrays

    def agree(self, *what) -> None:
        agree.require_same_step(*what)

    def learning(self):
        return preemption.update()

    def reached(self, whole) -> bool:
        return bool(jax.device_get(whole))


def _steps(
    config, mesh, model: ModelConfig, *, chip: Chip, special_tokens, say
) -> dict:
    """Each program's bound and time; memory at most, foreseen and seen."""
    # No token has this id: every response is as long as allowed, as the bound has it.
    special_tokens = dataclasses.replace(special_tokens, stop_ids=(model.vocab_size,))
    prompts = _random_prompts(config, mesh, model.vocab_size)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), prompts
    )
    generation, compute, programs = setup.make_programs(
        config,
        mesh,
        model,
        special_tokens,
        problems=stand_ins(config.sampler, _problems(config)),
        prompts=shapes,
    )
    parts = StepParts(
        programs=programs,
        grade=_every_other(mesh, calls.reward_parts(config)),
        max_rounds=1,
        sampling=put_sampling(mesh, **setup.training_sampling(config)),
        seed=put(np.uint32(config.seed), NamedSharding(mesh, REPLICATED)),
        fingerprint=setup.fingerprint(config),
    )
    length = config.rollout.max_prompt_length
    listed = calls.calls(
        parts,
        mesh,
        shapes,
        generation=generation,
        compute=compute,
        micro_batches=calls.planned_micro_batches(config),
        minibatches=config.minibatches_per_step,
    )
    plan = calls.Plan(
        mesh=mesh,
        chip=chip,
        generation=generation,
        compute=compute,
        slots=generation.slot_plan(
            config.prompts_per_step, mesh.shape["data"] * mesh.shape["fsdp"]
        ),
        prompt_length=length,
        shared=decode_traffic.shares(mesh, length, generation, model),
        calls=listed,
        decoded=[],
    )
    compiled = compile.compile_all(
        plan, lambda one: say(f"compiled {one.name} in {one.seconds:.0f} s")
    )
    unfit = next((x for x in compiled if x.error), None)
    spent, error = [], unfit and f"{unfit.name} does not fit: {unfit.error[:300]}"
    if not error:
        # What a device refuses is what this is to find out: the rest is kept.
        try:
            with jax.set_mesh(mesh):
                spent = _run_steps(config, mesh, model, parts=parts, prompts=prompts)
        except jax.errors.JaxRuntimeError as failed:
            error = " ".join(str(failed).split())[:300]
    # A CPU's devices say nothing of theirs.
    stats = [x.memory_stats() or {} for x in mesh.local_devices]
    used = _everywhere("peak", [x.get("peak_bytes_in_use") for x in stats])
    foreseen = max(compiled, key=lambda program: program.total)
    return {
        "prompts": config.prompts_per_step,
        "rollouts": config.prompts_per_step * config.group_size,
        "prompt_length": length,
        "response_length": generation.response_length,
        "error": error,  # None: all steps ran
        "programs": [_held(program, spent, chip) for program in compiled],
        "most_in_hbm": {
            "program": foreseen.name,
            "foreseen_gib": foreseen.total / GIB,
            # Of all that ran in these processes, the peaks' arrays included.
            "seen_gib": max(used) / GIB if None not in used else None,
        },
    }


def _held(program: Compiled, spent: list[dict[str, float]], chip: Chip) -> dict:
    """A program's bound beside its time."""
    bound = program.bound(chip)
    times = [step[program.name] for step in spent if program.name in step]
    # `copy` and `init` ran once, which compiled them: there is no time of theirs.
    measured = min(times[1:], default=None)
    most = max(bound.values())
    return {
        "name": program.name,
        "phase": program.phase,
        "error": program.error,
        "bound_seconds": bound,
        "limited_by": max(bound, key=bound.get),
        "predicted_seconds": most,
        "measured_seconds": measured,
        "share_of_bound": most / measured if measured else None,
        "first_seconds": times[0] if times else None,
        "flops": program.flops,
        "hbm_bytes": program.hbm_bytes,
        "total_gib": program.total / GIB,
        "kernels": program.kernels,
    }


def _run_steps(config, mesh, model, *, parts: StepParts, prompts) -> list[dict]:
    """The seconds of each program of each step, by name."""
    programs = parts.programs
    base = from_config.load_base(config, model, mesh)
    params = from_config.load_learned(config, model, mesh)
    reference = base if programs.reference else None
    if programs.copy:
        reference = programs.copy(params)
    state, frozen = programs.init(params), Frozen(base, reference)
    spent = []
    for _ in range(STEPS):
        phases = Timed()
        state, *_ = train.one_step(parts, phases, state, frozen, prompts)
        spent.append(phases.seconds)
    return spent


def _problems(config) -> int:
    """How many stand in for the data: no fewer than any sampler may want in a step."""
    sampler = config.sampler
    batches = max(1, config.filter.max_rounds, sampler.mopps.pool, sampler.bots.pool)
    return max(config.slice.problems, batches * config.prompts_per_step)


def _random_prompts(config, mesh, vocab_size: int) -> Prompts:
    """Prompts of full length on the devices, as `put_prompts` lays them."""
    at = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    count = _problems(config)
    rows, fill = count + -count % mesh.size, -count % mesh.size
    length, answer = config.rollout.max_prompt_length, config.slice.answer_length or 1
    random = np.random.default_rng(config.seed)

    def tokens(columns):
        return random.integers(0, vocab_size, (rows, columns), dtype=np.int32)

    def lengths(columns):
        return np.pad(np.full(count, columns, np.int32), (0, fill))

    arrays = Prompts(tokens(length), lengths(length), tokens(answer), lengths(answer))
    return jax.tree.map(lambda x: put(x, at), arrays)


def _every_other(mesh, parts: tuple[str, ...] | None) -> Callable:
    """Grades as a run's grader gives them: every second rollout of a problem is right.

    So every group has something to learn from. parts: of the hosts' reward, or None.
    """

    def grade(rollout, drawn) -> Graded:
        shape = len(drawn.ids_P), rollout.group
        right_PG = jnp.broadcast_to(
            jnp.arange(shape[1], dtype=jnp.int32)[None] % 2, shape
        ).astype(jnp.float32)
        valid_PG = jnp.ones(shape, bool)
        if rollout.asked_B is not None:
            valid_PG &= rollout.asked_B.reshape(shape)
        return Graded(
            reward_PG=right_PG,
            correct_PG=right_PG,
            valid_PG=valid_PG,
            well_formed_PG=valid_PG,
            parts=dict.fromkeys(parts or (), right_PG),
            reason_PG=jnp.zeros(shape, jnp.int8),
        )

    return jit(mesh, grade, out_shardings=NamedSharding(mesh, BATCH))


# --- As a person reads it -----------------------------------------------------------


def _devices_text(devices: dict) -> str:
    mesh = " x ".join(f"{name} {size}" for name, size in devices["mesh"].items())
    free = [x["free_gib"] for x in devices["memory"]]
    memory = "memory not said"
    if None not in free:
        limit = min(x["limit_gib"] for x in devices["memory"])
        memory = f"{min(free):.2f} of {limit:.2f} GiB free"
    return (
        f"{devices['count']} devices, {devices['kind']}, of {devices['processes']} "
        f"processes; mesh {mesh}; {memory}"
    )


def _peaks_text(measured: dict, chip: Chip | None) -> str:
    def share(rate, peak):
        return f" ({rate / peak:.0%} of the published peak)" if peak else ""

    flops = min(x["flops_per_second"] for x in measured["devices"])
    memory = min(x["bytes_per_second"] for x in measured["devices"])
    lines = [
        f"the slowest device: bf16 products {flops / 1e12:,.2f} TFLOP/s"
        f"{share(flops, chip and chip.flops)}, memory {memory / 1e9:,.1f} GB/s"
        f"{share(memory, chip and chip.hbm_bandwidth)}"
    ]
    for axis, kinds in measured["collectives"].items():
        # An axis has some of the chip's links, the peak is of all of them.
        lines += [
            f"{kind} along {axis}: each device sends {rate / 1e9:,.2f} GB/s"
            f"{share(rate, chip and chip.ici_bandwidth)}"
            for kind, rate in kinds.items()
        ]
    return "\n".join(lines)


def _programs_text(steps: dict, bound_by: str) -> str:
    if steps["error"]:
        return f"the steps failed: {steps['error']}"
    lines = [
        f"{steps['rollouts']:,} rollouts of {steps['response_length']:,} tokens to "
        f"prompts of {steps['prompt_length']:,}, random weights; bounds by {bound_by}",
        "program            predicted s  measured s  share of bound  limited by",
    ]
    for row in steps["programs"]:
        measured, share = row["measured_seconds"], row["share_of_bound"]
        if measured is None:
            continue
        lines.append(
            f"{row['name']:<18} {row['predicted_seconds']:>11.4f} {measured:>11.4f} "
            f"{share:>15.1%}  {row['limited_by']}"
        )
    most = steps["most_in_hbm"]
    if most["seen_gib"] is not None:
        lines.append(
            f"memory at most: {most['foreseen_gib']:.2f} GiB foreseen "
            f"({most['program']}), {most['seen_gib']:.2f} GiB seen"
        )
    return "\n".join(lines)
