"""What a GPU gives: the main job, a step at real sizes, the tests of attention.

    python launch/gpu_check.py [--out DIR] [--limit 470] [--parts peaks,0.5b]
        [--dry_run] [--config.field=value …]

launch/gpu_check.sh takes the same flags and first sees to packages that are missing.
One call without a network, every part a process of its own with a limit of its own, all
of them within --limit seconds. A part that fails or is late is named in the table, and
the rest goes on. DIR (default $OUT, or runs/gpu_check) gets gpu_check.json,
gpu_check.md and PART.log, written as the parts end. Exit code 1: a part did not run to
its end.

peaks         bytes a second and bf16 FLOP/s of this GPU, which the rest is held against
0.5b, 1.5b    a GRPO step at the dimensions of Qwen2.5 in bf16, by the functions of
              launch/bench.py: 64 prompts of 256 tokens, 8 responses each of 1,024, all
              of them as long (fixed), then of about 512 in the mean (ragged)
drafts        a generation of 8 and of 64 responses of 256 tokens at 0.5b's dimensions:
              without drafts (rollout.drafts), with right ones and with wrong ones; what
              it says is in 0.5b.log
main_job      configs/tiny.py; beside it, for neither is timed, attention
attention     the tests of attention, those that need one device
transformers  its `generate` on the same sizes; needs torch and transformers

--dry_run     the same on whatever JAX finds, a CPU say, with tiny sizes; only --limit
              holds
--config.…    fields of the two steps, such as --config.rollout.slots=256

Weights are random. Generation is held against the time in which its bytes could be
read: of every decode step the weights, and each row's keys and values with its prompt's
(of ragged rows those of their mean length, which is less than they have). Model FLOP/s
utilisation counts the products of a forward pass three times, columns of padding and
what is computed again not at all; a ragged row's prompt counts once a problem. So both
are lower bounds for ragged rows.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial

from limr_jax import platform
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError, choose
from limr_jax.storage import files
from limr_jax.studies import child_process, markdown

LAUNCH = pathlib.Path(__file__).parent
STEPS = ("0.5b", "1.5b")
# The most telling first, in case time runs out; what stands together runs together.
ORDER = (
    ("peaks",),
    ("0.5b",),
    ("main_job", "attention"),
    ("1.5b",),
    ("drafts",),
    ("transformers",),
)
LIMITS = {  # seconds
    "peaks": 45,
    "0.5b": 150,
    "main_job": 170,
    "attention": 170,
    "1.5b": 200,
    "drafts": 100,
    "transformers": 120,
}
# Whose log a part's is appended to: eight files come back from a lent machine at most.
LOG_OF = {"drafts": "0.5b"}
OTHER = "stdout: "  # before what a part writes there and is no row, in its log
LEAST = 10  # seconds left of --limit with which a part still begins
# JAX takes most of a GPU's memory at its start. Of two processes neither may; a step
# alone may have more than the usual three quarters.
SHARING = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
ALONE = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
# tests/conftest.py would take the CPU. A GPU's own fp32 products are TF32, of 10 bits.
ON_GPU = {"JAX_PLATFORMS": "cuda,cpu", "JAX_DEFAULT_MATMUL_PRECISION": "highest"}
# configs/tiny.py on a CPU, seed 0 (its docstring): percent of 512 held-out problems
# before and after. A share of 512 has a standard error of 2.1 points, a difference of
# two such shares 3.0: two of those are allowed.
ON_CPU, POINTS = (22.7, 67.0), 6.0
AIMS = {"bandwidth": 0.60, "mfu": 0.45}
BASE = platform.launch_root() / "configs/base.py"


def main(argv: list[str]) -> int:
    """Run the parts, and write down what each of them gave."""
    options, fields = _parse(argv)
    out = files.local(options.out, "--out")
    parts = options.parts.split(",") if options.parts else list(LIMITS)
    for name in parts:
        choose(LIMITS, name, "--parts")
    # Each part reads them again: a mistake should cost none of a GPU's minutes.
    config_lib.load(["--config", str(BASE), *fields], kind="base")
    files.check_writable(out / "gpu_check.json", "--out")
    with files.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    for name in parts:  # of an earlier call
        _log(out, name).unlink(missing_ok=True)
    results, children, end = {}, [], time.monotonic() + options.limit
    with tempfile.TemporaryDirectory() as scratch:
        run = partial(
            run_part,
            flags=fields + ["--dry_run"] * options.dry_run,
            dry_run=options.dry_run,
            out=out,
            end=end,
            scratch=scratch,
            children=children,
        )
        for together in ORDER:
            names = [name for name in together if name in parts]
            with concurrent.futures.ThreadPoolExecutor() as pool:
                try:
                    results |= dict(zip(names, pool.map(run, names)))
                except BaseException:  # ^C, for one: the threads wait for these
                    for child in children:
                        if child.poll() is None:
                            _kill(child)
                    raise
            # At once, so that a kill loses nothing that is measured.
            write(out, results, options.dry_run)
            device = _rows(results, "peaks")[:1]
            if device and device[0]["platform"] == "cpu" and not options.dry_run:
                raise InputError(
                    f"JAX finds no GPU here, but {device[0]['device']}: see "
                    f"{out / 'peaks.log'}, or give --dry_run"
                )
    print((out / "gpu_check.md").read_text(encoding="utf-8"))
    ended = all(result["state"] in ("ran", "skipped") for result in results.values())
    return 0 if ended else 1


def _parse(argv):
    parser = config_lib.Parser("launch/gpu_check.py", __doc__)
    default = os.environ.get("OUT") or "runs/gpu_check"
    parser.add_argument("--out", default=default, help="folder of what it writes")
    parser.add_argument(
        "--limit", type=float, default=470.0, help="seconds, of all parts together"
    )
    parser.add_argument(
        "--parts", default="", help="some of those above, comma-separated; default: all"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="with tiny sizes, on whatever JAX finds"
    )
    options, fields = parser.parse_known_args(argv)
    if not options.limit > 0:
        raise InputError(f"--limit={options.limit} must be above 0 seconds")
    wrong = [field for field in fields if not field.startswith("--config.")]
    if wrong:
        raise InputError(f"unknown argument {wrong[0]!r}; see --help")
    return options, fields


# ---- a part's process --------------------------------------------------------------


def run_part(
    name: str,
    *,
    flags: list[str],
    dry_run: bool,
    out: pathlib.Path,
    end: float,
    scratch: str,
    children: list,
) -> dict:
    """Run a part in a process; its `state`, `seconds`, and `rows`, its lines of JSON.

    The state is "ran", "skipped", or why there is no more: what failed or was late has
    the rows that it gave before. All else that it says goes to PART.log.

    flags: for launch/gpu_parts.py. end: when the call has to end, on time.monotonic().
    scratch: a folder that goes with the call. children: gets the process.
    """
    limit = end - time.monotonic()
    if not dry_run:  # a CPU's cores may be busy with other things
        limit = min(limit, LIMITS[name])
    if limit < LEAST:
        return {"state": "not run: time was up", "seconds": 0.0, "rows": []}
    environment = child_process.environment() | (
        SHARING if name in ("main_job", "attention") else ALONE
    )
    if dry_run:
        # Both steps are one there, and compile once; most of a dry run is compiling.
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": os.path.join(scratch, "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
    elif name == "attention":
        environment |= ON_GPU
    script = str(LAUNCH / "gpu_parts.py")
    words = [script, name, "--scratch", scratch, "--limit", str(limit), *flags]
    words = ["-m", "limr_jax.studies.child_process", *words]
    begun, rows, late = time.monotonic(), [], threading.Event()
    _say(f"{name}: at most {limit:.0f} s")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_log(out, name).open("a", encoding="utf-8"))
        start = log.tell()  # behind another part's
        child = subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.PIPE,  # its end is this process's end
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # so that its own children can be ended with it
        )
        children.append(stack.enter_context(child))
        stack.callback(_kill, child)

        def stop():
            late.set()
            _kill(child)

        timer = threading.Timer(limit, stop)
        stack.callback(timer.cancel)
        timer.start()
        for line in child.stdout:
            row = _row(line)
            if row is None:
                log.write(f"{OTHER}{line}")
                log.flush()
            else:
                rows.append(row)
        code = child.wait()
    seconds = round(time.monotonic() - begun, 1)
    state = "ran"
    if late.is_set():
        state = f"late: stopped after {limit:.0f} s"
        time.sleep(3)  # until the driver has taken its memory back
    elif code:
        # An error is said on stderr, of which stdout may be behind.
        cause = _last_lines(_log(out, name), start, count=1, but=OTHER)
        state = f"failed ({code}): {cause}"
    elif rows and "absent" in rows[-1]:
        state = "skipped"
    _say(f"{name}: {state}, {seconds} s")
    if state not in ("ran", "skipped"):
        # Here as well: where only what is printed comes back, the log does not.
        _say(_last_lines(_log(out, name), start, count=12))
    return {"state": state, "seconds": seconds, "rows": rows}


def _kill(child) -> None:
    """End a part's process and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _say(text: str) -> None:
    # In one piece: two parts may speak at a time.
    sys.stderr.write(f"{text}\n")


def _row(line: str) -> dict | None:
    """The object that a line is; None for any other line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _log(out: pathlib.Path, name: str) -> pathlib.Path:
    return out / f"{LOG_OF.get(name, name)}.log"


def _last_lines(path: pathlib.Path, start: int, *, count: int, but: str = "\n") -> str:
    """So many of the log's last lines, of those that do not begin with `but`.

    start: the byte at which the part's begin.
    """
    text = path.read_bytes()[start:].decode(errors="replace")
    lines = text.strip().splitlines()
    lines = [line for line in lines if not line.startswith(but)]
    return "\n".join(lines[-count:]) or "it said nothing"


# ---- the table ---------------------------------------------------------------------


def write(out: pathlib.Path, results: dict, dry_run: bool) -> None:
    """gpu_check.json and gpu_check.md of the parts so far."""
    rows = figures(results, dry_run)
    whole = {"dry_run": dry_run, "parts": results, "table": rows}
    files.write_text(out / "gpu_check.json", json.dumps(whole, indent=1) + "\n")
    lines = ["| part | state | s |", "|---|---|---|"]
    for name, result in results.items():
        state = result["state"]
        if state == "skipped":
            state += f": {result['rows'][-1]['absent']}"
        lines.append(f"| {name} | {_cell(state)} | {result['seconds']} |")
    lines += ["", "| part | figure | got | aim | reached |", "|---|---|---|---|---|"]
    for row in rows:
        reached = {None: "", True: "yes", False: "no"}[row["reached"]]
        cells = (row["part"], row["figure"], row["got"], row["aim"], reached)
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    if dry_run:
        lines += ["", "A dry run: tiny sizes, whose figures say nothing of a GPU."]
    files.write_text(out / "gpu_check.md", "\n".join(lines) + "\n")


def _cell(text: str) -> str:
    """A text, such as what a part's error says, in a cell of the table."""
    return markdown.text(text).replace("|", "/")


def figures(results: dict, dry_run: bool) -> list[dict]:
    """The second table: of each figure what was got, and the aim where there is one."""
    table = []

    def add(part, figure, value, aim="", reached=None):
        # Tiny sizes reach no aim.
        reached = None if dry_run or reached is None else bool(reached)
        entry = {"part": part, "figure": figure, "got": value, "aim": aim}
        table.append(entry | {"reached": reached})

    peak = (_rows(results, "peaks") or [None])[0]
    if peak:
        versions = f"jax {peak['jax']}, Python {peak['python']}"
        add("peaks", "device", f"{peak['device']} ({versions})")
        add("peaks", "memory, GB/s", f"{peak['bytes_per_second'] / 1e9:,.0f}")
        add("peaks", "bf16 product, TFLOP/s", f"{peak['flops_per_second'] / 1e12:,.1f}")
    for row in _rows(results, "main_job")[-1:]:
        _main_job_figures(add, row)
    for row in _rows(results, "attention")[-1:]:
        counts = ", ".join(f"{row[x]} {x}" for x in ("passed", "failed", "skipped"))
        add(
            "attention",
            "tests",
            value=counts,
            aim="none failed",
            reached=not row["failed"],
        )
        for failure in row["failures"]:
            add("attention", "failed", failure)
    for row in _rows(results, "drafts"):
        _drafts_figures(partial(add, f"drafts, {row['rollouts']} responses"), row)
    peers = {
        (row["size"], row["variant"]): row
        for row in _rows(results, "transformers")
        if "size" in row
    }
    for name in STEPS:
        for row in _rows(results, name):
            peer = peers.get((("tiny" if dry_run else name), row["variant"]))
            _step_figures(
                partial(add, f"{name} {row['variant']}"), row, peak=peak, peer=peer
            )
    return table


def _main_job_figures(add, row: dict) -> None:
    for when, cpu in zip(("before", "after"), ON_CPU):
        value = 100 * row[f"eval_accuracy_{when}"]
        add(
            "main_job",
            f"accuracy {when}, %; on a CPU {cpu}",
            value=f"{value:.1f}",
            aim=f"within {POINTS} points",
            reached=abs(value - cpu) <= POINTS,
        )


def _drafts_figures(add, row: dict) -> None:
    without = row["without"]
    for kind in ("right", "wrong"):
        got = row[kind]
        add(
            f"generation, {kind} drafts / none",
            value=f"{got['seconds'] / without['seconds']:.2f}, decode steps "
            f"{got['decode_steps']} for {without['decode_steps']}",
        )
        # Behind its first token that differs a response is of another text.
        add(
            f"responses that differ, {kind} drafts",
            value=f"{got['differing_responses']}, of {without['tokens']:,} tokens",
            aim="none, but for ties of rounding",
            reached=got["differing_responses"] == 0,
        )


def _step_figures(add, row: dict, peak: dict | None, peer: dict | None) -> None:
    """Of a variant of a size."""
    rate, seconds = row["gen_tok_per_s"]["median"], row["generate_s"]["median"]
    update = row["update_s"]["median"]
    add("step, s", f"{row['step_s']['median']:.2f} of {row['step_s']['n']}")
    add("generate, tokens/s", f"{rate:,.0f}")
    if peak:
        share = row["decode_bytes"] / peak["bytes_per_second"] / seconds
        aim = AIMS["bandwidth"]
        add(
            "generate / bandwidth",
            value=f"{share:.3f}",
            aim=f"≥ {aim}",
            reached=share >= aim,
        )
    if peer:
        name = f"generate / transformers' ({peer['columns']} columns)"
        ratio = rate / peer["tokens_per_second"]
        add(name, value=f"{ratio:.2f}", aim="≥ 1", reached=ratio >= 1)
    add("update, tokens/s", f"{row['update_tok_per_s']['median']:,.0f}")
    if peak:
        share = row["update_flops"] / peak["flops_per_second"] / update
        aim = AIMS["mfu"]
        add("update MFU", value=f"{share:.3f}", aim=f"≥ {aim}", reached=share >= aim)
    if row["variant"] == "ragged":  # the other's weights are changed
        drift = f"{row['drift']['median']:.2e}, {row['drift_max']['median']:.2e}"
        add("Δ log p of a token, nats: mean, max", drift)
    add("peak of device memory, GiB", f"{row['peak_device_gib']:.1f}")
    add("first step with compiling, s", f"{row['first_step_s']:.1f}")


def _rows(results: dict, name: str) -> list[dict]:
    return results[name]["rows"] if name in results else []


if __name__ == "__main__":
    config_lib.run_main(main)
