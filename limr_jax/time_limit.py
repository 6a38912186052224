"""The processor time that one item of a worker process may take.

A signal first, which raises `OutOfTime` in the item; the kernel's kill after it.
"""

import resource
import signal
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


class OutOfTime(BaseException):
    """The item used up its processor time. Not an Exception: sympy catches those."""


def stop(signum, frame):
    """The handler of SIGPROF, which ends the item that runs: raises OutOfTime."""
    raise OutOfTime


def limit(cpu_seconds: float, start: bool) -> None:
    """Arm (`start`) or disarm an item's limit of so many seconds of processor time.

    SIGPROF comes first, and again every half second; the kernel's kill 2 to 3 s later.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds if start else 0.0, 0.5)
    if start:
        # RLIMIT_CPU counts from the process's start, so what is spent comes on top.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ceiling = usage.ru_utime + usage.ru_stime + cpu_seconds + 2
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(ceiling) + 1, hard))


def within(cpu_seconds: float, work: Callable[[], _Result]) -> _Result:
    """What `work()` returns within so many seconds of processor time.

    Raises OutOfTime where it takes more; the caller's `try` must have all of the call.
    """
    # Two levels: the signal may come while the inner one stops the clock.
    try:
        try:
            limit(cpu_seconds, start=True)
            return work()
        finally:
            limit(cpu_seconds, start=False)
    finally:
        # Once more, for a signal that came before the clock was stopped.
        signal.setitimer(signal.ITIMER_PROF, 0.0)
