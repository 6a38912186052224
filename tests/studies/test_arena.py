"""The arena's record, and what it says of arms, by hand."""

import json
import math

import numpy as np
import pytest

from limr_jax.errors import InputError
from limr_jax.storage import metrics
from limr_jax.studies import arena, oracle, subsets
from limr_jax.studies.reward_curves import Curves


def write_run(folder, tokens, accuracies, *, signal=2, first=0):
    """A run of 4 problems x 2 rollouts a step, evaluated at `accuracies`' steps."""
    with metrics.Metrics(folder, step=first) as log:
        for step, count in enumerate(tokens, first + 1):
            row = {"tokens": count, "rollouts": 8, "signal_groups": signal}
            log.step(step, row | {"seconds": float(step)})
        for step, accuracy in accuracies.items():
            log.evaluation(step, {"accuracy": accuracy})
    return folder


def test_a_run_at_equal_tokens(tmp_path):
    run = write_run(tmp_path, [100, 50, 150, 100], {0: 0.2, 2: 0.4, 4: 0.8})
    assert arena.written([run]) == 400
    made = arena.outcome([run], 250, group=2)
    assert made["curve"] == [[0.0, 0.2], [150.0, 0.4], [400.0, 0.8]]
    figures = made["figures"]
    # On the line from (150, .4) to (400, .8).
    assert figures["accuracy"] == pytest.approx(0.56)
    # (.3 x 150 + .48 x 100) / 250.
    assert figures["area"] == pytest.approx(0.372)
    # Three steps were begun before 250: 6 groups with signal of 12.
    assert figures["signal_share"] == 0.5
    assert (made["steps"], made["rollouts"], made["step_seconds"]) == (3, 24, 2.0)


def test_what_comes_after_the_tokens_changes_nothing(tmp_path):
    evaluations = {0: 0.2, 2: 0.4, 4: 0.8}
    short = write_run(tmp_path / "short", [100] * 4, evaluations)
    longer = write_run(tmp_path / "longer", [100] * 6, evaluations | {6: 0.1})
    other = write_run(tmp_path / "other", [100, 101, 99, 100], evaluations)
    made = [arena.outcome([x], 390, group=2) for x in (short, longer, other)]
    assert made[0] == made[1]
    assert made[0]["digest"] != made[2]["digest"]


def test_parts_that_went_on_from_one_another_are_one_run(tmp_path):
    whole = write_run(tmp_path / "whole", [100] * 4, {0: 0.2, 2: 0.4, 4: 0.8})
    parts = [
        write_run(tmp_path / "a", [100] * 2, {0: 0.2, 2: 0.4}),
        write_run(tmp_path / "b", [100] * 2, {2: 0.4, 4: 0.8}, first=2),
    ]
    assert arena.written(parts) == 400
    # What the first one did after the step that was forked from is not the second's.
    longer = write_run(tmp_path / "c", [100] * 3, {0: 0.2, 2: 0.4, 3: 0.9})
    made = arena.outcome([longer, parts[1]], 400, group=2)
    assert made["curve"] == [[0.0, 0.2], [200.0, 0.4], [400.0, 0.8]]
    made = [arena.outcome(x, 400, group=2) for x in ([whole], parts)]
    assert made[0]["digest"] == made[1]["digest"]


def test_too_few_tokens_and_no_evaluation_are_one_line(tmp_path):
    run = write_run(tmp_path / "a", [100, 100], {0: 0.2, 2: 0.4})
    with pytest.raises(InputError) as error:
        arena.outcome([run], 300, group=2)
    assert str(error.value) == (
        f"{run} ends at 200 generated tokens, and is compared at 300; give it more "
        "steps"
    )
    run = write_run(tmp_path / "b", [100, 100], {2: 0.4})
    with pytest.raises(InputError) as error:
        arena.outcome([run], 100, group=2)
    assert str(error.value) == (
        f"{run} has no evaluation before training; set data.eval"
    )


def row(arm, seed, accuracy, curve=None, regime="hard"):
    return {
        "regime": regime,
        "arm": arm,
        "seed": seed,
        "common": "c",
        "settings": "a",
        "digest": f"{arm} {seed}",
        "tokens": 100,
        "fork_at": 0,
        "steps": 3,
        "curve": curve or [[0.0, 0.2], [100.0, accuracy]],
        "figures": {"accuracy": accuracy, "area": accuracy / 2, "signal_share": 0.5},
    }


def test_differences_are_paired_by_seed():
    uniform, better = [0.5, 0.6, 0.7], [0.54, 0.65, 0.73]
    rows = [row("LIM", seed, x) for seed, x in enumerate(better)]
    rows += [row("uniform", seed, x) for seed, x in enumerate(uniform)]
    rows.append(row("uniform", 0, 0.1, regime="clean"))
    report = arena.summary(rows, ["LIM", "uniform", "CDAS"])
    assert list(report) == ["hard", "clean"]
    hard = report["hard"]
    assert list(hard["arms"]) == ["uniform", "LIM"]  # CDAS has not run
    difference = hard["arms"]["LIM"]["accuracy"]["difference"]
    assert difference["mean"] == pytest.approx(0.04)
    # .01 of standard deviation over three pairs, t(2) = 4.3027.
    assert difference["high"] - 0.04 == pytest.approx(
        4.3027 * 0.01 / math.sqrt(3), 1e-4
    )
    # Each arm's own variance is .01 and .0091; that of the differences .0001.
    assert hard["pairing"]["seeds_saved"] == pytest.approx(191)
    page = arena.markdown(report, tokens=100, command="python launch/arena.py")
    assert "| LIM | 3 | 64.0 [40.3, 87.7] | +4.0 [+1.5, +6.5] | .020 | 3.3 |" in page
    assert "A seed in pairs is worth 191.0 without." in page


def test_tokens_to_the_gain():
    curve = [[0.0, 0.2], [100.0, 0.6], [200.0, 0.5], [300.0, 0.8]]
    assert arena.tokens_to(curve, 0.4) == pytest.approx(50)
    assert arena.tokens_to(curve, 0.7) == pytest.approx(200 + 100 * 2 / 3)
    assert arena.tokens_to(curve, 0.1) == 0
    assert math.isinf(arena.tokens_to(curve, 0.9))
    late = [[0.0, 0.2], [90.0, 0.2], [130.0, 0.9]]
    rows = [
        *(row("uniform", seed, 0.7, [[0.0, 0.2], [100.0, 0.7]]) for seed in range(3)),
        row("LIM", 0, 0.3, late),
        row("LIM", 1, 0.9, [[0.0, 0.2], [50.0, 0.66]]),
        row("LIM", 2, 0.9, [[0.0, 0.2], [80.0, 0.66]]),
        row("CDAS", 0, 0.3, late),
    ]
    arms = arena.summary(rows, ["uniform", "LIM", "CDAS"])["hard"]["arms"]
    # 90 % of uniform's gain is at .65: 90 tokens of its own; of two of LIM's seeds
    # 50 and 80, times .45 / .46. What is beyond 100, where arms are compared, does not
    # count.
    assert arms["uniform"]["tokens_to"] == {"share": 1.0, "reached": 3, "runs": 3}
    of_lim = arms["LIM"]["tokens_to"]
    assert (
        of_lim["share"] == pytest.approx(80 / 90 * 45 / 46) and of_lim["reached"] == 2
    )
    assert arms["CDAS"]["tokens_to"] == {"share": None, "reached": 0, "runs": 1}


def test_an_arm_of_fewer_seeds_is_beside_uniforms_same_seeds():
    """Half of uniform's tokens in each seed that has run, and none of another's."""
    rows = [
        row("uniform", 0, 0.6, [[0.0, 0.2], [40.0, 0.6], [100.0, 0.6]]),
        row("uniform", 1, 0.6, [[0.0, 0.2], [80.0, 0.6], [100.0, 0.6]]),
        row("uniform", 2, 0.6, [[0.0, 0.2], [90.0, 0.6], [100.0, 0.6]]),
        row("LIM", 0, 0.6, [[0.0, 0.2], [20.0, 0.6], [100.0, 0.6]]),
    ]
    arms = arena.summary(rows, ["uniform", "LIM"])["hard"]["arms"]
    assert arms["LIM"]["tokens_to"]["share"] == pytest.approx(0.5)


def test_an_arm_of_uniforms_own_runs_is_no_comparison():
    """Online LIM's are in its first epoch: no p, and none that Holm counts."""
    accuracies = {
        "uniform": [0.5, 0.6, 0.7],
        "LIM": [0.54, 0.65, 0.73],
        "LIM-online": [0.5, 0.6, 0.7],
    }
    rows = [row(arm, s, x) for arm, xs in accuracies.items() for s, x in enumerate(xs)]
    one, other = (
        arena.summary(made, list(accuracies))["hard"]
        for made in (
            rows[:6],
            [
                r | {"digest": r["digest"].replace("LIM-online", "uniform")}
                for r in rows
            ],
        )
    )
    assert one["pairing"] == other["pairing"]
    assert one["arms"]["LIM"] == other["arms"]["LIM"]
    difference = other["arms"]["LIM-online"]["accuracy"]["difference"]
    assert (difference["mean"], difference["p_holm"]) == (0.0, None)


def test_the_record_is_read_and_added_to(tmp_path):
    record = arena.Record(tmp_path / "arena.jsonl")
    assert record.runs() == [] and record.run("hard", "LIM", 0) is None
    kept = row("LIM", 0, 0.5)
    record.add(kept)
    chosen = {"regime": "hard", "common": "c", "set": "LIM", "of": 9, "problems": 2}
    record.add(chosen | {"kinds": {}, "places": [1, 5]})
    again = arena.Record(record.path)
    assert again.runs() == [kept] and again.run("hard", "LIM", 0) == kept
    assert again.subset("hard", "LIM")["places"] == [1, 5]
    assert again.subset("clean", "LIM") is None


def test_one_process_adds_to_a_record(tmp_path):
    record = arena.Record(tmp_path / "arena.jsonl")
    with record.locked():
        other = arena.Record(record.path)
        with pytest.raises(InputError) as error, other.locked():
            pass
    assert str(error.value) == (
        f"{record.path}: another process adds to it; wait for it, or give another "
        "--record"
    )


def test_a_record_that_cannot_be_written_is_one_line(tmp_path):
    record = arena.Record(tmp_path / "gone/arena.jsonl")
    with pytest.raises(InputError) as error:
        record.add(row("LIM", 0, 0.5))
    assert str(error.value) == (
        f"{record.path} cannot be written (No such file or directory); make room or "
        "give it its rights, then give the same command again"
    )


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        '{"regime": "hard", "arm": "LIM"}',
        "[1]",
        "{",
        json.dumps(row("LIM", 1, 0.5) | {"figures": {}}),
        json.dumps(row("LIM", 1, 0.5) | {"curve": None}),
        json.dumps({"regime": "hard", "common": "c", "set": "LIM"}),
        json.dumps(row("LIM", 0, 0.7)),  # a second time
    ],
)
def test_a_line_that_is_no_row_is_named(line, tmp_path):
    path = tmp_path / "arena.jsonl"
    good = row("LIM", 0, 0.5)
    path.write_text(json.dumps(good) + "\n" + line + "\n")
    with pytest.raises(InputError) as error:
        arena.Record(path)
    assert str(error.value).startswith(f"{path}:2: ")


def test_subsets_of_a_probe():
    curves = {
        "rises": [0, 0.25, 0.5, 0.75],
        "never": [0, 0, 0, 0],
        "always": [1, 1, 1, 1],
        "soon": [0.25, 0.5, 0.75, 1],
        "late": [0, 0, 0, 1],
    }
    ids = tuple(curves)
    value_NE = np.array(list(curves.values()))
    probe = Curves(ids, value_NE, np.ones(value_NE.shape, bool))
    # Ten problems of which the base model fails one most, in another order.
    all_ids = (*ids, "f", "g", "h", "i", "j")
    names = tuple(reversed(all_ids))
    right_NE = np.ones((10, 2))
    right_NE[names.index("always")] = 0
    responses = Curves(names, right_NE, np.ones((10, 2), bool))
    chosen = subsets.choose(all_ids, probe, responses, seed=3)
    # The average is .25 .35 .45 .75; the scores .944, .296, 0, .870 and .667.
    assert chosen["LIM"] == [0, 3, 4]
    # 16.3 % of five problems is one: the best score, and one at random.
    assert chosen["LIM-16"] == [0] and len(chosen["RAND-16"]) == 1
    assert chosen["std"] == [0, 3, 4]
    assert chosen["hardest"] == [2]
    assert len(chosen["RAND"]) == 3 and max(chosen["RAND"]) < 5


def test_the_oracles_chance_by_enumeration():
    import itertools

    samples, group = 6, 3
    chances = oracle.mixed_chance(np.arange(7), samples, group=group)
    for right, chance in enumerate(chances):
        responses = [1] * right + [0] * (samples - right)
        groups = list(itertools.combinations(responses, group))
        mixed = sum(0 < sum(each) < group for each in groups)
        assert chance == pytest.approx(mixed / len(groups))


def test_where_no_problem_has_a_chance_all_are_drawn_alike():
    assert oracle.log_chances(np.array([0.0, 1.0, 0.5])) == [None, 0.0, math.log(0.5)]
    assert oracle.log_chances(np.zeros(3)) == [0.0, 0.0, 0.0]
