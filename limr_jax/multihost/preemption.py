"""SIGTERM ends a run between two updates, and at the same one on every host.

Preemption gives about 30 s of notice, a step of a large model takes many minutes. So a
stop does not wait for rollouts: `until`, which waits for the devices or the graders,
raises `Stopped`, and the state of the step's start is what is saved. An update is
finished once it has begun, for it takes the old state's memory.

Hosts need not hear of the stop at the same time, or at all: watchdog.py carries the
word. Each then begins no further update and says how many it has begun; the most that
any has begun is the last of all. (multihost_utils.reached_preemption_sync_point names a
step that no host has reached yet, so the rollouts under way would have to end first.)
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import jax


class Stopped(Exception):
    """All hosts have done the same updates, and shall do no more."""


class Stop:
    """What this process knows of the stop; `watchdog.py` reads and writes it, too."""

    def __init__(self):
        self.requested = False  # SIGTERM has come to this process
        self.obeyed = False  # whether `obey` was called
        self.begun = 0  # updates of this process, that under way included
        self.done = 0
        self.frozen = False  # none is begun until `last` is known
        self.last: int | None = None  # the update to stop after
        self.condition = threading.Condition()

    def ask(self, *_) -> None:
        """The handler of SIGTERM: this process is to stop."""
        self.requested = True
        if jax.process_count() == 1:
            self.decide(self.begun)

    def freeze(self) -> int:
        """Let no update begin until `decide`; returns how many have begun."""
        # With the lock, so that an update is counted here or does not begin.
        with self.condition:
            self.frozen = True
            return self.begun

    def decide(self, last: int) -> None:
        """Let update number `last`, counted from 1, be the last one."""
        # Without the lock, which the thread that a signal interrupts may hold.
        self.last = last

    def check(self) -> None:
        """Raises Stopped once the last update is done, if `obey` was called."""
        stops = self.obeyed and self.last is not None
        # begun == done: not within an update, which has taken the old state's memory.
        if stops and self.begun == self.done >= self.last:
            raise Stopped

    def begin(self) -> None:
        """Count an update as begun; waits while frozen, and raises as `check` does."""
        while True:
            with self.condition:
                self.check()
                if not self.frozen or self.last is not None:
                    self.begun += 1
                    return
            time.sleep(0.01)  # without the lock, which `freeze` takes


_stop = Stop()  # one a process, as signals are


def current() -> Stop:
    """The stop of this process."""
    return _stop


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """While it lasts, SIGTERM asks for a stop."""
    global _stop
    if jax.process_count() == 1:  # else another host's stop may be known already
        _stop = Stop()
    before = signal.signal(signal.SIGTERM, _stop.ask)
    try:
        yield
    finally:
        # None: another language's handler, which Python cannot put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def obey() -> None:
    """Let a stop end what waits from here on, as `Stopped`; one that has come, too.

    All processes call it, when what each would save is of the same step. A stop before
    that might leave what another process has gone on from.
    """
    _stop.obeyed = True


def came() -> bool:
    """Whether the hosts have agreed on a stop."""
    return _stop.last is not None


def until(done: Callable[[], bool]) -> None:
    """Wait for `done()`; raises Stopped when the hosts have agreed to stop."""
    # Grows from 0.2 to 50 ms: a short wait stays short, a long one costs no processor.
    pause = 2e-4
    while not done():
        _stop.check()
        time.sleep(pause)
        pause = min(1.1 * pause, 0.05)
    _stop.check()


def ready(arrays):
    """Wait for arrays (a pytree), and return them; raises Stopped as `until` does."""
    leaves = [x for x in jax.tree.leaves(arrays) if isinstance(x, jax.Array)]
    # Looked at again and again: blocked in jaxlib, Python hears no signal.
    until(lambda: all(x.is_ready() for x in leaves))
    return jax.block_until_ready(arrays)  # at once, or what a program failed by


@contextlib.contextmanager
def update() -> Iterator[None]:
    """A block that every host runs if one has begun it; Stopped where none has."""
    _stop.begin()
    yield
    _stop.done = _stop.begun
