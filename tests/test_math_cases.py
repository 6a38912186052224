"""Answers as problems have them, each pair with what a teacher would say of it."""

import pathlib

from limr_jax import grading, workers

CASES = pathlib.Path(__file__).parent / "math_cases.txt"


def test_every_pair_is_graded_as_a_teacher_would():
    rows = [line[10:].split("  |||  ") for line in CASES.read_text().splitlines()]
    same = [line.startswith("same ") for line in CASES.read_text().splitlines()]
    references, predictions = zip(*rows, strict=True)
    assert 300 < sum(same) < len(same) - 300
    pool = workers.WorkerPool(wall_seconds=120.0)
    verdicts = grading.grade_math(predictions, references, mode="prediction", pool=pool)
    pool.close()
    wrong = [
        (reference, prediction, verdict.reason)
        for reference, prediction, verdict, expected in zip(
            references, predictions, verdicts, same, strict=True
        )
        if verdict.correct != expected
    ]
    assert wrong == []
