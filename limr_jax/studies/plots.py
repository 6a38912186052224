"""Plots: learning curves of several runs, and how a step's cost grows."""

import math
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from limr_jax import console
from limr_jax.errors import shown
from limr_jax.storage import files, metrics
from limr_jax.studies import ablation

# Panel → (the workdir's file, the number in its rows).
_PANELS = {
    "held-out accuracy": (metrics.EVALS, "accuracy"),
    "pass rate of the rollouts": (metrics.METRICS, "pass_rate"),
    "tokens a rollout": (metrics.METRICS, "response_length"),
}
_LONGEST = 80  # characters of a name
_BAND = "mean of the runs; band: least to most, no interval"
_POINTS = 20  # what is noisy step by step is shown as means of a twentieth of the run


def learning_curves(runs: Mapping[str, Sequence], tokens: int = 0) -> Figure:
    """The mean over each arm's runs, by step, and a band from the least to the most.

    runs: arm → workdirs. The runs of an arm are compared at the steps that all of them
    have, those that have no such number aside. Where samplers differ so do the problems
    drawn, and with them the pass rate of the rollouts. tokens: above 0 there is one
    panel more, the accuracy by generated tokens up to so many.
    """
    panels = len(_PANELS) + (tokens > 0)
    # Not pyplot's, which would need a backend and hold on to every figure.
    figure = Figure(figsize=(13 / 3 * panels, 3.8), layout="constrained")
    all_axes = list(figure.subplots(1, panels))
    if tokens:
        _draw_by_tokens(all_axes.pop(0), runs, tokens)
    for axes, (title, (file, name)) in zip(all_axes, _PANELS.items()):
        for i, (arm, workdirs) in enumerate(runs.items()):
            curves = [c for c in (_curve(w, file, name) for w in workdirs) if c]
            steps, values_of_seeds = _together(curves, noisy=file == metrics.METRICS)
            if not len(steps):
                continue
            color, label = f"C{i % 10}", plain(arm)
            _draw_band(axes, steps, values_of_seeds, color=color, label=label)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:  # a run may have no number to draw
        axes.legend(fontsize="small", title=_BAND, title_fontsize="small")
    return figure


def _draw_by_tokens(axes, runs: Mapping[str, Sequence], tokens: int) -> None:
    """Held-out accuracy at 20 numbers of generated tokens, between evaluations."""
    tokens_X = np.linspace(0, tokens, _POINTS + 1)
    for i, (arm, workdirs) in enumerate(runs.items()):
        curves = map(ablation.accuracy_by_tokens, workdirs)
        # Beyond its last evaluation nothing is known of a run.
        values = [
            np.interp(tokens_X, x, y) for x, y in curves if max(x, default=0) >= tokens
        ]
        if values:
            color, label = f"C{i % 10}", plain(arm)
            _draw_band(axes, tokens_X, np.array(values), color=color, label=label)
    axes.set(title="held-out accuracy", xlabel="generated tokens")
    axes.grid(alpha=0.3)


def _draw_band(axes, x_X, values_of_seeds, *, color: str, label: str) -> None:
    """The mean of the runs, and a band from the least to the most."""
    axes.plot(x_X, values_of_seeds.mean(0), ".-", color=color, label=label)
    axes.fill_between(
        x_X,
        values_of_seeds.min(0),
        values_of_seeds.max(0),
        color=color,
        alpha=0.15,
        lw=0,
    )


def differences(report: Mapping[str, Mapping]) -> Figure:
    """Each arm's difference to the first, with its 95 % interval; a panel a regime.

    report: `arena.summary`. A filled point is a difference whose p, adjusted by Holm
    for the arms of its regime, is below .05.
    """
    regimes = list(report)
    # Every arm has its row in every panel, whether it ran there or not.
    arms = list(dict.fromkeys(arm for each in report.values() for arm in each["arms"]))
    figure = Figure(figsize=(2 + 2 * len(regimes), 0.3 * len(arms) + 1.2))
    panels = figure.subplots(1, len(regimes), sharey=True, squeeze=False)[0]
    for axes, regime in zip(panels, regimes):
        axes.axvline(0, color="0.6", lw=0.8)
        for place, arm in enumerate(arms):
            figures = report[regime]["arms"].get(arm)
            difference = figures and figures["accuracy"]["difference"]
            if not difference or difference["mean"] is None:
                continue
            mean, low, high = (
                math.nan if difference[x] is None else 100 * difference[x]
                for x in ("mean", "low", "high")
            )
            holds = difference["p_holm"] is not None and difference["p_holm"] < 0.05
            axes.plot([low, high], [place, place], color="C0", lw=1.5)
            axes.plot(
                mean, place, "o", color="C0", mfc="C0" if holds else "white", ms=5
            )
        axes.set(title=plain(regime), xlabel="points")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(arms)), map(plain, arms))
    panels[0].invert_yaxis()
    figure.set_layout_engine("constrained")
    return figure


def growth(axes: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Seconds, memory and work of a step along each axis, over its first point's.

    axes: name → rows with `value`, `work`, `growth` (seconds) and `memory_growth`.
    """
    figure = Figure(figsize=(3.6 * len(axes), 3.6), layout="constrained")
    lines = {"work": "k--", "growth": "C0.-", "memory_growth": "C1.-"}
    names = {"growth": "seconds", "memory_growth": "memory"}
    for axes_, (axis, rows) in zip(
        figure.subplots(1, len(axes), squeeze=False)[0], axes.items()
    ):
        value_X = [row["value"] for row in rows]
        for field, style in lines.items():
            label = names.get(field, field)
            axes_.loglog(value_X, [row[field] for row in rows], style, label=label)
        axes_.set(title=plain(axis), ylabel="times the first")
        axes_.set_xticks(value_X, [f"{value:,}" for value in value_X])
        axes_.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5)))
        axes_.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        for each in (axes_.xaxis, axes_.yaxis):
            each.set_minor_locator(ticker.NullLocator())
        axes_.grid(alpha=0.3)
    axes_.legend(fontsize="small")
    return figure


def plain(name: str) -> str:
    """A name as matplotlib writes it down, on one line and no formula.

    Between two dollars would be one, which raises where it is none, and half a
    character ends a picture.
    """
    line = shown(console.shown(" ".join(name.split())), limit=_LONGEST)
    # matplotlib leaves out of a legend what has no name, or begins with _.
    line = line or "–"
    return (" " if line.startswith("_") else "") + line.replace("$", r"\$")


def _curve(workdir, file: str, name: str) -> dict[int, float]:
    """Step → the number of this name in a line of the workdir's file, if it has one."""
    return {
        row["step"]: value
        for row in metrics.read_metrics(workdir, file)
        if (value := metrics.number(row, name)) is not None
    }


def _together(
    curves: Sequence[Mapping[int, float]], *, noisy: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(steps [points], values [runs, points]) of several curves at the same steps.

    noisy: a point is the mean of a window of steps, of which there are about _POINTS;
    else each common step is a point. No points where no step is common to all.
    """
    common = set.intersection(*map(set, curves)) if curves else set()
    # By the common steps, not by a run's own: windows of another width would hold
    # other steps, and the mean over runs would be of none.
    width = max(1, len(common) // _POINTS) if noisy else 1
    # Whole windows only; up to width − 1 of the newest steps are left out.
    points = len(common) // width
    steps = sorted(common)[: points * width]
    values = np.array([[curve[step] for step in steps] for curve in curves], float)
    return (
        np.array(steps, float).reshape(points, width).mean(axis=1),
        values.reshape(len(curves), points, width).mean(axis=2),
    )


def save(figure: Figure, path: pathlib.Path) -> None:
    """Write the figure as an image, whole or not at all."""
    with files.replacing(path) as temporary, warnings.catch_warnings():
        # A letter that the font does not have is drawn as a box, and names that leave
        # no room for the axes cover them.
        for harmless in ("Glyph .* missing from", "constrained_layout not applied"):
            warnings.filterwarnings("ignore", harmless, UserWarning)
        figure.savefig(temporary, dpi=110)
