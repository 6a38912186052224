"""Alarms by hand: what raises each, that it is once, and that a resumed run agrees."""

import math

import pytest

from limr_jax.alarms import Alarms, Divergence, drift, kept
from limr_jax.config.config_file import defaults
from limr_jax.errors import InputError

LIMITS = defaults("base").alarms
CALM = {
    "mismatch/log_weight": 1e-7,
    "flat_reward_share": 0.5,
    "pass_rate": 0.4,
    "rollout_entropy": 0.5,
    "invalid_share": 0.0,
    "truncated_share": 0.1,
    "nonfinite_share": 0.0,
}


def steps(*changes):
    """Lines of metrics.jsonl, one an argument: a calm step's with these numbers."""
    return [{"step": i} | CALM | change for i, change in enumerate(changes, 1)]


def raised(rows, limits=LIMITS, **options):
    """(step, name) of each alarm of these steps."""
    alarms = Alarms(limits, **options)
    found = [alarm for row in rows for alarm in alarms.judge(row["step"], row)]
    assert all(alarm.text.startswith(f"{alarm.name}: ") for alarm in found)
    return [(alarm.step, alarm.name) for alarm in found]


def changed(**limits):
    return LIMITS.to_dict() | limits


CASES = {
    "calm": (steps(*[{}] * 30), []),
    "drift": (
        steps({}, {"mismatch/log_weight": 0.0051}, {"mismatch/log_weight": 0.02}),
        [(2, "drift")],
    ),
    "drift, nan": (steps({"mismatch/log_weight": math.nan}), []),
    # All of what later updates show but the first one's is what the policy has moved.
    "drift of several updates": (
        steps({"mismatch/log_weight": 0.2, "mismatch/log_weight_first": 1e-7}),
        [],
    ),
    "drift of carried groups": (
        steps({"mismatch/log_weight": 0.2, "dynamic/carried_groups": 3}),
        [],
    ),
    "flat": (
        steps(*[{"flat_reward_share": 1.0}] * 9, {}, *[{"flat_reward_share": 1}] * 11),
        [(20, "reward_collapse")],
    ),
    "entropy": (
        steps(*[{}] * 5, *[{"rollout_entropy": 0.01}] * 6),
        [(10, "entropy_collapse")],
    ),
    # What is no number says nothing, and hides nothing.
    "entropy, one of them unknown": (
        steps(*[{}] * 5, *[{"rollout_entropy": 0.01}] * 4, {"rollout_entropy": None}),
        [(10, "entropy_collapse")],
    ),
    "entropy, the first unknown": (
        steps(
            *[{"rollout_entropy": None}] * 2,
            *[{}] * 5,
            *[{"rollout_entropy": 0.04}] * 9,
        ),
        [(12, "entropy_collapse")],
    ),
    "entropy of a solved set": (
        steps(*[{}] * 5, *[{"rollout_entropy": 0.01, "pass_rate": 0.97}] * 6),
        [],
    ),
    "one invalid rollout of eight": (steps({"invalid_share": 0.125}, *[{}] * 6), []),
    "all invalid": (steps({"invalid_share": 1.0}), [(1, "invalid_rollouts")]),
    "invalid": (
        steps(*[{}] * 5, *[{"invalid_share": 0.06}] * 6),
        [(10, "invalid_rollouts")],
    ),
    "truncated": (steps(*[{"truncated_share": 0.9}] * 3), [(2, "truncated_rollouts")]),
    # A run of fine-tuning, or of an old version, has none of these numbers.
    "nothing known": ([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}], []),
}


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES)
def test_each_alarm_once(rows, expected):
    assert raised(rows) == expected


@pytest.mark.parametrize(("rows", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("stop", [1, 6, 12])
def test_a_resumed_run_warns_as_an_unbroken_one(rows, expected, stop):
    first = raised(rows[:stop])
    again = raised(
        rows[stop:], before=kept(rows[:stop], 10), raised=[name for _, name in first]
    )
    assert first + again == expected


@pytest.mark.parametrize(
    ("field", "case"),
    [
        ("drift", "drift"),
        ("flat_steps", "flat"),
        ("entropy_share", "entropy"),
        ("invalid_share", "all invalid"),
        ("truncated_share", "truncated"),
    ],
)
def test_0_switches_an_alarm_off(field, case):
    rows, expected = CASES[case]
    assert expected and raised(rows, changed(**{field: 0})) == []


def test_groups_alike_are_no_alarm_where_rewards_are_not_learned_from():
    rows, _ = CASES["flat"]
    assert raised(rows, by_group=False) == []


def test_where_nothing_grades_no_grade_is_missing():
    rows, _ = CASES["all invalid"]
    assert raised(rows, graded=False) == []


def test_an_alarm_says_value_limit_and_what_to_do():
    alarms = Alarms(LIMITS)
    (alarm,) = alarms.judge(
        3, CALM | {"invalid_share": 0.5, "invalid/timeout": 0.4, "invalid/memory": 0.1}
    )
    assert alarm.text == (
        "invalid_rollouts: 50.0% of the rollouts have no valid grade (mostly timeout), "
        "above alarms.invalid_share=0.05, and are not learned from; raise "
        "grader.wall_seconds, grader.cpu_seconds or grader.memory_mib, or mend the "
        "reward: `reason` in rollouts/ says why of each"
    )


def test_drift_beyond_repair_ends_the_run():
    alarms = Alarms(LIMITS)
    alarms.refuse_drift(1, CALM | {"mismatch/log_weight": 0.05})
    apart = CALM | {"mismatch/log_weight": 0.051}
    with pytest.raises(InputError, match="step 2: .* 0.051 nats .*drift_stop=0.05"):
        alarms.refuse_drift(2, apart)
    Alarms(changed(drift_stop=0)).refuse_drift(2, apart)


def test_recomputed_log_probabilities_show_the_rollouts_own_drift():
    assert drift({"drift": 0.0, "mismatch/log_weight": 0.3}) == 0.3
    assert drift({"drift": 0.1}) is None


BAD = {"loss": None, "gradient_norm": 3.0, "nonfinite_share": 0.25}


def judged(divergence, rows):
    return [divergence.judge(row["step"], row) is not None for row in rows]


@pytest.mark.parametrize("value", ["a", [1], {"b": 2}, 10**400, True, None])
def test_damaged_lines_are_no_numbers(value):
    row = dict.fromkeys(CALM, value) | {"step": 1, "rollout_entropy": 0.1}
    before = kept([row, {"step": 2}], 3)
    alarms = Alarms(LIMITS, before=before, raised=[None, ["drift"], {"a": 1}])
    assert not Divergence(3, [row | {"nonfinite_share": "x"}]).in_a_row
    assert [alarm.name for alarm in alarms.judge(3, BAD_DRIFT)] == ["drift"]


BAD_DRIFT = CALM | {"mismatch/log_weight": 1.0}


def test_steps_in_a_row_end_a_run():
    rows = steps(BAD, {}, BAD, BAD, BAD)
    divergence = Divergence(3)
    assert judged(divergence, rows) == [True, False, True, True, True]
    assert divergence.in_a_row == 3
    said = (
        r"step 5 has loss=nan, 3 in a row \(divergence.patience=3\), and is not saved; "
        "there is no checkpoint yet, and F holds the batch"
    )
    with pytest.raises(InputError, match=said):
        divergence.refuse(5, rows[-1], latest=lambda: None, batch="F")
    # Two of them before a stop count as well, but not those with a gap.
    assert Divergence(3, kept(rows[:4], 3)).in_a_row == 2
    assert Divergence(3, [rows[0], rows[2]]).in_a_row == 1


def test_a_policy_that_writes_no_numbers_counts():
    """Its rollouts are all alike and filtered out, so that the loss is 0 and whole."""
    wrecked = {"loss": 0.0, "nonfinite_share": 0.0, "rollout_entropy": math.nan}
    rows = steps({}, *[wrecked] * 3)
    divergence = Divergence(3)
    assert judged(divergence, rows) == [False, True, True, True]
    with pytest.raises(InputError, match="step 4 has rollout_entropy=nan, 3 in a row"):
        divergence.refuse(4, rows[-1], latest=lambda: None, batch="F")
    # As metrics.jsonl has it, where a line without the name says nothing.
    lines = [{**row, "rollout_entropy": None} for row in rows[1:]]
    assert Divergence(9, kept(lines, 9)).in_a_row == 3
    assert Divergence(9, kept([{"step": 1, "loss": 1.0}], 9)).in_a_row == 0


def test_the_critics_updates_count():
    divergence = Divergence(1)
    row = CALM | {"critic/nonfinite_share": 1.0, "critic/loss": math.inf}
    assert "critic/loss=inf" in divergence.judge(1, row).text
    with pytest.raises(InputError, match="checkpoint of step 7 stands"):
        divergence.refuse(1, row, latest=lambda: 7, batch="F")


def test_patience_longer_than_what_alarms_look_at():
    rows = steps(*[BAD] * 40)
    assert Divergence(50, kept(rows, 50)).in_a_row == 40
