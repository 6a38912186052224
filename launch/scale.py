"""Seconds and memory of a step as rollouts, responses, problems or devices grow.

    python launch/scale.py [--scale rollouts,length,problems,devices] [--steps 3] \\
        [--out runs/scale]

Each point is a process of its own: a run of configs/tiny.py with some fields changed,
by online LIM, through setup.py and train.py. OUT gets points.jsonl (a line a point,
also on stdout), scale.md (the table) and scale.png. A point that is in points.jsonl is
not made again.

work is what a step must compute: tokens times the parameters and the attention that
each one needs, relative to the axis's first point. seconds / work above 1 means that
the step grows faster than its work. sampler is the prompt sampler's draw and update
(LIM's, by weight) as a share of the step. memory is the largest resident set of the
timed steps. On one machine, virtual devices share its cores.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from limr_jax import platform
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError, choose
from limr_jax.storage import files
from limr_jax.studies import child_process

CONFIG = str(platform.launch_root() / "configs/tiny.py")
WARM_UP = 2
# No filter: what a step learns from is then all that it wrote.
COMMON = {
    "sampler.name": "lim",  # whose draw and update are timed by themselves
    "filter.tau": -1,
    "data.eval": "",
    "data.allow_overlap": True,
}
# A random model of the same shape, whose 2,048 words make an end token rare.
ENDLESS = {
    "model.init": "random", "model.vocab_size": 2048, "model.width": 96,
    "model.layers": 3, "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 24,
    "model.mlp_width": 256, "prompts_per_step": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One run: an axis, where on it, and what that changes."""

    axis: str
    value: int
    fields: dict
    devices: int = 1
    problems: int = 0  # of a set written for it; 0: the embedded one


def points() -> dict[str, list[Point]]:
    """By axis, the smallest first."""

    def rollouts(count):
        # From 512 rollouts on the cache stays as it is, and slots are refilled more
        # often.
        slots = min(count, 512)
        # configs/tiny.py has groups of 8.
        return {"prompts_per_step": count // 8, "rollout.slots": slots}

    def length(count):
        return ENDLESS | {"rollout.max_response_length": count}

    def mesh(count):
        return rollouts(512) | {"mesh.data": 1, "mesh.fsdp": count}

    return {
        "rollouts": [Point("rollouts", n, rollouts(n)) for n in (64, 256, 1024, 4096)],
        "length": [Point("length", n, length(n)) for n in (32, 128, 512)],
        "problems": [
            Point("problems", n, rollouts(4096), problems=n)
            for n in (1_000, 100_000, 1_000_000)
        ],
        "devices": [Point("devices", n, mesh(n), devices=n) for n in (1, 2, 4, 8)],
    }


def main(argv: list[str]) -> None:
    """Measure the points that are not there yet; then write the table and the plot."""
    parser = config_lib.Parser("launch/scale.py", __doc__)
    parser.add_argument(
        "--scale",
        default="rollouts,length,problems,devices",
        help="what grows, comma-separated",
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a point")
    parser.add_argument("--out", default="runs/scale", help="folder of what it writes")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        raise InputError(f"--steps={options.steps} must be at least 1")
    if options.point:
        point = Point(**json.loads(options.point))
        print(json.dumps(measured(point, options.steps)))
        return
    axes_points = [
        choose(points(), name, "--scale") for name in options.scale.split(",")
    ]
    out = files.local(options.out, "--out")
    kept = out / "points.jsonl"
    files.check_writable(kept, "--out")
    out.mkdir(parents=True, exist_ok=True)
    rows = read(kept)
    for point in (point for axis in axes_points for point in axis):
        if (point.axis, point.value) in {(r["axis"], r["value"]) for r in rows}:
            continue
        rows.append(in_a_process(point, options.steps))
        line = json.dumps(rows[-1])
        # At once, so that a kill loses no point that is measured.
        files.append(kept, f"{line}\n".encode())
        print(line, flush=True)
    axes = by_axis(rows)
    text = table(axes)
    files.write_text(out / "scale.md", text + "\n")
    print(text)
    # Imported late: matplotlib is slow to load.
    from limr_jax.studies import plots

    plots.save(plots.growth(axes), out / "scale.png")


def read(path: pathlib.Path) -> list[dict]:
    """The points that an earlier call measured."""
    from limr_jax.data import jsonl

    return [row for _, row in jsonl.read_rows(path)] if path.exists() else []


def in_a_process(point: Point, steps: int) -> dict:
    """The figures of one point; InputError with its last line if it fails."""
    # A process has as many devices as when it first asked: one process a point.
    devices = f"--xla_force_host_platform_device_count={point.devices}"
    # Behind the user's own flags: of two that say how many, the last one counts.
    flags = f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip()
    environment = child_process.environment() | {"XLA_FLAGS": flags}
    command = [sys.executable, "-m", "limr_jax.studies.child_process", __file__]
    options = ["--steps", str(steps), "--point", json.dumps(dataclasses.asdict(point))]
    start = time.monotonic()
    # A file: a pipe that nobody reads would fill, and stop the child.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        with subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,  # its end is this process's end
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
        ) as child:
            out = child.stdout.read()
        stderr.seek(0)
        lines = stderr.read().strip().splitlines() or ["it said nothing"]
    if child.returncode:
        raise InputError(f"{point.axis} {point.value} failed: {lines[-1]}")
    row = json.loads(out.splitlines()[-1])
    return row | {"seconds_in_all": round(time.monotonic() - start, 1)}


# ---- one point -------------------------------------------------------------------


def measured(point: Point, steps: int) -> dict:
    """Run the point in this process, and time `steps` steps of it; a row of plain JSON.

    WARM_UP steps come before them. In the row are the seconds of a step (`seconds`) and
    of two of its parts (`generate`, `update`) and its `tokens`, medians over the timed
    steps; the FLOPs that these tokens need (`work`); the seconds of the prompt sampler
    by part, and what draw and update are of a step (`sampler_share`, 0 to 1); MiB at
    the peak of the timed steps (`memory_mib`) and of the process (`memory_ever_mib`).
    InputError where no run can be as the point says.
    """
    with tempfile.TemporaryDirectory() as folder:
        fields = COMMON | point.fields
        if point.problems:
            path = pathlib.Path(folder, "problems.jsonl")
            write_problems(path, point.problems)
            fields |= {"data.train": path}
        flags = [f"--config.{name}={value}" for name, value in fields.items()]
        config, _ = config_lib.load(["--config", CONFIG, *flags], kind="base")
        from limr_jax.setup import set_up

        # Within, since it reads the set, which goes with the folder.
        run = set_up(config)
    rows, state, peak = take_steps(run, steps)
    seconds = statistics.median(row["seconds"] for row in rows)
    sampler = sampler_seconds(run, config, state)
    tokens = statistics.median(row["tokens"] for row in rows)

    def median(name):
        return round(statistics.median(row[f"seconds_{name}"] for row in rows), 4)

    return {
        "axis": point.axis,
        "value": point.value,
        "rollouts": config.prompts_per_step * config.group_size,
        "problems": len(run.train_set),
        "devices": run.mesh.size,
        "steps": steps,
        "seconds": round(seconds, 4),
        "seconds_least": round(min(row["seconds"] for row in rows), 4),
        "generate": median("generate"),
        "update": median("update"),
        "tokens": tokens,
        "flops": work(
            run, tokens, tokens / config.prompts_per_step / config.group_size
        ),
        "sampler_seconds": {name: round(s, 5) for name, s in sampler.items()},
        "sampler_share": round((sampler["draw"] + sampler["update"]) / seconds, 5),
        "memory_mib": peak,
        # ru_maxrss is in KiB.
        "memory_ever_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "compiles_while_timed": rows[-1]["compile_count"] - rows[0]["compile_count"],
    }


def write_problems(path: pathlib.Path, count: int) -> None:
    """A data set of `count` sums of two numbers, no two of which have the same text."""
    # i = a · side + b with b < side, so that no two are the same.
    side = 1 + int(count**0.5)
    with path.open("w", encoding="ascii") as file:
        for i in range(count):
            a, b = divmod(i, side)
            row = {"id": str(i), "problem": f"{a}+{b}=", "answer": str(a + b)}
            file.write(json.dumps(row) + "\n")


def take_steps(run, steps: int) -> tuple[list[dict], object, float]:
    """The timed steps' rows, the state after them, and their peak of memory in MiB."""
    import jax

    from limr_jax import step, train
    from limr_jax.data.prompts import put_prompts
    from limr_jax.first_state import frozen_of

    rows = []
    with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
        with jax.transfer_guard("allow"):
            params = run.load_params()
            frozen = frozen_of(run, params)
            state = run.programs.init(params)
            prompts = put_prompts(run.train_set, run.mesh)
        for i in range(WARM_UP + steps):
            if i == WARM_UP:
                forget_peak()
            phases = step.Phases()
            state, *_, numbers = train.one_step(run, phases, state, frozen, prompts)
            numbers, of_rounds = jax.device_get(numbers)
            rows.append(phases.finish(numbers, of_rounds))
    return rows[WARM_UP:], state, peak_mib()


def sampler_seconds(run, config, state) -> dict[str, float]:
    """Seconds of LIM's draw, update and an epoch's end, each alone; the least of 5."""
    import jax
    import jax.numpy as jnp

    from limr_jax.samplers import from_config

    prompts = config.prompts_per_step
    sampler = from_config.make_sampler(
        config.sampler,
        run.train_set.problems,
        prompts=prompts,
        group=config.group_size,
        seed=config.seed,
    )
    # Behind the warm-up, where LIM draws by weight; `ended` has an epoch to score.
    past = config.sampler.lim.warmup_epochs
    scored = dataclasses.replace(
        state.sampler,
        order=dataclasses.replace(state.sampler.order, epoch=jnp.int32(past)),
        scored_epochs=jnp.int32(past),
    )
    ended = dataclasses.replace(scored, scored_epochs=jnp.int32(past - 1))
    reward_PG = jnp.ones((prompts, config.group_size))
    sample = jax.jit(sampler.sample)
    update = jax.jit(sampler.update, donate_argnums=0)
    _, ids_P = sample(scored, jax.random.key(0))

    def least(call, *arguments):
        seconds = []
        for _ in range(6):
            # `update` takes its state away (donated), and a copy is not to be timed.
            fresh = jax.block_until_ready(jax.tree.map(jnp.copy, arguments))
            start = time.perf_counter()
            jax.block_until_ready(call(*fresh))
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])  # the first call compiles

    valid_PG = reward_PG > 0
    return {
        "draw": least(sample, scored, jax.random.key(0)),
        "update": least(update, scored, ids_P, reward_PG, valid_PG),
        "epoch_end": least(update, ended, ids_P, reward_PG, valid_PG),
    }


def work(run, tokens: float, length: float) -> float:
    """FLOPs that a step's tokens need: one forward pass to write them, three to learn.

    2 a parameter and pass; attention 4 a layer, head, channel and column looked at.
    """
    import jax

    model = run.compute.model
    parameters = sum(x.size for x in jax.tree.leaves(run.programs.state.train.params))
    # A token looks at its prompt and, in the mean, at half of the response.
    columns = float(run.train_set.prompt_length_N.mean()) + length / 2
    # Queries by keys, and weights by values: two FLOPs each.
    attention = 4 * model.layers * model.heads * model.head_dim * columns
    return 4 * tokens * (2 * parameters + attention)


def forget_peak() -> None:
    """Let the kernel count this process's peak of memory from now on."""
    # 5 sets VmHWM back to what is resident, see proc_pid_clear_refs(5).
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """This process's peak of resident memory since `forget_peak`, in MiB."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ---- all points ------------------------------------------------------------------


def by_axis(rows: list[dict]) -> dict[str, list[dict]]:
    """The rows of each axis in order, with their growth since its first."""
    axes = {}
    for name in points():
        chosen = sorted(
            (r for r in rows if r["axis"] == name), key=lambda r: r["value"]
        )
        axes[name] = [
            row
            | {
                "work": row["flops"] / chosen[0]["flops"],
                "growth": row["seconds"] / chosen[0]["seconds"],
                "memory_growth": row["memory_mib"] / chosen[0]["memory_mib"],
            }
            for row in chosen
        ]
    return {name: chosen for name, chosen in axes.items() if chosen}


def table(axes: dict[str, list[dict]]) -> str:
    """Markdown: a row a point."""
    lines = [
        "| axis | value | tokens | s a step | generate | update | work | "
        "seconds / work | memory MiB | sampler |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in axes.items():
        for row in rows:
            lines.append(
                f"| {name} | {row['value']:,} | {row['tokens']:,.0f} | "
                f"{row['seconds']:.3f} | {row['generate']:.3f} | {row['update']:.3f} | "
                f"{row['work']:.1f} | {row['growth'] / row['work']:.2f} | "
                f"{row['memory_mib']:,.0f} | {row['sampler_share']:.2%} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    config_lib.run_main(main)
