"""W&B as one more place for a run's numbers, where `wandb.project` asks for it.

Process 0 starts `wandb_process.py`, which follows metrics.jsonl and evals.jsonl. The
run waits for it at its very end alone, and not for long.

In the workdir:

    wandb.json       {"id": …, "project": …}: which W&B run this is, whoever takes it up
    wandb/sent.json  the last steps that were handed over, by mode and file
    wandb/           W&B's own files; `wandb sync RUN/wandb/offline-run-*` sends them
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from limr_jax import console
from limr_jax.errors import InputError, shown
from limr_jax.multihost import preemption
from limr_jax.storage import files, gcs
from limr_jax.storage.wandb_process import INIT_SECONDS

RECORD = "wandb.json"
MODES = ("offline", "online")
_FORBIDDEN, _LONGEST = "/\\#?%:", 128  # of a project's name, by W&B
_ROOT = str(pathlib.Path(__file__).resolve().parents[2])
# How long W&B may take at the run's end; wandb_process.py may be at an attempt to reach
# it then, which is waited for as well. After SIGTERM there are 30 s in all, for a save.
FINISH_SECONDS, STOP_SECONDS = 10.0, 3.0
# Of the environment, what would say otherwise than the config.
_SETTLED = ("MODE", "DISABLED", "RUN_ID", "RESUME", "DIR", "PROJECT", "NAME", "SERVICE")


def check(project: str, mode: str) -> None:
    """Refuse settings that cannot work here; process 0 looks, and no project is none.

    Raises:
      InputError: the project's name is none of W&B's, the package is absent, or there
        is no API key where the mode is 'online'.
    """
    if not project or jax.process_index() > 0:
        return
    if set(project) & set(_FORBIDDEN) or len(project) > _LONGEST:
        raise InputError(
            f"wandb.project={shown(repr(project))} is no name of a W&B project; give "
            f"at most {_LONGEST} characters, without {_FORBIDDEN}"
        )
    # In a process of its own: to import wandb takes a second, and a thread or two.
    try:
        ended = subprocess.run(
            _command("--check", mode),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_environment(),
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"wandb.project={project!r}: {error}") from error
    if ended.returncode:
        (_, line), *_ = [
            *_messages(ended.stdout.splitlines()),
            ("", "W&B does not start"),
        ]
        raise InputError(f"wandb.project={project!r}: {line}")


@contextlib.contextmanager
def following(
    folder: pathlib.Path, config, *, name: str, project: str, mode: str
) -> Iterator[None]:
    """While it lasts, what the run logs in `folder` is handed to W&B; process 0 does.

    folder: holds metrics.jsonl, of a workdir or of its local copy. config: the run's,
    which W&B gets as it is. name: of the W&B run, for people. project, mode: as in
    configs/base.py; without a project nothing is done. Raises nothing of its own: what
    goes wrong is a warning.
    """
    if not project or jax.process_index() > 0:
        yield
        return
    started, code = None, 1
    try:
        job = {
            "folder": str(folder.absolute()),
            "project": project,
            "mode": mode,
            "id": _run_id(folder, project),
            "name": name,
            "config": files.plain(config.to_dict()),
            "finish_seconds": FINISH_SECONDS,
        }
        started = _start(job)
    except (OSError, InputError) as error:
        console.warn(f"W&B gets nothing of this run: {error}")
    try:
        yield
        code = 0
    finally:
        if started:
            _end(*started, code=code)


def _run_id(folder: pathlib.Path, project: str) -> str:
    """The id of the workdir's W&B run; a new one where it has none in this project."""
    path = folder / RECORD
    gcs.refuse_pipe(path)
    faults = OSError, ValueError, TypeError, KeyError, RecursionError
    with contextlib.suppress(*faults):
        known = json.loads(path.read_text())
        if known["project"] == project and re.fullmatch("[0-9a-f]{12}", known["id"]):
            return known["id"]
    # Of another project, or damaged: what was handed over then is not there now.
    with contextlib.suppress(OSError):
        (folder / "wandb" / "sent.json").unlink(missing_ok=True)
    new = uuid.uuid4().hex[:12]
    files.write_text(path, json.dumps({"id": new, "project": project}) + "\n")
    return new


def _start(job: Mapping[str, Any]) -> tuple[subprocess.Popen, threading.Thread]:
    """The process, and the thread that prints what it says."""
    process = subprocess.Popen(
        _command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        start_new_session=True,  # Ctrl-C is for the run, which then says that it ends
    )
    with contextlib.suppress(BrokenPipeError):  # it is dead; what it said is read below
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    teller = threading.Thread(target=_pass_on, args=(process,), daemon=True)
    teller.start()
    return process, teller


def _pass_on(process: subprocess.Popen) -> None:
    """Print what the process says, until it ends."""
    warned = False
    for kind, line in _messages(process.stdout):
        warned |= kind == "warn"
        (console.say if kind == "say" else console.warn)(console.shown(line))
    # Below 0: by a signal, which is `_end`'s own, or somebody's.
    if process.wait() > 0 and not warned:
        code = process.returncode
        console.warn(
            f"W&B gets no more of this run: its process has ended (code {code})"
        )


def _messages(lines) -> Iterator[tuple[str, str]]:
    """(kind, text) of each line of what `wandb_process.py` tells."""
    for line in lines:
        with contextlib.suppress(ValueError, AttributeError):
            yield from json.loads(line).items()


def _end(process: subprocess.Popen, teller: threading.Thread, *, code: int) -> None:
    """Say that the run has ended, and wait a little; then the process is killed."""
    seconds = FINISH_SECONDS + INIT_SECONDS + 5.0
    if preemption.came():
        seconds = STOP_SECONDS
    with contextlib.suppress(OSError):  # it has died, and said why
        process.stdin.write(f"end {code}\n".encode())
        process.stdin.close()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        console.warn(
            f"W&B has not taken everything in {seconds:.0f} s; `wandb sync` sends what "
            "lies in the workdir's wandb/"
        )
    teller.join(1.0)  # it prints to the end of what was said
    process.stdout.close()


def _command(*arguments: str) -> list[str]:
    # -P: the current folder may hold W&B's own folder wandb/, which would be imported.
    return [sys.executable, "-P", "-m", "limr_jax.storage.wandb_process", *arguments]


def _environment() -> dict[str, str]:
    """This process's, in which W&B finds its key, its server and its team.

    But not what would say otherwise than the config; and W&B's own telemetry, which it
    sends in offline mode too, is off.
    """
    settled = {f"WANDB_{name}" for name in _SETTLED}
    mine = {name: text for name, text in os.environ.items() if name not in settled}
    paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
    return mine | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }
