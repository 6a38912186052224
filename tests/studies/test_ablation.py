"""Means, intervals and paired differences of arms × seeds, by hand."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from limr_jax.errors import InputError
from limr_jax.evaluation import statistics
from limr_jax.storage import metrics
from limr_jax.storage.workdir import write_result
from limr_jax.studies import ablation, tables

NAN = math.nan


def test_means_and_paired_differences():
    """t(1) = 12.7062: a half width of 12.7062 · s / √2, s = √2 and 2 √2."""
    first, second = ablation.compare(np.array([[1.0, 3.0], [2.0, 8.0]]))
    assert (first["mean"], first["seeds"], first["difference"]) == (2.0, 2, None)
    assert (first["low"], first["high"]) == pytest.approx((-10.706205, 14.706205))
    assert second["mean"] == 5.0
    apart = second["difference"]
    assert (apart["seeds"], apart["mean"]) == (2, 3.0)
    assert (apart["low"], apart["high"]) == pytest.approx((3 - 25.412409, 28.412409))
    # t = 3 / 2; of one degree of freedom 1 − 2 atan(1.5) / π lies beyond.
    assert apart["p"] == pytest.approx(1 - 2 * math.atan(1.5) / math.pi)
    assert apart["p_holm"] == apart["p"]


def test_three_seeds_are_not_their_least_and_largest():
    """0.6, 1.3, 2.0 points above uniform draws show nothing (configs/RECORDS.md)."""
    seed_S = np.array([65.6, 68.6, 65.9])
    _, second = ablation.compare(np.stack([seed_S, seed_S + [0.6, 2.0, 1.3]]))
    low, high = (second["difference"][name] for name in ("low", "high"))
    assert (low, high) == pytest.approx((1.3 - 1.738896, 1.3 + 1.738896))
    assert second["difference"]["p"] > 0.05


def test_what_a_seed_does_to_every_arm_falls_out():
    seed_S = np.array([0.1, 0.5, 0.3, 0.9, 0.2])
    _, second = ablation.compare(np.stack([seed_S, seed_S + 0.25]))
    assert second["high"] - second["low"] > 0.3
    for name in ("mean", "low", "high"):
        assert second["difference"][name] == pytest.approx(0.25, abs=1e-12)


def test_p_is_adjusted_for_all_arms():
    seed_S = np.array([0.0, 1.0, 2.0, 3.0])
    aparts = [[1.0, 1.1, 0.9, 1.2], [0.2, 0.5, -0.1, 0.3], [0.3, 0.1, NAN, NAN]]
    compared = ablation.compare(np.stack([seed_S, *(seed_S + x for x in aparts)]))
    differences = [figure["difference"] for figure in compared[1:]]
    p_by_arm = [
        stats.ttest_1samp(np.array(x)[np.isfinite(x)], 0).pvalue for x in aparts
    ]
    assert [x["p"] for x in differences] == pytest.approx(p_by_arm)
    # In the order of their p: the first, the second, the third.
    want = [3 * p_by_arm[0], 2 * p_by_arm[1], max(2 * p_by_arm[1], p_by_arm[2])]
    assert [x["p_holm"] for x in differences] == pytest.approx(want)
    assert ablation.comparisons(compared) == 3
    assert ablation.comparisons(compared[:1]) == 0


def test_runs_that_are_missing():
    values_by_arm = np.array([[1.0, NAN, 3.0], [NAN, 5.0, 4.0], [NAN, NAN, NAN]])
    first, second, third = compared = ablation.compare(values_by_arm)
    assert (first["mean"], first["seeds"]) == (2.0, 2)
    assert (second["mean"], second["seeds"]) == (4.5, 2)
    # One pair has a difference, and one number has no interval.
    alone = {"seeds": 1, "mean": 1.0, "low": None, "high": None}
    untested = {"p": None, "p_holm": None}
    assert second["difference"] == alone | untested
    nothing = {"seeds": 0, "mean": None, "low": None, "high": None}
    assert third == nothing | {"difference": nothing | untested}
    assert ablation.comparisons(compared) == 0


def test_the_smallest_difference_that_seeds_resolve():
    # Differences 1, 2, 3: s = 1, n = 3.
    values_by_arm = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    one = ablation.resolvable(values_by_arm)
    assert one == pytest.approx(statistics.resolvable(1.0, 3))
    # An arm more, of the same spread, knows it better, and each is tested by itself.
    more_by_arm = np.array([*values_by_arm, [5.0, 7.0, 6.0]])
    assert ablation.resolvable(more_by_arm) == pytest.approx(one)
    wide_by_arm = np.array([*values_by_arm, [5.0, 9.0, 7.0]])
    assert ablation.resolvable(wide_by_arm) == pytest.approx(math.sqrt(2.5) * one)
    assert ablation.resolvable(values_by_arm[:, :1]) is None
    assert ablation.resolvable(np.array([[1.0, 2.0], [1.0, 2.0]])) is None


def row(step, seconds, compile_count, pass_rate=0.5):
    return {
        "step": step,
        "seconds": seconds,
        "compile_count": compile_count,
        "tokens": 10.0,
        "rollouts": 8,
        "pass_rate": pass_rate,
        "response_length": 5.0 + step,
    }


@pytest.fixture
def finished(tmp_path):
    """(name, accuracy after) → the workdir of a run of four steps, stopped once."""

    def make(name, accuracy):
        path = tmp_path / name
        with metrics.Metrics(path) as log:
            for step, values in enumerate([(9, 7), (1, 7), (5, 6), (2, 6)], 1):
                log.step(step, row(step, *values))
            held_out = {"well_formed": 1.0, "response_length": 20.0}
            log.evaluation(0, held_out | {"accuracy": 0.25})
            log.evaluation(4, held_out | {"accuracy": accuracy})
        write_result(path, {"seconds": 30.5})
        return path

    return make


def test_the_figures_of_a_run(finished):
    told = ablation.figures(finished("run", 0.75))
    assert told == {
        "accuracy": 0.75,
        "accuracy_before": 0.25,
        "well_formed": 1.0,
        "response_length": 20.0,
        "response_length_before": 20.0,
        "rollouts": 4 * 8,
        "tokens": 40.0,
        "step_seconds": 1.5,  # without the first step of each process
        "seconds": 30.5,
        # Nobody has asked for a number of tokens.
        "accuracy_at_tokens": pytest.approx(math.nan, nan_ok=True),
        "accuracy_area": pytest.approx(math.nan, nan_ok=True),
        "signal_rate": pytest.approx(math.nan, nan_ok=True),
    }
    with pytest.raises(InputError, match="no evaluation before and after"):
        ablation.figures("/nowhere")
    # Two evaluations of a trained policy say nothing of the untrained one.
    path = finished("lost", 0.75) / "evals.jsonl"
    path.write_text(path.read_text().replace('"step": 0', '"step": 2'))
    with pytest.raises(InputError, match="no evaluation before and after"):
        ablation.figures(path.parent)


def test_figures_at_equal_tokens_by_hand(tmp_path):
    """Ten, twenty, thirty and forty tokens a step; evaluated after steps 2 and 4."""
    with metrics.Metrics(tmp_path) as log:
        for step in range(1, 5):
            tokens = {"tokens": 10.0 * step, "signal_groups": step}
            log.step(step, row(step, 1.0, 1) | tokens)
        for step, accuracy in ((0, 0.2), (2, 0.5), (4, 0.6)):
            log.evaluation(step, {"accuracy": accuracy})
    tokens_X, accuracy_X = ablation.accuracy_by_tokens(tmp_path)
    assert tokens_X.tolist() == [0, 30, 100] and accuracy_X.tolist() == [0.2, 0.5, 0.6]
    assert ablation.at_equal_tokens(tmp_path, 65) == {
        "accuracy_at_tokens": pytest.approx(0.55),
        "accuracy_area": pytest.approx((30 * 0.35 + 35 * 0.525) / 65),
        # The fourth step began before 65 tokens were written: 10 groups, 100 tokens.
        "signal_rate": pytest.approx(1000),
    }
    assert ablation.at_equal_tokens(tmp_path, 60)["signal_rate"] == pytest.approx(1000)
    assert ablation.at_equal_tokens(tmp_path, 100)["accuracy_at_tokens"] == 0.6
    # It has not come so far: no number, rather than that of its end.
    assert all(map(math.isnan, ablation.at_equal_tokens(tmp_path, 101).values()))
    # Nothing could be graded then: the line goes on to the next evaluation.
    evals = tmp_path / metrics.EVALS
    evals.write_text(evals.read_text().replace('"accuracy": 0.5', '"accuracy": null'))
    assert ablation.at_equal_tokens(tmp_path, 50)["accuracy_at_tokens"] == 0.4
    path = tmp_path / metrics.METRICS
    lost = [line for line in path.read_text().splitlines() if '"step": 2' not in line]
    path.write_text("\n".join(lost) + "\n")
    assert ablation.accuracy_by_tokens(tmp_path)[0].tolist() == [0]


def ran(arm, seed, accuracy=None, error=None, commits=("abc dirty",)):
    values = dict.fromkeys(ablation.FIGURES, 1.0) | {"accuracy": accuracy}
    figures = None if accuracy is None else values
    command = f"python {arm}|{seed}"
    return ablation.RunRecord(arm, seed, "a/0", command, commits, figures, error)


def page_of(runs, arms, tokens=0):
    titles = {"title": "T", "command": "C", "tokens": tokens}
    said = ablation.summary(runs, arms) | titles
    return said, tables.markdown(said, ["A note."]).splitlines()


def test_the_page_and_the_table_say_what_is_known():
    runs = [
        ran("a", 0, 0.5, commits=("abc", "def dirty")),
        ran("b", 0, 0.75),
        ran("a", 1, 0.49),
        ran("b", 1, error="exit code 2: error: no"),
    ]
    said, lines = page_of(runs, ["a", "b"])
    accuracy = json.loads(json.dumps(said, allow_nan=False))["arms"]["a"]["accuracy"]
    assert accuracy == {
        "seeds": 2,
        "mean": 0.495,
        "low": pytest.approx(0.495 - 0.0635310),
        "high": pytest.approx(0.495 + 0.0635310),
        "difference": None,
    }
    assert lines[0] == "# T" and "`C`" in lines and "A note." in lines
    (a,) = (line for line in lines if line.startswith("| a | 2 |"))
    assert a.startswith("| a | 2 | 49.5 [43.1, 55.9] | – | – |")
    assert any(line.startswith("| b | 1 | 75.0 | +25.0 | – | 1.0 |") for line in lines)
    assert "* b, seed 1: exit code 2: error: no" in lines
    assert "| a | 0 | 50.0 | 1.0 | 1 | abc, def dirty | `python a\\|0` |" in lines
    assert not [line for line in lines if "tested" in line]
    rows = list(csv.DictReader(io.StringIO(tables.table(said["runs"]))))
    assert [r["accuracy"] for r in rows] == ["0.5", "0.75", "0.49", ""]
    assert rows[0]["commits"] == "abc, def dirty" and rows[3]["error"]


def test_the_page_says_which_differences_hold_of_how_many():
    values = {
        "a": (0.50, 0.52, 0.51),
        "b": (0.60, 0.63, 0.61),
        "c": (0.52, 0.56, 0.53),
    }
    runs = [
        ran(arm, seed, value)
        for arm, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]
    said, lines = page_of(runs, list(values))
    assert said["comparisons"]["accuracy"] == 2
    # .10, .11, .10: t = 31, p = .0010; .02, .04, .02: t = 4, p = .0572.
    (b,) = (line for line in lines if line.startswith("| b | 3 |"))
    assert "| +10.3 [+8.9, +11.8] | .002 |" in b
    (c,) = (line for line in lines if line.startswith("| c | 3 |"))
    assert "| +2.7 [-0.2, +5.5] | .057 |" in c
    assert (
        "2 differences in accuracy to a are tested (paired t-test, p adjusted by "
        "Holm's step-down); below .05: b. The intervals are each for itself."
    ) in lines
    said, lines = page_of([run for run in runs if run.arm != "b"], ["a", "c"])
    assert (
        "1 difference in accuracy to a is tested (paired t-test, p adjusted by Holm's "
        "step-down); below .05: none. The intervals are each for itself."
    ) in lines
    assert tables.holm_p({"p_holm": 0.0004}) == "< .001"
    assert tables.holm_p({"p_holm": 1.0}) == "1.000"


def test_runs_that_end_before_so_many_tokens_are_named():
    runs = [
        dataclasses.replace(x, figures=x.figures | {"accuracy_at_tokens": value})
        for arm, values in (("a", (0.30, 0.32, 0.31)), ("b", (0.40, NAN, NAN)))
        for seed, value in enumerate(values)
        for x in [ran(arm, seed, 0.5)]
    ]
    _, lines = page_of(runs, ["a", "b"], tokens=5000)
    assert any(line.startswith("| b | 1 |") for line in lines)
    (line,) = (line for line in lines if line.startswith("Ended before 5,000 tokens"))
    assert "not compared there: b (2 of 3)." in line
    _, lines = page_of(runs, ["a", "b"])
    assert not [line for line in lines if line.startswith("Ended before")]


def test_arms_are_tested_at_equal_tokens_where_it_is_asked():
    runs = [
        dataclasses.replace(x, figures=x.figures | {"accuracy_at_tokens": value})
        for arm, values in (("a", (0.30, 0.32, 0.31)), ("b", (0.40, 0.43, 0.41)))
        for seed, value in enumerate(values)
        for x in [ran(arm, seed, 0.5)]
    ]
    _, lines = page_of(runs, ["a", "b"], tokens=5000)
    (head,) = (line for line in lines if line.startswith("| arm | seeds"))
    assert head.split(" | ")[2:5] == ["accuracy at equal tokens, %", "− a", "p, Holm"]
    (b,) = (line for line in lines if line.startswith("| b | 3 |"))
    assert "| +10.3 [+8.9, +11.8] | .001 |" in b
    assert any("Equal tokens are 5,000 generated in training." in x for x in lines)
    assert any("below .05: b" in line for line in lines)


def test_the_picture_has_every_arm(finished, tmp_path):
    from limr_jax.studies import plots

    runs = {"a": [finished("a0", 0.5), finished("a1", 1.0)], "b": [tmp_path / "none"]}
    figure = plots.learning_curves(runs)
    held_out, pass_rate, length = figure.axes
    np.testing.assert_array_equal(
        held_out.lines[0].get_xydata(), [[0, 0.25], [4, 0.75]]
    )
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
    assert list(length.lines[0].get_ydata()) == [6, 7, 8, 9]
    # What the band is, is said: it is no interval.
    (legend,) = (axes.get_legend() for axes in figure.axes if axes.get_legend())
    assert legend.get_title().get_text() == plots._BAND
    by_tokens = plots.learning_curves(runs, tokens=40)
    assert [len(axes.lines) for axes in by_tokens.axes] == [1, 1, 1, 1]
    points = by_tokens.axes[0].lines[0].get_xydata()
    np.testing.assert_allclose(points[:, 0], np.arange(21) * 2)
    np.testing.assert_allclose(points[:, 1], 0.25 + 0.5 * np.arange(21) / 20)
    # No run has come so far.
    assert not plots.learning_curves(runs, tokens=41).axes[0].lines
    plots.save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".curves*"))
