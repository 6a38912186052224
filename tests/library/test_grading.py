"""`limr_jax.grade` and `verdicts`: what strangers, policies and forks do to them."""

import os
import subprocess
import sys
import time

import pytest
from tiny_run import ROOT

import limr_jax
from limr_jax.library import grading


@pytest.mark.parametrize(
    "answer, reference, right",
    [
        (r"\frac12", "0.5", True),
        (r"\boxed{\frac{1}{2}}", "0.5", True),
        ("The answer is 0.5", "1/2", True),
        ("(1, 2]", "1 < x <= 2", True),
        ("0.51", "0.5", False),
        ("", "0.5", False),
        ("\\boxed{}", "0.5", False),
    ],
)
def test_an_answer(answer, reference, right):
    assert limr_jax.grade(answer, reference) is right


def test_a_response_needs_its_box():
    text = r"First \boxed{1}, no: \boxed{2}."
    assert limr_jax.grade(text, "2", response=True)
    assert not limr_jax.grade(text, "1", response=True)
    assert not limr_jax.grade("2", "2", response=True)
    (verdict,) = limr_jax.verdicts(["2"], ["2"], response=True)
    assert (verdict.correct, verdict.reason, verdict.answer) == (False, "no box", None)


HOSTILE = [
    "9^{9^{9^9}}",
    "(((9!)!)!)!",
    "{" * 100_000,
    r"\frac{" * 20_000 + "1",
    "\x00\ud800‮",
    "1" * 3_000_000,
    r"\sqrt{" * 400 + "2" + "}" * 400,
    "__import__('os').system('true')",
    "+".join(f"x_{{{i}}}^{{{i}}}" for i in range(900)),
]


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param(HOSTILE[:3], id="some"),
        pytest.param(HOSTILE, id="all", marks=pytest.mark.soak),
    ],
)
def test_hostile_texts_are_not_right_and_cost_no_more_than_the_limit(texts):
    limr_jax.grade("x+1", "1+x")  # a worker is there
    start = time.monotonic()
    for text in texts:
        boxed = rf"\boxed{{{text}}}"
        assert not limr_jax.grade(text, "7", seconds=1)
        assert not limr_jax.grade(boxed, "7", response=True, seconds=1)
    # Two processes of limits 1 start again and again where an item ends them.
    assert time.monotonic() - start < 60
    # As a reference as well, which a data set may have from anywhere.
    for verdict in limr_jax.verdicts(["7"] * len(texts), texts, seconds=1):
        assert verdict.correct is not True


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((0.5, "0.5"), "answers[0]=0.5 is float; give text, such as '0.5'"),
        (("1", None), "references[0]=None is NoneType; give text"),
        (("1", ""), "reference='' says nothing to compare with"),
        (("1", "$ $"), "reference='$ $' says nothing to compare with"),
        (("1", "1", -1), "seconds=-1 must be from 0.1 to 3600"),
        (("1", "1", float("nan")), "seconds=nan must be from 0.1 to 3600"),
        (("1", "1", "10"), "seconds='10' must be a number, not str"),
    ],
)
def test_mistakes_are_one_line(arguments, said):
    answer, reference, *seconds = arguments
    with pytest.raises(limr_jax.InputError) as raised:
        limr_jax.grade(answer, reference, **dict(zip(["seconds"], seconds)))
    assert said in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "answers, references, said",
    [
        ("12", "12", "answers is str; give a list of texts"),
        (["1"], iter("1"), "references is str_ascii_iterator; give a list of texts"),
        (["1", "2"], ["1"], "2 answers for 1 references"),
        ([b"1"], ["1"], "answers[0]=b'1' is bytes"),
    ],
)
def test_mistakes_of_many(answers, references, said):
    with pytest.raises(limr_jax.InputError) as raised:
        limr_jax.verdicts(answers, references)
    assert said in str(raised.value)


def test_nothing_is_graded_at_once():
    assert limr_jax.verdicts([], []) == []


def test_pools_are_few(monkeypatch):
    monkeypatch.setattr(grading, "_pools", {})
    pools = [grading._pool(1.0 + i) for i in range(grading._KEPT + 2)]
    assert [*grading._pools.values()] == pools[2:]
    assert grading._pool(3.0) is pools[2]  # and it is the newest now
    assert [*grading._pools][-1] == 3.0


FORK = """
import os, limr_jax
asked = "x^2+2x+1", "(x+1)^2"
assert limr_jax.grade(*asked)
(worker,) = [x.process.pid for pool in limr_jax.library.grading._pools.values()
             for x in pool._workers if x.process]
child = os.fork()
if not child:
    # Of its own: it neither speaks to its parent's process nor ends it.
    assert limr_jax.grade(*asked) and not limr_jax.grade("x^2", "x^3")
    raise SystemExit(0)
assert limr_jax.grade("y^2+2y+1", "(y+1)^2")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
os.kill(worker, 0)  # it is there
assert limr_jax.grade("z^2+2z+1", "(z+1)^2")
print(worker)
"""


@pytest.mark.soak
def test_a_forked_child_has_processes_of_its_own_and_all_end_with_the_program():
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0 and not ended.stderr, ended.stderr
    worker = int(ended.stdout)
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
