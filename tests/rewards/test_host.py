"""The façade: correctness, shaped reward and validity, kept apart."""

import dataclasses

import numpy as np
import pytest

from limr_jax import worker_pool
from limr_jax.errors import InputError
from limr_jax.rewards import host
from limr_jax.rewards.math import grade as grading
from limr_jax.rewards.types import REASONS


@pytest.fixture(scope="module")
def pool():
    pool = worker_pool.WorkerPool(workers=2)
    yield pool
    pool.close()


def brevity(prompts, completions, **columns):
    return [None if "?" in c else 1.0 / len(c) for c in completions]


def exact(prompts, completions, *, answer, **columns):
    return [float(c == a) for c, a in zip(completions, answer)]


def short(prompts, completions, **columns):
    return [1.0]


HERE = "rewards.test_host"


class CountingPool:
    """Stands for the workers, answers 'different', and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def map(self, jobs):
        self.asked += jobs
        return [{"rule": None} for _ in jobs]


def test_two_modes_are_never_mixed(pool):
    verdicts = grading.grade_math(["5"], ["5"], mode="response", pool=pool)
    assert verdicts[0] == grading.Verdict(False, "no box")
    assert grading.grade_math(["5"], ["5"], mode="prediction", pool=pool)[0].correct
    text = r"I am sure it is 5. \boxed{6"
    for mode in ("response", "prediction"):
        assert not grading.grade_math([text], ["5"], mode=mode, pool=pool)[0].correct


def test_identical_pairs_are_graded_once_and_cheap_ones_not_at_all():
    counting = CountingPool()
    texts = [r"a \boxed{x+1}", r"b \boxed{x+1}", r"\boxed{7}", r"\boxed{y+x}"]
    references = ["1+x^2", "1+x^2", "7.0", "x+y"]
    grading.grade_math(texts, references, mode="response", pool=counting)
    assert [j["answers"] for j in counting.asked] == [["x+1"], ["y+x"]]


def test_math_is_zero_or_one_and_ungradable_is_invalid():
    class Failing(CountingPool):
        def map(self, jobs):
            return [{"error": "timeout"} for _ in jobs]

    grade = dataclasses.replace(host.host_reward("math"), pool=Failing())
    grades = grade(
        ["p"] * 3, [r"\boxed{2}", r"\boxed{3}", r"\boxed{\sqrt{2}}"], ["2", "2", "x"]
    )
    np.testing.assert_array_equal(grades.correctness_B, [1, 0, np.nan])
    np.testing.assert_array_equal(grades.reward_B, [1, 0, 0])
    np.testing.assert_array_equal(grades.valid_B, [True, True, False])
    assert grades.reasons == ("same text", "another number", "timeout")


@pytest.mark.parametrize(
    "response, ended, value",
    [
        (r"so \boxed{2}", True, 1.0),
        (r"so \boxed{3}", True, -0.5),
        (r"so \boxed{2}", False, -1.0),
        ("so 2", True, -1.0),
        (r"\boxed{2}" * 4, True, 1.0),
        (r"\boxed{2}" * 5, True, -1.0),
        ("的" * 10 + r"\boxed{2}", True, -1.0),
        ("abcdefgh " * 200 + r"\boxed{2}", True, -1.0),
    ],
)
def test_limr_reward(response, ended, value, pool):
    grade = host.host_reward("limr")
    grades = grade(["p"], [response], ["2"], ended=[ended])
    assert grades.reward_B.tolist() == [value]
    assert grades.correctness_B.tolist() == [float(r"\boxed{2}" in response)]
    assert grades.valid_B.all()


@pytest.mark.parametrize("reason", ["timeout", "memory", "died"])
def test_limr_looks_at_the_format_first(monkeypatch, reason):
    """What the grader makes of a badly formatted answer changes nothing."""
    said = [grading.Verdict(None, reason, None)] * 2
    monkeypatch.setattr(host, "grade_math", lambda *_, **__: said)
    grades = host.host_reward("limr")(
        ["p"] * 2, [r"\boxed{2}"] * 2, ["2"] * 2, ended=[False, True]
    )
    late = reason == "timeout"  # −1 by LIMR in either format
    assert grades.valid_B.tolist() == [True, late]
    assert grades.reward_B.tolist() == [-1.0, -1.0 if late else 0.0]
    assert grades.correctness_B[0] == 0
    assert [REASONS[x] for x in grades.reason_B] == [reason] * 2


def test_user_functions_weights_and_names():
    spec = f"{HERE}.exact, 0.5*{HERE}:brevity"
    grade = host.host_reward(spec)
    grades = grade(["p"] * 3, ["ab", "cd", "?"], ["ab", "x", "?"], {"level": [1, 2, 3]})
    np.testing.assert_allclose(grades.reward_B, [1.25, 0.25, 0.0])
    np.testing.assert_array_equal(grades.valid_B, [True, True, False])
    np.testing.assert_array_equal(grades.correctness_B, [1, 0, 1])
    assert set(grades.parts) == {f"{HERE}.exact", f"{HERE}:brevity"}
    np.testing.assert_array_equal(grades.parts[f"{HERE}:brevity"], [0.5, 0.5, np.nan])


@pytest.mark.parametrize(
    "spec", ["", "maths", "no.such.module", f"{HERE}.nothing", "math,math", "a*math"]
)
def test_a_wrong_spec_is_refused_before_anything_runs(spec):
    with pytest.raises(InputError):
        host.host_reward(spec)


def test_a_user_function_of_the_wrong_length_is_named():
    with pytest.raises(InputError, match="short gave 1 values for 2"):
        host.host_reward(f"{HERE}.short")(["p"] * 2, ["a", "b"], ["", ""])


def test_a_batch_graded_in_the_background_is_the_same_batch():
    grade = host.host_reward("math")
    batch = (["p"] * 2, [r"\boxed{1}", r"\boxed{2}"], ["1", "1"])
    later = grade.submit(*batch).result(timeout=60)
    np.testing.assert_array_equal(later.reward_B, grade(*batch).reward_B)
    grade.close()


def test_overlong_penalty_in_tokens():
    grade = host.host_reward("math", overlong_buffer=20, max_response_length=100)
    grades = grade(["p"], [r"\boxed{2}"], ["2"], lengths=[90])
    assert grades.reward_B.tolist() == [0.5]
    assert grades.correctness_B.tolist() == [1.0]
    with pytest.raises(InputError, match="buffer=200"):
        host.host_reward("math", overlong_buffer=200, max_response_length=100)


def test_the_second_verifier_is_asked_only_where_the_first_says_wrong(pool):
    asked = []

    def second(prompts, answers, references):
        asked.extend(zip(prompts, answers, references))
        return [answer == "zwölf" for answer in answers]

    verdicts = grading.grade_math(
        [r"\boxed{12}", r"\boxed{zwölf}", r"\boxed{13}", "no box"], ["12"] * 4,
        mode="response", pool=pool, prompts=["p", "q", "r", "s"], second=second,
    )  # fmt: skip
    assert asked == [("q", "zwölf", "12"), ("r", "13", "12")]
    assert [v.correct for v in verdicts] == [True, True, False, False]
    assert verdicts[1].reason == "second verifier"


def test_the_judge_is_asked_about_the_box_and_without_one_about_all():
    """An empty box is a box: it answers nothing, whatever stands before it."""
    asked = []

    def judge(prompts, answers, references):
        asked.extend(answers)
        return [True] * len(answers)

    responses = [r"so \boxed{2}", "a proof ", r"a long text \boxed{}", r"\boxed{ }", ""]
    grade = host.host_reward("judge", judge=judge)
    grades = grade([*"abcde"], responses, ["2"] * 5)
    assert asked == ["2", "a proof"]
    assert grades.reward_B.tolist() == [1, 1, 0, 0, 0] and grades.valid_B.all()


@pytest.mark.parametrize("spec", ["math", "limr"])
def test_a_host_without_rollouts_of_its_own(spec):
    """Where `tensor` goes over hosts, one of them may have none to grade."""
    grade = host.host_reward(spec)
    try:
        grades = grade([], [], [], ended=[], lengths=[])
    finally:
        grade.close()
    assert grades.reward_B.shape == grades.valid_B.shape == (0,)
    assert grades.valid_B.dtype == bool
