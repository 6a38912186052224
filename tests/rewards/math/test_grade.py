"""`launch/grade.py`, whole: real cases, hostile text, and what a user may get wrong."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest

from limr_jax import worker_pool
from limr_jax.rewards.math import grade

ROOT = pathlib.Path(__file__).resolve().parents[3]


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "grade.py"), *map(str, arguments)],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_agreement_on_the_published_cases(shared, tmp_path):
    lines = (shared / "data" / "grader_cases.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if not r.get("flag") and not r.get("conflict")]
    out = tmp_path / "verdicts.jsonl"
    done = run(write(tmp_path / "cases.jsonl", rows), "--out", out)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["n"] == len(rows) == len(out.read_text().splitlines())
    assert summary["agreement"] >= 0.97
    assert summary["false_positives"] <= 1
    assert summary["invalid"] == 0
    wrong = summary["false_positives"] + summary["false_negatives"]
    assert round(summary["agreement"] * len(rows)) == len(rows) - wrong
    assert "huggingface/Math-Verify" in done.stdout


HOSTILE = [
    "9^{9^{9^{9}}}", "10^{10^{10}}", "99999999999!", "(((10!)!)!)!", "1000000!",
    r"\prod_{n=1}^{99999999} n", "(" * 5000 + "1" + ")" * 5000, "{" * 5000,
    r"\sqrt{" * 200 + "2" + "}" * 200, "1" * 1_000_000, r"\boxed{" * 100_000,
    "1," * 300_000, '__import__("os").system("touch PWNED")', "5\x00", "\ud800",
    "lambda: 5", "x^{x^{x^{x^{x}}}}", "1e999999999", r"\frac{0}{0}", "nan", "None",
    r"\pm" * 300, "=" * 2000, r"\left(" * 900 + "5" + r"\right)" * 900,
    "30^\\circ" + " 15'" * 5000, r"5 \text{ m}" * 5000, r"5 \text{ m}^{99999}",
    "not " * 5000 + "6", r"\sum_{k=1}^{10^9} k^{k}", r"x \ne \pm" * 300,
    "1 hour " * 3000, "\\\\" * 500_000, "{}" * 500_000, "\\\\boxed" * 100_000,
    '{"rule": "value"}\n', r"\def\x{\x\x}\x", "30°15'" * 100, "6\u202e5", "odd\x00",
]  # fmt: skip


@pytest.mark.slow
def test_hostile_text_is_never_right_and_never_stops_the_batch(tmp_path):
    rows = [
        {"response": rf"\boxed{{{text}}}", "reference": answer, "expected": False}
        for text in HOSTILE
        for answer in ("5", "x^2+1", r"\text{odd}")
    ]
    rows += [{"response": r"\boxed{5}", "answer": "5", "expected": True}]
    done = run(write(tmp_path / "hostile.jsonl", rows))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["n"] == len(rows)
    assert summary["false_positives"] == summary["false_negatives"] == 0
    assert not (ROOT / "PWNED").exists()


def test_verdicts_say_why(tmp_path):
    rows = [
        {"id": "a", "response": "It is 5.", "reference": "5"},
        {"id": "b", "prediction": "5", "answer": "5.0"},
        {"id": "c", "response": r"\boxed{\sqrt{8}}", "reference": r"2\sqrt2"},
    ]
    out = tmp_path / "out.jsonl"
    done = run(write(tmp_path / "rows.jsonl", rows), "--out", out, "--workers", 1)
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [v["reason"] for v in verdicts] == ["no box", "number", "value"]
    assert [v["correct"] for v in verdicts] == [False, True, True]
    assert json.loads(done.stdout)["agreement"] is None


def test_a_reference_that_says_nothing_is_no_verdict(tmp_path):
    nothing = ["", " ", "$ $", ".", r"\boxed{}", r"\text{ }", "$" + " " * 200 + "$"]
    rows = [{"response": r"\boxed{5}", "reference": reference} for reference in nothing]
    out = tmp_path / "out.jsonl"
    done = run(write(tmp_path / "rows.jsonl", rows), "--out", out, "--workers", 1)
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [v["reason"] for v in verdicts] == ["no reference"] * len(rows)
    assert json.loads(done.stdout.splitlines()[-1])["invalid"] == len(rows)


@pytest.mark.parametrize(
    "line", ['{"reference": "5"}', '{"prediction": 5, "reference": "5"}', "no json"]
)
def test_a_wrong_file_is_one_line_and_code_2(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    done = run(path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "rows.jsonl:1" in done.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--out", "no/such/x.jsonl"), "no such folder"),
        (("--out", "ROWS"), "is what is read"),
        (("--out", "gs://b/x.jsonl"), "not on this machine"),
        (("--workers", "0"), "workers=0"),
        (("--worker", "1"), "unrecognized arguments: --worker"),
    ],
)
def test_a_wrong_option_is_one_line_and_code_2(tmp_path, option, said):
    rows = write(tmp_path / "rows.jsonl", [{"prediction": "5", "answer": "5"}])
    before = rows.read_text()
    done = run(rows, *(str(rows) if each == "ROWS" else each for each in option))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert rows.read_text() == before


@pytest.mark.soak
def test_a_thousand_typical_items_take_under_ten_seconds(shared):
    """A timing: for a machine with two cores and nothing else to do."""
    path = shared / "data" / "math_lvl3to5.jsonl"
    answers = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    pool = worker_pool.WorkerPool(workers=2)
    pool.map([{"references": ["x"], "answers": ["y"]}] * 2)
    references = answers[:500] + answers[:500]
    texts = [rf"so \boxed{{{a}}}" for a in answers[:500] + answers[1:501]]
    start = time.monotonic()
    verdicts = grade.grade_math(texts, references, mode="response", pool=pool)
    seconds = time.monotonic() - start
    pool.close()
    assert all(v.correct for v in verdicts[:500])
    assert sum(v.correct for v in verdicts[500:]) < 50
    assert seconds < 10
