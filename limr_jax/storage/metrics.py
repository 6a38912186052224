"""The numbers of a run by step, as JSON lines and as TensorBoard events.

In the workdir (local, or gs://…), written by process 0 alone:

    metrics.jsonl          one line a step: {"step": 3, "reward": 0.4, …}
    evals.jsonl            one line an evaluation, likewise
    warnings.jsonl         one line an alarm: {"step": 3, "name": "drift", "text": …};
                           only where there is one
    tensorboard/           the same numbers as train/<name> and eval/<name>

METRICS.md says what each of them means.

A resumed run cuts them back to its checkpoint's step, so that no step stands
twice. The event file is not cut but written anew from the JSON lines. A number that is
not finite is null in JSON.
"""

import contextlib
import io
import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.multihost import agree
from limr_jax.storage import files, gcs, lease
from limr_jax.storage.gcs_mirror import Mirror
from limr_jax.storage.metric_names import EVALS, METRICS, TAGS, tagged
from limr_jax.storage.rollout_dump import is_of_a_step

WARNINGS = "warnings.jsonl"
_LONGEST = 2**24  # bytes of a line
_NONFINITE = ("nonfinite_share", "critic/nonfinite_share")
_EVENTS, _COPY, _EVENT_PREFIX = "tensorboard", "", "events.out.tfevents."
# Where a log cannot be written: what becomes of it.
_CONSEQUENCES = {
    METRICS: "its lines wait in memory until there is room",
    EVALS: "its lines wait in memory until there is room",
    WARNINGS: "its lines wait in memory until there is room",
    _EVENTS: "TensorBoard lacks these steps until the run is taken up anew",
    _COPY: "the files there lag behind until they can be",
}


class Metrics:
    """Numbers by step as JSON lines and TensorBoard events.

    All processes make one, since they agree on which evaluations are there. step: the
    last step that is done (0 = none); what stands there of later steps, and a line that
    a kill tore, is dropped at once. write: whether this process writes; by default
    process 0 does.

    Raises:
      InputError: the files cannot be read or written as it begins.
      agree.Diverged, preemption.Stopped: as `agree.exchange`.

    `step` and `evaluation` raise lease.Lost where the workdir is another run's by then.
    A log that cannot be written later on (a full disk) ends nothing; it is said once.
    Lines of the .jsonl files then wait in memory until there is room, at
    the latest until `close`. TensorBoard's events are lost: whoever takes the run up
    writes them anew from the lines.
    """

    def __init__(self, workdir, *, step: int = 0, write: bool | None = None):
        self._write = jax.process_index() == 0 if write is None else write
        self._home = str(workdir)
        if self._write:
            # What wandb_sink.py keeps there too, so that it goes on elsewhere.
            wandb = ("wandb.json", "wandb/sent.json", "wandb/*/*.wandb")
            logs = (METRICS, EVALS, WARNINGS, "tensorboard/*")
            self._mirror = Mirror(workdir, *logs, *wandb)
            self._lenient = {
                name: files.Lenient(f"{workdir}/{name}", consequence)
                for name, consequence in _CONSEQUENCES.items()
            }
        self._workdir = self._mirror.folder if self._write else epath.Path(workdir)
        self._waiting: list[tuple[str, str]] = []  # (file, line) that is not written
        self._evaluated: dict[int, dict[str, Any]] = {}
        self.last: dict[str, Any] = {}  # the last step's line; empty where it is lost
        self.truncate(step)

    def truncate(self, step: int) -> None:
        """Drop every line of a step after this one; raises as the class does.

        All processes call it.
        """
        if self._write:
            self._waiting = []
            self._cut(step)
            self._mirror.push()
        # As process 0 sees them: all processes must skip the same evaluations.
        done = [x for x in self.written(EVALS) if x["step"] <= step]
        self._evaluated = {x["step"]: x for x in agree.broadcast("evaluations", done)}
        self.last = next((x for x in self.written() if x["step"] == step), {})

    def written(self, name: str = METRICS) -> list[dict[str, Any]]:
        """The lines that are in a file, on process 0; on the others none."""
        if jax.process_index() > 0:
            return []
        return list(read_metrics(self._workdir, name))

    def _cut(self, step: int) -> None:
        """The files as they were after this step; the events are written anew."""
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, EVALS):
                _cut_lines(self._workdir / name, step)
                # Opened even where nothing is cut: missing rights show here.
                files.append(self._workdir / name, b"")
            _cut_lines(self._workdir / WARNINGS, step)
        except OSError as error:
            raise InputError(
                f"{self._workdir} cannot be written ({error.strerror or error}); check "
                "path, rights and room"
            ) from error
        self._events = self._workdir / "tensorboard" / _event_file()
        with self._lenient[_EVENTS]:
            self._events.parent.mkdir(exist_ok=True)
            for old in self._events.parent.glob(f"{_EVENT_PREFIX}*"):
                old.unlink()
            rows = [
                _event(name, row)
                for name in (METRICS, EVALS)
                for row in read_metrics(self._workdir, name)
            ]
            files.append(self._events, _first_event() + b"".join(rows))

    @property
    def folder(self):
        """Where this process writes: the workdir, or the local copy of a gs:// one."""
        return self._workdir

    def step(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one step's numbers; returns the line as a dict."""
        return self._append(METRICS, step, values)

    def evaluation(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one evaluation; one that stands there already is not written twice."""
        if step not in self._evaluated:
            self._evaluated[step] = self._append(EVALS, step, values)
        return self._evaluated[step]

    def warning(self, step: int, name: str, text: str) -> None:
        """Write an alarm of a step, and print it on stderr."""
        console.warn(text)
        self._append(WARNINGS, step, {"name": name, "text": text})

    def evaluated(self, step: int) -> dict[str, Any] | None:
        """The evaluation of this step, where one stands: it need not be repeated."""
        return self._evaluated.get(step)

    def newest_evaluation(self) -> dict[str, Any] | None:
        """The evaluation of the latest step that has one."""
        return self._evaluated.get(max(self._evaluated, default=-1))

    def close(self) -> None:
        """Write what waits; lines that find no room are lost, with a warning."""
        if self._write:
            self._flush()
            for name in dict.fromkeys(name for name, _ in self._waiting):
                count = [file for file, _ in self._waiting].count(name)
                console.warn(
                    f"{self._workdir / name} lacks {count} of its lines: no room"
                )
            self._waiting = []
            self._mirror.close()

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _append(self, name: str, step: int, values: Mapping[str, Any]):
        if self._write:
            lease.require(self._home)
        row = {"step": int(step)} | files.plain(values)
        # What is returned is what a resumed run reads: None where there is no number.
        shown = files.finite(row)
        if name == METRICS:
            self.last = shown
        if self._write:
            self._waiting.append((name, json.dumps(shown, allow_nan=False) + "\n"))
            if name in TAGS:
                with self._lenient[_EVENTS]:
                    files.append(self._events, _event(name, row))
            self._flush()
        return shown

    def _flush(self) -> None:
        """Write what waits, as far as there is room."""
        if lease.lost(self._home):  # as a run ends: the files are another's
            return
        for name in (METRICS, EVALS, WARNINGS):
            with self._lenient[name]:
                # Dropped one by one: where the disk is full the rest waits, in order.
                for entry in [x for x in self._waiting if x[0] == name]:
                    files.append(self._workdir / name, entry[1].encode())
                    self._waiting.remove(entry)
        with self._lenient[_COPY]:
            self._mirror.push()


def _event_file() -> str:
    return f"{_EVENT_PREFIX}{int(time.time())}.{socket.gethostname()}"


def _first_event() -> bytes:
    return _record(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _event(name: str, row: Mapping[str, Any]) -> bytes:
    """All numbers of a line as one of TensorBoard's events."""
    values = [
        Summary.Value(tag=tag, simple_value=value)
        for tag, value in tagged(name, row).items()
    ]
    summary = Summary(value=values)
    return _record(Event(wall_time=time.time(), step=row["step"], summary=summary))


def _record(event: Event) -> bytes:
    """An event as TFRecord frames it.

    tensorboardX's own writer has a thread and a queue: after a write that failed the
    thread is gone, and when the queue is full the run would wait for it for ever.
    """
    # uint64 length, its masked CRC, the bytes, their masked CRC; little-endian.
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + sums[0] + data + sums[1]


def read_metrics(workdir, name: str = METRICS) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl (or EVALS) as dicts; a torn last line is left out."""
    gcs.check(workdir)
    path = epath.Path(workdir) / name
    with gcs.reading(path):
        rows = [*_whole_lines(path)] if path.exists() else []
    for _, row in rows:
        yield row


def nonfinite(row: Mapping[str, Any]) -> bool:
    """Whether a step's update, or what its policy wrote, was no finite number.

    row: the step's metrics by name, on the host or as a line has them (null for nan).
    The entropy of rollouts is a number unless their logits are none; the update may
    then look whole, as rollouts that are all alike can be filtered out.
    """
    shares = (finite_number(row, name) for name in _NONFINITE)
    if any(share is not None and share > 0 for share in shares):
        return True
    return "rollout_entropy" in row and finite_number(row, "rollout_entropy") is None


def finite_number(row: Mapping[str, Any], name: str) -> float | None:
    """The finite number of this name, of whatever type; None where there is none."""
    if isinstance(row.get(name), bool):  # float() would take it
        return None
    try:
        value = float(row[name])
    # A damaged line may hold anything that JSON can.
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def refuse_lost(workdir, every: int) -> None:
    """InputError where a run without a checkpoint has logged more than it can have.

    every: steps from one checkpoint to the next. A run waits for each of them before it
    begins the next, so that without one it has logged two intervals at most, beside the
    steps that were no finite numbers, which put a checkpoint off. To start anew would
    drop what is logged. All processes call it, process 0 reads; raises as
    `agree.exchange` too.
    """
    rows = [*read_metrics(workdir)] if jax.process_index() == 0 else []
    logged = max((row["step"] for row in rows), default=0)
    logged -= sum(map(nonfinite, rows))
    logged = agree.broadcast("steps logged", logged)
    if logged > 2 * every:
        raise InputError(
            f"{workdir} has logged {logged} steps, with a checkpoint every {every}, "
            "but holds none: put checkpoints/ back, or give another --workdir to start "
            "anew"
        )


def damaged_lines(workdir, name: str = METRICS) -> int:
    """Lines of metrics.jsonl (or EVALS) that `read_metrics` leaves out."""
    path = epath.Path(workdir) / name
    with gcs.reading(path):
        if not path.exists():
            return 0
        return sum(1 for _ in _lines(path)) - sum(1 for _ in _whole_lines(path))


def number(row: Mapping[str, Any], name: str) -> float | None:
    """A row's number of this name; None where there is none that a plot can show."""
    value = row.get(name)
    # A bool is no number here, and nan < 1e18 is False.
    drawn = type(value) in (int, float) and abs(value) < 1e18
    return float(value) if drawn else None


def whole_epochs(epoch: float) -> int:
    """How many epochs the metric `epoch` has finished: its floor, but for rounding.

    In fp32 what is whole may be 0.99999994: where `epoch` is a sum of fractions, and of
    most samplers before 2026-12-01. A step of a run of less than a million steps is
    more than that.
    """
    return math.floor(epoch * (1 + 2.0**-22))


def _lines(path) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than `_LONGEST` only its beginning.

    That has no end of line, as the last line of a file may have none.
    """
    gcs.refuse_pipe(path)
    # What gcsfs opens has no limit for a line.
    remote = gcs.remote(path)
    with io.BytesIO(path.read_bytes()) if remote else path.open("rb") as file:
        begins = True
        for piece in iter(lambda: file.readline(_LONGEST), b""):
            if begins:
                yield piece
            begins = piece.endswith(b"\n")


def _whole_lines(path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, its object) of each line that is whole and of a step; others are left."""
    for text in _lines(path):
        row = None
        # A damaged line may be no UTF-8, no JSON, or brackets without an end.
        with contextlib.suppress(ValueError, RecursionError):
            # Without its end of line it is torn, or too long for one of ours.
            row = json.loads(text) if text.endswith(b"\n") else None
        if is_of_a_step(row):
            yield text, row


def _cut_lines(path: pathlib.Path, step: int) -> None:
    """Drop later steps, and lines that are none; as a rule no room is needed for it."""
    if not path.exists():
        return
    kept = b"".join(text for text, row in _whole_lines(path) if row["step"] <= step)
    # As a rule the lines kept are the file's beginning: to cut takes no room.
    with path.open("rb") as file:
        first = file.read(len(kept))
    if first == kept:
        os.truncate(path, len(kept))
    else:
        with files.replacing(path) as temporary:
            temporary.write_bytes(kept)
