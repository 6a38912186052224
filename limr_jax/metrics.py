"""What a run reports: numbers by step, progress, and whole rollouts as text.

In the workdir (local, or gs://…), written by process 0 alone:

    metrics.jsonl          one line a step: {"step": 3, "reward": 0.4, …}
    evals.jsonl            one line an evaluation, likewise
    tensorboard/           the same numbers as train/<name> and eval/<name>
    rollouts/*.jsonl.gz    every rollout: {"step", "id", "sample", "prompt", …}

A resumed run cuts all of them back to its checkpoint's step, so that no step stands
twice. The event file is not cut but written anew from the JSON lines: it may lack
what was in a killed process's buffers. A number that is not finite is null in JSON.
"""

import contextlib
import gzip
import itertools
import json
import math
import pathlib
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import tensorboardX
import tqdm
from etils import epath
from tensorboardX.proto.summary_pb2 import Summary

from limr_jax import bucket, files, hosts
from limr_jax.errors import InputError
from limr_jax.mirror import Mirror

METRICS, EVALS = "metrics.jsonl", "evals.jsonl"
_TAGS = {METRICS: "train/", EVALS: "eval/"}

# What `line` shows of what is there: name → (label, format), in this order.
_COLUMNS = {
    "epoch": ("epoch", "5.2f"),
    "reward": ("reward", "6.3f"),
    "pass_rate": ("pass", "5.3f"),
    "accuracy": ("accuracy", "6.2%"),
    "jepo/bound": ("bound", "8.3f"),
    "loss": ("loss", "7.4f"),
    "response_length": ("length", "6.1f"),
    "kl": ("kl", "8.1e"),
    "entropy": ("entropy", "6.3f"),
    "gradient_norm": ("gradient", "7.3f"),
    "tokens_per_second": ("tokens/s", "8,.0f"),
    "seconds": ("seconds", "6.2f"),
}


class Metrics:
    """Numbers by step as JSON lines and TensorBoard events.

    step: the last step that is done (0 = none); what stands there of later steps, and
    a line that a kill tore, is dropped at once.
    write: whether this process writes; by default process 0 does.
    """

    def __init__(self, workdir, *, step: int = 0, write: bool | None = None):
        self._write = jax.process_index() == 0 if write is None else write
        if self._write:
            self._mirror = Mirror(workdir, METRICS, EVALS, "tensorboard/*")
        self._workdir = self._mirror.folder if self._write else epath.Path(workdir)
        self._files: dict[str, Any] = {}
        self._events = None
        self._evaluated: dict[int, dict[str, Any]] = {}
        self.truncate(step)

    def truncate(self, step: int) -> None:
        """Drop every line of a step after this one."""
        self.close()
        if self._write:
            self._workdir.mkdir(parents=True, exist_ok=True)
            for name in (METRICS, EVALS):
                _cut_lines(self._workdir / name, step)
            shutil.rmtree(self._workdir / "tensorboard", ignore_errors=True)
            # The events are few a step: all of a step's numbers are one event.
            self._events = tensorboardX.FileWriter(
                str(self._workdir / "tensorboard"), max_queue=1000, flush_secs=10
            )
            self._files = {
                name: open(self._workdir / name, "a", encoding="utf-8")  # noqa: SIM115
                for name in (METRICS, EVALS)
            }
            for name in (METRICS, EVALS):
                for row in read_metrics(self._workdir, name):
                    self._add_event(name, row)
            self._mirror.push()
        # As process 0 sees them: all processes must skip the same evaluations.
        rows = read_metrics(self._workdir, EVALS) if jax.process_index() == 0 else ()
        done = [x for x in rows if x["step"] <= step]
        self._evaluated = {x["step"]: x for x in hosts.first("evaluations", done)}

    def step(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one step's numbers; returns the line as a dict."""
        return self._append(METRICS, step, values)

    def evaluation(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Write one evaluation; one that stands there already is not written twice."""
        if step not in self._evaluated:
            self._evaluated[step] = self._append(EVALS, step, values)
        return self._evaluated[step]

    def evaluated(self, step: int) -> dict[str, Any] | None:
        """The evaluation of this step, where one stands: it need not be repeated."""
        return self._evaluated.get(step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
        for file in self._files.values():
            file.close()
        if self._files:
            self._mirror.push()
        self._events, self._files = None, {}

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, error, *_) -> None:
        # What ends a run is said, not what then fails as well.
        with contextlib.suppress(*([InputError] if error else [])):
            self.close()

    def _append(self, name: str, step: int, values: Mapping[str, Any]):
        row = {"step": int(step)} | {
            key: _plain(value) for key, value in values.items()
        }
        # What is returned is what a resumed run reads: None where there is no number.
        shown = _finite(row)
        if self._write:
            self._files[name].write(json.dumps(shown, allow_nan=False) + "\n")
            self._files[name].flush()
            self._add_event(name, row)
            self._mirror.push()
        return shown

    def _add_event(self, name: str, row: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=_TAGS[name] + key, simple_value=value)
            for key, value in _numbers(row)
            if key != "step"
        ]
        self._events.add_summary(Summary(value=values), row["step"])


def read_metrics(workdir, name: str = METRICS) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl (or EVALS) as dicts; a torn last line is left out."""
    bucket.check(workdir)
    path = epath.Path(workdir) / name
    with bucket.reading(path):
        rows = [*_whole_lines(path)] if path.exists() else []
    for _, row in rows:
        yield row


def line(step: int, values: Mapping[str, Any], *, num_steps: int | None = None) -> str:
    """One readable line of a step: whichever of the usual numbers are there."""
    of = "" if num_steps is None else f"/{num_steps}"
    parts = [f"step {step:>{len(of) - 1 if of else 5}}{of}"]
    for name, (label, form) in _COLUMNS.items():
        if name in values:
            width = int(form.split(".")[0].rstrip(","))
            value = values[name]
            shown = f"{'-':>{width}}" if value is None else f"{float(value):{form}}"
            parts.append(f"{label} {shown}")
    return "  ".join(parts)


def say(text: str) -> None:
    """Print one line on stdout (process 0), above whatever bar is on the terminal."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


@contextlib.contextmanager
def progress(
    label: str,
    total: int | None = None,
    *,
    unit: str = "step",
    every: float = 30.0,
    stream=None,
) -> Iterator[Callable[..., None]]:
    """Progress of one phase on stderr: yields `advance(count=1)`.

    On a terminal a bar, gone when the phase ends. Elsewhere plain lines, at most one
    in `every` seconds, so that a short phase prints none. Process 0 alone speaks.
    """
    stream = sys.stderr if stream is None else stream
    speaks = jax.process_index() == 0
    if speaks and stream.isatty():
        bar = tqdm.tqdm(
            total=total,
            desc=label,
            unit=unit,
            file=stream,
            leave=False,
            mininterval=0.2,
        )
        with bar:
            yield lambda count=1: bar.update(count) and None
        return
    done, start = 0, time.monotonic()
    last = start

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if speaks and now - last >= every:
            last = now
            spent, of, left = now - start, "", ""
            if total is not None:
                of, rest = f"/{total}", spent * (total / done - 1)
                left = f", {rest:.0f} s left"
            print(f"{label} {done}{of} {unit}s, {spent:.0f} s{left}", file=stream)
            stream.flush()

    yield advance


class Dump:
    """Whole rollouts as compressed text: one gzip member a step, in segment files.

    step: the last step that is done (0 = none); later ones are dropped at once, and so
    is a member that a kill tore.
    max_bytes: when the folder holds more, the oldest segment (an eighth of it) goes;
    the newest segment never does, so one step may pass the limit. 0 keeps nothing.
    rows_per_step: only a step's first so many rows are kept; None: all.
    `zcat rollouts/*` shows them; `read_dump` reads them.
    """

    def __init__(
        self,
        workdir,
        *,
        step: int = 0,
        max_bytes: int = 2**28,
        rows_per_step: int | None = None,
        write: bool | None = None,
    ):
        self._max_bytes, self._rows = max_bytes, rows_per_step
        self.keeps = max_bytes > 0  # else rows need not be gathered
        self._write = jax.process_index() == 0 if write is None else write
        if self._write:
            self._mirror = Mirror(workdir, "rollouts/*.jsonl.gz")
            self._folder = self._mirror.folder / "rollouts"
        self.truncate(step)

    def truncate(self, step: int) -> None:
        """Drop every rollout of a step after this one."""
        if not self._write:
            return
        for segment in _segments(self._folder):
            if int(segment.name.split(".")[0]) > step:
                segment.unlink()
        for segment in _segments(self._folder)[-1:]:
            end = 0
            for rows, member_end in _members(segment):
                if rows[0]["step"] > step:
                    break
                end = member_end
            if end < segment.stat().st_size:
                with open(segment, "r+b") as file:
                    file.truncate(end)
        self._mirror.push()

    def add(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one step's rows: id, sample, prompt, response, reward, and more."""
        if not (self._write and self.keeps):
            return
        kept = [
            {"step": int(step)} | {key: _plain(value) for key, value in row.items()}
            for row in itertools.islice(rows, self._rows)
        ]
        if not kept:
            return
        text = "".join(
            json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"
            for row in kept
        )
        # A lone surrogate, which UTF-8 cannot hold, becomes JSON's own escape of it.
        member = gzip.compress(text.encode("utf-8", "backslashreplace"), mtime=0)
        self._folder.mkdir(parents=True, exist_ok=True)
        segments = _segments(self._folder)
        if segments and segments[-1].stat().st_size < self._max_bytes // 8:
            segment = segments[-1]
        else:
            segment = self._folder / f"{step:08d}.jsonl.gz"
            segments.append(segment)
        with open(segment, "ab") as file:
            file.write(member)
        sizes = {path: path.stat().st_size for path in segments}
        for oldest in segments[:-1]:
            if sum(sizes.values()) <= self._max_bytes:
                break
            del sizes[oldest]
            oldest.unlink()
        self._mirror.push()


def read_dump(
    workdir, *, steps: Collection[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Every row that the dump holds, by step; of these steps alone.

    A member that is torn, in a run that was killed or goes on, ends its segment.
    """
    bucket.check(workdir)
    with bucket.reading(workdir):
        segments = _segments(epath.Path(workdir) / "rollouts")
    for segment in segments:
        for rows, _ in _members(segment):
            if steps is None or rows[0]["step"] in steps:
                yield from rows


def _segments(folder) -> list:
    """The segment files by their first step."""
    files = [path for path in folder.glob("*.jsonl.gz") if path.name[:1].isdigit()]
    return sorted(files, key=lambda path: int(path.name.split(".")[0]))


def _members(segment) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(rows, where it ends in the file) of each whole gzip member."""
    with bucket.reading(segment):
        data = segment.read_bytes()
    end = 0
    while end < len(data):
        member, text = zlib.decompressobj(wbits=31), b""
        while not member.eof and end < len(data):
            # In pieces, since what is over is copied each time.
            piece = data[end : end + 2**16]
            try:
                text += member.decompress(piece)
            except zlib.error:
                return
            end += len(piece) - len(member.unused_data)
        if not member.eof:
            return
        yield [json.loads(row) for row in text.splitlines()], end


def _whole_lines(path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """(line, its object) as far as lines are whole."""
    with path.open("rb") as file:
        for text in file:
            try:
                row = json.loads(text) if text.endswith(b"\n") else None
            except ValueError:
                row = None
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                return
            yield text, row


def _cut_lines(path: pathlib.Path, step: int) -> None:
    """Drop later steps and a torn tail; the file is replaced whole, or left."""
    if not path.exists():
        return
    kept = b"".join(text for text, row in _whole_lines(path) if row["step"] <= step)
    if len(kept) < path.stat().st_size:
        with files.replacing(path) as temporary:
            temporary.write_bytes(kept)


def _plain(value: Any) -> Any:
    """A scalar, list or dict of Python's own, of an array or a NumPy scalar."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _finite(value: Any) -> Any:
    """The same with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """(a/b, number) of every number in a nested row, lists left out."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (bool, int, float)):
            yield prefix + key, float(value)
