"""A thread that ends this process when another one has died, and passes a stop on.

Each process keeps one record in the coordinator's key-value store: that it lives, why
it ended, how many updates it has begun when a stop is asked for. A collective that
waits for a dead host does not notice, and blocks for ever; this thread does not need
the devices. Processes are numbered as the coordinator has them, which is 0 itself.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping

from limr_jax.multihost import preemption

BEAT_SECONDS = 0.5  # between two looks
DEAD_SECONDS = 40.0  # without a sign of life
_GRACE_SECONDS = 3.0  # for a process to tell of its own failure before another's
_STANDS = "the last checkpoint stands, and the same command goes on from it"


def name(process: int, record: Mapping) -> str:
    """`process 3 (its host's name, in JAX 5)`, as far as it is known and not the same.

    record: has `host`, and jax.process_index() as `index`.
    """
    details = [record["host"]] if record.get("host") else []
    if record.get("index", process) not in (process, None):
        details.append(f"in JAX {record['index']}")
    if not details:
        return f"process {process}"
    return f"process {process} ({', '.join(details)})"


class Watch:
    """Beats for this process and looks at all of them.

    client: of the coordinator's key-value store. process: this one's number there, of
    `count`. end: called with the one line that says which process is gone.
    current_stop: gives this process's stop.
    """

    def __init__(
        self,
        client,
        process: int,
        count: int,
        end: Callable[[str], None],
        current_stop: Callable[[], preemption.Stop] = preemption.current,
    ):
        self._client, self._process, self._count = client, process, count
        self._current_stop = current_stop
        self._end = end
        self._mine = {
            "host": socket.gethostname(),
            "index": None,  # known once there are devices
            "beat": 0,
            "ended": None,  # why, for the others to repeat
        }
        self._last_beats: dict[int, tuple[int, float, dict]] = {}  # beat, when, record
        self._round = time.monotonic()  # when the store last answered
        self._error = "it does not answer"
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._post()
        # Daemons: a process that ends waits for neither.
        for run in (self._beat, self._judge):
            threading.Thread(target=run, daemon=True).start()

    def name(self, process: int) -> str:
        """What `name` says of a process, by its last record."""
        _, _, record = self._last_beats.get(process, (0, 0.0, {}))
        return name(process, record)

    def started(self, index: int) -> None:
        """Note that this process has its devices; index: jax.process_index()."""
        self._mine["index"] = index
        self._post()

    def leave(self, reason: str | None = None) -> None:
        """No more beats; the other processes get the reason, if there is one."""
        self._over.set()
        if reason:
            self._mine["ended"] = reason
            self._post()

    def _post(self) -> None:
        # Main thread and beat both post; unlocked, an older record could come last.
        with self._lock:
            self._mine["beat"] += 1
            key, text = f"limr/live/{self._process}", json.dumps(self._mine)
            self._client.key_value_set(key, text, allow_overwrite=True)

    def _beat(self) -> None:
        pause = 0.0  # the first look comes at once: it tells the others' names
        while not self._over.wait(pause):
            pause = BEAT_SECONDS
            try:
                self._post()
                pairs = self._client.key_value_dir_get("limr/live/")
            except Exception as error:  # of jaxlib's, with no public type
                # Its first line; an exception need not have one.
                self._error = str(error).strip().partition("\n")[0] or repr(error)
                continue
            self._look({int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in pairs})

    def _look(self, records: Mapping[int, dict]) -> None:
        now = self._round = time.monotonic()
        for process, record in records.items():
            beat, when, _ = self._last_beats.get(process, (None, 0.0, None))
            # By this host's clock, so that hosts' clocks need not agree.
            when = now if record["beat"] != beat else when
            self._last_beats[process] = (record["beat"], when, record)
        stop = self._current_stop()
        # One host's word is enough: whoever reads it freezes, and says its number.
        if stop.requested or any("begun" in record for record in records.values()):
            self._mine["begun"] = stop.freeze()
        begun = [record.get("begun") for record in records.values()]
        # All are frozen. Those behind go on up to the largest, no further: one maximum.
        if len(begun) == self._count and None not in begun:
            stop.decide(max(begun))

    def _judge(self) -> None:
        """Call `end` once, with a line that names the process that is gone; a thread.

        It is apart from `_beat`, whose calls may hang where the coordinator does.
        """
        start = time.monotonic()
        while not self._over.wait(BEAT_SECONDS):
            now = time.monotonic()
            complaint = None
            if now - self._round > DEAD_SECONDS:
                complaint = f"{self.name(0)}, the coordinator, is gone: {self._error}"
            for process in range(self._count):
                _, when, record = self._last_beats.get(process, (0, start, {}))
                if record.get("ended") and now - when > _GRACE_SECONDS:
                    complaint = f"{self.name(process)} ended: {record['ended']}"
                # Up to the store's last answer: while it is silent no beat is seen.
                elif self._round - when > DEAD_SECONDS:
                    complaint = (
                        f"{self.name(process)} has given no sign of life for "
                        f"{DEAD_SECONDS:.0f} s"
                    )
            if complaint:
                self._end(f"{complaint}; {_STANDS}")
                return


class LastWords:
    """A shell that speaks for this process if it dies without having said why.

    SIGKILL gives no chance to, nor does jaxlib, which aborts when the coordinator is
    gone.
    """

    def __init__(self, process: int):
        text = (
            f"error: process {process} ({socket.gethostname()}, {os.getpid()}) died: "
            "killed, out of memory, or the coordinator (process 0) is gone, as the "
            f"lines above say; {_STANDS}"
        )
        self._shell = subprocess.Popen(
            # `read` fails when the pipe ends, as it does with this process, however it
            # dies. The text is $0, an argument, so that nothing in it needs quotes.
            ["sh", "-c", 'read -r said || echo "$0" >&2', text],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=sys.stderr.fileno(),
            start_new_session=True,  # Ctrl-C is not for the shell
        )
        self._once = threading.Lock()

    def cancel(self) -> None:
        """Say nothing: the process has said why it ends. Two threads may come to it."""
        with self._once:
            if not self._shell.stdin.closed:
                self._shell.communicate(b"said\n")
