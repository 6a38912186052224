"""A run's rollouts as a page holds them: numbers by column, texts in packed chunks.

The page opens with the columns alone. A chunk of texts is unpacked where one of its
rollouts is looked at, or where all texts are searched.
"""

import base64
import dataclasses
import json
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from limr_jax.storage import metrics, rollout_dump
from limr_jax.studies import reward_curves

LONGEST = 20_000  # characters of a text that are on the page
_LONGEST_NAME = 200  # of an id, a level or a reason
_SNIPPET, _END = 80, 28  # characters of a prompt, and of a response's end, in a table
_CHUNK, _LARGEST_CHUNK = 256, 1024  # rollouts: from so many on a chunk is full
_MOST_BYTES = 2**26  # of all packed texts of a page
_MOST_FIELDS = 20  # further fields of a row that are shown
WRONG, RIGHT, INVALID, UNGRADED = range(4)
_NO_NUMBER = -(2**31)  # in a column of whole numbers
# What has a place of its own; `reward/format` and the like are further fields.
_KNOWN = {"step", "id", "sample", "prompt", "response", "reference", "reward"}
_KNOWN |= {"correct", "valid", "reason", "truncated", "length", "level", "epoch"}


@dataclasses.dataclass
class RunRollouts:
    """All R rollouts of a run's dump, and texts of those that the page has.

    problems: id → its place in `prompts`, `references` and `levels`. cells: id → epoch
    → [sum of valid correctness, count], as `reward_curves.of_cells` takes them.
    """

    step_R: np.ndarray
    problem_R: np.ndarray  # place in `problems`
    sample_R: np.ndarray
    grade_R: np.ndarray  # WRONG, RIGHT, INVALID or UNGRADED
    truncated_R: np.ndarray
    reward_R: np.ndarray  # nan: no number
    length_R: np.ndarray
    reason_R: np.ndarray  # place in `reasons`
    ends: list[str]  # the last characters of each response
    problems: dict[str, int]
    prompts: list[str]
    references: list[str]
    levels: list[str | None]
    reasons: list[str]
    chunk_ends: list[int]  # the rollout after each chunk's last one
    chunks: list[bytes]  # texts of the chunk, packed
    cells: dict[str, dict[int, list[float]]]
    kept: dict[int, list[Mapping[str, Any]]]  # whole rows of the steps asked for

    def __len__(self) -> int:
        return len(self.step_R)


class _Columns:
    """The columns of a dump as its rows come."""

    def __init__(self, epoch_of):
        self.numbers: list[tuple] = []
        self.ends: list[str] = []
        self.problems: dict[str, int] = {}
        self.prompts: list[str] = []
        self.references: list[str] = []
        self.levels: list[str | None] = []
        self.reasons: dict[str, int] = {}
        self.cells: dict[str, dict[int, list[float]]] = {}
        self._epoch_of = epoch_of

    def add(self, row: Mapping[str, Any]) -> None:
        name = _name(row.get("id", "–"))
        if name not in self.problems:
            self.problems[name] = len(self.problems)
            self.prompts.append(_plain(_prompt(row.get("prompt")))[:_SNIPPET])
            self.references.append(_plain(row.get("reference"))[:_SNIPPET])
            level = row.get("level")
            self.levels.append(None if level is None else _name(level))
        grade = _grade(row)
        reason = _name(row["reason"]) if row.get("reason") is not None else "–"
        reward = metrics.number(row, "reward")
        self.numbers.append(
            (
                row["step"],
                self.problems[name],
                _whole(row, "sample"),
                grade,
                bool(row.get("truncated")),
                np.nan if reward is None else reward,
                _whole(row, "length"),
                self.reasons.setdefault(reason, len(self.reasons)),
            )
        )
        response = _plain(row.get("response")).rstrip()
        self.ends.append("…" * (len(response) > _END) + response[-_END:])
        if isinstance(row.get("id"), str):
            self._add_cell(name, row, grade)

    def _add_cell(self, name: str, row: Mapping, grade: int) -> None:
        epoch = self._epoch_of(row)
        cell = self.cells.setdefault(name, {}).setdefault(epoch, [0.0, 0])
        value = metrics.number(row, "correct")
        if grade in (WRONG, RIGHT) and value is not None:
            cell[0] += value
            cell[1] += 1


def read_rollouts(workdir, *, keep: Collection[int] = ()) -> RunRollouts:
    """The rollouts of a workdir's dump, as far as it can be read; of none, none.

    keep: steps whose rows are kept whole. InputError where the folder or a file of it
    cannot be opened.
    """
    columns = _Columns(reward_curves.row_epochs(workdir))
    chunks, chunk_ends, texts = [], [], _Texts()
    kept: dict[int, list] = {at: [] for at in keep}
    step = None
    for row in rollout_dump.read_dump(workdir):
        full = len(texts) >= _CHUNK and row["step"] != step
        if full or len(texts) >= _LARGEST_CHUNK:
            chunks.append(texts.packed())
            chunk_ends.append(len(columns.numbers))
            texts = _Texts()
        step = row["step"]
        columns.add(row)
        texts.add(row)
        if step in kept:
            kept[step].append(row)
    if len(texts):
        chunks.append(texts.packed())
        chunk_ends.append(len(columns.numbers))
    by_column = list(zip(*columns.numbers)) or [()] * 8
    types = (np.int64, np.int32, np.int64, np.int8, bool, np.float64, np.int64, int)
    arrays = [np.array(x, dtype) for x, dtype in zip(by_column, types)]
    return RunRollouts(
        *arrays,
        ends=columns.ends,
        problems=columns.problems,
        prompts=columns.prompts,
        references=columns.references,
        levels=columns.levels,
        reasons=list(columns.reasons),
        chunk_ends=chunk_ends,
        chunks=chunks,
        cells=columns.cells,
        kept=kept,
    )


class _Texts:
    """The texts of some rollouts; prompts and references, which repeat, once each."""

    def __init__(self):
        self._shared: dict[str, int] = {}
        self._rows: list[list] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Mapping[str, Any]) -> None:
        prompt = json.dumps(_messages(row.get("prompt")))
        reference = json.dumps(cut(_plain(row.get("reference"))))
        further = [
            [_name(key), cut(_plain(row[key]), 200)] for key in row if key not in _KNOWN
        ]
        self._rows.append(
            [
                self._shared.setdefault(prompt, len(self._shared)),
                cut(_plain(row.get("response"))),
                self._shared.setdefault(reference, len(self._shared)),
                further[:_MOST_FIELDS],
            ]
        )

    def packed(self) -> bytes:
        return pack({"shared": [*map(json.loads, self._shared)], "rows": self._rows})


def pack(value) -> bytes:
    """A value as JSON, zlib and base64: letters that end no element of a page.

    A half of a character stays what it is: JSON escapes it.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 6))


def cut(text: str, longest: int = LONGEST) -> str:
    """The text's beginning, with the count of the characters that were cut."""
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest:,} characters more)"


def shown_chunks(all_rollouts: Sequence[RunRollouts], *, most: int) -> list[list[int]]:
    """Of each run, which chunks are on a page that holds `most` rollouts, evenly.

    A chunk more may go where the packed texts would be more than 64 MiB.
    """
    rows = sum(map(len, all_rollouts))
    size = sum(len(chunk) for each in all_rollouts for chunk in each.chunks)
    share = min(1.0, most / max(rows, 1), _MOST_BYTES / max(size, 1))
    chosen = []
    for each in all_rollouts:
        count = int(len(each.chunks) * share)
        places = np.linspace(0, len(each.chunks) - 1, count).round()
        chosen.append(sorted({int(place) for place in places}))
    return chosen


def table(rollouts: RunRollouts, chunks: Sequence[int]) -> dict:
    """The columns of these chunks' rollouts, as the page's script takes them."""
    starts = [0, *rollouts.chunk_ends]
    rows_S = [np.arange(starts[c], starts[c + 1]) for c in chunks]
    row_R = np.concatenate(rows_S) if rows_S else np.arange(0)
    used = np.unique(rollouts.problem_R[row_R])
    place_of = np.zeros(len(rollouts.problems), int)
    place_of[used] = np.arange(len(used))
    names = list(rollouts.problems)
    return {
        "step": rollouts.step_R[row_R].tolist(),
        "problem": place_of[rollouts.problem_R[row_R]].tolist(),
        "sample": _numbers(rollouts.sample_R[row_R]),
        "grade": rollouts.grade_R[row_R].tolist(),
        "truncated": rollouts.truncated_R[row_R].astype(int).tolist(),
        "reward": [
            float(f"{x:.6g}") if np.isfinite(x) else None
            for x in rollouts.reward_R[row_R]
        ],
        "length": _numbers(rollouts.length_R[row_R]),
        "reason": rollouts.reason_R[row_R].tolist(),
        "end": [rollouts.ends[r] for r in row_R],
        "chunk": [len(rows) for rows in rows_S],
        "problems": [
            [
                names[n],
                rollouts.levels[n],
                rollouts.prompts[n],
                rollouts.references[n],
            ]
            for n in used
        ],
        "reasons": rollouts.reasons,
        "of": len(rollouts),
    }


def _numbers(column: np.ndarray) -> list:
    return [None if x == _NO_NUMBER else x for x in column.tolist()]


def _grade(row: Mapping[str, Any]) -> int:
    if not row.get("valid", True):
        return INVALID
    value = metrics.number(row, "correct")
    # A bool is no number there.
    value = float(row["correct"]) if isinstance(row.get("correct"), bool) else value
    if value is None:
        return UNGRADED
    return RIGHT if value > 0.5 else WRONG


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    return value if type(value) is int and abs(value) < 2**31 else _NO_NUMBER


def _name(value) -> str:
    return cut(_plain(value), _LONGEST_NAME)


def _plain(value) -> str:
    """A value as text; "–" where there is none."""
    return "–" if value is None else value if isinstance(value, str) else _json(value)


def _json(value) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:  # read by a parser that goes deeper
        return "(nested too deeply)"


def _messages(prompt) -> str | list:
    """A prompt as the page has it: a text, or (role, content) of each message."""
    if not isinstance(prompt, list):
        return cut(_plain(prompt))
    pairs = []
    for message in prompt:
        both = message if isinstance(message, dict) else {"content": message}
        role, content = both.get("role"), both.get("content")
        pairs.append([_name(role), cut(_plain(content))])
    return pairs


def _prompt(prompt) -> str:
    """A prompt that is a chat as its contents, one after another."""
    messages = _messages(prompt)
    if isinstance(messages, str):
        return messages
    return "\n\n".join(content for _, content in messages)


def samples(rows: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, str]]:
    """Some of one step's rollouts, the same ones each time.

    Each has the texts `who`, `grade`, `prompt` and `response`.
    """
    chosen = np.random.default_rng(0).permutation(len(rows))[:count]
    shown = []
    for row in (rows[i] for i in sorted(chosen)):
        names = ("reward", "correct", "valid", "truncated", "length")
        grade = ", ".join(f"{name} {row[name]}" for name in names if name in row)
        shown.append(
            {
                "who": f"{_name(row.get('id'))}, sample {_name(row.get('sample'))}",
                "grade": grade,
                "prompt": _prompt(row.get("prompt")),
                "response": _plain(row.get("response")),
            }
        )
    return shown
