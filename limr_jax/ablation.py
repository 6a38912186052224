"""What arms × seeds of runs say: means, intervals, paired differences.

Seeds are what is resampled: an interval says how far the mean would move with other
seeds, on the same held-out problems. A difference is paired: arm minus first arm, seed
by seed, so what a seed does to every arm alike falls out.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from scipy.special import stdtrit

from limr_jax import checkpoint, evaluate, metrics
from limr_jax.errors import InputError

# Figure → how the table heads it, the unit it is shown in, and its digits.
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
}


def figures(workdir) -> dict[str, float]:
    """The figures of a finished run; InputError where it was not evaluated."""
    rows = list(metrics.read_metrics(workdir))
    evals = list(metrics.read_metrics(workdir, metrics.EVALS))
    if not rows or len(evals) < 2:
        raise InputError(
            f"{workdir} has no evaluation before and after; set data.eval and let it "
            "finish"
        )
    before, after = evals[0], evals[-1]
    # A process's first step compiles.
    counts = [row["compile_count"] for row in rows]
    steady = [
        row["seconds"]
        for row, last, count in zip(rows[1:], counts, counts[1:])
        if count == last
    ]
    made = {
        "accuracy": after["accuracy"],
        "accuracy_before": before["accuracy"],
        "well_formed": after["well_formed"],
        "response_length": after["response_length"],
        "response_length_before": before["response_length"],
        "rollouts": sum(row["rollouts"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "step_seconds": float(np.mean(steady)) if steady else math.nan,
        "seconds": checkpoint.read_result(workdir)["seconds"],
    }
    return {name: math.nan if x is None else float(x) for name, x in made.items()}


def compare(value_AS: np.ndarray, key: jax.Array) -> list[dict]:
    """Of each arm: mean and 95 % interval, and those of its difference to the first.

    value_AS: a figure by arm and seed; not a number where there is no run. A pair is
    of seeds that both have. The interval is the bootstrap's over seeds; None for less
    than two of them, and a difference is None for the first arm.
    """
    apart_AS = value_AS - value_AS[0]
    both_XS = np.concatenate([value_AS, apart_AS])
    known_XS = np.isfinite(both_XS)
    part_XS, whole_XS = np.where(known_XS, both_XS, 0.0), known_XS.astype(float)
    mean_X = evaluate.share(part_XS.sum(axis=1), whole_XS.sum(axis=1))
    resampled_RX = evaluate.bootstrap(part_XS, whole_XS, key)

    def told(x: int) -> dict:
        seeds = int(whole_XS[x].sum())
        low, high = evaluate.interval(resampled_RX[:, x]) if seeds > 1 else (None, None)
        mean = float(mean_X[x]) if seeds else None
        return {"seeds": seeds, "mean": mean, "low": low, "high": high}

    arms = len(value_AS)
    return [
        told(a) | {"difference": told(arms + a) if a else None} for a in range(arms)
    ]


def resolvable(value_AS: np.ndarray) -> float | None:
    """The smallest true difference to the first arm that so many seeds would show.

    With a chance of 80 %, by a paired t-test at 5 %: (t_.975 + t_.8) · s / √n, where s
    is the standard deviation of the paired differences, pooled over arms, and n the
    fewest pairs of an arm. None where no two pairs of an arm differ.
    """
    squares, freedom, fewest = 0.0, 0, math.inf
    for apart_S in (value_AS - value_AS[0])[1:]:
        known = apart_S[np.isfinite(apart_S)]
        if len(known) > 1:
            squares += float(np.sum((known - known.mean()) ** 2))
            freedom += len(known) - 1
            fewest = min(fewest, len(known))
    if not squares:
        return None
    t = stdtrit(freedom, 0.975) + stdtrit(freedom, 0.8)
    return float(t * math.sqrt(squares / freedom / fewest))


@dataclasses.dataclass(frozen=True)
class Ran:
    """One run of the grid, finished or failed."""

    arm: str
    seed: int
    folder: str  # its workdir, below the comparison's folder
    command: str
    commits: tuple[str, ...]  # that it was started from; '… dirty': with changes
    figures: Mapping[str, float] | None  # None: not finished
    error: str | None  # why it failed


def summary(runs: Sequence[Ran], arms: Sequence[str], key: jax.Array) -> dict:
    """All figures of all arms, and every run, as one JSON object."""
    seeds = sorted({run.seed for run in runs})
    by_place = {(run.arm, run.seed): run for run in runs}
    told: dict[str, dict] = {arm: {} for arm in arms}
    smallest = {}
    for i, name in enumerate(FIGURES):

        def value(arm, seed, name=name):
            run = by_place.get((arm, seed))
            return run.figures[name] if run and run.figures else math.nan

        value_AS = np.array([[value(arm, seed) for seed in seeds] for arm in arms])
        compared = compare(value_AS, jax.random.fold_in(key, i))
        for arm, figure in zip(arms, compared):
            told[arm][name] = figure
        smallest[name] = resolvable(value_AS)
    return {
        "arms": told,
        "resolvable": smallest,
        "runs": [dataclasses.asdict(run) | {"figures": _finite(run)} for run in runs],
    }


def _finite(run: Ran) -> dict | None:
    if run.figures is None:
        return None
    return {name: x if math.isfinite(x) else None for name, x in run.figures.items()}
