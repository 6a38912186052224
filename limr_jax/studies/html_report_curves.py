"""The charts of a page as numbers: what each line is, not how it is drawn.

A chart is a dict for the page's script: `title`, `help`, the axes' names, and `series`
of points by x, with an interval where there is one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from limr_jax.evaluation import statistics
from limr_jax.studies.html_report_rollouts import (
    INVALID,
    RIGHT,
    WRONG,
    RunRollouts,
)
from limr_jax.studies.html_report_runs import ReportRun, RunGroup

_POINTS = 200  # of a curve; more steps are shown as means of windows
_MOST_SERIES = 12  # of a chart that has one a name
_MOST_NAMES = 500  # numbers of a line; no run of this project has as many
# Title → (number of metrics.jsonl, whether it is a share, what it is).
_STEP_CHARTS = {
    "Pass rate of the rollouts": ("pass_rate", True, "of the problems drawn"),
    "Reward": ("reward", False, "mean over rollouts, as the learner saw it"),
    "Tokens a rollout": ("response_length", False, "mean"),
    "Truncated": ("truncated_share", True, "rollouts cut off at the longest length"),
    "Well formed": ("well_formed", True, "rollouts with an answer to be found"),
    "Invalid": ("invalid_share", True, "rollouts that nobody could grade"),
    "Entropy of the rollouts": ("rollout_entropy", False, "nats a token, sampled"),
    "Entropy in the learner": ("entropy", False, "nats a token"),
    "KL to the first policy": ("kl", False, "nats, where the run measures it"),
    "Drift, mean": ("drift", False, "|log-probability of learner − rollout|, nats"),
    "Drift, worst token": ("drift_max", False, "nats"),
    "Effective share of importance weights": ("mismatch/ess", True, "of the mismatch"),
    "Gradient norm": ("gradient_norm", False, "before it is clipped"),
    "Loss": ("loss", False, ""),
    "Clipped": ("clipped_share", True, "tokens whose ratio the loss clips"),
    "Groups without a signal": ("zero_variance_share", True, "all rewards alike"),
    "Seconds a step": ("seconds", False, ""),
    "Tokens per second": ("tokens_per_second", False, "of a whole step"),
    "Decode steps": ("decode_steps", False, "of the device that takes most"),
    "Tokens a decode step": ("drafts/tokens_per_step", False, "of a row, with drafts"),
    "Drafted": ("drafts/accepted", True, "decoded tokens that a draft had right"),
}
# The shares of what a step drew, by the pass rate of a problem's rollouts in it.
_CLASSES = ("none right", "up to ¼", "up to ½", "up to ¾", "below all", "all right")


def step_charts(groups: Sequence[RunGroup]) -> dict[str, list[dict]]:
    """Section → charts of all runs' numbers by step, those aside that no run has."""
    learning = [
        _by_group(
            groups,
            lambda run: run.curve("accuracy", evals=True),
            title="Held-out accuracy",
            help="greedy, by the step of the evaluation",
            share=True,
        )
    ]
    for title, (name, share, text) in _STEP_CHARTS.items():
        learning.append(
            _by_group(
                groups,
                lambda run, name=name: run.curve(name),
                title=title,
                help=f"{name}: {text}" if text else name,
                share=share,
            )
        )
        if title == "Groups without a signal":
            learning.append(_signal(groups))
    sections = {"Learning": learning}
    sections["Reward parts"] = _prefixed(groups, "reward/")
    sections["Invalid by reason"] = _prefixed(groups, "invalid/", share=True)
    sections["Seconds a phase"] = _prefixed(groups, "seconds_")
    sections["Held-out accuracy by level"] = _prefixed(
        groups,
        "accuracy_level_",
        share=True,
        evals=True,
        apart=False,
        names_as="level ",
    )
    return {
        section: kept
        for section, charts in sections.items()
        if (kept := [chart for chart in charts if chart["series"]])
    }


def every_number(runs: Sequence[ReportRun]) -> list[str]:
    """The names of all numbers in the runs' lines, for who looks for one."""
    names = {name for run in runs for row in run.rows for name in row} - {"step"}
    return sorted(names)[:_MOST_NAMES]


def numbers(groups: Sequence[RunGroup], name: str) -> list[dict]:
    """The series of one number of metrics.jsonl, one a group."""
    return [
        series
        for number, group in enumerate(groups)
        for series in _with_seeds(group, lambda run: run.curve(name), number)
    ]


def _signal(groups: Sequence[RunGroup]) -> dict:
    def per_10_000_tokens(run: ReportRun) -> dict[int, float]:
        tokens = run.curve("tokens")
        return {
            step: 1e4 * count / tokens[step]
            for step, count in run.curve("signal_groups").items()
            if tokens.get(step, 0) > 0
        }

    return _by_group(
        groups,
        per_10_000_tokens,
        title="Signal groups per 10,000 tokens",
        help="groups with a right and a wrong response, by tokens generated",
    )


def chart(
    title: str,
    series: Sequence[Mapping],
    *,
    help: str = "",
    x: str = "step",
    share: bool = False,
    kind: str = "line",
    **more,
) -> dict:
    """A chart as the page's script takes it. share: y is shown in per cent."""
    return {
        "title": title,
        "help": help,
        "x": x,
        "share": share,
        "kind": kind,
        "series": list(series),
    } | more


def _by_group(
    groups: Sequence[RunGroup],
    curve: Callable[[ReportRun], Mapping[int, float]],
    *,
    title: str,
    help: str,
    share: bool = False,
) -> dict:
    series = [
        each
        for number, group in enumerate(groups)
        for each in _with_seeds(group, curve, number, share=share)
    ]
    if any("low" in each for each in series):
        help += "; thin: each seed; band: 95 % interval over seeds, by Student's t"
    return chart(title, series, help=help.removeprefix("; "), share=share)


def _prefixed(
    groups: Sequence[RunGroup],
    prefix: str,
    *,
    share: bool = False,
    evals: bool = False,
    apart: bool = True,
    names_as: str = "",
) -> list[dict]:
    """Charts of all numbers of a prefix: one a name, or (not apart) one a group.

    names_as: what stands before the rest of a name where it labels a line.
    """
    names = sorted(
        {
            name
            for group in groups
            for run in group.runs
            for row in (run.evals if evals else run.rows)
            for name in row
            if name.startswith(prefix)
        },
        key=_by_number,
    )[:_MOST_NAMES]
    if len(groups) == 1:
        apart = False

    def curve_of(name):
        return lambda run: run.curve(name, evals=evals)

    if apart:
        return [
            _by_group(
                groups,
                curve_of(name),
                title=name.removeprefix(prefix),
                help=name,
                share=share,
            )
            for name in names
            if any(any(run.curve(name).values()) for g in groups for run in g.runs)
        ][:_MOST_SERIES]
    charts = []
    for group in groups:
        lines = [
            _together(group, curve_of(name), n, share=share)
            for n, name in enumerate(names)
        ]
        lines = [
            line | {"label": names_as + name.removeprefix(prefix), "group": None}
            for name, line in zip(names, lines)
            # What never happened is no line.
            if line and any(line["y"])
        ]
        charts.append(chart(group.label, lines[:_MOST_SERIES], share=share))
    return charts


def _by_number(name: str) -> tuple:
    """level_2 before level_10."""
    last = name.rpartition("_")[2]
    number = int(last) if last.isascii() and last.isdigit() and len(last) < 9 else -1
    return name.rstrip("0123456789"), number, name


def _together(
    group: RunGroup,
    curve: Callable[[ReportRun], Mapping[int, float]],
    number: int,
    *,
    share: bool = False,
) -> dict | None:
    """A group's series: the mean of its runs, and the t interval of two and more.

    Of windows of steps, where there are many. The interval of a share ends at 0 and 1.
    """
    curves = [c for run in group.runs if (c := curve(run))]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    if not steps:
        return None
    x_X, value_RX = _in_windows(steps, curves)
    series = {"label": group.label, "group": number, "x": x_X}
    if len(curves) == 1:
        return series | {"y": rounded(value_RX[0])}
    estimates = [statistics.mean(value_R) for value_R in value_RX.T]
    low_X, high_X = (np.array([x[k] for x in estimates]) for k in (1, 2))
    if share:
        low_X, high_X = np.maximum(low_X, 0), np.minimum(high_X, 1)
    return series | {
        "y": rounded(each.value for each in estimates),
        "low": rounded(low_X),
        "high": rounded(high_X),
    }


def _with_seeds(group, curve, number: int, *, share: bool = False) -> list[dict]:
    """A group's series, behind those of its runs where there are several."""
    together = _together(group, curve, number, share=share)
    if together is None:
        return []
    lines = []
    if len(group.runs) > 1:
        for run in group.runs:
            if own := curve(run):
                x_X, value_RX = _in_windows(sorted(own), [own])
                lines.append(
                    {"label": "each seed", "group": number, "thin": True}
                    | {"x": x_X, "y": rounded(value_RX[0])}
                )
    return [*lines, together]


def _in_windows(steps: Sequence[int], curves) -> tuple[list[int], np.ndarray]:
    """(last step of each window, mean of each run there); windows hold all steps."""
    windows = np.array_split(np.array(steps), min(len(steps), _POINTS))
    values = np.array([[c[step] for step in steps] for c in curves], float)
    parts = np.split(values, np.cumsum([len(w) for w in windows])[:-1], axis=1)
    return (
        [int(w[-1]) for w in windows],
        np.array([part.mean(axis=1) for part in parts]).T,
    )


def rounded(values: Iterable[float]) -> list[float | None]:
    """Six digits of each; None where it is no finite number."""
    return [float(f"{x:.6g}") if np.isfinite(x) else None for x in values]


def draw_charts(label: str, rollouts: RunRollouts) -> dict[str, list[dict]]:
    """Section → charts of what one run's sampler drew, from its rollouts."""
    if not len(rollouts):
        return {}
    steps, step_R = np.unique(rollouts.step_R, return_inverse=True)
    # A step's draws: its problems, each once, with the share of valid ones right.
    key_R = step_R.astype(np.int64) * len(rollouts.problems) + rollouts.problem_R
    keys, draw_R = np.unique(key_R, return_inverse=True)
    step_D, problem_D = np.divmod(keys, len(rollouts.problems))
    right_D = np.bincount(draw_R, rollouts.grade_R == RIGHT, len(keys))
    wrong_D = np.bincount(draw_R, rollouts.grade_R == WRONG, len(keys))
    graded_D = right_D + wrong_D
    rate_D = right_D / np.maximum(graded_D, 1)
    window_S = _window_of(len(steps))
    x = steps[np.flatnonzero(np.diff(window_S, append=-1))].tolist()
    window_D = window_S[step_D]
    charts = {}
    class_D = np.where(
        rate_D == 0, 0, np.where(rate_D == 1, 5, np.minimum(1 + (rate_D * 4 - 1e-9), 4))
    ).astype(int)
    known = graded_D > 0
    if known.any():
        charts["By pass rate"] = chart(
            label,
            _shares(window_D[known], class_D[known], _CLASSES, len(x), x),
            help="problems drawn, by the share of their rollouts in the step that are "
            "right",
            share=True,
            kind="stack",
        )
    levels = sorted({x for x in rollouts.levels if x is not None}, key=_level_key)
    if 0 < len(levels) <= _MOST_SERIES:
        place = {level: n for n, level in enumerate(levels)}
        level_N = np.array([place.get(level, -1) for level in rollouts.levels])
        level_D = level_N[problem_D]
        has = level_D >= 0
        charts["By level"] = chart(
            label,
            _shares(
                window_D[has],
                level_D[has],
                [f"level {level}" for level in levels],
                len(x),
                x,
            ),
            help="problems drawn, by level",
            share=True,
            kind="stack",
        )
        charts["Pass rate of the rollouts by level"] = chart(
            label,
            _rates(window_D, level_D, levels, x=x, right_D=right_D, graded_D=graded_D),
            help="right ones of the rollouts that could be graded",
            share=True,
        )
    return {section: [each] for section, each in charts.items()}


def _level_key(level: str) -> tuple:
    digits = level.isascii() and level.isdigit() and len(level) < 9
    return (0, int(level), level) if digits else (1, 0, level)


def _window_of(steps: int) -> np.ndarray:
    """The window of each of so many steps."""
    windows = np.array_split(np.arange(steps), min(steps, _POINTS))
    return np.repeat(np.arange(len(windows)), [len(w) for w in windows])


def _shares(window_D, class_D, names, windows: int, x) -> list[dict]:
    """Each class's share of the draws of each window."""
    counts = np.zeros((windows, len(names)))
    np.add.at(counts, (window_D, class_D), 1)
    total = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares = counts / total[:, None]
    return [
        {"label": name, "group": None, "x": x, "y": rounded(shares[:, n])}
        for n, name in enumerate(names)
    ]


def _rates(window_D, level_D, levels, *, x, right_D, graded_D) -> list[dict]:
    lines = []
    for n, level in enumerate(levels):
        of = level_D == n
        right_X = np.bincount(window_D[of], right_D[of], len(x))
        graded_X = np.bincount(window_D[of], graded_D[of], len(x))
        with np.errstate(invalid="ignore"):
            y = right_X / graded_X
        lines.append(
            {"label": f"level {level}", "group": None, "x": x, "y": rounded(y)}
        )
    return lines


def invalid_reasons(rollouts: RunRollouts) -> dict[str, int]:
    """Reason → how many of a run's rollouts were invalid for it, most first."""
    counts = np.bincount(
        rollouts.reason_R[rollouts.grade_R == INVALID], minlength=len(rollouts.reasons)
    )
    order = np.argsort(-counts, kind="stable")
    return {rollouts.reasons[n]: int(counts[n]) for n in order if counts[n]}
