"""Learning curves: what a point is the mean of."""

import numpy as np
import pytest

from limr_jax.storage import metrics
from limr_jax.studies import plots


@pytest.fixture
def run(tmp_path):
    """(name, steps, offset) → the workdir of a run whose pass rate is offset + step."""

    def make(name, steps, offset=0.0, number="pass_rate"):
        with metrics.Metrics(tmp_path / name) as log:
            for step in steps:
                log.step(step, {number: offset + step})
        return tmp_path / name

    return make


def drawn(figure):
    """The lines of the pass rate: [points, 2] each."""
    return [line.get_xydata() for line in figure.axes[1].lines]


def test_runs_of_one_arm_are_averaged_step_by_step(run):
    """20 rows and 40: the mean at a step is of that step, not of a row's number."""
    short, long = run("a", range(1, 21)), run("b", range(1, 41), offset=100.0)
    (points,) = drawn(plots.learning_curves({"arm": [short, long]}))
    np.testing.assert_allclose(points[:, 0], np.arange(1, 21))
    np.testing.assert_allclose(points[:, 1], 50 + np.arange(1, 21))
    # Alone, the long one is shown by windows of two steps.
    (alone,) = drawn(plots.learning_curves({"arm": [long]}))
    np.testing.assert_allclose(alone[:, 0], np.arange(1, 41).reshape(-1, 2).mean(1))
    np.testing.assert_allclose(alone[:, 1], 100 + alone[:, 0])


def test_steps_that_one_run_lacks(run):
    """Where a line is damaged, or a number is none, that step is of no run."""
    whole, holes = run("a", range(1, 9)), run("b", [1, 2, 5, 6, 8, 9], offset=10.0)
    nothing = run("c", [1, 2], number="other")
    (points,) = drawn(plots.learning_curves({"arm": [whole, holes, nothing]}))
    np.testing.assert_allclose(points[:, 0], [1, 2, 5, 6, 8])
    np.testing.assert_allclose(points[:, 1], 5 + points[:, 0])
    apart = plots.learning_curves({"arm": [whole, run("d", [11, 12])]})
    assert drawn(apart) == []


def test_differences_have_their_intervals_and_say_which_hold():
    def arm(mean, low, high, p):
        difference = {"mean": mean, "low": low, "high": high, "p_holm": p}
        return {"accuracy": {"difference": difference}}

    first = {"accuracy": {"difference": None}}
    report = {
        "hard": {"arms": {"uniform": first, "LIM": arm(0.04, 0.01, 0.07, 0.03)}},
        "clean": {"arms": {"uniform": first, "CDAS": arm(-0.02, None, None, None)}},
    }
    figure = plots.differences(report)
    hard, clean = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["hard", "clean"]
    names = [label.get_text() for label in hard.get_yticklabels()]
    assert names == ["uniform", "LIM", "CDAS"]
    _, interval, point = hard.lines  # the first is the line at 0
    np.testing.assert_allclose(interval.get_xydata(), [[1, 1], [7, 1]])
    np.testing.assert_allclose(point.get_xydata(), [[4, 1]])
    assert point.get_markerfacecolor() != "white"
    # One seed has no interval, and nothing that could hold.
    *_, alone = clean.lines
    np.testing.assert_allclose(alone.get_xydata(), [[-2, 2]])
    assert alone.get_markerfacecolor() == "white"
