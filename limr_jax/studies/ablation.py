"""Statistics of a grid of arms × seeds: means, intervals, paired differences.

An interval is Student's t over seeds: how far the mean would move with other seeds, on
the same held-out problems. A difference is paired: arm minus first arm, seed by seed,
so what a seed does to every arm alike falls out. Its p is that of the paired t-test;
of several arms one is below .05 by chance, so it stands beside Holm's, adjusted for all
differences of that figure.
"""

import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from limr_jax.errors import InputError
from limr_jax.evaluation import statistics
from limr_jax.storage import metrics
from limr_jax.storage.workdir import read_result

# Figure → (its column's head, what it is multiplied by there, digits after the point).
FIGURES = {
    "accuracy": ("accuracy after, %", 100, 1),
    "accuracy_before": ("accuracy before, %", 100, 1),
    "well_formed": ("well formed after, %", 100, 1),
    "response_length": ("tokens a response after", 1, 1),
    "response_length_before": ("tokens a response before", 1, 1),
    "rollouts": ("rollouts", 1, 0),
    "tokens": ("tokens", 1, 0),
    "step_seconds": ("seconds a step", 1, 2),
    "seconds": ("seconds", 1, 0),
    # Of the first so many generated tokens: `figures` says how.
    "accuracy_at_tokens": ("accuracy at equal tokens, %", 100, 1),
    "accuracy_area": ("mean accuracy until there, %", 100, 1),
    "signal_rate": ("signal groups per 10,000 tokens", 1, 1),
}


def before_and_after(workdir) -> tuple[dict, dict]:
    """A run's evaluations of the untrained policy and of the policy trained so far.

    Lines of evals.jsonl: that of step 0, and the last of a later step. Each is empty
    where there is none: of a run without data.eval, that has just begun, or whose file
    is damaged.
    """
    before, after = {}, {}
    for row in metrics.read_metrics(workdir, metrics.EVALS):
        if row["step"] == 0:
            before = row
        else:
            after = row
    return before, after


def accuracy_by_tokens(workdir) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_X, accuracy_X) of a run's greedy evaluations, X of them, in order.

    tokens_X: what all steps before the evaluation have generated, learned from or not.
    Both end where a step's line is lost, as what it generated is not known. An
    evaluation of which nothing could be graded is left out.
    """
    written = {0: 0.0}
    for row in metrics.read_metrics(workdir):
        if row["step"] - 1 in written:
            written[row["step"]] = written[row["step"] - 1] + row["tokens"]
    points = {
        row["step"]: row["accuracy"]
        for row in metrics.read_metrics(workdir, metrics.EVALS)
        if row["step"] in written and row["accuracy"] is not None
    }
    steps = sorted(points)
    return np.array([written[n] for n in steps]), np.array([points[n] for n in steps])


def at_equal_tokens(workdir, tokens: int) -> dict[str, float]:
    """What a run has come to when it has generated so many tokens; nan if it has not.

    accuracy_at_tokens: the held-out accuracy then, on a straight line between the
    evaluations before and after it. accuracy_area: the mean of that line from 0 tokens
    on. signal_rate: groups with a right and a wrong response that it learned from, per
    10,000 tokens generated in the steps until then.
    """
    tokens_X, accuracy_X = accuracy_by_tokens(workdir)
    names = ("accuracy_at_tokens", "accuracy_area", "signal_rate")
    if not len(tokens_X) or tokens_X[-1] < tokens:
        return dict.fromkeys(names, math.nan)
    line_X = np.append(tokens_X[tokens_X < tokens], tokens)
    heights_X = np.interp(line_X, tokens_X, accuracy_X)
    written = groups = 0.0
    for row in metrics.read_metrics(workdir):
        if written >= tokens:
            break
        written += row["tokens"]
        groups += row.get("signal_groups", math.nan)
    values = heights_X[-1], np.trapezoid(heights_X, line_X) / tokens
    return dict(zip(names, (*map(float, values), 1e4 * groups / written)))


def figures(workdir, tokens: int = 0) -> dict[str, float]:
    """The FIGURES of a finished run, nan for what it has none of.

    Shares are from 0 to 1, times in seconds. tokens: of `at_equal_tokens`; 0: its
    figures are nan. Raises InputError where the run was not evaluated before and after.
    """
    rows = list(metrics.read_metrics(workdir))
    before, after = before_and_after(workdir)
    if not (rows and before and after):
        raise InputError(
            f"{workdir} has no evaluation before and after; set data.eval and let it "
            "finish"
        )
    # A step in which something was compiled, as in a process's first, is no steady one.
    counts = [row["compile_count"] for row in rows]
    steady = [
        row["seconds"]
        for row, last, count in zip(rows[1:], counts, counts[1:])
        if count == last
    ]
    values = {
        "accuracy": after["accuracy"],
        "accuracy_before": before["accuracy"],
        "well_formed": after["well_formed"],
        "response_length": after["response_length"],
        "response_length_before": before["response_length"],
        "rollouts": sum(row["rollouts"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "step_seconds": float(np.mean(steady)) if steady else math.nan,
        "seconds": read_result(workdir)["seconds"],
    }
    values = {name: math.nan if x is None else float(x) for name, x in values.items()}
    return (
        dict.fromkeys(FIGURES, math.nan)
        | values
        | at_equal_tokens(workdir, tokens or sys.maxsize)
    )


def compare(values_by_arm: np.ndarray, same: Collection[int] = ()) -> list[dict]:
    """For each arm: mean and 95 % interval, and those of its difference to the first.

    values_by_arm: a figure by arm and seed; not a number where there is no run. A pair
    is of seeds that both have. A difference, None for the first arm, has the p of the
    paired t-test, and `p_holm`, adjusted for the differences of all arms. Of less than
    two seeds there is no interval and no p: None. same: arms, by their place, whose
    runs are the first one's own; they are no comparison and have no p.
    """
    differences_by_arm = values_by_arm - values_by_arm[0]
    # The first arm is no comparison: nan, which Holm passes over.
    p_by_arm = [math.nan, *map(statistics.t_test, differences_by_arm[1:])]
    p_by_arm = [math.nan if a in same else p for a, p in enumerate(p_by_arm)]
    p_holm_by_arm = statistics.holm(p_by_arm)
    figures = []
    for a, value_X in enumerate(values_by_arm):
        difference = None
        if a:
            p_values = {"p": _number(p_by_arm[a]), "p_holm": _number(p_holm_by_arm[a])}
            difference = _mean(differences_by_arm[a]) | p_values
        figures.append(_mean(value_X) | {"difference": difference})
    return figures


def _mean(value_X: np.ndarray) -> dict:
    estimate = statistics.mean(value_X).as_json()
    seeds = int(np.isfinite(value_X).sum())
    return {"seeds": seeds, "mean": estimate.pop("value")} | estimate


def comparisons(compared: Sequence[Mapping]) -> int:
    """How many of `compare`'s differences have a p: as many as Holm adjusts for."""
    differences = [figure["difference"] for figure in compared]
    return sum(x is not None and x["p"] is not None for x in differences)


def resolvable(values_by_arm: np.ndarray) -> float | None:
    """The smallest true difference to the first arm that so many seeds would show.

    With a chance of 80 %, by a paired t-test at 5 % of one arm; for the standard
    deviation of the paired differences, pooled over arms, and the fewest pairs of an
    arm. None where no two pairs of an arm differ.
    """
    squares, freedom, fewest = 0.0, 0, math.inf
    for difference_X in (values_by_arm - values_by_arm[0])[1:]:
        known = difference_X[np.isfinite(difference_X)]
        if len(known) > 1:
            # Around its own mean: arms may differ from the first by different amounts.
            squares += float(np.sum((known - known.mean()) ** 2))
            freedom += len(known) - 1
            fewest = min(fewest, len(known))
    if not squares:
        return None
    return statistics.resolvable(math.sqrt(squares / freedom), fewest)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run of the grid, finished, failed or not begun."""

    arm: str
    seed: int
    folder: str  # its workdir, below the comparison's folder
    command: str
    commits: tuple[str, ...]  # that it was started from; '… dirty': with changes
    figures: Mapping[str, float] | None  # None: not finished
    error: str | None  # why it failed


def summary(runs: Sequence[RunRecord], arms: Sequence[str]) -> dict:
    """All figures of all arms, and every run, as one JSON object.

    arms: their names, the first of which the others are compared with.
    """
    seeds = sorted({run.seed for run in runs})
    by_place = {(run.arm, run.seed): run for run in runs}
    figures: dict[str, dict] = {arm: {} for arm in arms}
    smallest, count = {}, {}
    for name in FIGURES:

        def value(arm, seed, name=name):  # bound in this turn of the loop
            run = by_place.get((arm, seed))
            # Not a number where it failed or has not begun: that seed makes no pair.
            return run.figures[name] if run and run.figures else math.nan

        values_by_arm = np.array([[value(arm, seed) for seed in seeds] for arm in arms])
        compared = compare(values_by_arm)
        for arm, figure in zip(arms, compared):
            figures[arm][name] = figure
        count[name], smallest[name] = comparisons(compared), resolvable(values_by_arm)
    return {
        "arms": figures,
        "comparisons": count,
        "resolvable": smallest,
        "runs": [dataclasses.asdict(run) | {"figures": _finite(run)} for run in runs],
    }


def _finite(run: RunRecord) -> dict | None:
    if run.figures is None:
        return None
    return {name: _number(x) for name, x in run.figures.items()}


def _number(x: float) -> float | None:
    return x if math.isfinite(x) else None
