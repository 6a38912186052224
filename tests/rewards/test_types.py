"""Why a rollout got its grade: from the graders to the dump's and metrics' names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rewards.test_stats import round_of

from limr_jax.data.prompts import PromptBatch
from limr_jax.rewards import host
from limr_jax.rewards.in_graph import grade
from limr_jax.rewards.stats import over_rounds, rollout_stats
from limr_jax.rewards.types import CODE, INVALID, REASONS, Graded
from limr_jax.rollout.types import Rollout
from limr_jax.samplers import group_buffer


def test_the_table():
    """A reader of old dumps has only the names; in arrays there are its places."""
    assert len(set(REASONS)) == len(REASONS) < 128
    assert REASONS[0] == "graded"
    assert (
        *("no_reference", "no_reward", "timeout", "memory"),
        *("died", "error", "no_opinion", "no_value"),
    ) == INVALID


def names(reason_X) -> list[str]:
    assert reason_X.dtype == np.int8
    return [REASONS[code] for code in np.ravel(reason_X)]


class Graders:
    """Stands for the workers: every answer ends in another way."""

    def __init__(self):
        ends = ["timeout", "died", "memory", "ValueError"]
        self.replies = [{"rule": "value"}, *({"error": end} for end in ends)]

    def map(self, jobs):
        return self.replies[: len(jobs)]


RESPONSES = [rf"\boxed{{x^{k}}}" for k in range(2, 7)]
REFERENCES = [rf"x\cdot{k}" for k in range(2, 7)]


def host_reward(spec: str, **more) -> host.HostReward:
    return dataclasses.replace(host.host_reward(spec, **more), pool=Graders())


def test_of_the_graders():
    responses = [*RESPONSES, "none", r"\boxed{a" + "\x00}", r"\boxed{7}"]
    grades = host_reward("math")(["p"] * 8, responses, [*REFERENCES, "1", "1", "7.0"])
    assert names(grades.reason_B) == [
        *("graded", "timeout", "died", "memory", "error"),
        *("no_answer", "unreadable", "graded"),
    ]
    assert grades.reasons[4] == "ValueError" and grades.reasons[7] == "number"
    # All of these, and no other, are invalid.
    valid = [name not in INVALID for name in names(grades.reason_B)]
    assert grades.valid_B.tolist() == valid


def test_a_late_grader_is_the_reason_of_limrs_minus_one():
    grades = host_reward("limr")(["p"] * 5, RESPONSES, REFERENCES)
    assert names(grades.reason_B)[:3] == ["graded", "timeout", "died"]
    assert grades.valid_B.tolist() == [True, True, False, False, False]
    assert grades.reward_B[:2].tolist() == [1, -1]


def some(prompts, completions, **columns):
    return [None if "2" in text else 1.0 for text in completions]


def test_the_part_that_has_no_value_says_why():
    """One of several: the first that has none, in the order of the reward."""
    responses = [*RESPONSES, r"\boxed{2}"]
    references = [*REFERENCES, "2"]
    for spec in ("math, 0.5*rewards.test_types.some", "rewards.test_types.some, math"):
        grades = host_reward(spec)(["p"] * 6, responses, references)
        assert names(grades.reason_B)[:3] == ["no_value", "timeout", "died"]
        assert names(grades.reason_B)[5] == "no_value"
    grades = host_reward("judge", judge=lambda *rows: [True, None])(
        ["p"] * 2, ["a", "b"], ["a", "b"]
    )
    assert names(grades.reason_B) == ["graded", "no_opinion"]
    grades = host_reward("math", judge=lambda *rows: [True])(
        ["p"], [r"\boxed{8}"], ["7"]
    )
    assert names(grades.reason_B) == ["second_verifier"]


def in_graph(known: bool) -> Graded:
    """Two problems, the second without a reference; the phrase is 4, the end 9."""
    response_BT = jnp.array([[4, 7, 9], [7, 9, 0], [4, 9, 0], [4, 7, 9]])
    zeros_BT = jnp.zeros((4, 3))
    length_B = jnp.array([3, 2, 2, 3])
    written = Rollout(
        prompt_PL=jnp.zeros((2, 1), int),
        position_PL=jnp.zeros((2, 1), int),
        response_BT=response_BT,
        mask_BT=jnp.arange(3)[None] < length_B[:, None],
        logprob_BT=zeros_BT,
        entropy_BT=zeros_BT,
        truncated_B=jnp.zeros(4, bool),
        slot_steps_M=jnp.array([3]),
        steps_M=jnp.array([3]),
        row_steps_M=jnp.array([3]),
    )
    prompt_PL = written.prompt_PL
    answer_PA, length_P = jnp.array([[7], [0]]), jnp.array([1, 0])
    drawn = PromptBatch(jnp.arange(2), prompt_PL, prompt_PL, answer_PA, length_P)
    verify = jax.jit(grade, static_argnames=("phrase", "known"))
    return verify(written, drawn, phrase=(4,), known=known)


def test_of_the_verifier_in_the_graph():
    graded = in_graph(known=True)
    assert names(graded.reason_PG) == [
        *("graded", "no_answer"),
        *("no_reference", "no_reference"),
    ]
    np.testing.assert_array_equal(graded.valid_PG, [[True, True], [False, False]])
    graded = in_graph(known=False)
    assert names(graded.reason_PG) == ["no_reward"] * 4
    assert not graded.valid_PG.any()


def test_shares_in_the_metrics():
    """Of all rollouts of all rounds; what is valid has its reason, and no share."""
    valid_PG, zeros_PG = [[1, 0], [0, 0]], [[0, 0], [0, 0]]
    written, graded = round_of(zeros_PG, valid_PG, [1] * 4, zeros_PG)
    reasons = [["timeout", "timeout"], ["died", "no_value"]]
    reason_PG = np.vectorize(CODE.get)(reasons).astype(np.int8)
    graded = dataclasses.replace(graded, reason_PG=reason_PG)
    metrics = over_rounds(jax.device_get([rollout_stats(written, graded)] * 2))
    shares = {name.removeprefix("invalid/"): share for name, share in metrics.items()
              if name.startswith("invalid/")}  # fmt: skip
    assert shares == pytest.approx(
        dict.fromkeys(INVALID, 0) | {"timeout": 1 / 4, "died": 1 / 4, "no_value": 1 / 4}
    )
    assert sum(shares.values()) == metrics["invalid_share"]


def test_no_reason_waits_in_a_pool():
    """Groups that are over go into the next step, and into checkpoints, without."""
    written, graded = round_of([[1, 0]], [[1, 1]], [1, 1], [[0, 0]])
    graded = dataclasses.replace(graded, reason_PG=np.zeros((1, 2), np.int8))
    drawn = PromptBatch(*[np.zeros(1)] * 5)
    lasting = group_buffer.without_round_fields(drawn, written, graded)
    assert lasting[2].reason_PG is None
