"""A pool of worker processes that may hang, die or run out of memory at any item.

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
import signal
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
_PAUSES = (1.0, 5.0)  # seconds before a start that failed is tried again


class _Ending:
    """Whether a `map` is to end before its last reply, and why."""

    def __init__(self):
        self.reasons: list[BaseException] = []  # `map` raises the first
        self._noted = threading.Event()

    def note(self, reason: BaseException) -> None:
        """End the `map`: after this no job is handed out, and no process stays."""
        self.reasons.append(reason)
        self._noted.set()

    def comes(self, seconds: float = 0.0) -> bool:
        """Whether a reason is noted; waits so many seconds for one."""
        return self._noted.wait(seconds)


class _Worker:
    """One process, or none yet. Used by one thread at a time; any other may kill it."""

    def __init__(self, command: Sequence[str], wall_seconds: float):
        self.command = list(command)
        self.wall_seconds = wall_seconds
        self.process: subprocess.Popen | None = None
        self._buffer = b""

    def start(self, ending: _Ending) -> None:
        """Start the process and wait until it has loaded its libraries.

        One that ends meanwhile is started again: the memory, say, may be another's for
        a moment. Raises InputError when the last try has failed, the process is not
        ready in ten minutes, or the `map` ends; then there is no process.
        """
        for pause in (0.0, *_PAUSES):
            # A process that `close` has killed as it started is no failed start.
            if ending.comes(pause):
                raise InputError("a grading process was ended while it started")
            try:
                reason, late = self._try(ending)
            except OSError as error:  # no process, or no file, can be had
                reason, late = str(error), False
            if reason is None:
                return
            # A start that was too slow has had its ten minutes already.
            if late:
                break
        command, times = " ".join(self.command), len(_PAUSES) + 1
        how = f"was not ready in {_START_SECONDS} s" if late else f"ended {times} times"
        raise InputError(
            f"a grading process ({command}) {how} while it started: {reason}; free "
            "processors or memory, or give fewer workers"
        )

    def _try(self, ending: _Ending) -> tuple[str | None, bool]:
        """(why the start failed, None if it did not; whether for its length)."""
        paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
        settings = {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
        # One thread, as there is a worker a core; sets have one order in all workers.
        settings |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        # A file: nobody reads stderr meanwhile, and a full pipe would stop the worker.
        with tempfile.TemporaryFile() as complaints:
            process = self.process = subprocess.Popen(
                # -P: what lies in the current folder is not imported.
                [sys.executable, "-P", *self.command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                env=os.environ | settings,
                start_new_session=True,
                # `select` knows what the pipe holds, not what a buffer of ours does.
                bufsize=0,
            )
            # `close` notes before it kills: it has come too early for this process, or
            # finds it in `self.process`.
            if ending.comes():
                self.process = None
                _end(process)
                return "it was ended", False
            self._buffer = b""
            # A worker that does not read must not hold us: `_write` goes by the clock.
            os.set_blocking(process.stdin.fileno(), False)
            deadline = time.monotonic() + _START_SECONDS
            if self._read_line(deadline) is not None:
                return None, False
            late = time.monotonic() >= deadline
            self.kill()
            complaints.seek(0)
            lines = complaints.read()[-2_000:].decode(errors="replace").split("\n")
            # The last line of a traceback says what was raised.
            last = [line for line in map(str.strip, lines) if line][-1:]
            return last[0] if last else "it said nothing", late

    def ask(self, job: dict, ending: _Ending) -> dict:
        """The reply to one job; `{"error": …}` if the worker did not live to give it.

        The clock starts when the job is handed to a process that is ready for it.
        Raises InputError as `start` does.
        """
        if self.process is None or _ended_by(self.process) is not None:
            self.kill()
            self.start(ending)
        deadline = time.monotonic() + self.wall_seconds
        # In ASCII halves of characters and new lines are JSON's escapes.
        line = json.dumps(job).encode("ascii") + b"\n"
        reply = self._read_line(deadline) if self._write(line, deadline) else None
        if reply is None:
            # The kernel's own limit may end it before our clock does.
            late = time.monotonic() >= deadline or self._out_of_time()
            # Its late reply would be taken for that of the next job.
            self.kill()
            return {"error": "timeout" if late else "died"}
        return json.loads(reply)

    def _out_of_time(self) -> bool:
        """Whether the kernel has ended the process for its processor time."""
        end = time.monotonic() + 1.0
        while _ended_by(self.process) is None and time.monotonic() < end:
            time.sleep(0.01)
        return _ended_by(self.process) == signal.SIGXCPU

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
            # The end of the file: the worker has gone.
            if not data:
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def kill(self) -> None:
        """End the process, if there is one; the next job starts another."""
        # Taken out first: `close` and the thread that serves it may both come here.
        process, self.process = self.process, None
        if process is not None:
            _end(process)


def _ended_by(process: subprocess.Popen) -> int | None:
    """The signal that ended a process, 0 where none did; None while it runs.

    It is not reaped, so that its number, its group's too, stays its own.
    """
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: there it is reaped
        process.poll()
        return None if process.returncode is None else max(0, -process.returncode)
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        ended = os.waitid(os.P_PID, process.pid, how)
    except ChildProcessError:  # reaped by now, as by a `close` meanwhile
        return max(0, -(process.returncode or 0))
    if ended is None:
        return None
    return 0 if ended.si_code == os.CLD_EXITED else ended.si_status


def _end(process: subprocess.Popen) -> None:
    """Kill a worker's process with all that it has started, and close our pipes."""
    # Its session is its own, so the group's number is its own. Before it is reaped.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
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
        module: str = "limr_jax.rewards.math.worker",
    ):
        count = len(os.sched_getaffinity(0)) if workers is None else workers
        if count < 1:
            raise InputError(f"workers={count} must be at least 1; give 1 or more")
        command = ["-m", module, str(cpu_seconds), str(memory_mib)]
        self._workers = [_Worker(command, wall_seconds) for _ in range(count)]
        self._lock = threading.Lock()
        self._ending = _Ending()  # of the `map` under way
        # It holds the list, not the pool, which could else never be collected.
        weakref.finalize(self, _kill_all, self._workers)  # at exit at the latest

    def close(self) -> None:
        """End the processes, and a `map` under way; the next one starts fresh ones."""
        # Before the kill: so `map` raises this, and not what threads then meet.
        self._ending.note(InputError("the grading processes were ended"))
        _kill_all(self._workers)

    def forget(self) -> None:
        """Let go of the processes without ending them; for a forked child.

        They are its parent's. The pool is not to be used again.
        """
        for worker in self._workers:
            process, worker.process = worker.process, None
            if process is not None:
                process.returncode = 0  # whom it did not start it cannot wait for
                process.stdin.close()
                process.stdout.close()

    def map(self, jobs: Sequence[dict]) -> list[dict]:
        """The reply to every job, in order; `{"error": …}` where it killed its worker.

        Raises:
          InputError: workers cannot be started at all, or `close` was called meanwhile.
        """
        # One `map` at a time: a worker has one thread that speaks to it.
        with self._lock:
            replies: list[dict | None] = [None] * len(jobs)
            # All threads take from it: whoever is free has the next job.
            queue = iter(range(len(jobs)))
            # One of its own: `close` ends this `map` and no later one.
            ending = self._ending = _Ending()
            threads = [
                threading.Thread(
                    target=_serve,
                    args=(worker, queue, jobs, replies, ending),
                    daemon=True,
                )
                # No more workers start than there are jobs.
                for worker in self._workers[: len(jobs)]
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            except BaseException:  # Ctrl-C: no worker is left with half an item
                ending.note(KeyboardInterrupt())
                _kill_all(self._workers)
                raise
        if ending.reasons:
            raise ending.reasons[0]
        return replies


def _serve(worker, queue, jobs, replies, ending: _Ending) -> None:
    """One thread: hand a worker one job after another until none is left."""
    for k in queue:
        if ending.comes():
            return
        try:
            replies[k] = worker.ask(jobs[k], ending)
        except Exception as error:
            ending.note(error)
            return
