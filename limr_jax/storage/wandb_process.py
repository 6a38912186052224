"""The process that hands a run's numbers to W&B; `wandb_sink.py` starts it.

It reads metrics.jsonl and evals.jsonl as they grow. Whatever W&B does, be it slow, gone
or dead, happens here, and the run neither waits for it nor ends by it. JAX is not
imported.

    stdin   a line of JSON, `WandbRun`; at the run's end "end CODE", and where it was
            killed nothing more
    stdout  a line of JSON for each thing to be printed: {"say": …}, {"warn": …}

With `--check MODE` it says instead what is missing for that mode, and exits with 1.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import select
import signal
import sys
import threading
import time
from typing import IO, Any

from limr_jax.errors import shown
from limr_jax.storage.metric_names import EVALS, METRICS, tagged

LOOK_SECONDS = 1.0  # between two looks at the files
RETRY_SECONDS = 60.0  # between two attempts to reach a service that does not answer
INIT_SECONDS = 10.0  # that one attempt takes at most


@dataclasses.dataclass(frozen=True)
class WandbRun:
    """What is handed over, and where to."""

    folder: str  # holds metrics.jsonl; W&B's own files go to its folder wandb/
    project: str
    mode: str  # 'offline' or 'online'
    id: str  # of the W&B run
    name: str  # of the W&B run, for people
    config: dict[str, Any]  # the run's whole config
    # From the run's end on: what is not taken by then is for `wandb sync` to send.
    finish_seconds: float


class Lines:
    """The whole lines of a file that grows, each once; of steps after `sent`."""

    def __init__(self, path: pathlib.Path, sent: int):
        self._path, self.sent, self._offset = path, sent, 0

    def new(self) -> list[dict[str, Any]]:
        """The rows that were added since the last call."""
        data = b""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            # Cut back, as by a run that is taken up: `sent` tells what is known.
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset = 0
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]  # of a line that is not whole nothing
        self._offset += len(data)
        rows = []
        for line in data.splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and type(row.get("step")) is int:
                    rows.append(row)
        rows = [row for row in rows if row["step"] > self.sent]
        self.sent = max([self.sent, *(row["step"] for row in rows)])
        return rows


class Sink:
    """A W&B run, as far as there is one yet, and what it has been given."""

    def __init__(self, job: WandbRun):
        self._job, self._run = job, None
        self._folder = pathlib.Path(job.folder)
        self._record = self._folder / "wandb" / "sent.json"
        self._files = {
            file: Lines(self._folder / file, step)
            for file, step in self._already_sent().items()
        }
        self._complained = False
        self._next_try = 0.0

    def _already_sent(self) -> dict[str, int]:
        """The last step of each file that an earlier process has handed over."""
        self._sent = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            # A pipe in its place would be waited for.
            if self._record.is_file():
                known = json.loads(self._record.read_text())
                self._sent = known if isinstance(known, dict) else {}
        # What the service has got is not written again for `wandb sync`.
        modes = {"online"} | {self._job.mode}
        return {
            file: max(_step(self._sent, mode, file) for mode in modes)
            for file in (METRICS, EVALS)
        }

    def open(self, mode: str | None = None) -> bool:
        """Begin the W&B run unless it has begun; whether there is one."""
        if self._run is None and time.monotonic() >= self._next_try:
            try:
                self._run = _init(self._job, mode or self._job.mode)
            except Exception as error:  # W&B's own kinds, and those of its libraries
                _forget()
                self._next_try = time.monotonic() + RETRY_SECONDS
                if not self._complained:
                    _tell(
                        warn=f"W&B cannot be reached ({_line(error)}); the run goes "
                        "on, and it is tried again meanwhile"
                    )
                self._complained = True
        return self._run is not None

    def hand_over(self) -> None:
        """Everything that is in the files and was not handed over."""
        added = False
        for file, lines in self._files.items():
            for row in lines.new():
                # Not W&B's own step: a resumed run may come back to an earlier one,
                # and what W&B gets out of order it drops.
                numbers = tagged(file, row)
                if numbers:
                    self._run.log({"step": row["step"]} | numbers)
                added = True
        if added:
            self._keep()

    def _keep(self) -> None:
        sent = {file: lines.sent for file, lines in self._files.items()}
        self._sent = {**self._sent, self._job.mode: sent}
        # A record that cannot be written costs lines that stand twice in W&B.
        with contextlib.suppress(OSError):
            self._record.parent.mkdir(exist_ok=True)
            new = self._record.with_suffix(".tmp")
            new.write_text(json.dumps(self._sent))
            new.replace(self._record)

    def finish(self, code: int) -> None:
        """Hand over what is left, and end, within the job's finish_seconds."""
        late = threading.Timer(self._job.finish_seconds, self._give_up)
        late.daemon = True
        late.start()
        if self._run is None:  # for `wandb sync`: the service was never there
            self._next_try = 0.0
            self.open("offline")
        if self._run is not None:
            self.hand_over()
            self._run.finish(exit_code=code)

    def _give_up(self) -> None:
        place = _sync_dir(self._run) or self._folder / "wandb"
        seconds = f"{self._job.finish_seconds:.0f} s"
        _tell(
            warn=f"W&B has not taken everything in {seconds}; `wandb sync {place}` "
            "sends it"
        )
        # wandb-core, which W&B has started, ends when this process is gone.
        os._exit(1)


def _step(sent, mode: str, file: str) -> int:
    """The step that the record has; −1 where it has none, or is damaged."""
    steps = sent.get(mode)
    step = steps.get(file) if isinstance(steps, dict) else None
    return step if type(step) is int else -1


def _init(job: WandbRun, mode: str):
    """Begin a W&B run that gets what is logged and the config, and nothing else."""
    import wandb

    run = wandb.init(
        project=job.project,
        id=job.id,
        name=job.name,
        # The workdir's id: a run that is taken up goes on in its W&B run.
        resume="allow" if mode == "online" else None,
        dir=job.folder,
        mode=mode,
        config=job.config,
        settings=wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            host="unnamed",  # else this machine's name
            silent=True,
            init_timeout=INIT_SECONDS,
        ),
    )
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    place = f"offline, in {_sync_dir(run)}, which `wandb sync` sends"
    if mode == "online":
        place = run.url
    _tell(say=f"W&B: run {job.id} of project {job.project}: {place}")
    return run


def _forget() -> None:
    """End wandb-core, which would refuse another run of the same id."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown()


def _sync_dir(run) -> str:
    """The folder of the W&B run; "" where there is none."""
    return str(pathlib.Path(run.dir).parent) if run is not None else ""


def _line(error: BaseException) -> str:
    return shown(error, limit=300) or type(error).__name__


def _tell(**message: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps(message), file=_people, flush=True)


def _check(mode: str) -> str:
    """What is missing for the mode, in one line; "" where nothing is."""
    try:
        import wandb
    except Exception as error:  # absent, or broken by what it needs
        return (
            f"the package wandb cannot be imported ({_line(error)}); pip install "
            "'limr_jax[wandb]', or leave wandb.project empty"
        )
    if mode == "online":
        complaint = "there is none"
        try:
            if wandb.login(verify=False):
                return ""
        except Exception as error:
            complaint = _line(error)
        return (
            f"mode=online needs an API key ({complaint}); give it as WANDB_API_KEY or "
            "by `wandb login`, or give --config.wandb.mode=offline"
        )
    return ""


def _ending(seconds: float) -> int | None:
    """Wait so long at most for the run's end: its exit code; None: it goes on."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], seconds)
    if not ready:
        return None
    words = os.read(sys.stdin.fileno(), 64).split()
    # Killed, it could say nothing.
    return int(words[1]) if len(words) == 2 and words[0] == b"end" else 1


def _locked(folder: pathlib.Path) -> IO:
    """An open file, locked: the process of a run that was killed may still be here.

    It ends soon after its run, and one W&B run takes lines from one process.
    """
    (folder / "wandb").mkdir(exist_ok=True)
    file = (folder / "wandb" / ".lock").open("a")
    fcntl.lockf(file, fcntl.LOCK_EX)
    return file


def _first_line() -> bytes:
    """The job's line, and no byte of what follows, which `select` could not see."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)
        if not byte:
            raise SystemExit(1)  # killed before it said anything
        line += byte
    return line


def main(argv: list[str]) -> int:
    """Check, or hand over until the run has ended; the exit code."""
    if argv[:1] == ["--check"]:
        complaint = _check(argv[1])
        _tell(warn=complaint)
        return 1 if complaint else 0
    job = WandbRun(**json.loads(_first_line()))
    lock = _locked(pathlib.Path(job.folder))
    sink, code = Sink(job), None
    while code is None:
        if sink.open():
            sink.hand_over()
        code = _ending(LOOK_SECONDS)
    sink.finish(code)
    lock.close()
    return 0


# W&B prints what it likes; this stream is the run's alone.
_people = sys.stdout

if __name__ == "__main__":
    # A preemption may ask every process; this one ends when its run has.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A copy of the descriptor: whoever writes to stdout writes nowhere.
    _people = os.fdopen(os.dup(1), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        ended = main(sys.argv[1:])
    except Exception as failure:
        _tell(warn=f"W&B gets no more of this run: {_line(failure)}")
        ended = 1
    sys.exit(ended)
