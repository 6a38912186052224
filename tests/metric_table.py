"""storage/METRICS.md as a program reads it, and what a line of a log has against it."""

import functools
import json
import math
import pathlib
import re

from limr_jax.storage import metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
TABLE = ROOT / "limr_jax/storage/METRICS.md"
RL, SFT, EVALS = "`launch/tpu.py`", "`launch/sft.py`", "evals.jsonl"
# Rounding: a share may be 1 + 1e-7, and k3 of equal numbers −1e-9.
SLACK = 1e-5


@functools.cache
def tables() -> dict[str, dict[str, tuple[str, str, str]]]:
    """By log, each name's (unit, range, what it is)."""
    found: dict[str, dict] = {RL: {}, SFT: {}, EVALS: {}}
    log = None
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            (log,) = [x for x in found if line.endswith(x)]
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        if cells and (name := re.fullmatch(r" `([^`]+)` ", cells[0])):
            assert name[1] not in found[log], f"{name[1]} stands twice"
            found[log][name[1]] = tuple(cell.strip() for cell in cells[1:])
    return found


def within(value: float, limits: str) -> bool:
    """Whether a number is in a range as METRICS.md writes it."""
    if limits == "any":
        return True
    if limits == "0, 1":
        return value in (0, 1)
    if sides := re.fullmatch(r"(-?\d+) … (-?\d+)", limits):
        low, high = map(float, sides.groups())
        return low - SLACK <= value <= high + SLACK
    sign, bound = re.fullmatch(r"([≥≤]) (-?\d+)", limits).groups()
    if sign == "≥":
        return value >= float(bound) - SLACK
    return value <= float(bound) + SLACK


def row_of(name: str, log: str) -> tuple[str, tuple] | None:
    """(the table's name, its cells) of a name that a run wrote; None: there is none."""
    rows = tables()[log]
    if name in rows:
        return name, rows[name]
    for pattern, cells in rows.items():
        # `reward/<part>`: whatever the run calls it. A row without a range is of names
        # that have rows of their own.
        parts = map(re.escape, re.split(r"<\w+>", pattern))
        if cells[1] and "<" in pattern and re.fullmatch("(.+)".join(parts), name):
            return pattern, cells
    if name.startswith("sampled/"):
        inner = row_of(name.removeprefix("sampled/"), log)
        return inner and ("sampled/<name>", inner[1])
    return None


def faults(row: dict, log: str) -> list[str]:
    """What a line of a log has that the table does not say."""
    found = []
    for name, value in row.items():
        known = row_of(name, log)
        if known is None:
            found.append(f"{name} has no row in {TABLE.name}")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            if not within(value, known[1][1]):
                found.append(f"{name}={value} is not {known[1][1]}")
        elif value is not None:
            found.append(f"{name}={value!r} is no number")
    return found


def log_of(workdir, file: str) -> str | None:
    """Which table a file of a workdir is of; None: no run has claimed the folder."""
    try:
        config = json.loads((workdir / "run.json").read_text())["config"]
    except (OSError, KeyError, ValueError, TypeError):  # damaged on purpose
        return None
    if file == metrics.WARNINGS:  # no numbers: what alarms say
        return None
    if file == metrics.EVALS:
        return EVALS
    return SFT if isinstance(config, dict) and "log_every" in config else RL


def watch() -> None:
    """From here on a run of this process that logs what the table lacks is an error."""
    append = metrics.Metrics._append

    def checked(self, name, step, values):
        row = append(self, name, step, values)
        log = log_of(self._workdir, name) if self._write else None
        if log:
            assert not (found := faults(row, log)), found
        return row

    metrics.Metrics._append = checked
