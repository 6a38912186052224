"""Recorded reward curves on the host: from dumps or JSON lines, to scores and subsets.

A curve is a problem's mean accuracy (or reward) in each epoch; `algorithms.lim` has
the mathematics. Nothing here needs the problems themselves, only their ids.

"""

import collections
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import jsonl, metrics
from limr_jax.algorithms import lim, std
from limr_jax.errors import InputError

# What becomes of a missing cell. `backfill` is the released script: see lim.py.
MISSING = {
    "backfill": lambda *cells: lim.drop(*lim.backfill(*cells)),
    "carry": lim.carry,
    "drop": lim.drop,
}
# A dump's field for each value that a curve can be of.
VALUES = {"accuracy": "correct", "reward": "reward"}
SCORES = {"lim_score": lim.score, "linear_score": lim.linear_score, "std": std.score}


@dataclasses.dataclass(frozen=True)
class Curves:
    """N problems over E epochs."""

    ids: tuple[str, ...]
    value_NE: np.ndarray  # float64; 0 where missing
    seen_NE: np.ndarray  # bool: the cell is not missing


@dataclasses.dataclass(frozen=True)
class Scores:
    """What is said of each problem."""

    ids: tuple[str, ...]
    score_N: np.ndarray  # float64; −inf: no score
    epochs_N: np.ndarray  # int: epochs that the score is over, filled ones included
    filled_N: np.ndarray  # int: how many of these were filled


def score(curves: Curves, *, missing: str, name: str = "lim_score") -> Scores:
    """Scores of the curves, in float64 so that a threshold is not missed by rounding.

    InputError: not one problem has a score.
    """

    @jax.jit
    def fill_and_score(value_NE, seen_NE):
        filled_NE, known_NE = MISSING[missing](value_NE, seen_NE)
        epochs_N = jnp.sum(known_NE, axis=1)
        filled_N = jnp.sum(known_NE & ~seen_NE, axis=1)
        return SCORES[name](filled_NE, known_NE), epochs_N, filled_N

    with jax.enable_x64(True):
        arrays = fill_and_score(curves.value_NE, curves.seen_NE)
        score_N, epochs_N, filled_N = (np.asarray(array) for array in arrays)
    if not np.any(curves.seen_NE):
        raise InputError(
            f"all values of all {len(curves.ids)} problems are missing; give curves "
            "with at least one"
        )
    if not np.any(np.isfinite(score_N)):
        raise InputError(
            f"each of {len(curves.ids)} problems misses an epoch, so that --missing "
            f"{missing} leaves none to score; give --missing carry"
        )
    # Where a rule leaves a problem out, its curve is what was recorded.
    known_N, recorded_N = np.isfinite(score_N), np.sum(curves.seen_NE, axis=1)
    return Scores(
        ids=curves.ids,
        score_N=score_N,
        epochs_N=np.where(known_N, epochs_N, recorded_N),
        filled_N=np.where(known_N, filled_N, 0),
    )


def read_run(workdir, *, value: str) -> Curves:
    """The curves of a run's rollout dump: means over the valid samples of an epoch.

    Only problems that were drawn are in it. InputError: no dump there, rows without
    the fields that are needed, or a dump that lacks rollouts of metrics.jsonl's steps.
    """
    rows_at: collections.Counter = collections.Counter()  # step → rows
    cells: dict[str, dict[int, list[float]]] = {}  # id → epoch → [sum, count]
    epoch_of = _epochs(workdir)
    for row in metrics.read_dump(workdir):
        rows_at[row["step"]] += 1
        cell = cells.setdefault(row["id"], {}).setdefault(epoch_of(row), [0.0, 0])
        number = _dumped(row, VALUES[value], workdir)
        if number is not None:
            cell[0] += number
            cell[1] += 1
    if not cells:
        raise InputError(
            f"{workdir}: holds no rollouts (rollouts/*.jsonl.gz); give the workdir of "
            "a run that dumped them"
        )
    _check_whole(workdir, rows_at)
    column = {
        epoch: k
        for k, epoch in enumerate(sorted({e for cell in cells.values() for e in cell}))
    }
    sum_NE = np.zeros((len(cells), len(column)))
    count_NE = np.zeros(sum_NE.shape, int)
    for i, cell in enumerate(cells.values()):
        for epoch, (total, count) in cell.items():
            sum_NE[i, column[epoch]] = total
            count_NE[i, column[epoch]] = count
    return Curves(tuple(cells), sum_NE / np.maximum(count_NE, 1), count_NE > 0)


def _check_whole(workdir, rows_at: Mapping[int, int]) -> None:
    """InputError where a step's rollouts are gone, or were never all kept."""
    for line in metrics.read_metrics(workdir):
        step, written = line["step"], line.get("rollouts") or 1
        if rows_at[step] < written:
            raise InputError(
                f"{workdir}: the dump holds {rows_at[step]} of {written:.0f} rollouts "
                f"of step {step}, and curves are made of all; run it with "
                f"dump.rows_per_step=0 and dump.max_bytes={2**62}"
            )


def _epochs(workdir) -> Callable[[Mapping], int]:
    """The epoch of each row of a dump, which are asked for in the dump's order.

    It is the row's own `epoch`, or else the epochs that metrics.jsonl has finished
    before the row's step. The step that ends an epoch fills its batch from the next
    one's order, so who comes in it for the second time in that epoch came for the next;
    but where somebody came twice before that step, problems are drawn by weight, and
    nothing is filled. Without either, a problem's k-th visit is its k-th epoch.
    """
    steps, finished = {}, 0  # step → its epoch, and whether it ends it
    for line in metrics.read_metrics(workdir):
        if line.get("epoch") is not None:
            after = math.floor(line["epoch"])
            steps[line["step"]] = finished, after > finished
            finished = after
    last: dict[
        str, tuple[int, int | None]
    ] = {}  # id → epoch and step of its last visit
    by_weight = set()

    def epoch_of(row: Mapping) -> int:
        if "epoch" in row:
            return row["epoch"]
        before, at = last.get(row["id"], (-1, None))
        if row["step"] == at:
            return before
        epoch, ends = steps.get(row["step"], (before + 1, False))
        if epoch == before:
            if ends and epoch not in by_weight:
                epoch += 1
            else:
                by_weight.add(epoch)
        last[row["id"]] = epoch, row["step"]
        return epoch

    return epoch_of


def _dumped(row: Mapping, field: str, workdir) -> float | None:
    """A sample's value; None where it is invalid."""
    if field not in row:
        raise InputError(
            f"{workdir}: the rollouts of step {row['step']} have no {field!r}; give "
            "--value " + next(name for name in VALUES if VALUES[name] != field)
        )
    return float(row[field]) if row[field] is not None and row.get("valid", 1) else None


def read_rewards(path) -> Curves:
    """The curves of a JSONL of {id, rewards: [a number or null, by epoch]}."""
    ids, curves = [], []
    for where, problem, row in _rows_by_id(path):
        curve = row.get("rewards")
        if not isinstance(curve, list) or not curve:
            raise InputError(
                f"{where}: the field 'rewards' is missing or no list; give a number, "
                "or null, for each epoch"
            )
        if curves and len(curve) != len(curves[0]):
            raise InputError(
                f"{where}: {len(curve)} epochs, where the first row has "
                f"{len(curves[0])}; write null for a missing one"
            )
        ids.append(problem)
        curves.append([_number(entry, "rewards", where) for entry in curve])
    value_NE = np.array(curves, float)  # None becomes nan
    return Curves(tuple(ids), np.nan_to_num(value_NE), ~np.isnan(value_NE))


def read_scores(path) -> dict[str, float]:
    """id → score of a JSONL of {id, lim_score}, in its order; −inf for a null."""
    scores = {}
    for where, problem, row in _rows_by_id(path):
        if "lim_score" not in row:
            raise InputError(
                f"{where}: the field 'lim_score' is missing; "
                "python launch/lim.py score makes it"
            )
        number = _number(row["lim_score"], "lim_score", where)
        scores[problem] = -math.inf if number is None else number
    return scores


def scores_of(path, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """score_N and known_N (the score is there and no null) of these problems.

    InputError: the file has a score for none of them.
    """
    scores = read_scores(path)
    score_N = np.array([scores.get(problem, -math.inf) for problem in ids])
    if not np.any(np.isfinite(score_N)):
        raise InputError(
            f"{path}: has a score for none of the {len(ids)} problems, the first of "
            f"them {ids[0]!r}; give the scores of this data set"
        )
    return score_N, np.isfinite(score_N)


def top(score_N: np.ndarray, count: int) -> np.ndarray:
    """keep_N: the `count` largest, equal ones in the problems' order.

    InputError: fewer have a score.
    """
    _enough(score_N, count)
    keep_N = np.zeros(score_N.shape, bool)
    keep_N[np.argsort(-score_N, kind="stable")[:count]] = True
    return keep_N


def random(score_N: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """keep_N: RAND, `count` at random among those that have a score."""
    _enough(score_N, count)
    scored = np.flatnonzero(np.isfinite(score_N))
    keep_N = np.zeros(score_N.shape, bool)
    keep_N[np.random.default_rng(seed).permutation(scored)[:count]] = True
    return keep_N


def _enough(score_N: np.ndarray, count: int) -> None:
    scored = int(np.isfinite(score_N).sum())
    if not 1 <= count <= scored:
        raise InputError(
            f"{count} problems cannot be kept of {scored} that have a score; "
            f"give a number from 1 to {scored}"
        )


def _rows_by_id(path):
    """(place, id, row) of each line; ids are unique, and there is at least one."""
    places: dict[str, str] = {}
    for where, row in jsonl.read_rows(path):
        problem = jsonl.text_field(row, "id", where, numbers=True)
        if problem in places:
            raise InputError(
                f"{where}: the id {problem!r} is also that of {places[problem]}; "
                "give every problem its own"
            )
        places[problem] = where
        yield where, problem, row
    if not places:
        raise InputError(f"{path}: holds no row; give a file with at least one")


def _number(value, field: str, where: str) -> float | None:
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # An integer beyond the largest float is no number either.
    if not number or not abs(value) <= sys.float_info.max:
        raise InputError(
            f"{where}: {json.dumps(value)[:40]} in {field!r} is no finite number; "
            "write a number, or null for a missing one"
        )
    return float(value)
