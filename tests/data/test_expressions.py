"""Worked solutions as one expression each, by hand and of real sets."""

import json
import runpy
from pathlib import Path

import pytest

from limr_jax import worker_pool
from limr_jax.data.expressions import agrees, as_expression, boxed_expressions
from limr_jax.data.problems import load_problems
from limr_jax.errors import InputError
from limr_jax.rewards.math import grade

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("solution", "problem", "expression"),
    [
        ("33 + 13 = 46\n46 - 19 = 27\n#### 27", "33, 19 and 13", "(33 + 13) - 19"),
        # Brackets around each step but the last.
        ("3 + 4 = 7\n2 * 7 = 14", "2, 3 and 4", "2 * (3 + 4)"),
        ("8 - 5 = 3\n9 - 3 = 6", "9, 8 and 5", "9 - (8 - 5)"),
        # GSM8K's annotations, and no other line; a result that is used twice.
        ("half = 48/2 = <<48/2=24>>24\nin all <<48+24=72>>", "48", "48 + (48 / 2)"),
        ("<<5+3=8>>\n<<8*8=64>>", "5 and 3", "(5 + 3) * (5 + 3)"),
        # The problem has an 8 of its own.
        ("<<5+3=8>>\n<<8*8=64>>", "5, 3 and 8", "(5 + 3) * 8"),
        # A result that nothing uses is no part of it.
        ("1 + 1 = 2\n4 + 4 = 8", "1 and 4", "4 + 4"),
        ("0.5 * 10 = 5.0\n5 + 1 = 6", "1, 10", "(0.5 * 10) + 1"),
        ("3 * 4 / -2 = 6", "", "(3 * 4) / -2"),
        ("9 - 21 = -12\n-12 + 37 = 25", "9, 21 and 37", "(9 - 21) + 37"),
    ],
)
def test_by_hand(solution, problem, expression):
    assert as_expression(solution, problem) == expression


@pytest.mark.parametrize(
    "solution",
    ["", "#### 27", "the answer is 27", "x + 1 = 3", "f(2) = 4", "2 + = 4", "2 + 2 =",
     "2 + 2 = four", f"{'(' * 5000}1 = 1", "1 + 01 = 2", "(2)(3) = 6", "() = 6",
     # Numbers of more digits than Python reads, or than a pattern reads in time.
     "1 + 1 = " + "9" * 5000, "1 + 1 = " + "1" * 400_000 + "x", "0.00001 * 5 = 0.00005",
     "1 + 1 = 2\nx = 2", "2 ** 3 = 8", "7 // 2 = 3", "+2 = 2",
     "\n".join(f"{'-' * 190}{k % 2 + 1} = {k % 2 + 1}" for k in range(500)),
     # Each result twice in the next: 2^60 numbers.
     "\n".join(f"{2**k} + {2**k} = {2 ** (k + 1)}" for k in range(4, 64)),
     "\n".join(f"{k} + 4 = {k + 4}" for k in range(0, 20_000, 4))],
)  # fmt: skip
def test_what_is_no_chain_of_sums(solution):
    expression = as_expression(solution, f"2 and 3, or {'9' * 5000}")
    assert expression is None or not agrees(expression, "6")


@pytest.mark.parametrize(
    ("expression", "answer", "right"),
    [
        ("64 / 3", "21.3333", True),
        ("64 / 3", "21.3334", False),
        ("64 / 3", "21", False),
        ("7 / 2", "3.5", True),
        ("0.1 + 0.2", "0.3", True),
        ("-3 + 1", "-2", True),
        ("1000 + 500", "1,500", True),
        ("1 / 0", "0", False),
        ("2 ** 3", "8", False),
        ("9 ** 9 ** 9 ** 9", "8", False),
        ("7 // 2", "3", False),
        ("1 + 1", "two", False),
        ("1 + 1", "1e999999999", False),
        ("10 + 5", "1,5", False),
        ("10 + 5", "1_5", False),
        ("1 + 2", "३", False),
        ("1 + 1j", "1", False),
        ("9" * 400 + ".0", "9", False),
    ],
)
def test_worth_of_an_expression(expression, answer, right):
    assert agrees(expression, answer) is right


@pytest.mark.parametrize(
    ("name", "least"), [("mwp.jsonl", 0.99), ("gsm8k_train.jsonl[:2000]", 0.9)]
)
def test_real_solutions_are_what_the_grader_calls_right(shared, name, least):
    """Nearly all become one expression, and the grader computes it."""
    problems = load_problems(f"{shared}/data/{name}", data_dir=None)
    rows = list(boxed_expressions(problems))
    assert len(rows) >= least * len(problems)
    few = rows[:: len(rows) // 100]
    pool = worker_pool.WorkerPool(workers=1, wall_seconds=60.0)
    texts, answers = zip(*((row["solution"], row["answer"]) for row in few))
    verdicts = grade.grade_math(texts, answers, mode="response", pool=pool)
    pool.close()
    assert [row["id"] for row, x in zip(few, verdicts) if not x.correct] == []


def test_as_a_program(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "launch/texts.py"))["main"]
    path, out = tmp_path / "worked.jsonl", tmp_path / "warm.jsonl"
    rows = [
        {"id": "a", "problem": "1 and 2?", "answer": "3", "solution": "1 + 2 = 3"},
        {"id": "b", "problem": "1 and 2?", "answer": "4", "solution": "1 + 2 = 3"},
        {"id": "c", "problem": "one?", "answer": "1", "solution": "x = 1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["expressions", str(path), "--out", str(out)])
    said = json.loads(capsys.readouterr().out)
    assert said == {"read": 3, "written": 1, "out": str(out)}
    read = load_problems(str(out), data_dir=None)
    assert (read.ids, read.answers) == (("a",), ("3",))
    assert read.columns["solution"] == ("\\boxed{1 + 2}",)
    out.unlink()
    with pytest.raises(InputError, match=r"none of 1 solutions is a chain of sums"):
        main(["expressions", f"{path}[2:]", "--out", str(out)])
    assert not out.exists()
