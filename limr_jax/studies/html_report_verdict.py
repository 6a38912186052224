"""What runs came to, in words: did they learn, by how much, and what went wrong.

An interval is of 95 %: Student's t over the seeds of a group of two or more runs; of
one run over its held-out problems, or over problems that it met twice. It never says
more than its sentence does.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from limr_jax import alarms
from limr_jax.config.config_file import defaults
from limr_jax.evaluation import statistics
from limr_jax.evaluation.statistics import Estimate
from limr_jax.storage import metrics
from limr_jax.studies.html_report_rollouts import RIGHT, WRONG, RunRollouts
from limr_jax.studies.html_report_runs import ReportRun, RunGroup

LEARNED, WORSE, UNKNOWN = "learned", "worse", "unknown"
# Counters of updates that were left out.
_LEFT_OUT = ("nonfinite_share", "critic/nonfinite_share")


def accuracies(run: ReportRun) -> tuple[float, float, int, int] | None:
    """Held-out accuracy before and after, the later step, and how many problems.

    0 problems: not known. None where either accuracy is missing.
    """
    curve = run.curve("accuracy", evals=True)
    if 0 not in curve or max(curve) == 0:
        return None
    count = metrics.number(run.result, "eval_problems")
    count = int(count) if count and count > 0 and count == int(count) else 0
    return curve[0], curve[max(curve)], max(curve), count


def group_verdict(
    group: RunGroup, rollouts: Mapping[str, RunRollouts]
) -> tuple[str, list[str]]:
    """(LEARNED, WORSE or UNKNOWN, sentences), the first of which is the verdict."""
    known = [(run, ends) for run in group.runs if (ends := accuracies(run))]
    if known:
        return _by_accuracy(group, known)
    return _by_rollouts(group, rollouts)


def _by_accuracy(group: RunGroup, known) -> tuple[str, list[str]]:
    before = np.array([ends[0] for _, ends in known])
    after = np.array([ends[1] for _, ends in known])
    if len(known) > 1:
        gain = _over_seeds(after - before)
        over = f"Student's t over {len(known)} seeds"
    else:
        _, _, _, count = known[0][1]
        gain = _difference(before[0], after[0], count)
        over = (
            f"from Wilson's intervals over {count:,} held-out problems, as if each "
            "evaluation had drawn its own"
            if count
            else "none: the number of held-out problems is known when the run ends"
        )
    steps = sorted({ends[2] for _, ends in known})
    at = (
        f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,}–{steps[-1]:,}"
    )
    word, claim = _claim(gain)
    lines = [
        f"{claim}: held-out accuracy {_percent(before.mean())} before, "
        f"{_percent(after.mean())} at {at}, {points(gain)} (95 % interval: {over})."
    ]
    if len(known) < len(group.runs):
        lines.append(
            f"{len(group.runs) - len(known)} of {len(group.runs)} runs have no "
            "evaluation before and after, and are not in it."
        )
    if len(known) == 1:
        lines.append(
            "One seed: how far another seed would come is not in the interval."
        )
    return word, lines


def _by_rollouts(group, rollouts) -> tuple[str, list[str]]:
    """By problems that a run met in more than one step: its last visits − its first."""
    lines, gains = [], []
    for run in group.runs:
        first_N, last_N = first_and_last(rollouts[run.name])
        if not len(first_N):
            continue
        gains.append(
            (first_N.mean(), last_N.mean(), statistics.paired(last_N - first_N))
        )
    what = "No evaluation before and after (data.eval)"
    if not gains:
        return UNKNOWN, [
            f"{what}, and no problem was graded in two steps: nothing says whether it "
            "learned."
        ]
    if len(gains) == 1:
        first, last, gain = gains[0]
        over = "over the problems met at least twice (Bonett and Price)"
    else:
        first, last = (float(np.mean([x[k] for x in gains])) for k in (0, 1))
        gain = _over_seeds(np.array([x[2].value for x in gains]))
        over = f"Student's t over {len(gains)} seeds"
    word, claim = _claim(gain)
    lines = [
        f"{claim} on its own training problems: their pass rate was {_percent(first)} "
        f"at first visits, {_percent(last)} at last ones, {points(gain)} (95 % "
        f"interval: {over}).",
        f"{what}: whether it carries over to other problems is not known.",
    ]
    return word, lines


def first_and_last(rollouts: RunRollouts) -> tuple[np.ndarray, np.ndarray]:
    """Pass rates of problems at their first and last graded visit, in two steps."""
    graded = (rollouts.grade_R == RIGHT) | (rollouts.grade_R == WRONG)
    problem_R, step_R = rollouts.problem_R[graded], rollouts.step_R[graded]
    right_R = rollouts.grade_R[graded] == RIGHT
    count = len(rollouts.problems)
    if not count or not len(step_R):
        return np.zeros(0), np.zeros(0)
    low_N = np.full(count, np.iinfo(np.int64).max)
    high_N = np.full(count, -1)
    np.minimum.at(low_N, problem_R, step_R)
    np.maximum.at(high_N, problem_R, step_R)
    twice_N = high_N > low_N
    rates = []
    for end_N in (low_N, high_N):
        at_R = step_R == end_N[problem_R]
        right_N = np.bincount(problem_R[at_R], right_R[at_R], count)
        all_N = np.bincount(problem_R[at_R], minlength=count)
        rates.append(right_N[twice_N] / all_N[twice_N])
    return rates[0], rates[1]


def _difference(before: float, after: float, count: int) -> Estimate:
    """after − before of two shares of `count` problems, with Newcombe's interval."""
    gain = after - before
    if not count or not (0 <= before <= 1 and 0 <= after <= 1):
        return Estimate(gain, math.nan, math.nan)
    one, two = (_share(x, count) for x in (before, after))
    low = math.hypot(two.value - two.low, one.high - one.value)
    high = math.hypot(two.high - two.value, one.value - one.low)
    return Estimate(gain, gain - low, gain + high)


def _share(value: float, count: int) -> Estimate:
    """Wilson's interval of a share of so many problems."""
    right = round(value * count)
    part_N = np.zeros(count)
    part_N[:right] = 1
    return statistics.proportion(part_N, np.ones(count))


def _over_seeds(gain_X: np.ndarray) -> Estimate:
    """The mean and its t interval; none where all are the same number.

    Accuracies are multiples of 1 / N: two seeds may well come out equal, which does not
    say that all do.
    """
    gain = statistics.mean(gain_X)
    if gain.high - gain.low <= 1e-12:
        return Estimate(gain.value, math.nan, math.nan)
    return gain


def _claim(gain: Estimate) -> tuple[str, str]:
    if not math.isfinite(gain.low):
        return UNKNOWN, "Not shown that it learned, as there is no interval"
    if gain.low > 0:
        return LEARNED, "It learned"
    if gain.high < 0:
        return WORSE, "It got worse"
    return UNKNOWN, "Not shown that it learned: the interval holds 0"


def points(gain: Estimate) -> str:
    """'+37.4 points [34.0, 40.8]'."""
    text = f"{100 * gain.value:+.1f} points"
    if math.isfinite(gain.low):
        text += f" [{100 * gain.low:.1f}, {100 * gain.high:.1f}]"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def comparisons(groups: Sequence[RunGroup]) -> list[str]:
    """How the other groups' accuracies differ from the first group's, paired by seed.

    Of several differences the p are adjusted for all of them, by Holm.
    """
    first, *others = groups
    pairs, tests = [], []
    for other in others:
        ends = [
            {repr(run.seed): both[1] for run in group.runs if (both := accuracies(run))}
            for group in (first, other)
        ]
        common = [seed for seed in ends[0] if seed in ends[1]]
        pairs.append(np.array([ends[1][seed] - ends[0][seed] for seed in common]))
        tests.append(statistics.t_test(pairs[-1]))
    adjusted, compared = statistics.holm(tests), sum(map(math.isfinite, tests))
    lines = []
    for other, difference_X, p in zip(others, pairs, adjusted):
        name = f"{other.label} − {first.label}, accuracy after"
        if not len(difference_X):
            lines.append(f"{name}: no seed has one in both.")
            continue
        text = f"{name}: {points(_over_seeds(difference_X))}"
        if not math.isfinite(p):
            lines.append(f"{text}, one seed in common: no interval over seeds.")
            continue
        holds = "is shown" if p < 0.05 else "is not shown"
        how = f", by Holm for {compared} differences" if compared > 1 else ""
        lines.append(
            f"{text}, paired by {len(difference_X)} seeds; a difference {holds} "
            f"(p = {p:.3f}{how})."
        )
    return lines


def troubles(run: ReportRun) -> list[str]:
    """What went wrong in a run, a line each; none where nothing was found."""
    lines = []
    for row in run.warnings:
        text, name = row.get("text"), row.get("name")
        lines.append(f"step {row['step']:,}, warning {name}: {text}")
    lines += _alarms(run)
    lines += _left_out(run)
    lines += [
        f"kernel {row.get('kernel')}: {row['fault']}"
        for row in run.kernels
        if row.get("fault")
    ]
    last, steps = run.rows[-1]["step"], run.config.get("num_steps")
    if not run.finished:
        lines.append(f"not finished: step {last:,} of {steps}; stopped, or going on")
    return lines


def _left_out(run: ReportRun) -> list[str]:
    """Lines with a loss or a gradient that is none, and of updates left out for it."""
    lines = []
    for name in ("loss", "gradient_norm"):
        bad = [row["step"] for row in run.rows if name in row and row[name] is None]
        if bad:
            lines.append(
                f"{name} is no finite number in {len(bad)} steps, first {bad[0]:,}"
            )
    for name in _LEFT_OUT:
        if steps := [step for step, share in run.curve(name).items() if share > 0]:
            lines.append(f"{name}: above 0 in {len(steps):,} steps, first {steps[0]:,}")
    return lines


def _alarms(run: ReportRun) -> list[str]:
    """What the numbers of a run say that is older than alarms, by today's limits."""
    if run.warnings or "alarms" in run.config:
        return []
    watch, lines = alarms.Alarms(defaults("base").alarms), []
    for row in run.rows:
        # A number that such a run has not, but nearly.
        flat = {"flat_reward_share": row.get("zero_variance_share")}
        raised = watch.judge(row["step"], {**flat, **row})
        lines += [f"step {alarm.step:,}, {alarm.text}" for alarm in raised]
    return lines


CHECKED = (
    "a loss or gradient that is no number, and what raises the alarms of "
    "configs/base.py"
)
