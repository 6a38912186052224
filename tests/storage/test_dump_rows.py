"""A row of the dump by hand."""

import numpy as np

from limr_jax.data.problems import Problems
from limr_jax.storage.dump_rows import dump_rows

PROBLEMS = Problems(
    source="two.jsonl",
    ids=("a", "b"),
    prompts=("1+1=", "hello"),
    messages=(None, ({"role": "user", "content": "hello"},)),
    answers=("2", "3"),
    columns={},
)


def rows(**changes):
    """Prompts b and a, two rollouts each; a letter a token."""
    arrays = {
        "ids_P": np.array([1, 0]),
        "response_BT": np.arange(12).reshape(4, 3),
        "mask_BT": np.arange(3) < np.array([[3], [2], [1], [0]]),
        "truncated_B": np.array([True, False, False, False]),
        "reward_PG": np.array([[0.5, 0.0], [1.0, -0.5]]),
        "correct_PG": np.array([[1.0, 0.0], [1.0, 0.0]]),
        "valid_PG": np.array([[True, True], [True, False]]),
        "parts": {"math": np.array([[1.0, 0.0], [1.0, 0.0]])},
        "reason_PG": np.array([[0, 1], [0, 1]]),
        "reasons": ("graded", "no_answer"),
    }

    def decode(ids):
        return "".join("abcdefghijkl"[i] for i in ids)

    return list(dump_rows(PROBLEMS, decode, **arrays | changes))


def test_each_rollout_is_a_row():
    first, *others = rows()
    assert first == {
        "id": "b",
        "sample": 0,
        "prompt": ({"role": "user", "content": "hello"},),
        "response": "abc",
        "reference": "3",
        "reward": 0.5,
        "reward/math": 1.0,
        "correct": 1.0,
        "valid": True,
        "reason": "graded",
        "truncated": True,
        "length": 3,
    }
    assert [(row["id"], row["sample"]) for row in others] == [
        ("b", 1),
        ("a", 0),
        ("a", 1),
    ]
    assert [row["response"] for row in others] == ["de", "g", ""]
    assert [row["prompt"] for row in others[1:]] == ["1+1="] * 2
    assert [row["reason"] for row in others] == ["no_answer", "graded", "no_answer"]


def test_without_reasons_there_is_none():
    assert [row["reason"] for row in rows(reason_PG=None, parts={})] == [None] * 4


def test_what_was_not_asked_for_has_no_row():
    asked_B = np.array([True, False, True, True])
    some = rows(asked_B=asked_B)
    assert some == [row for row, asked in zip(rows(), asked_B) if asked]
