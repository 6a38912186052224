"""Several runs in a row, each a process of its own as a person would start it.

A process a run costs about three seconds, and what kills one run kills no other. All
share one compile cache. Beside each workdir lie

    <workdir>.log      what the run printed
    <workdir>.jsonl    a line for each start (command, commit) and each end (exit code)

What is finished is not started again; what was stopped goes on.
"""

import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from ml_collections import ConfigDict

from limr_jax import check, console, platform
from limr_jax.config import load
from limr_jax.config.config_file import refuse_absent
from limr_jax.config.diff import config_differences, plain
from limr_jax.errors import InputError
from limr_jax.multihost import preemption
from limr_jax.storage import files, metrics
from limr_jax.storage.workdir import content, read_result, read_run
from limr_jax.studies import child_process

ROOT = platform.import_root()
_POLL = 0.5  # seconds
_TO_SAVE = 120  # seconds that a run has to save after SIGTERM


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: its name for people, its command, and where its result will lie."""

    name: str
    command: tuple[str, ...]  # the script in launch/, then its arguments
    workdir: pathlib.Path
    steps: int = 0  # lines that metrics.jsonl will have
    config: Mapping | None = None  # what the workdir's run.json must hold

    def done(self) -> bool:
        """Whether it is finished; InputError where another run lies there."""
        result = read_result(self.workdir)
        if self.config is None:
            return result is not None
        stored = read_run(self.workdir, missing_ok=True)
        if stored is None:
            return False
        fields = config_differences(stored.get("config") or {}, self.config)
        # Of a field that is a path the run itself compares what lies there.
        free = tuple(f"{x}: " for x in ("num_steps", *content(stored)))
        if other := [x for x in fields if not x.startswith(free)]:
            raise InputError(
                f"{self.workdir} holds a run that differs in {'; '.join(other[:8])}: "
                "give the command that it had, or another --out"
            )
        # With fewer steps it is this run, unfinished.
        return result is not None and not fields

    def beside(self, suffix: str) -> pathlib.Path:
        """A file beside the workdir, whose name is the workdir's with this suffix."""
        return self.workdir.with_name(self.workdir.name + suffix)

    def forked(self, run, step: int) -> "Job":
        """This run, which goes on from another's checkpoint of that step.

        Fields that this one does not set are the other's, and the same: launch/tpu.py
        takes a run in the place of a config file.
        """
        script, flag, _, *rest = self.command
        assert flag == "--config", self.command
        fork = ("--fork", str(run), "--step", str(step))
        return dataclasses.replace(self, command=(script, *fork, *rest))

    def as_typed(self) -> str:
        """The command as a line for a shell, of a checkout or of an installed wheel.

        The script stands in it as `platform.launch_words` names it, and Python as
        `python`; `_run` starts the same script otherwise.
        """
        script, *arguments = self.command
        return shlex.join(["python", *platform.launch_words(script), *arguments])


def train_job(name: str, config_file: str, fields: Sequence, workdir) -> Job:
    """launch/tpu.py with these (field, text) overrides, into `workdir`.

    Raises InputError for a field or a value that there is not.
    """
    flags = [f"--config.{field}={text}" for field, text in fields]
    command = ("--config", config_file, *flags, "--workdir", str(workdir))
    # A field or value that there is not is refused before any run starts, and so is a
    # file that its config file says how to make.
    resolved, _ = load.load(command, kind="base")
    refuse_absent(resolved, config_file)
    return Job(
        name=name,
        command=("launch/tpu.py", *command),
        workdir=pathlib.Path(workdir),
        steps=resolved.num_steps,
        config=plain(resolved),
    )


def check_options(seed: int, options) -> None:
    """InputError for what is wrong with the flags of a grid, whatever its arms.

    seed: of its first runs.
    """
    stem = load.stem(options.config)
    if options.workdir != str(pathlib.Path("runs", stem)):
        raise InputError(
            f"--workdir={options.workdir} is of one run; give --out for the grid's"
        )
    files.local(options.out, "--out")
    if options.seeds < 1:
        raise InputError(f"--seeds={options.seeds} must be at least 1")
    if seed + options.seeds > 2**32:
        raise InputError(
            f"--seeds={options.seeds} from seed={seed} on go beyond {2**32 - 1}; give "
            "fewer, or a smaller --config.seed"
        )
    if options.run_seconds < 0:
        raise InputError(f"--run_seconds={options.run_seconds} must be 0 or more")


def check_arm(arm: str, job: Job) -> None:
    """InputError where the job's config cannot be an arm of a comparison."""
    try:
        check.check(ConfigDict(job.config))
    except InputError as error:
        raise InputError(f"arm {arm}: {error}") from None
    if not job.config["data"]["eval"]:
        raise InputError(
            f"arm {arm}: data.eval is empty, and held-out accuracy is what arms are "
            "compared by; give --config.data.eval=…"
        )


def run_all(
    jobs: Sequence[Job],
    cache: pathlib.Path,
    *,
    seconds: float = 0,
    after: Callable[[Job], str] = lambda job: "done",
) -> bool:
    """Run what is not done, in this order; False where SIGTERM stopped it.

    A run that fails is recorded and printed, and the next one starts. cache: the
    folder of compiled programs. seconds: a run that takes longer is killed, and has
    failed; 0: none is. after: called when a run has finished; returns a line on it.
    """
    left = [job for job in jobs if not job.done()]
    if len(left) < len(jobs):
        console.say(f"{len(jobs) - len(left)} of {len(jobs)} runs are done already")
    total = sum(job.steps - _steps(job) for job in left)
    start = time.monotonic()
    with console.progress("all runs", total or None) as advance, preemption.listening():
        for number, job in enumerate(left, 1):
            error = _run(job, cache, advance=advance, seconds=seconds)
            # The run has been asked to stop as well, and has had its time to save.
            if preemption.came():
                return False
            outcome = error or after(job)
            spent = time.monotonic() - start
            # As if each one left took as long as those so far.
            minutes = spent / number * (len(left) - number) / 60
            console.say(
                f"[{number}/{len(left)}] {job.name}: {outcome}; {minutes:.0f} min left"
            )
    return True


def failure(job: Job) -> str | None:
    """Why the job's last start failed; None where it did not fail."""
    lines = read_record(job)
    # A last line without an exit code is of a start that was killed with this program.
    ends = lines and "exit" in lines[-1] and not job.done()
    return lines[-1]["error"] if ends else None


def read_record(job: Job) -> list[dict]:
    """The lines of the job's starts and ends; one that a kill tore is left out."""
    path = job.beside(".jsonl")
    rows = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(text))
    return rows


def source() -> dict:
    """The checkout's commit, and whether the tree differs from it; None: no git."""
    if platform.launch_root() != ROOT:
        # Installed from a wheel: a repository around site-packages is another's.
        return {"commit": None, "dirty": None}

    def git(*words):
        command = ["git", "-C", str(ROOT), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def environment(cache: pathlib.Path) -> dict[str, str]:
    """A run's environment variables: this process's, PYTHONPATH and a compile cache.

    cache: its folder; what this process's own variables say of it goes first.
    """
    cached = {
        "JAX_COMPILATION_CACHE_DIR": str(cache.absolute()),
        # The small programs too: a run has a dozen.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return cached | child_process.environment()


def _steps(job: Job) -> int:
    """How many steps the run's metrics have so far."""
    path = job.workdir / metrics.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _run(job: Job, cache, advance, seconds) -> str | None:
    """One run from start to end: None, or why it failed, in one line."""
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    record = job.beside(".jsonl")
    # Somebody took the workdir away: what was recorded is of another run.
    if not job.workdir.exists():
        record.unlink(missing_ok=True)
    _note(record, {"started": _now(), "command": job.as_typed()} | source())
    start, seen = time.monotonic(), _steps(job)
    with open(job.beside(".log"), "ab") as log:
        child = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "limr_jax.studies.child_process",
                str(platform.launch_root() / job.command[0]),
            ]
            + list(job.command[1:]),
            stdin=subprocess.PIPE,  # its end says that this process is gone
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(cache),
            # Ctrl-C reaches this process alone, which lets the run save.
            start_new_session=True,
        )
    late = False
    try:
        while child.poll() is None and not preemption.came() and not late:
            time.sleep(_POLL)
            late = 0 < seconds < time.monotonic() - start  # 0: no limit
            steps = _steps(job)
            if steps > seen:
                advance(steps - seen)
                seen = steps
    finally:
        # After ^C as well: the run is asked to save, and waited for.
        _end(child, kill=late)
    spent = time.monotonic() - start
    # What it left counts, not its exit code, which is 0 after SIGTERM too.
    error = None if job.done() else _error(job, child.returncode, late and seconds)
    _note(
        record,
        {"ended": _now(), "exit": child.returncode, "seconds": round(spent, 1)}
        | {"error": error},
    )
    return error and f"failed, {error}"


def _end(child: subprocess.Popen, kill: bool) -> None:
    """Wait for the process to end, after SIGTERM (or SIGKILL) if it still runs."""
    if child.poll() is None:
        if kill:
            child.kill()
        else:
            child.terminate()
    try:
        child.wait(_TO_SAVE)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    # Last: an end of stdin kills a run that still saves (child_process.py).
    child.stdin.close()


def _error(job: Job, code: int, limit: float) -> str:
    """Why it failed: how it ended, and the last line that it printed."""
    lines = job.beside(".log").read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    if limit:
        why = f"killed after {limit:g} s"
    else:
        why = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return f"{why}: {last.strip()[:300]}"


def _note(path: pathlib.Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
