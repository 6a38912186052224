"""A pool of grading processes that may hang, die or run out of memory at any item.

Plain subprocesses that speak JSON lines over pipes: no pickle, no fork of a process
that has JAX's threads in it. Each has its own session, so that Ctrl-C reaches the
parent only; a parent that dies, however it dies, closes the pipes, and its workers
end. Workers start at the first use and are replaced when an item kills them.
"""

import contextlib
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence

from limr_jax.errors import InputError

_ROOT = str(pathlib.Path(__file__).resolve().parents[1])
_START_SECONDS = 600.0  # a cold disk and two cores with ten others are no failure


class _Worker:
    """One process, or none yet. Used by one thread at a time."""

    def __init__(self, command: Sequence[str], wall_seconds: float):
        self.command = list(command)
        self.wall_seconds = wall_seconds
        self.process: subprocess.Popen | None = None
        self._buffer = b""

    def start(self) -> None:
        """Start the process and wait until it has loaded its libraries.

        Raises InputError if it ends, or takes ten minutes and more.
        """
        paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        settings |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        with tempfile.TemporaryFile() as complaints:
            self.process = subprocess.Popen(
                [sys.executable, "-P", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=os.environ | settings,
                start_new_session=True,
                bufsize=0,
            )
            self._buffer = b""
            os.set_blocking(self.process.stdin.fileno(), False)
            deadline = time.monotonic() + _START_SECONDS
            if self._read_line(deadline) is None:
                late = time.monotonic() >= deadline
                self.kill()
                complaints.seek(0)
                said = complaints.read()[-2_000:].decode(errors="replace").strip()
                last = said.splitlines()[-1] if said else "it said nothing"
                raise InputError(
                    f"a grading process ({' '.join(self.command)}) "
                    + (f"was not ready in {_START_SECONDS} s" if late else "ended")
                    + f": {last}; free processors or memory, or give fewer workers"
                )

    def ask(self, job: dict) -> dict:
        """The reply to one job; `{"error": …}` if the worker did not live to give it.

        The clock starts when the job is handed to a process that is ready for it.
        """
        if self.process is None or self.process.poll() is not None:
            self.kill()
            self.start()
        deadline = time.monotonic() + self.wall_seconds
        line = json.dumps(job).encode("ascii") + b"\n"
        reply = self._read_line(deadline) if self._write(line, deadline) else None
        if reply is None:
            late = time.monotonic() >= deadline
            self.kill()
            return {"error": "timeout" if late else "died"}
        return json.loads(reply)

    def _write(self, data: bytes, deadline: float) -> bool:
        pipe = self.process.stdin.fileno()
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([], [pipe], [], left)[1]:
                return False
            try:
                data = data[os.write(pipe, data) :]
            except BlockingIOError:
                continue
            except OSError:  # it died between two items
                return False
        return True

    def _read_line(self, deadline: float) -> bytes | None:
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                return None
            data = os.read(pipe, 65_536)
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()


class WorkerPool:
    """Jobs in, replies out, in order, whatever the jobs do to the workers.

    workers: processes, default the cores this process may use; wall_seconds: for one
    item, from when grading starts; cpu_seconds: for one item; memory_mib: for a worker.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        wall_seconds: float = 20.0,
        cpu_seconds: float = 3.0,
        memory_mib: int = 1024,
        module: str = "limr_jax.grade_worker",
    ):
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        if count < 1:
            raise InputError(f"workers={count} must be at least 1; give 1 or more")
        command = ["-m", module, str(cpu_seconds), str(memory_mib)]
        self._workers = [_Worker(command, wall_seconds) for _ in range(count)]
        self._lock = threading.Lock()
        weakref.finalize(self, _kill_all, self._workers)  # at exit at the latest

    def close(self) -> None:
        """End the processes; the next `map` starts fresh ones."""
        _kill_all(self._workers)

    def map(self, jobs: Sequence[dict]) -> list[dict]:
        """The reply to every job. An item that a worker did not survive is an error.

        Raises InputError if workers cannot be started at all.
        """
        with self._lock:
            replies: list[dict | None] = [None] * len(jobs)
            queue = iter(range(len(jobs)))
            failures: list[BaseException] = []
            threads = [
                threading.Thread(
                    target=_serve, args=(w, queue, jobs, replies, failures), daemon=True
                )
                for w in self._workers[: len(jobs)]
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except BaseException:  # Ctrl-C: no worker is left with half an item
                failures.append(KeyboardInterrupt())
                _kill_all(self._workers)
                raise
        if failures:
            raise failures[0]
        return replies


def _serve(worker, queue, jobs, replies, failures) -> None:
    """One thread: hand a worker one job after another until none is left."""
    for k in queue:
        if failures:
            return
        try:
            replies[k] = worker.ask(jobs[k])
        except Exception as error:
            failures.append(error)
            return
