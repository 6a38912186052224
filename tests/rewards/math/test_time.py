"""A policy's text costs the training process next to nothing, whatever it is.

All that grading does in the process that trains (find the box, the cheap stage, and
the spelling by which an evaluation's votes are compared) is timed on adversarial
strings; the rest runs in workers, behind their clock.
"""

import random
import time

import pytest

from limr_jax.rewards.math import grade, normalise, scalars

LONGEST = 0.2  # seconds of processor time for one string
LENGTH = 2_000
PLAIN = " \t\n+-{}0123456789\\,"
PIECES = [
    *PLAIN, "−", "(", ")", "[", "]", "\\\\", ".", ";", ":", "'", "°", "^", "_", "/",
    "*", "$", "%", "|", "<", "=", "a", "x", r"\text{", r"\frac", r"\sqrt", r"\cdot",
    r"\mathbf{i}", r"\hat{j}", r"\boxed{", r"\boxed ", r"\fbox", r"\quad", r"\,", r"\!",
    r"\begin{cases}", r"\end{cases}", r"\left(", r"\dots", "...", r"\circ", "and", "or",
    "deg", r"\overline{", r"\mathrm{", "{,}", r"\prime", "e5", "E-", "1/", "%f}", "f'",
    r"\pmod", r"\log_", "√", "²", "am", "to ", "dozen ", r"\textcolor{", r"\num{", "!",
    r"\qty{", "万", "̅", r"\dot{", "</think>", "<answer>", "C_", r"\approx", "is ",
]  # fmt: skip


def adversarial(count: int):
    """Noise, few pieces in any order, runs of pieces, and one run in a frame."""
    draw = random.Random(19)
    for k in range(count):
        if k % 4 == 0:
            text = "".join(draw.choices(PLAIN, k=LENGTH))
        elif k % 4 == 1:
            few = draw.sample(PIECES, draw.randint(1, 3))
            text = "".join(draw.choices(few, k=LENGTH))
        elif k % 4 == 2:
            runs = [int(min(LENGTH, draw.paretovariate(0.5))) for _ in range(60)]
            text = "".join(draw.choice(PIECES) * run for run in runs)
        else:
            first, second, third = draw.choices(PIECES, k=3)
            text = first + second * draw.randint(0, LENGTH) + third
        yield text[:LENGTH]


def cheaply(text: str) -> None:
    """What `grade_math` does before a worker is asked, in both modes."""
    for mode, shown in (("prediction", text), ("response", rf"\boxed{{{text}}}")):
        grade._settled(grade._job(shown, "12", mode), mode)
    grade.grade_without_worker([text], ["12"])


def briefly(text: str) -> None:
    """What the cheap stage does with an answer that it looks at closely."""
    grade.grade_without_worker([text[:100]], ["12"])


def votes(text: str) -> None:
    """What `run_benchmarks.alike` does with two answers."""
    normalise.squeezed(text)
    scalars.compare_literals(text, "12")


@pytest.mark.slow
@pytest.mark.parametrize(
    "work, count",
    [
        (cheaply, 3_000),
        pytest.param(cheaply, 30_000, marks=pytest.mark.soak),
        (briefly, 5_000),
        (votes, 200),
        pytest.param(votes, 2_000, marks=pytest.mark.soak),
    ],
)
def test_no_text_costs_the_training_process_time(work, count):
    slowest = (0.0, "")
    for text in adversarial(count):
        seconds = _seconds(work, text)
        if seconds > LONGEST:  # a machine's hiccup, or the text? Not thrice in a row
            seconds = min(seconds, _seconds(work, text), _seconds(work, text))
        slowest = max(slowest, (seconds, text[:80]))
    assert slowest[0] <= LONGEST, slowest


def _seconds(work, text: str) -> float:
    start = time.process_time()
    work(text)
    return time.process_time() - start


@pytest.mark.parametrize(
    "text",
    [
        "1" + " " * 100 + "x",
        "1" + " " * 1_900 + "x",
        r"\mathbf{i}" + " " * 1_900 + "-",
        "5 " + r"\, " * 600 + "x",
        r"\boxed{1}," * 100_000,
        r"\boxed " * 150_000,
        "</think>" * 100_000,
        " " * 1_000_000 + "x",
    ],
)
def test_runs_that_froze_a_run(text):
    """`grade.cheap(["1" + " " * 100 + "x"], ["12"])` took 26 s in limr_jax 0.2.0."""
    seconds = min(_seconds(cheaply, text) for _ in range(2))
    assert seconds < LONGEST * 8  # eight looks at a megabyte
    assert min(_seconds(votes, text[:LENGTH]) for _ in range(2)) < LONGEST
