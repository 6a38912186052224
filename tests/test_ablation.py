"""Means, intervals and paired differences of arms × seeds, by hand."""

import csv
import io
import itertools
import json
import math

import jax
import numpy as np
import pytest
from scipy import stats

from limr_jax import ablation, checkpoint, comparison, metrics
from limr_jax.errors import InputError

KEY = jax.random.key(0)
NAN = math.nan


def test_means_and_paired_differences():
    first, second = ablation.compare(np.array([[1.0, 3.0], [2.0, 8.0]]), KEY)
    assert (first["mean"], first["seeds"], first["difference"]) == (2.0, 2, None)
    # Of two seeds, a quarter of all draws each are (1, 1) and (3, 3).
    assert (first["low"], first["high"]) == (1.0, 3.0)
    assert second["mean"] == 5.0
    assert second["difference"] == {"seeds": 2, "mean": 3.0, "low": 1.0, "high": 5.0}


def test_what_a_seed_does_to_every_arm_falls_out():
    seed_S = np.array([0.1, 0.5, 0.3, 0.9, 0.2])
    _, second = ablation.compare(np.stack([seed_S, seed_S + 0.25]), KEY)
    assert second["high"] - second["low"] > 0.3
    for name in ("mean", "low", "high"):
        assert second["difference"][name] == pytest.approx(0.25, abs=1e-12)


def test_the_interval_is_that_of_all_resamples():
    value_S = np.array([1.0, 2.0, 4.0, 8.0])
    means = [np.mean(draw) for draw in itertools.product(value_S, repeat=4)]
    (told,) = ablation.compare(value_S[None], KEY)
    # 2,000 draws of 256 equally likely ones.
    np.testing.assert_allclose(
        (told["low"], told["high"]), np.percentile(means, [2.5, 97.5]), atol=0.26
    )


def test_runs_that_are_missing():
    value_AS = np.array([[1.0, NAN, 3.0], [NAN, 5.0, 4.0], [NAN, NAN, NAN]])
    first, second, third = ablation.compare(value_AS, KEY)
    assert (first["mean"], first["seeds"]) == (2.0, 2)
    assert (second["mean"], second["seeds"]) == (4.5, 2)
    # One pair has a difference, and one number has no interval.
    alone = {"seeds": 1, "mean": 1.0, "low": None, "high": None}
    assert second["difference"] == alone
    nothing = {"seeds": 0, "mean": None, "low": None, "high": None}
    assert third == nothing | {"difference": nothing}


def test_the_smallest_difference_that_seeds_resolve():
    # Differences 1, 2, 3: s = 1, n = 3, t(2) of .975 and .8 are 4.3027 and 1.0607.
    value_AS = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    want = (4.302653 + 1.060660) / math.sqrt(3)
    assert ablation.resolvable(value_AS) == pytest.approx(want, abs=1e-6)
    # An arm more, of the same spread, is two degrees of freedom more.
    more_AS = np.array([*value_AS, [5.0, 7.0, 6.0]])
    t = stats.t.ppf(0.975, 4) + stats.t.ppf(0.8, 4)
    assert ablation.resolvable(more_AS) == pytest.approx(t / math.sqrt(3))
    assert ablation.resolvable(value_AS[:, :1]) is None
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
        checkpoint.write_result(path, {"seconds": 30.5})
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
    }
    with pytest.raises(InputError, match="no evaluation before and after"):
        ablation.figures("/nowhere")


def ran(arm, seed, accuracy=None, error=None, commits=("abc dirty",)):
    values = dict.fromkeys(ablation.FIGURES, 1.0) | {"accuracy": accuracy}
    figures = None if accuracy is None else values
    command = f"python {arm}|{seed}"
    return ablation.Ran(arm, seed, "a/0", command, commits, figures, error)


def test_the_page_and_the_table_say_what_is_known():
    runs = [
        ran("a", 0, 0.5, commits=("abc", "def dirty")),
        ran("b", 0, 0.75),
        ran("a", 1, 0.25),
        ran("b", 1, error="exit code 2: error: no"),
    ]
    said = ablation.summary(runs, ["a", "b"], KEY)
    assert json.loads(json.dumps(said, allow_nan=False))["arms"]["a"]["accuracy"] == {
        "seeds": 2,
        "mean": 0.375,
        "low": 0.25,
        "high": 0.5,
        "difference": None,
    }
    page = comparison.markdown(said | {"title": "T", "command": "C"}, ["A note."])
    lines = page.splitlines()
    assert lines[0] == "# T" and "`C`" in lines and "A note." in lines
    (a,) = (line for line in lines if line.startswith("| a | 2 |"))
    assert a.startswith("| a | 2 | 37.5 [25.0, 50.0] | – |")
    assert any(line.startswith("| b | 1 | 75.0 | +25.0 | 1.0 |") for line in lines)
    assert "* b, seed 1: exit code 2: error: no" in lines
    assert "| a | 0 | 50.0 | 1.0 | 1 | abc, def dirty | `python a\\|0` |" in lines
    rows = list(csv.DictReader(io.StringIO(comparison.table(said["runs"]))))
    assert [r["accuracy"] for r in rows] == ["0.5", "0.75", "0.25", ""]
    assert rows[0]["commits"] == "abc, def dirty" and rows[3]["error"]


def test_the_picture_has_every_arm(finished, tmp_path):
    from limr_jax import picture

    runs = {"a": [finished("a0", 0.5), finished("a1", 1.0)], "b": [tmp_path / "none"]}
    figure = picture.learning_curves(runs)
    held_out, pass_rate, length = figure.axes
    np.testing.assert_array_equal(
        held_out.lines[0].get_xydata(), [[0, 0.25], [4, 0.75]]
    )
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 1]
    assert list(length.lines[0].get_ydata()) == [6, 7, 8, 9]
    picture.save(figure, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".curves*"))
