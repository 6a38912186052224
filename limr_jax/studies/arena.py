"""What regimes × arms × seeds of runs say of selectors, from a record on disk.

The record is JSON lines, one for each finished run and one for each fixed subset of
problems, so that it can be kept where the runs' own folders are not. A run's line:

    regime, arm, seed    which run it is
    common               digest of what all runs of its regime have in common
    settings             digest of that, its arm, its seed and its subset
    tokens, fork_at      that arms are compared at, and from which they forked
    curve                [[generated tokens, held-out accuracy], …], to the first
                         evaluation at or after so many tokens
    digest               of that curve and all sums; the same on a machine that rounds
                         alike
    figures              FIGURES, and what they were made of

Arms are compared by seed, in which they have their noise in common.
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from limr_jax.data import jsonl
from limr_jax.errors import InputError
from limr_jax.storage import files, metrics
from limr_jax.studies import ablation, tables
from limr_jax.studies import markdown as md

# Figure → its column's head.
FIGURES = {
    "accuracy": "accuracy, %",
    "area": "mean accuracy until there, %",
    "signal_share": "groups with signal, %",
}
FIRST = "uniform"  # the arm that the others are compared with
GAIN = 0.9  # of uniform's gain, which an arm's tokens are counted to


class Record:
    """The record's file, read once and added to; InputError where a line is no row."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.rows: list[dict] = []
        seen: dict[tuple, str] = {}
        for where, row in jsonl.read_rows(path) if self.path.exists() else ():
            if not _is_row(row):
                raise InputError(
                    f"{where}: is no line that launch/arena.py writes; give another "
                    "--record, or take the line out"
                )
            place = row["regime"], row.get("set"), row.get("arm"), row.get("seed")
            if seen.setdefault(place, where) != where:
                raise InputError(
                    f"{where}: is of the same run or set as {seen[place]}; take one of "
                    "them out"
                )
            self.rows.append(row)

    def add(self, row: dict) -> None:
        """Keep a row, on disk at once; InputError where it cannot be written."""
        try:
            files.append(self.path, files.json_line(row).encode())
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); make room or give "
                "it its rights, then give the same command again"
            ) from None
        self.rows.append(row)

    @contextlib.contextmanager
    def locked(self):
        """Within it no other process adds rows; InputError where one does already."""
        with open(self.path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(
                    f"{self.path}: another process adds to it; wait for it, or give "
                    "another --record"
                ) from None
            yield

    def run(self, regime: str, arm: str, seed: int) -> dict | None:
        """The line of this run, or None."""
        for row in self.runs():
            if (row["regime"], row["arm"], row["seed"]) == (regime, arm, seed):
                return row
        return None

    def runs(self) -> list[dict]:
        """The lines of runs, in the order in which they came."""
        return [row for row in self.rows if "set" not in row]

    def subset(self, regime: str, name: str) -> dict | None:
        """The line of a fixed subset, or None."""
        for row in self.rows:
            if (row["regime"], row.get("set")) == (regime, name):
                return row
        return None


def _is_row(row: Mapping) -> bool:
    """Whether it has what is read of a run's line, or of a subset's."""
    kinds: dict[str, type] = {"regime": str, "common": str}
    if "set" in row:
        kinds |= {"set": str, "of": int, "problems": int, "kinds": dict, "places": list}
    else:
        kinds |= {"arm": str, "seed": int, "settings": str, "digest": str}
        kinds |= {"tokens": int, "fork_at": int, "curve": list, "figures": dict}
        kinds |= {"steps": int}
    if not all(isinstance(row.get(name), kind) for name, kind in kinds.items()):
        return False
    numbers = row.get("places") or [row.get("figures", {}).get(x) for x in FIGURES]
    return all(isinstance(x, int | float) for x in numbers) or row.get("places") == []


def written(workdirs: Sequence, steps: int | None = None) -> float:
    """The tokens that a run has generated; of several, each a fork of the last.

    steps: in the first so many steps; None: in all.
    """
    return sum(row["tokens"] for row in itertools.islice(_steps(workdirs), steps))


def outcome(workdirs: Sequence, tokens: int, *, group: int) -> dict:
    """`curve`, `figures` and `digest` of a run that has generated so many tokens.

    workdirs: of the run; or of several, each a fork of the one before. group: rollouts
    a problem. accuracy: held out, when so many tokens were generated, on a straight
    line between the evaluations around it. area: the mean of that line from 0 tokens
    on. signal_share: groups with a right and a wrong response that were learned from,
    of as many as the rollouts of the steps until then would make. Raises InputError
    where the run has generated less, or was not evaluated.
    """
    curve, at, sums = [], 0.0, dict.fromkeys(("rollouts", "signal_groups", "steps"), 0)
    accuracy_at = _accuracies(workdirs)
    if 0 not in accuracy_at:
        raise InputError(
            f"{workdirs[0]} has no evaluation before training; set data.eval"
        )
    curve.append([0.0, accuracy_at[0]])
    seconds = []
    for row in _steps(workdirs):
        if at < tokens:
            sums["steps"] += 1
            for name in ("rollouts", "signal_groups"):
                sums[name] += row[name]
            seconds.append(row["seconds"])
        at += row["tokens"]
        if row["step"] in accuracy_at:
            curve.append([at, accuracy_at[row["step"]]])
            if at >= tokens:
                break
    else:
        raise InputError(
            f"{workdirs[-1]} ends at {at:,.0f} generated tokens, and is compared at "
            f"{tokens:,}; give it more steps"
        )
    tokens_X, accuracy_X = np.array(curve).T
    line_X = np.append(tokens_X[tokens_X < tokens], tokens)
    heights_X = np.interp(line_X, tokens_X, accuracy_X)
    figures = {
        "accuracy": float(heights_X[-1]),
        "area": float(np.trapezoid(heights_X, line_X) / tokens),
        "signal_share": group * sums["signal_groups"] / sums["rollouts"],
    }
    content = {"curve": curve, "sums": sums}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {
        "curve": curve,
        "digest": digest[:16],
        "figures": figures,
        **sums,
        "step_seconds": float(np.median(seconds)),
    }


def _steps(workdirs: Sequence) -> Iterable[dict]:
    return _lines(workdirs, metrics.METRICS)


def _accuracies(workdirs: Sequence) -> dict[int, float]:
    """Step → held-out accuracy then."""
    lines = _lines(workdirs, metrics.EVALS)
    return {
        row["step"]: row["accuracy"] for row in lines if row["accuracy"] is not None
    }


def _lines(workdirs: Sequence, file: str) -> Iterable[dict]:
    """Lines of several runs as one: each up to the step from which the next is a fork.

    A fork's own lines begin after that step; its evaluation of that step is left out.
    """
    firsts = [_first_step(workdir) for workdir in workdirs]
    for workdir, first, end in zip(workdirs, firsts, [*firsts[1:], math.inf]):
        for row in metrics.read_metrics(workdir, file):
            if row["step"] < end and (first == 1 or row["step"] >= first):
                yield row


def _first_step(workdir) -> int:
    return next(iter(metrics.read_metrics(workdir)))["step"]


def tokens_to(curve: Sequence, accuracy: float) -> float:
    """The generated tokens at which a curve first has this accuracy; inf: it has not.

    On straight lines between the curve's points.
    """
    for (x0, y0), (x1, y1) in zip(curve, curve[1:]):
        if y1 >= accuracy:
            if y0 >= accuracy:
                return float(x0)
            return float(x0 + (x1 - x0) * (accuracy - y0) / (y1 - y0))
    return math.inf


def summary(rows: Sequence[Mapping], arms: Sequence[str]) -> dict[str, dict]:
    """By regime: each arm's figures, differences to uniform, and what pairing saves.

    rows: of finished runs. arms: in the order in which they are shown; those that have
    no run in a regime are left out of it. A difference is paired by seed, with a 95 %
    t interval and Holm's p over the regime's arms. `tokens_to`: tokens at which an arm
    has come to GAIN of what uniform gains in the mean, as a share of those that uniform
    needs; the medians over the seeds that both have, None where fewer than half came to
    it, and how many did. An arm whose runs are uniform's own is no comparison.
    """
    regimes = dict.fromkeys(row["regime"] for row in rows)
    return {
        regime: _of_regime([x for x in rows if x["regime"] == regime], arms)
        for regime in regimes
    }


def _of_regime(rows: Sequence[Mapping], arms: Sequence[str]) -> dict:
    ran = {row["arm"] for row in rows}
    shown = [arm for arm in arms if arm in ran]
    if FIRST in shown:  # the first one, for `ablation.compare`
        shown = [FIRST, *(arm for arm in shown if arm != FIRST)]
    seeds = sorted({row["seed"] for row in rows})
    by_place = {(row["arm"], row["seed"]): row for row in rows}
    result: dict = {"seeds": seeds, "arms": {arm: {} for arm in shown}}
    same = [a for a, arm in enumerate(shown) if a and _is_first(arm, by_place)]
    for name in FIGURES:
        values_by_arm = np.array(
            [
                [
                    by_place[arm, seed]["figures"][name]
                    if (arm, seed) in by_place
                    else math.nan
                    for seed in seeds
                ]
                for arm in shown
            ]
        )
        compared = zip(shown, ablation.compare(values_by_arm, same), values_by_arm)
        for arm, figure, value_X in compared:
            # Of each arm alone: one that fails in its own way varies more than others.
            pair = np.array([values_by_arm[0], value_X])
            smallest = {"resolvable": ablation.resolvable(pair)}
            result["arms"][arm][name] = figure | smallest
        if name == "accuracy":
            result["pairing"] = pairing(np.delete(values_by_arm, same, axis=0))
    if FIRST in shown:
        _add_tokens(result, by_place)
    return result


def _is_first(arm: str, by_place: Mapping) -> bool:
    """Whether the arm's runs are uniform's own: online LIM's are in its first epoch."""
    pairs = [
        (row["digest"], by_place[FIRST, seed]["digest"])
        for (name, seed), row in by_place.items()
        if name == arm and (FIRST, seed) in by_place
    ]
    return bool(pairs) and all(own == first for own, first in pairs)


def _add_tokens(result: dict, by_place: Mapping) -> None:
    """`tokens_to` of each arm, against uniform's."""

    def curves(arm):
        return {s: _cut(row) for (name, s), row in by_place.items() if name == arm}

    before = np.mean([curve[0][1] for curve in curves(FIRST).values()])
    gain = result["arms"][FIRST]["accuracy"]["mean"] - before
    target = before + GAIN * gain
    needed = {
        arm: {seed: tokens_to(curve, target) for seed, curve in curves(arm).items()}
        for arm in result["arms"]
    }
    for arm, own in needed.items():
        share, both = None, [seed for seed in own if seed in needed[FIRST]]
        if both:
            # Who has not come to it needs more than all: an infinity, so that the
            # median is of all seeds.
            middle, first = (
                np.median([x[seed] for seed in both]) for x in (own, needed[FIRST])
            )
            if math.isfinite(middle) and math.isfinite(first):
                share = float(middle / first)
        result["arms"][arm]["tokens_to"] = {
            "share": share,
            "reached": int(np.isfinite([*own.values()]).sum()),
            "runs": len(own),
        }
    result["tokens_to_accuracy"] = float(target)


def _cut(row: Mapping) -> list:
    """A run's curve up to the tokens at which arms are compared."""
    before = [point for point in row["curve"] if point[0] < row["tokens"]]
    return [*before, [row["tokens"], row["figures"]["accuracy"]]]


def pairing(values_by_arm: np.ndarray) -> dict[str, float] | None:
    """How many unpaired seeds a paired one is worth, over all arms but the first.

    The variance of a difference between arms of different seeds is the sum of the two
    arms' own; over that of the differences by seed. None of less than three seeds.
    """
    paired = unpaired = 0.0
    arms = 0
    for value_X in values_by_arm[1:]:
        known_X = np.isfinite(value_X) & np.isfinite(values_by_arm[0])
        if known_X.sum() < 3:
            continue
        a_X, b_X = value_X[known_X], values_by_arm[0][known_X]
        paired += np.var(a_X - b_X, ddof=1)
        unpaired += np.var(a_X, ddof=1) + np.var(b_X, ddof=1)
        arms += 1
    if not arms or not paired:
        return None
    return {
        "paired_deviation": math.sqrt(paired / arms),
        "unpaired_deviation": math.sqrt(unpaired / arms),
        "seeds_saved": float(unpaired / paired),
    }


def markdown(summaries: Mapping[str, Mapping], *, tokens: int, command: str) -> str:
    """One table a regime: accuracy at equal tokens, and what differs from uniform."""
    parts = [
        f"{md.code(command)}; arms are compared at {tokens:,} generated tokens. A true "
        "difference as large as 'shows', in points, is seen with a chance of 80 % (a "
        "paired t-test at 5 %).\n"
    ]
    for regime, regime_summary in summaries.items():
        parts.append(f"## {md.text(regime)}\n")
        heads = list(FIGURES.values())
        head = ["arm", "seeds", heads[0], f"− {FIRST}", "p, Holm", "shows", *heads[1:]]
        head.append(f"tokens to {GAIN:.0%} of {FIRST}'s gain")
        rows = []
        for arm, figures in regime_summary["arms"].items():
            difference = figures["accuracy"]["difference"]
            cells = [arm, str(figures["accuracy"]["seeds"])]
            cells.append(tables.shown(figures["accuracy"], 100, 1))
            cells.append(tables.shown(difference, 100, 1, sign="+"))
            cells.append(tables.holm_p(difference))
            smallest = figures["accuracy"]["resolvable"]
            cells.append("–" if smallest is None else f"{100 * smallest:.1f}")
            cells.append(tables.shown(figures["area"], 100, 1))
            cells.append(f"{100 * figures['signal_share']['mean']:.0f}")
            cells.append(_tokens(figures.get("tokens_to")))
            rows.append(cells)
        parts.append(md.table(head, rows) + "\n")
        if regime_summary["pairing"]:
            saved = regime_summary["pairing"]["seeds_saved"]
            parts.append(f"A seed in pairs is worth {saved:.1f} without.")
        parts.append("")
    return "\n".join(parts)


def _tokens(share: Mapping | None) -> str:
    if share is None:
        return "–"
    number = "–" if share["share"] is None else f"{share['share']:.2f}"
    return f"{number} ({share['reached']} of {share['runs']})"
