"""Whole rollouts as compressed text, so that people and LIM's scores can read them.

`rollouts/*.jsonl.gz` in the workdir: a line is {"step", "id", "sample", "prompt", …}, a
gzip member is a step. `zcat rollouts/*` shows them, `read_dump` reads them.
"""

import gzip
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
from etils import epath

from limr_jax.errors import InputError
from limr_jax.storage import files, gcs, lease
from limr_jax.storage.gcs_mirror import Mirror

_LARGEST = 2**30  # bytes of a step's text; more is none that was written here


def _is_prompt(value) -> bool:
    """A text, or a chat's messages."""
    if not isinstance(value, list):
        return isinstance(value, str)
    return all(isinstance(x, dict) and isinstance(x.get("content"), str) for x in value)


# Fields of a row → whether a value is such as a run writes. An invalid rollout may have
# no grade.
_FIELDS = {
    "id": lambda value: isinstance(value, str),
    "prompt": _is_prompt,
    "response": lambda value: isinstance(value, str),
    "correct": lambda value: isinstance(value, int | float | None),
    "valid": lambda value: isinstance(value, bool),
    "truncated": lambda value: isinstance(value, bool),
}


class Dump:
    """Writes the rollouts of each step: one gzip member a step, in segment files.

    step: the last step that is done (0 = none); later ones are dropped at once, and so
    is a member that a kill tore.
    max_bytes: when the folder holds more, the oldest segment (an eighth of it) goes;
    the newest segment never does, so one step may pass the limit. 0 keeps nothing.
    rows_per_step: only a step's first so many rows are kept; 0: all.
    needed: whether a step that cannot be written (a full disk) is an InputError; else
    it is left out, which is said once.
    """

    def __init__(
        self,
        workdir,
        *,
        step: int = 0,
        max_bytes: int = 2**28,
        rows_per_step: int = 0,
        write: bool | None = None,
        needed: bool = False,
    ):
        self._max_bytes, self._rows = max_bytes, rows_per_step or None
        self.keeps = max_bytes > 0  # else rows need not be gathered
        self._write = jax.process_index() == 0 if write is None else write
        self._home = str(workdir)
        if self._write:
            self._mirror = Mirror(workdir, "rollouts/*.jsonl.gz")
            self._folder = self._mirror.folder / "rollouts"
            lenient = files.Lenient(
                f"{workdir}/rollouts", "steps that do not fit are left out of it"
            )
            strict = partial(files.writing, f"{workdir}/rollouts")
            # One Lenient for all steps, as it complains once; a new `writing` for each.
            self._writing = strict if needed else lambda: lenient
        self.truncate(step)

    def truncate(self, step: int) -> None:
        """Drop every rollout of a step after this one, and a member that a kill tore.

        InputError where the dump cannot be read, or a remote one not be written.
        """
        if not self._write:
            return
        with gcs.reading(self._folder):
            for segment in _segments(self._folder):
                # Named by its first step: all that it holds is of later ones.
                if int(segment.name.split(".")[0]) > step:
                    segment.unlink()
            # Of those left only the newest can reach past `step`, or have a torn end.
            for segment in _segments(self._folder)[-1:]:
                end = 0
                for rows, member_end in members(segment):
                    if rows[0]["step"] > step:
                        break
                    end = member_end
                if end < segment.stat().st_size:
                    os.truncate(segment, end)
        self._mirror.push()

    def add(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append one step's rows: id, sample, prompt, response, reward, and more.

        Raises lease.Lost where the workdir is another run's by now.
        """
        if not (self._write and self.keeps):
            return
        lease.require(self._home)
        lines = [
            files.json_line(files.finite({"step": int(step)} | files.plain(row)))
            # Where `rows` is lazy no text beyond the limit is decoded.
            for row in itertools.islice(rows, self._rows)
        ]
        if lines:
            with self._writing():
                # mtime=0: no clock in the bytes, so a resumed dump is the unbroken one.
                self._add(step, gzip.compress("".join(lines).encode(), mtime=0))
                self._mirror.push()

    def close(self) -> None:
        """Remove the copy on this disk that a dump on gs:// has."""
        if self._write:
            self._mirror.close()

    def _add(self, step: int, member: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        segments = _segments(self._folder)
        if segments and segments[-1].stat().st_size < self._max_bytes // 8:
            segment = segments[-1]
        else:
            segment = self._folder / f"{step:08d}.jsonl.gz"
            segments.append(segment)
        # First the new step, then the oldest goes: where there is no room none is lost.
        files.append(segment, member)
        sizes = {path: path.stat().st_size for path in segments}
        for oldest in segments[:-1]:
            if sum(sizes.values()) <= self._max_bytes:
                break
            del sizes[oldest]
            oldest.unlink()


def read_dump(
    workdir, *, steps: Collection[int] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields every row that a workdir's dump holds, by step.

    steps: only their rows; None: all. A member that is torn or damaged, in a run that
    was killed or goes on, ends its segment.
    """
    gcs.check(workdir)
    with gcs.reading(workdir):
        segments = _segments(epath.Path(workdir) / "rollouts")
    for segment in segments:
        for rows, _ in members(segment):
            if steps is None or rows[0]["step"] in steps:
                yield from rows


def whole_rows(workdir, fields: Iterable[str]) -> Iterator[dict[str, Any]]:
    """As `read_dump`, of all steps, and each row has these fields, which are checked.

    fields: of id, prompt, response, correct, valid and truncated. InputError where one
    is missing or of another type, as in a dump that was changed.
    """
    fields = {name: _FIELDS[name] for name in fields}
    for row in read_dump(workdir):
        for field, is_well in fields.items():
            if field not in row or not is_well(row[field]):
                raise InputError(
                    f"{workdir}: a rollout of step {row['step']} has no {field!r}, or "
                    "one that no run writes: the dump was changed; take another run's, "
                    "or make it anew"
                )
        yield row


def below(workdir, most: int = 3) -> str:
    """Folders within this one, such as an evaluation's benchmarks, that hold a dump.

    For a line that says where to look: so many of their paths, separated by commas.
    Empty: none does, or the folder is not on this machine.
    """
    if gcs.remote(workdir):
        return ""
    found = sorted(str(x.parent) for x in pathlib.Path(workdir).glob("*/rollouts"))
    return ", ".join(found[:most]) + ", …" * (len(found) > most)


def _segments(folder) -> list:
    """The segment files by their first step."""
    try:
        # On a disk `glob` would say nothing of a folder that may not be read.
        paths = [*(folder.glob("*") if gcs.remote(folder) else folder.iterdir())]
    except (FileNotFoundError, NotADirectoryError):
        return []
    segments = [x for x in paths if x.name.endswith(".jsonl.gz")]
    return sorted((x for x in segments if _first_step(x) is not None), key=_first_step)


def _first_step(path) -> int | None:
    digits = path.name.split(".")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else None


def members(segment) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(rows, where it ends in the file) of each gzip member that holds a step.

    In order, up to the first that is torn, damaged, or of no step. segment: a path of
    pathlib or epath. InputError where the file cannot be read.
    """
    with gcs.reading(segment):
        data = segment.read_bytes()
    end = 0
    while end < len(data):
        # wbits=31: a gzip member, whose checksum is compared.
        member, pieces, room = zlib.decompressobj(wbits=31), [], _LARGEST
        while not member.eof and end < len(data) and room > 0:
            # In pieces, since what is over is copied each time.
            piece = data[end : end + 2**16]
            try:
                pieces.append(member.decompress(piece))
            except zlib.error:
                return
            # What the decompressor did not use is the next member's.
            end += len(piece) - len(member.unused_data)
            room -= len(pieces[-1])
        # No end: torn. No room: it swells to more than a step that was written here.
        rows = _rows(b"".join(pieces)) if member.eof and room >= 0 else []
        if not rows:
            return
        yield rows, end


def _rows(text: bytes) -> list[dict[str, Any]]:
    """The rows of a member; none where one of them is none, or is of no step."""
    try:
        rows = [json.loads(line) for line in text.splitlines()]
    except (ValueError, RecursionError):
        return []
    return rows if all(map(is_of_a_step, rows)) else []


def is_of_a_step(row: Any) -> bool:
    """Whether a row is an object with a `step` that is a whole number from 0."""
    step = row.get("step") if isinstance(row, dict) else None
    return type(step) is int and 0 <= step < 2**53  # True is no step
