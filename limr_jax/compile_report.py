"""What the compiled programs say of a run: what fits, and how fast it could be.

Times are bounds, not measurements: each program's longest of FLOPs over the chip's
peak, HBM bytes over its bandwidth, and collectives' bytes over its interconnect, with
every response as long as allowed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import cache, live_columns, look_back
from limr_jax.aot import Plan
from limr_jax.compiled import Compiled, chip_bytes

GIB = 2**30


def report(config, plan: Plan, programs: list[Compiled], seconds: dict) -> dict:
    """All that `text` prints, as JSON has it. seconds: wall and CPU of the whole."""
    chip = plan.chip
    limit = chip.hbm_gib * GIB
    step = [program for program in programs if program.phase == "step"]
    rollouts = config.prompts_per_step * config.group_size
    tokens = rollouts * config.rollout.max_response_length
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
        "rollouts": _waves(config, plan, programs, limit),
        "decode": decode(config, plan),
        "bound": {
            "seconds_a_step": bound,
            "tokens_a_second_a_chip": tokens / bound / plan.mesh.size if bound else 0,
            "hours": bound * config.num_steps / 3600,
            "steps": config.num_steps,
        },
        "compile_seconds": seconds,
        "advice": advice(config, plan, programs, limit),
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
        "bound_seconds": bound,
        "limited_by": max(bound, key=bound.get),
        "compile_seconds": program.seconds,
    }


def _waves(config, plan: Plan, programs: list[Compiled], limit: float) -> dict:
    """Rollouts that fit at a time, by what a slot more would take."""
    rollouts = config.prompts_per_step * config.group_size
    slots = plan.generation["slots"]
    each = cache_bytes(plan)
    generate = next(p for p in programs if p.name == "generate")
    free = max(0.0, limit - generate.total)
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    unit = by_rows * config.group_size
    fit = slots + free / each * by_rows
    return {
        "a_step": rollouts,
        "slots": slots,
        "waves": math.ceil(rollouts / slots),
        "cache_gib_a_chip": each * slots / by_rows / GIB,
        "fit_at_a_time": 0 if generate.error else int(fit // unit * unit),
    }


def decode(config, plan: Plan) -> dict | None:
    """Bytes that a decode step reads over weights and live cache, lengths simulated.

    By number of slots, and of all steps; prompts as long as allowed. None where layers
    have rings of several lengths, or where nothing is decoded.
    """
    model, generation = plan.generation["config"], plan.generation
    if set(model.pattern) != {"full"}:
        return None
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    rollouts = config.prompts_per_step * config.group_size // by_rows
    longest, length = generation["response_length"], plan.prompt_length
    columns = length + longest
    with jax.set_mesh(plan.mesh):
        block = look_back.fits(columns, model)

    def read(count_S, column):
        if block:
            return look_back.columns_read(count_S, column, columns, block)
        width = next((w for w in cache.widths(columns) if w > column), columns)
        return np.full(len(count_S), width)

    parts = live_columns.simulated(
        live_columns.lengths(rollouts, longest),
        np.full(rollouts, length),
        size=min(generation["slots"] // by_rows, rollouts),
        shrinks=generation["shrinks"],
        length=length,
        longest=longest,
        read=read,
    )
    parts = [part for part in parts if part.steps]
    if not parts:
        return None  # rollouts of one token
    params = next(call.args[0] for call in plan.calls if call.name == "generate")
    count = sum(x.size for x in jax.tree.leaves(params))
    if not model.tied:  # a step reads its tokens' rows
        count -= params["embedder"]["embedding"].size
    size = jnp.dtype(generation["dtype"]).itemsize
    given = {
        "weights": count * size / plan.mesh.shape["tensor"],
        "column": cache_bytes(plan) / columns,
    }
    return {
        "ratio": live_columns.ratio(parts, **given),
        "parts": [
            {
                "slots": part.slots * by_rows,
                "steps": part.steps,
                "ratio": live_columns.ratio([part], **given),
            }
            for part in parts
        ],
    }


def cache_bytes(plan: Plan) -> float:
    """Bytes on a chip of one full-length rollout's keys and values."""
    config = plan.generation["config"]
    length = plan.generation["response_length"] + plan.prompt_length
    tensor = plan.mesh.shape["tensor"]
    heads = config.kv_heads / (tensor if config.kv_heads % tensor == 0 else 1)
    size = jnp.dtype(plan.generation["dtype"]).itemsize
    return 2 * config.layers * heads * config.head_dim * length * size


def advice(config, plan: Plan, programs: list[Compiled], limit: float) -> list[dict]:
    """The three settings that would free most HBM where a program does not fit.

    What each frees is arithmetic, not compiled: half of what grows with it.
    """
    over = {p.name for p in programs if p.error or p.total > limit}
    if not over:
        return []
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    columns = plan.prompt_length + plan.generation["response_length"]
    response = config.rollout.max_response_length
    given = {call.name: call.args for call in plan.calls}
    slots = plan.generation["slots"]
    learning = {"update", "reference", "values", "thoughts"} & over
    rows, kept, without_remat = _activations(config, plan) if learning else (0, 0, 0)
    writing = {"generate", "evaluate", "evaluate sampled"} & over
    cache = cache_bytes(plan) * slots / by_rows if writing else 0
    shorter = (kept + cache) * response / columns / 2
    options = [
        (f"rollout.max_response_length={response // 2}", shorter),
        ("twice the chips, on mesh.fsdp", _bytes(given["update"][0]) / 2),
    ]
    if learning and rows % (2 * by_rows) == 0:
        options.append((f"micro_batch_rows={rows // 2}", kept / 2))
    if learning and not config.model.remat:
        options.append(("model.remat=true", without_remat))
    if writing and slots % (2 * by_rows) == 0:
        options.append((f"rollout.slots={slots // 2}", cache / 2))
    if config.kl.coefficient:
        options.append(("kl.coefficient=0", _bytes(given["reference"][0])))
    options.sort(key=lambda option: -option[1])
    return [
        {"setting": setting, "frees_gib": freed / GIB} for setting, freed in options[:3]
    ]


def _bytes(shapes) -> int:
    """Of a pytree, on one chip."""
    return sum(map(chip_bytes, jax.tree.leaves(shapes)))


def _activations(config, plan: Plan) -> tuple[int, float, float]:
    """Rows of a micro-batch, bytes kept of them on a chip, what remat would free."""
    model = plan.generation["config"]
    by_rows = plan.mesh.shape["data"] * plan.mesh.shape["fsdp"]
    columns = plan.prompt_length + (
        config.row_responses * plan.generation["response_length"]
    )
    rollouts = config.prompts_per_step * config.group_size
    rows = config.micro_batch_rows or rollouts // config.minibatches_per_step
    size = jnp.dtype(plan.generation["dtype"]).itemsize
    inputs = rows / by_rows * columns * model.width * size * model.layers
    if config.model.remat:
        return rows, inputs, 0
    # A layer keeps its norms, heads and gates too, and the scores.
    whole = 6 * model.width + 4 * model.mlp_width + model.heads * columns
    kept = inputs * whole / model.width
    return rows, kept, kept - inputs


def text(made: dict) -> str:
    """The report as a person reads it."""
    mesh = " x ".join(f"{name} {size}" for name, size in made["mesh"].items())
    lines = [
        f"{made['slice']}: {made['chips']} chips of {made['hbm_gib_a_chip']} GiB, "
        f"mesh {mesh}",
        "",
        "GiB a chip         arguments  output  temporaries  elsewhere  total  of HBM"
        "   TFLOPs      GB  compile s",
    ]
    for row in made["programs"]:
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
    for row in made["programs"]:
        for kind, sent in row["collectives"].items():
            lines.append(
                f"{row['name']:<18} {kind:<20} {sent['count']:>10,.0f} times "
                f"{sent['bytes'] / 1e9:>10.2f} GB"
            )
    lines += ["", "seconds at least    compute   memory  interconnect  (a bound)"]
    for row in made["programs"]:
        bound = row["bound_seconds"]
        lines.append(
            f"{row['name']:<18} {bound['compute']:>8.2f} {bound['memory']:>8.2f} "
            f"{bound['interconnect']:>13.2f}  {row['limited_by']}"
        )
    return "\n".join([*lines, "", *_summary(made)])


def _decoded(said: dict | None) -> list[str]:
    if said is None:
        return []
    parts = ", ".join(
        f"{part['ratio']:.2f} in {part['slots']:,} slots ({part['steps']:,} steps)"
        for part in said["parts"]
    )
    return [
        f"a decode step reads {said['ratio']:.2f} times the weights and live cache, "
        f"of simulated lengths: {parts}"
    ]


def _summary(made: dict) -> list[str]:
    rollouts, bound = made["rollouts"], made["bound"]
    lines = [
        f"rollouts: {rollouts['fit_at_a_time']:,} of full length fit at a time; "
        f"{rollouts['a_step']:,} a step by {rollouts['slots']:,} slots are "
        f"{rollouts['waves']} waves, whose cache is {rollouts['cache_gib_a_chip']:.2f} "
        "GiB a chip",
        *_decoded(made["decode"]),
        f"bound, not a measurement, every response at its longest: a step takes at "
        f"least {bound['seconds_a_step']:.0f} s, at most "
        f"{bound['tokens_a_second_a_chip']:.0f} tokens a second a chip; "
        f"{bound['steps']:,} steps at least {bound['hours']:.1f} hours",
        f"compiled in {made['compile_seconds']['wall']:.0f} s, "
        f"{made['compile_seconds']['cpu']:.0f} s of processor time",
    ]
    most = made["most_in_hbm"]
    if made["fits"]:
        lines.append(
            f"fits: at most {most['gib']:.2f} of {made['hbm_gib_a_chip']} GiB, in "
            f"{most['program']}"
        )
    else:
        helps = "; ".join(
            f"--config.{a['setting']} (frees about {a['frees_gib']:.1f} GiB)"
            for a in made["advice"]
        )
        lines.append(f"does not fit ({most['program']}); what helps most: {helps}")
    return lines
