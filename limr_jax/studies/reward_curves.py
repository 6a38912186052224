"""Recorded reward curves on the host: from dumps or JSON lines, to scores and subsets.

A curve is a problem's mean accuracy (or reward) in each epoch; `algorithms.lim` has
the mathematics. Nothing here needs the problems themselves, only their ids.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import hardest, lim, std
from limr_jax.errors import InputError
from limr_jax.samplers import score_file
from limr_jax.storage import files, gcs, metrics, rollout_dump
from limr_jax.storage.workdir import read_result


def _backfill_and_drop(value_NE, seen_NE):
    """Curves as LIMR's released script makes them whole: see algorithms/lim.py."""
    filled_NE, known_NE = lim.backfill(value_NE, seen_NE)
    return lim.drop(filled_NE, known_NE)


# What becomes of a missing cell.
MISSING = {
    "backfill": _backfill_and_drop,
    "carry": lim.carry,
    "drop": lim.drop,
}
# A dump's field for each value that a curve can be of.
VALUES = {"accuracy": "correct", "reward": "reward"}
SCORES = {
    "lim_score": lim.score,
    "linear_score": lim.linear_score,
    "std": std.score,
    "hardest": hardest.score,
}


@dataclasses.dataclass(frozen=True)
class Curves:
    """The reward curves of N problems over E epochs."""

    ids: tuple[str, ...]
    value_NE: np.ndarray  # float64; 0 where missing
    seen_NE: np.ndarray  # bool: the cell is not missing


@dataclasses.dataclass(frozen=True)
class CurveScores:
    """A score for each of N problems, and how many epochs it rests on."""

    ids: tuple[str, ...]
    score_N: np.ndarray  # float64; −inf: no score
    epochs_N: np.ndarray  # int: epochs that the score is over, filled ones included
    filled_N: np.ndarray  # int: how many of these were filled


def score(
    curves: Curves, *, missing: str | None, name: str = "lim_score"
) -> CurveScores:
    """Scores of the curves, in float64 so that a threshold is not missed by rounding.

    missing: of MISSING; None: missing cells stay so. name: of SCORES. Raises InputError
    where no problem has one.
    """

    @jax.jit
    def fill_and_score(value_NE, seen_NE):
        filled_NE, known_NE = value_NE, seen_NE
        if missing:
            filled_NE, known_NE = MISSING[missing](value_NE, seen_NE)
        epochs_N = jnp.sum(known_NE, axis=1)
        filled_N = jnp.sum(known_NE & ~seen_NE, axis=1)
        return SCORES[name](filled_NE, known_NE), epochs_N, filled_N

    # Compiled within, else the arrays would be made fp32 on their way in.
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
    return CurveScores(
        ids=curves.ids,
        score_N=score_N,
        epochs_N=np.where(known_N, epochs_N, recorded_N),
        filled_N=np.where(known_N, filled_N, 0),
    )


def read_run(workdir, *, value: str) -> Curves:
    """The curves of a run's rollout dump: means over the valid rollouts of an epoch.

    value: of VALUES. Only problems that were drawn have a curve. Raises InputError
    where there is no dump, where its rows lack fields that are needed, or where it
    lacks rollouts of a step that metrics.jsonl has.
    """
    rows_at: collections.Counter = collections.Counter()  # step → rows
    cells: dict[str, dict[int, list[float]]] = {}  # id → epoch → [sum, count]
    epoch_of = row_epochs(workdir)
    for row in rollout_dump.read_dump(workdir):
        if not isinstance(row.get("id"), str):
            raise InputError(
                f"{workdir}: a rollout of step {row['step']} has no id; the dump was "
                "changed: take another run's, or make it anew"
            )
        rows_at[row["step"]] += 1
        cell = cells.setdefault(row["id"], {}).setdefault(epoch_of(row), [0.0, 0])
        # An invalid rollout makes the cell, and so its column, but has no value in it.
        number = _dumped(row, VALUES[value], workdir)
        if number is not None:
            cell[0] += number
            cell[1] += 1
    if not cells:
        raise InputError(
            f"{workdir}: holds no rollouts (rollouts/*.jsonl.gz); give the workdir of "
            "a run that dumped them"
        )
    check_whole(workdir, rows_at)
    return of_cells(cells)


def of_cells(cells: Mapping[str, Mapping[int, Sequence[float]]]) -> Curves:
    """The curves of cells: id → epoch → the sum of the values in it, and their count.

    A count of 0 makes the cell, and so its epoch, but leaves the cell missing.
    """
    # By order, not by number: the first epochs of a dump may be gone.
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
    # 0 where nothing was seen, as `seen_NE` says.
    return Curves(tuple(cells), sum_NE / np.maximum(count_NE, 1), count_NE > 0)


def read_evaluation(folder) -> Curves:
    """The responses of a finished evaluation (launch/evaluate.py), in epochs' places.

    folder: of the evaluation, or of one of its benchmarks, which is needed where there
    are several. A response that nobody could grade is missing. Raises InputError where
    there is no such evaluation, where it is not finished, or where responses are gone.
    """
    folder = _benchmark_folder(folder)
    problems, samples = _evaluated(folder)
    cells: dict[str, list[float | None]] = {}
    for row in rollout_dump.read_dump(folder):
        right = row.get("correct") if row.get("valid", 1) else None
        if not isinstance(row.get("id"), str) or right not in (0, 1, None):
            raise InputError(
                f"{folder}: response {row.get('sample')} to {row.get('id')!r} is not "
                f"as launch/evaluate.py writes it (correct: {right!r}); {_ANEW}"
            )
        cells.setdefault(row["id"], []).append(right)
    # A dump that a disk has damaged ends where the damage is, in whole problems even.
    if len(cells) != problems or any(len(x) != samples for x in cells.values()):
        raise InputError(
            f"{folder}: holds {sum(map(len, cells.values()))} responses to "
            f"{len(cells)} problems, and not {samples} to each of {problems}, as "
            f"result.json says; {_ANEW}"
        )
    value_NE = np.array(list(cells.values()), float)  # None becomes nan
    return Curves(tuple(cells), np.nan_to_num(value_NE), ~np.isnan(value_NE))


_ANEW = "remove that folder and give launch/evaluate.py's command again"


def _benchmark_folder(folder) -> pathlib.Path:
    """The one folder with a benchmark's responses; InputError where it is not one."""
    if gcs.remote(folder):
        raise InputError(
            f"{folder}: an evaluation lies on the disk of the host that made it; give "
            "its folder there, or a copy"
        )
    # The result lies in the folder above, which "." does not name.
    path = files.real(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    if (path / "rollouts").is_dir():
        return path
    inside = sorted(x.parent for x in path.glob("*/rollouts"))
    if len(inside) == 1:
        return inside[0]
    remedy = "give what launch/evaluate.py wrote with --out"
    if inside:
        names = ", ".join(x.name for x in inside)
        remedy = f"give the folder of one of them: {names}"
    raise InputError(
        f"{folder}: holds the responses to {len(inside)} benchmarks; {remedy}"
    )


def _evaluated(folder: pathlib.Path) -> tuple[int, int]:
    """The problems of a benchmark and the responses to each, as result.json has them.

    Raises InputError where the evaluation is not finished, or is another's.
    """
    result = read_result(folder.parent)
    if result is None:
        raise InputError(
            f"{folder.parent}: is no finished evaluation, for it has no result.json; "
            "give launch/evaluate.py's command again"
        )
    reports = result.get("benchmarks")
    for label, report in reports.items() if isinstance(reports, dict) else ():
        if files.folder_name(label) == folder.name and isinstance(report, dict):
            counts = report.get("problems"), report.get("k")
            if all(type(count) is int for count in counts):
                return counts
    raise InputError(
        f"{folder.parent}/result.json tells of no benchmark {folder.name!r}; give what "
        "launch/evaluate.py wrote with --out, under the names it gave"
    )


def check_whole(workdir, rows_at: Mapping[int, int]) -> None:
    """InputError where a step's rollouts are gone, or were never all kept."""
    for line in metrics.read_metrics(workdir):
        step, written = line["step"], metrics.number(line, "rollouts") or 1
        # A line that does not say how many asks for one at least.
        if rows_at[step] < written:
            raise InputError(
                f"{workdir}: the dump holds {rows_at[step]} of {written:.0f} rollouts "
                f"of step {step}, and this needs all; run it with "
                f"dump.rows_per_step=0 and dump.max_bytes={2**62}"
            )


def row_epochs(workdir) -> Callable[[Mapping], int]:
    """The epoch of each row of a dump, which are asked for in the dump's order.

    It is the row's own `epoch`, or else the epochs that metrics.jsonl has finished
    before the row's step. The step that ends an epoch fills its batch from the next
    one's order, so who comes in it for the second time in that epoch came for the next;
    but where somebody came twice before that step, problems are drawn by weight, and
    nothing is filled. Without either, a problem's k-th visit is its k-th epoch.
    """
    steps, finished = {}, 0  # step → its epoch, and whether it ends it
    for line in metrics.read_metrics(workdir):
        if (epoch := metrics.number(line, "epoch")) is not None:
            # The number of finished epochs, and behind the point the part of the next.
            after = metrics.whole_epochs(epoch)
            steps[line["step"]] = finished, after > finished
            finished = after
    last: dict[
        str, tuple[int, int | None]
    ] = {}  # id → epoch and step of its last visit
    by_weight = set()

    def epoch_of(row: Mapping) -> int:
        if type(row.get("epoch")) is int:
            return row["epoch"]
        before, at = last.get(row["id"], (-1, None))
        if row["step"] == at:  # another rollout of the same visit
            return before
        epoch, ends = steps.get(row["step"], (before + 1, False))
        # Drawn twice in one epoch: for the next one, where this step ends it.
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
    value = row[field] if row.get("valid", 1) else None
    where = f"{workdir}: the {field} of {row['id']!r} at step {row['step']}"
    if not isinstance(value, int | float | None):  # a grade may be true or false
        raise InputError(
            f"{where} is no number; the dump was changed: take another run's, or make "
            "it anew"
        )
    most = score_file.LARGEST_REWARD
    # A whole number may be beyond the largest float, and NaN is beyond all.
    if value is not None and not abs(value) <= most:
        raise InputError(f"{where} is beyond ±{most:g}, of which no score is made")
    return None if value is None else float(value)


def read_rewards(path) -> Curves:
    """The curves of a JSONL of {id, rewards: [a number or null, by epoch]}."""
    ids, curves = [], []
    for where, problem, row in score_file.rows_by_id(path):
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
        curves.append([score_file.reward(x, "rewards", where) for x in curve])
    value_NE = np.array(curves, float)  # None becomes nan
    return Curves(tuple(ids), np.nan_to_num(value_NE), ~np.isnan(value_NE))


def keep_top(score_N: np.ndarray, count: int) -> np.ndarray:
    """keep_N, bool: the `count` largest; of equal ones, the first.

    Raises InputError where fewer have a score.
    """
    _check_count(score_N, count)
    keep_N = np.zeros(score_N.shape, bool)
    # No score is −inf, which comes last; stable, so that ties keep their order.
    keep_N[np.argsort(-score_N, kind="stable")[:count]] = True
    return keep_N


def keep_random(score_N: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """keep_N, bool: LIMR's RAND, `count` at random among those that have a score.

    Raises InputError where fewer have a score.
    """
    _check_count(score_N, count)
    index_K = np.flatnonzero(np.isfinite(score_N))
    keep_N = np.zeros(score_N.shape, bool)
    keep_N[np.random.default_rng(seed).permutation(index_K)[:count]] = True
    return keep_N


def _check_count(score_N: np.ndarray, count: int) -> None:
    scored = int(np.isfinite(score_N).sum())
    if not 1 <= count <= scored:
        raise InputError(
            f"{count} problems cannot be kept of {scored} that have a score; "
            f"give a number from 1 to {scored}"
        )
