"""What the compiled programs say of a run: what fits, and how fast it could be.

Times are bounds, not measurements: each program's longest of FLOPs over the chip's
peak, HBM bytes over its bandwidth, and collectives' bytes over its interconnect, with
every response as long as allowed.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax.compilation import decode_traffic
from limr_jax.compilation.calls import Plan
from limr_jax.compilation.compile import Compiled, chip_bytes
from limr_jax.models import int8, transformer
from limr_jax.rewards.from_config import int8_base

GIB = 2**30
LEAST = 0.05  # GiB: what frees less is no advice


def report(config, plan: Plan, programs: list[Compiled], cost: dict) -> dict:
    """All that `text` prints, as JSON has it. cost: of the report itself, by name."""
    chip = plan.chip
    limit = chip.hbm_gib * GIB
    step = [program for program in programs if program.phase == "step"]
    rollouts = config.prompts_per_step * config.group_size
    tokens = rollouts * config.rollout.max_response_length
    # Programs run one after another; within one the three may overlap.
    bound = sum(max(p.bound(chip).values()) for p in step)
    at_most = max(programs, key=lambda p: p.total)
    return {
        "slice": config.slice.type,
        "chips": plan.mesh.size,
        "mesh": dict(plan.mesh.shape),
        "hbm_gib_a_chip": chip.hbm_gib,
        "fits": at_most.total <= limit and not any(p.error for p in programs),
        "programs": [_row(p, plan) for p in programs],
        "most_in_hbm": {"program": at_most.name, "gib": at_most.total / GIB},
        "rollouts": _waves(config, plan, programs=programs, limit=limit),
        "decode": decode(plan, programs),
        "not_compiled": not_compiled(config, plan),
        "bound": {
            "seconds_a_step": bound,
            "tokens_a_second_a_chip": tokens / bound / plan.mesh.size if bound else 0,
            "hours": bound * config.num_steps / 3600,
            "steps": config.num_steps,
        },
        "compiling": cost,
        "advice": advice(config, plan, programs=programs, limit=limit),
    }


def _row(program: Compiled, plan: Plan) -> dict:
    bound = program.bound(plan.chip)
    return {
        "name": program.name,
        "phase": program.phase,
        "error": program.error,
        "arguments_gib": program.arguments / GIB,
        "output_gib": program.output / GIB,
        "temporaries_gib": program.temporaries / GIB,
        "code_gib": program.code / GIB,
        "elsewhere_gib": program.elsewhere / GIB,
        "total_gib": program.total / GIB,
        "share_of_hbm": program.total / GIB / plan.chip.hbm_gib,
        "flops": program.flops,
        "hbm_bytes": program.hbm_bytes,
        "collectives": {
            kind: {"count": count, "bytes": size}
            for kind, (count, size) in program.collectives.items()
        },
        "kernels": program.kernels,
        "bound_seconds": bound,
        "limited_by": max(bound, key=bound.get),
        "compile_seconds": program.seconds,
    }


def _waves(config, plan: Plan, programs: list[Compiled], limit: float) -> dict:
    """Rollouts that fit at a time at most: a slot more takes its cache at least."""
    rollouts = config.prompts_per_step * config.group_size
    slots = plan.generation.slots
    each = column_bytes(plan) * slot_columns(plan)
    prompts = config.prompts_per_step * plan.prompt_length  # their columns
    generate = next(p for p in programs if p.name == "generate")
    free = max(0.0, limit - generate.total)
    # A slot's row lies on one device of data x fsdp, its heads along tensor.
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    unit = by_rows * config.group_size
    # `each` is a chip's, so every device of by_rows has room for as many more.
    fit = slots + free / each * by_rows
    return {
        "a_step": rollouts,
        "slots": slots,
        "waves": math.ceil(rollouts / slots),
        "cache_gib_a_chip": each * slots / by_rows / GIB,
        "prompts_gib_a_chip": prompts * column_bytes(plan) / by_rows / GIB,
        "fit_at_a_time": 0 if generate.error else int(fit // unit * unit),
    }


def decode(plan: Plan, programs: list[Compiled]) -> dict | None:
    """Bytes that a decode step moves over weights and live cache, lengths simulated.

    By number of slots, and of all steps. `scheduled`: the weights, and what attention
    reads and writes back, by arithmetic; `compiled`: all that the compiled program
    moves. None where nothing is decoded, or the schedule is not known.
    """
    if not any(part.steps for part in plan.decoded):
        return None
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    weights, as_compute = decode_weights(plan)
    column = column_bytes(plan)
    # None: it did not compile.
    moved = next(p.decode_bytes for p in programs if p.name == "generate") or None
    measured = [
        (part, bytes_)
        for part, bytes_ in zip(plan.decoded, moved or itertools.repeat(None))
        if part.steps
    ]

    def ratios(measured):
        parts = [part for part, _ in measured]
        least = decode_traffic.must(parts, weights=weights, column=column)
        return {
            "scheduled": decode_traffic.ratio(parts, weights=weights, column=column),
            "compiled": moved and sum(p.steps * size for p, size in measured) / least,
        }

    steps = sum(part.steps for part, _ in measured)
    return {
        **ratios(measured),
        "weights_bytes": weights,
        "weights_of_compute": weights / as_compute,
        "compiled_bytes": moved and sum(p.steps * size for p, size in measured) / steps,
        "drafts": _drafts(plan, programs, by_rows),
        "parts": [
            {
                "slots": part.slots * by_rows,
                "steps": part.steps,
                **ratios([(part, size)]),
            }
            for part, size in measured
        ],
    }


def _drafts(plan: Plan, programs: list[Compiled], by_rows: int) -> dict | None:
    """What a decode step with drafts takes of one without, by the chip's bounds.

    So many tokens of each row a step must give on average to pay. None: no loop has
    drafts, or it did not compile.
    """
    generate = next(p for p in programs if p.name == "generate")
    if not generate.drafted:
        return None
    call = next(call for call in plan.calls if call.name == "generate")
    number = next(i for i, tokens in enumerate(call.step_tokens) if tokens > 1)
    seconds = [
        max(flops / plan.chip.flops, size / plan.chip.hbm_bandwidth)
        for flops, size in (generate.drafted[:2], generate.drafted[2:])
    ]
    return {
        "slots": plan.slots.sizes[number] * by_rows,
        "tokens": call.step_tokens[number],
        "seconds": seconds[0],
        "drafted_seconds": seconds[1],
        "pays_from": seconds[1] / seconds[0],
    }


def decode_weights(plan: Plan) -> tuple[float, float]:
    """Bytes of weights that a decode step reads on a chip, and were none of them int8.

    The latter in the dtype of compute.
    """
    params = next(call.args[0] for call in plan.calls if call.name == "generate")
    # A step reads its tokens' rows of an embedding that is not the head too.
    read = params if plan.compute.model.tied else params | {"embedder": {}}
    dtype = plan.compute.dtype
    cast = jax.eval_shape(partial(transformer.compute_params, dtype=dtype), read)
    # Decode reads a copy that is gathered over fsdp: tensor alone divides it.
    sizes = [x.size / plan.mesh.shape["tensor"] for x in jax.tree.leaves(cast)]
    own = sum(n * x.dtype.itemsize for n, x in zip(sizes, jax.tree.leaves(cast)))
    return own, sum(sizes) * jnp.dtype(dtype).itemsize


def not_compiled(config, plan: Plan) -> list[dict]:
    """What else a run of several hosts launches: copies of arrays that programs made.

    With the bytes that they take on a chip for as long as they take.
    """
    if len({device.process_index for device in plan.mesh.devices.flat}) == 1:
        return []
    # `observe` has all of a round's rollouts and grades among its arguments.
    *_, written, graded = next(c.args for c in plan.calls if c.name == "observe")
    dumped = (graded, written.response_BT, written.mask_BT, written.truncated_B)
    copies = {}
    # Gathered by replicating: every chip holds all of it.
    if config.dump.max_bytes:
        copies["on_host: a step's rollouts, for the dump"] = sum(_whole(dumped))
    if graded.parts:  # the first copy of each device's rows
        copies["HostGrader: the hosts' grades"] = _bytes(graded)
    return [{"name": name, "gib": size / GIB} for name, size in copies.items()]


def _whole(shapes) -> list[int]:
    """Bytes of each array of a pytree of shapes, where one device holds all of it."""
    return [x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)]


def slot_columns(plan: Plan) -> int:
    """Columns of a rollout's row in the cache; a shared prompt's are not of them."""
    own = plan.generation.response_length
    if plan.shared:
        return own
    return plan.prompt_length + own + plan.generation.step_tokens - 1


def column_bytes(plan: Plan) -> float:
    """Bytes that one column of one row takes on a chip: keys and values, all layers."""
    config = plan.compute.model
    tensor = plan.mesh.shape["tensor"]
    # Kv heads that tensor does not divide are whole on every device.
    heads = config.kv_heads / (tensor if config.kv_heads % tensor == 0 else 1)
    size = jnp.dtype(plan.compute.dtype).itemsize
    # Keys, and as many values.
    return 2 * config.layers * heads * config.head_dim * size


def advice(config, plan: Plan, programs: list[Compiled], limit: float) -> list[dict]:
    """The three settings that would free most HBM where a program does not fit.

    What each frees is arithmetic, not compiled: half of what grows with it.
    """
    over = {p.name for p in programs if p.error or p.total > limit}
    if not over:
        return []
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    columns = plan.prompt_length + plan.generation.response_length
    own = slot_columns(plan)
    response = config.rollout.max_response_length
    arguments = {call.name: call.args for call in plan.calls}
    slots = plan.generation.slots
    state, *_, base = arguments["update"]  # the base is LoRA's, or None
    learning = {"update", "reference", "old", "values", "thoughts"} & over
    rows, kept, without_remat = _activations(config, plan) if learning else (0, 0, 0)
    writing = {"generate", "evaluate", "evaluate sampled"} & over
    cache = column_bytes(plan) * own * slots / by_rows if writing else 0
    # Half of what is kept for the response's share of the columns, and half of what
    # slots hold for it.
    shorter = (kept / columns + cache / own) * response / 2
    options = [
        (f"--config.rollout.max_response_length={response // 2}", shorter),
        ("twice the chips, on mesh.fsdp", _bytes((state, base)) / 2),
    ]
    # Halves that do not divide over the devices would be refused.
    if learning and rows % (2 * by_rows) == 0:
        options.append((f"--config.micro_batch_rows={rows // 2}", kept / 2))
    if learning and not config.model.remat:
        options.append(("--config.model.remat=true", without_remat))
    if writing and slots % (2 * by_rows) == 0:
        options.append((f"--config.rollout.slots={slots // 2}", cache / 2))
    # Whose reference is the base has no copy that a KL of 0 would free.
    if config.kl.coefficient and base is None:
        options.append(("--config.kl.coefficient=0", _bytes(arguments["reference"][0])))
    if base is not None and config.model.base_dtype != "int8":
        changes = int8_base(config, plan.mesh.devices.flat)
        setting = " ".join(f"--config.{name}={x}" for name, x in changes.items())
        options.append((setting, _bytes_less_by_int8(base)))
    options.sort(key=lambda option: -option[1])
    settings = [{"setting": name, "frees_gib": freed / GIB} for name, freed in options]
    return [row for row in settings[:3] if row["frees_gib"] >= LEAST]


def _bytes(shapes) -> int:
    """Bytes that a pytree of shapes with shardings takes on one chip."""
    return sum(map(chip_bytes, jax.tree.leaves(shapes)))


def _bytes_less_by_int8(base) -> float:
    """Bytes on a chip by which a base's kernels would be smaller as int8."""
    less = []

    def replace(path, kernel, axes):
        less.append(chip_bytes(kernel) * (1 - 1 / kernel.dtype.itemsize))
        return kernel, None  # their scales are a thousandth of them

    int8.replace_kernels(base, replace)
    return sum(less)


def _activations(config, plan: Plan) -> tuple[int, float, float]:
    """Rows of a micro-batch, bytes kept of them on a chip, what remat would free."""
    model = plan.compute.model
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    columns = plan.prompt_length + (
        config.row_responses * plan.generation.response_length
    )
    rollouts = config.prompts_per_step * config.group_size
    rows = config.micro_batch_rows or rollouts // config.minibatches_per_step
    size = jnp.dtype(plan.compute.dtype).itemsize
    # The input of each layer, which is all that remat keeps.
    inputs = rows / by_rows * columns * model.width * size * model.layers
    if config.model.remat:
        return rows, inputs, 0
    # A layer keeps its norms, heads and gates too, and the scores.
    whole = 6 * model.width + 4 * model.mlp_width + model.heads * columns
    kept = inputs * whole / model.width
    return rows, kept, kept - inputs


def text(report: dict) -> str:
    """The report as a person reads it."""
    mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
    lines = [
        f"{report['slice']}: {report['chips']} chips of "
        f"{report['hbm_gib_a_chip']} GiB, mesh {mesh}",
        "",
        "GiB a chip         arguments  output  temporaries  elsewhere  total  of HBM"
        "   TFLOPs      GB  compile s",
    ]
    for row in report["programs"]:
        lines.append(
            f"{row['name']:<18} {row['arguments_gib']:>9.2f} {row['output_gib']:>7.2f} "
            f"{row['temporaries_gib']:>12.2f} {row['elsewhere_gib']:>10.2f} "
            f"{row['total_gib']:>6.2f} {row['share_of_hbm']:>6.0%} "
            f"{row['flops'] / 1e12:>9.1f} {row['hbm_bytes'] / 1e9:>8.1f} "
            f"{row['compile_seconds']:>9.1f}"
        )
        if row["error"]:
            lines.append(f"  does not fit: {row['error'][:300]}")
    lines += ["", "collectives a chip sends"]
    for row in report["programs"]:
        for kind, sent in row["collectives"].items():
            lines.append(
                f"{row['name']:<18} {kind:<20} {sent['count']:>10,.0f} times "
                f"{sent['bytes'] / 1e9:>10.2f} GB"
            )
    lines += ["", "seconds at least    compute   memory  interconnect  (a bound)"]
    for row in report["programs"]:
        bound = row["bound_seconds"]
        lines.append(
            f"{row['name']:<18} {bound['compute']:>8.2f} {bound['memory']:>8.2f} "
            f"{bound['interconnect']:>13.2f}  {row['limited_by']}"
        )
    return "\n".join([*lines, "", *_summary(report)])


def _decoded(ratios: dict | None) -> list[str]:
    if ratios is None:
        return []
    lines = []
    for kind, what in (
        ("compiled", "moves, as it is compiled,"),
        ("scheduled", "moves, by arithmetic,"),
    ):
        if ratios[kind] is None:
            continue  # it did not compile
        parts = ", ".join(
            f"{part[kind]:.2f} in {part['slots']:,} slots ({part['steps']:,} steps)"
            for part in ratios["parts"]
        )
        lines.append(
            f"a decode step {what} {ratios[kind]:.2f} times the weights and live "
            f"cache, of simulated lengths: {parts}"
        )
    line = f"a decode step reads {ratios['weights_bytes'] / 1e9:.3f} GB of weights"
    if ratios["weights_of_compute"] < 1:  # norms are fp32
        line += f", {ratios['weights_of_compute']:.3f} of what no int8 would be"
    if ratios["compiled_bytes"]:
        line += f", and moves {ratios['compiled_bytes'] / 1e9:.3f} GB as it is compiled"
    lines.append(f"{line}, a chip")
    if step := ratios["drafts"]:
        lines.append(
            f"a decode step of up to {step['tokens']} tokens a row takes at least "
            f"{step['pays_from']:.2f} times as long as one of one, in "
            f"{step['slots']:,} slots: drafts pay where it gives more tokens than that"
        )
    return lines


def _summary(report: dict) -> list[str]:
    rollouts, bound, cost = report["rollouts"], report["bound"], report["compiling"]
    lines = [
        f"rollouts: at most {rollouts['fit_at_a_time']:,} of full length fit at once; "
        f"{rollouts['a_step']:,} a step by {rollouts['slots']:,} slots are "
        f"{rollouts['waves']} waves, whose cache is {rollouts['cache_gib_a_chip']:.2f} "
        f"GiB a chip, that of the prompts {rollouts['prompts_gib_a_chip']:.2f}",
        *_decoded(report["decode"]),
        *(
            f"not compiled: {row['name']}, {row['gib']:.2f} GiB a chip"
            for row in report["not_compiled"]
        ),
        f"bound, not a measurement, every response at its longest: a step takes at "
        f"least {bound['seconds_a_step']:.0f} s, at most "
        f"{bound['tokens_a_second_a_chip']:.0f} tokens a second a chip; "
        f"{bound['steps']:,} steps at least {bound['hours']:.1f} hours",
        f"compiled in {cost['wall_seconds']:.0f} s, {cost['cpu_seconds']:.0f} s of "
        f"processor time and {cost['peak_gib']:.1f} GiB of memory",
    ]
    most = report["most_in_hbm"]
    if report["fits"]:
        lines.append(
            f"fits: at most {most['gib']:.2f} of {report['hbm_gib_a_chip']} GiB, in "
            f"{most['program']}"
        )
    else:
        helps = "; ".join(
            f"{a['setting']} (frees about {a['frees_gib']:.1f} GiB)"
            for a in report["advice"]
        )
        helps = helps or "no setting of memory"
        lines.append(f"does not fit ({most['program']}); what helps most: {helps}")
    return lines
