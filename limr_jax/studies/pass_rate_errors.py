"""How far estimates of pass rates are off, and what choosing problems by them is worth.

Estimates are pass_rates.py's, of one `Case` after another: a step of a run. The truth
is a number of fresh samples a problem, whose own noise is taken out of squared errors
and of mixed chances, so that both are those of the pass rate itself.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata

from limr_jax.evaluation import statistics
from limr_jax.storage import files
from limr_jax.studies.pass_rates import (
    DECAYS,
    FRESH,
    WINDOWS,
    Case,
    RateEstimate,
    beta_counts,
    beta_name,
    estimates,
    of_counts,
    of_rate,
    snis,
    visits,
    window_of,
)

# Of what the errors of SNIS are told apart by: 8 rollouts alike have an ESS of 8.
EDGES = {
    "ess": (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, math.inf),
    "mean_weight": (0.0, 0.1, 0.3, 0.6, 1.5, math.inf),
}
BINNED = ("last visit", "all")
DECAY = 0.5  # of the Beta that stands beside SNIS in the tables by ESS
FLOOR = 0.01  # least weight of a problem in a draw


def squared_error(rate_N, truth_NK) -> np.ndarray:
    """(p̂ − p)² of each problem, free of bias from the noise of K fresh samples."""
    mean_N, samples = truth_NK.mean(axis=1), truth_NK.shape[1]
    return np.square(rate_N - mean_N) - mean_N * (1 - mean_N) / (samples - 1)


def mixed_chance(truth_NK, *, group: int) -> np.ndarray:
    """1 − p^G − (1−p)^G of each problem, without bias, from K ≥ G samples.

    It is the share of all groups of G among the K that have both outcomes.
    """
    samples = truth_NK.shape[1]
    right_N = truth_NK.sum(axis=1)

    def alike(count_N):  # groups of G that are all of these
        enough_N = count_N >= group
        count_N = np.where(enough_N, count_N, group)
        return np.where(enough_N, np.exp(_log_choose(count_N, group) - whole), 0.0)

    whole = _log_choose(samples, group)
    return 1 - alike(right_N) - alike(samples - right_N)


def _log_choose(n, k):
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def of_chosen(value_N, by_N, count: int) -> float:
    """The mean value of the `count` problems with the largest `by`, ties at random."""
    order_N = np.argsort(-by_N, kind="stable")
    sorted_N = by_N[order_N]
    edge = sorted_N[count - 1]
    above_N, tied_N = by_N > edge, by_N == edge
    rest = count - above_N.sum()
    return float((value_N[above_N].sum() + rest * value_N[tied_N].mean()) / count)


def of_draw(value_N, weight_N) -> float:
    """The mean value of a draw by weight, never below FLOOR."""
    weight_N = np.maximum(weight_N, FLOOR)
    return float((value_N * weight_N).sum() / weight_N.sum())


def spearman(x_N, y_N) -> float:
    """The rank correlation; 0 where one of them is constant."""
    ranks = [rankdata(x) for x in (x_N, y_N)]
    if min(map(np.ptp, ranks)) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _quarter(value_N) -> int:
    return max(len(value_N) // 4, 1)


def figures(case: Case, estimate: RateEstimate) -> dict[str, float]:
    """How far an estimate is off, and what choosing by it is worth."""
    truth_N, group = case.truth_NK.mean(axis=1), case.correct_XPG.shape[2]
    chance_N = mixed_chance(case.truth_NK, group=group)
    prompts = case.ids_XP.shape[1]
    inside_N = (estimate.low_N <= truth_N) & (truth_N <= estimate.high_N)
    error = np.mean(squared_error(estimate.rate_N, case.truth_NK))
    return {
        "bias": float(np.mean(estimate.rate_N - truth_N)),
        "mse": float(error),
        "coverage": float(np.mean(inside_N)),
        "rank": spearman(estimate.rate_N, truth_N),
        "rank_chance": spearman(estimate.chance_N, chance_N),
        "top": of_chosen(chance_N, estimate.chance_N, prompts),
        "top_quarter": of_chosen(chance_N, estimate.chance_N, _quarter(truth_N)),
        "drawn": of_draw(chance_N, estimate.chance_N),
    }


def limits(case: Case) -> dict[str, float]:
    """What `figures` can be at best, by choosing by the truth, and at random.

    The truth's own samples are what it is held against, so the best is a little more
    than any policy of choice could reach.
    """
    truth_N, group = case.truth_NK.mean(axis=1), case.correct_XPG.shape[2]
    chance_N = mixed_chance(case.truth_NK, group=group)
    return {
        "pass_rate": float(truth_N.mean()),
        "top": of_chosen(chance_N, chance_N, case.ids_XP.shape[1]),
        "top_quarter": of_chosen(chance_N, chance_N, _quarter(truth_N)),
        "drawn": of_draw(chance_N, chance_N),
        "random": float(chance_N.mean()),
    }


def by_bin(case: Case, window: str, by: str, *, decay: float) -> list[dict[str, float]]:
    """Sums of SNIS's errors, the raw mean's and the Beta's, by a number of SNIS's own.

    by: a key of EDGES. SNIS is taken as it is here, below ESS 2 too. Sums, so that
    cases can be added up.
    """
    seen, group = visits(case), case.correct_XPG.shape[2]
    correct_NR, log_ratio_NR, used_NR = window_of(seen, WINDOWS[window])
    weighted = snis(correct_NR, log_ratio_NR, used_NR)
    truth_N = case.truth_NK.mean(axis=1)
    own = of_rate(weighted.rate_N, weighted.ess_N, group=group)
    right_N, wrong_N = beta_counts(case, decay=decay)
    beta = of_counts(right_N, wrong_N, group=group)
    inside_N = (own.low_N <= truth_N) & (truth_N <= own.high_N)
    errors = {
        name: squared_error(rate_N, case.truth_NK)
        for name, rate_N in (
            ("snis", own.rate_N),
            ("raw", weighted.raw_N),
            ("beta", beta.rate_N),
        )
    }
    value_N, rows = getattr(weighted, f"{by}_N"), []
    for low, high in zip(EDGES[by], EDGES[by][1:]):
        # Equal weights have an ESS of exactly 8, but for rounding.
        in_N = (value_N >= low - 1e-9) & (value_N < high - 1e-9)
        row = {"low": low, "problems": int(in_N.sum())}
        row |= {name: float(error_N[in_N].sum()) for name, error_N in errors.items()}
        row["bias"] = float((own.rate_N - truth_N)[in_N].sum())
        row["inside"] = int(inside_N[in_N].sum())
        rows.append(row)
    return rows


def report(case: Case) -> dict[str, Mapping]:
    """All figures of a case, as JSON can hold them."""
    return {
        "limits": limits(case),
        "estimates": {
            name: figures(case, estimate) for name, estimate in estimates(case).items()
        },
        "bins": {
            f"{by}, {window}": by_bin(case, window, by, decay=DECAY)
            for by in EDGES
            for window in BINNED
        },
    }


# ---- of several cases --------------------------------------------------------------


def summary(reports: Mapping[tuple[str, int], Mapping]) -> dict:
    """The figures of (run, step) → report, averaged; and each report by its name.

    A run's steps are averaged first: `vs_beta` is the difference of squared errors to
    the Beta of the least error, paired by run, with its t interval over runs.
    """
    runs = list(dict.fromkeys(run for run, _ in reports))
    first = next(iter(reports.values()))

    def by_run(name, figure):
        cells = {run: [] for run in runs}
        for (run, _), each in reports.items():
            cells[run].append(each["estimates"][name][figure])
        return np.array([np.mean(x) for x in cells.values()])

    best = min(map(beta_name, DECAYS), key=lambda name: by_run(name, "mse").mean())
    rows = {}
    for name, figures_of in first["estimates"].items():
        row = {x: float(by_run(name, x).mean()) for x in figures_of}
        row["rmse"] = math.sqrt(max(row.pop("mse"), 0))
        worse = statistics.mean(by_run(name, "mse") - by_run(best, "mse"))
        rows[name] = row | {"vs_beta": worse.as_json()}
    limits = {
        x: float(np.mean([r["limits"][x] for r in reports.values()]))
        for x in first["limits"]
    }
    bins = {name: _added([r["bins"][name] for r in reports.values()]) for name in BINS}
    return {
        "best_beta": best,
        "limits": limits,
        "estimates": rows,
        "worth": {
            f"{run}, step {step}": {x: worth(each, x) for x in SNIS}
            for (run, step), each in reports.items()
        },
        "bins": bins,
        "cases": {f"{run}, step {step}": r for (run, step), r in reports.items()},
    }


BINS = [f"{by}, {window}" for by in EDGES for window in BINNED]
SNIS = [f"SNIS{form}, {window}" for form in ("", " as counts") for window in WINDOWS]


def worth(of_case: Mapping, name: str) -> float | None:
    """How many fresh rollouts a problem make the Beta as good as an estimate.

    In squared error, by linear interpolation; at each number of fresh rollouts the
    decay is the best one there. None: more than FRESH has.
    """
    error = {x: row["mse"] for x, row in of_case["estimates"].items()}
    numbers = (0, *FRESH)
    curve = [min(error[beta_name(decay, m)] for decay in DECAYS) for m in numbers]
    curve = np.minimum.accumulate(curve)
    if error[name] < curve[-1]:
        return None
    # np.interp asks for values that rise.
    return float(np.interp(error[name], curve[::-1], numbers[::-1]))


def _added(bins_of: Sequence[Sequence[Mapping]]) -> list[dict]:
    """The rows of several cases' bins as means over all their problems."""
    rows = []
    for bins in zip(*bins_of):
        problems = sum(x["problems"] for x in bins)
        row = {"low": bins[0]["low"], "problems": problems}
        if problems:
            whole = {x: sum(each[x] for each in bins) / problems for x in bins[0]}
            row |= {x: math.sqrt(max(whole[x], 0)) for x in ("snis", "raw", "beta")}
            row |= {"bias": whole["bias"], "coverage": whole["inside"]}
        rows.append(row)
    return rows


_COLUMNS = {
    "bias": "bias",
    "rmse": "RMSE",
    "coverage": "coverage",
    "rank": "rank",
    "rank_chance": "rank of chance",
    "top": "chosen",
    "top_quarter": "a quarter",
    "drawn": "drawn",
}


def markdown(result: Mapping) -> str:
    """The tables of a `summary`: estimates, fresh rollouts, and errors by bin."""
    plain = {k: v for k, v in result["estimates"].items() if " and " not in k}
    limits = result["limits"]
    lines = _table(
        ["estimate", *_COLUMNS.values()],
        [[name, *(row[x] for x in _COLUMNS)] for name, row in plain.items()],
    )
    chosen = ["top", "top_quarter", "drawn"]
    lines += [
        f"By the truth: {', '.join(f'{limits[x]:.3f}' for x in chosen)}; at random: "
        f"{limits['random']:.3f}; mean pass rate: {limits['pass_rate']:.3f}.",
        "",
    ]
    best = float(result["best_beta"].split()[-1])
    bought = [beta_name(best, fresh) for fresh in (0, *FRESH)]
    lines += _table(
        ["with fresh rollouts", *_COLUMNS.values()],
        [[x, *(result["estimates"][x][y] for y in _COLUMNS)] for x in bought],
    )
    lines += _table(
        ["worth in fresh rollouts", *SNIS],
        [
            [name, *(f"> {FRESH[-1]}" if x is None else x for x in row.values())]
            for name, row in result["worth"].items()
        ],
    )
    for name, rows in result["bins"].items():
        lines += _table(
            [f"{name}: from", "problems", "bias", "SNIS", "raw", "Beta", "inside"],
            [
                [x["low"], str(x["problems"])]
                + [x[y] for y in ("bias", "snis", "raw", "beta", "coverage")]
                for x in rows
                if x["problems"]
            ],
        )
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence]) -> list[str]:
    def cell(x):
        return x if isinstance(x, str) else f"{x:.3f}"

    lines = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(map(cell, line))} |" for line in lines), ""]


def write(out: pathlib.Path, result: Mapping) -> None:
    """pass_rates.json and pass_rates.md in the folder, each whole."""
    text = json.dumps(files.plain(result), indent=1, allow_nan=False)
    files.write_text(out / "pass_rates.json", text + "\n")
    files.write_text(out / "pass_rates.md", markdown(result))
