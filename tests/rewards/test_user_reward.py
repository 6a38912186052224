"""Reward functions of a user's own: what they do wrong is one line, and early."""

import concurrent.futures
import os
import re
import sys

import numpy as np
import pytest

from limr_jax.errors import InputError
from limr_jax.rewards import host, user_reward

PROMPTS, RESPONSES = ["1+1=", "2+2="], ["so 2", "so 5"]
LIST = "give a list of 2, with None where it cannot grade"
NUMBER = "give a finite number, or None where it cannot grade"


def called(function) -> np.ndarray:
    columns = {"answer": ["2", "4"], "level": [1, 2]}
    return user_reward.call(
        "mine.f", function, prompts=PROMPTS, responses=RESPONSES, columns=columns
    )


def complaint(function) -> str:
    with pytest.raises(InputError) as raised:
        called(function)
    return str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        [1, 0.5],
        (True, np.float32(0.5)),
        np.array([1, 0.5], np.float64),
        [np.array(1.0), np.bool_(False)],
    ],
)
def test_numbers_of_any_kind(values):
    values_B = called(lambda prompts, completions, **columns: values)
    assert values_B.dtype == np.float32
    np.testing.assert_array_equal(values_B, [float(x) for x in values])


def test_none_and_nan_are_no_value():
    np.testing.assert_array_equal(
        called(lambda *texts, **columns: [None, float("nan")]), [np.nan, np.nan]
    )


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (None, f"reward function mine.f returned NoneType, no list of numbers; {LIST}"),
        (1.0, f"reward function mine.f returned float, no list of numbers; {LIST}"),
        ("10", f"reward function mine.f returned str, no list of numbers; {LIST}"),
        (
            {0.0: 1, 1.0: 2},
            f"reward function mine.f returned dict, no list of numbers; {LIST}",
        ),
        (
            (x for x in (1, 2)),
            f"reward function mine.f returned generator, no list of numbers; {LIST}",
        ),
        (
            np.array(1.0),
            f"reward function mine.f returned ndarray, no list of numbers; {LIST}",
        ),
        ([1.0], f"reward function mine.f gave 1 values for 2 completions; {LIST}"),
        (
            [0, float("inf")],
            "reward function mine.f gave inf (float) for completions[1], to the prompt "
            f"'2+2='; {NUMBER}",
        ),
        (
            [float("-inf"), 0],
            "reward function mine.f gave -inf (float) for completions[0], to the "
            f"prompt '1+1='; {NUMBER}",
        ),
        (
            [1e39, 0],  # infinite in fp32
            "reward function mine.f gave 1e+39 (float) for completions[0], to the "
            f"prompt '1+1='; {NUMBER}",
        ),
        (
            [0, "1.0"],
            "reward function mine.f gave '1.0' (str) for completions[1], to the prompt "
            f"'2+2='; {NUMBER}",
        ),
        (
            [0, 1j],
            "reward function mine.f gave 1j (complex) for completions[1], to the "
            f"prompt '2+2='; {NUMBER}",
        ),
        (
            [0, 10**400],
            f"reward function mine.f gave 1{'0' * 199} … (int) for completions[1], to "
            f"the prompt '2+2='; {NUMBER}",
        ),
    ],
)
def test_what_is_returned_wrongly_is_named_with_its_row(values, line):
    assert complaint(lambda *texts, **columns: values) == line


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no\n such   thing"), "ValueError: no such thing"),
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(), "SystemExit"),
        (AssertionError(), "AssertionError"),
        (KeyError("x"), "KeyError: 'x'"),
        (ValueError("\x1b[2J\u202e"), r"ValueError: \x1b[2J\u202e"),
        (ValueError("x" * 201), f"ValueError: {'x' * 200} …"),
        (Unprintable(), "Unprintable: what cannot be printed"),
    ],
)
def test_whatever_is_raised_is_one_line(error, text):
    def f(prompts, completions, **columns):
        raise error

    line = f.__code__.co_firstlineno + 1
    assert complaint(f) == (
        f"reward function mine.f raised {text} (line {line} of {__file__}); give None "
        "for what it cannot grade"
    )


def test_a_function_is_not_asked_about_nothing():
    """As where the problems of a host, or of a call, want no further rollout."""

    def longest(prompts, completions, **columns):
        most = max(map(len, completions))  # a ValueError of no completions
        return [len(x) / most for x in completions]

    values = user_reward.call("f", longest, prompts=[], responses=[], columns={"a": []})
    assert values.shape == (0,) and values.dtype == np.float32


def test_ctrl_c_is_no_mistake_of_the_function():
    def f(prompts, completions, **columns):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        called(f)
    # But in the thread where functions are called it is: Ctrl-C never comes there.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        line = thread.submit(complaint, f).result()
    assert line.startswith("reward function mine.f raised KeyboardInterrupt (line ")


def test_a_function_may_do_as_it_likes_with_its_lists():
    texts = PROMPTS[:], RESPONSES[:]

    def f(prompts, completions, answer, **columns):
        completions.clear()
        answer.append("5")
        return [0, 0]

    columns = {"answer": ["2", "4"]}
    user_reward.call("f", f, prompts=texts[0], responses=texts[1], columns=columns)
    assert (*texts, columns) == (PROMPTS, RESPONSES, {"answer": ["2", "4"]})


def without(prompts, completions):
    return [0.0] * len(completions)


def lacking(prompts, completions, *, difficulty, **columns):
    return [0.0] * len(completions)


def by_place(answer, level, prompts, completions):
    return [0.0] * len(completions)


WITH = (
    "cannot be called with prompts, completions and the columns of train.jsonl "
    "(answer, level) by name: "
)
WRITE = "; write it as (prompts, completions, **columns) -> list[float | None]"


@pytest.mark.parametrize(
    ("function", "signature", "why"),
    [
        (
            without,
            "(prompts, completions)",
            "got an unexpected keyword argument 'answer'",
        ),
        (
            lacking,
            "(prompts, completions, *, difficulty, **columns)",
            "missing a required (keyword-only )?argument: 'difficulty'",
        ),
        (
            by_place,
            "(answer, level, prompts, completions)",
            "multiple values for argument 'answer'",
        ),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(function, signature, why):
    with pytest.raises(InputError) as raised:
        user_reward.check("mine.f", function, ["level"], "train.jsonl")
    begin, end = map(re.escape, (f"reward function mine.f{signature} {WITH}", WRITE))
    assert re.fullmatch(begin + why + end, str(raised.value))


async def waits(prompts, completions, **columns):
    return [0.0] * len(completions)


def yields(prompts, completions, **columns):
    yield from [0.0] * len(completions)


async def both(prompts, completions, **columns):
    yield [0.0] * len(completions)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (waits, "a coroutine (async def)"),
        (yields, "a generator (it has a yield)"),
        (both, "an asynchronous generator (async def with a yield)"),
    ],
)
def test_a_function_that_returns_no_list_is_refused(function, kind):
    with pytest.raises(InputError) as raised:
        user_reward.check("mine.f", function, ["level"], "train.jsonl")
    assert str(raised.value) == (
        f"reward function mine.f is {kind}, which returns no list when it is called"
        + WRITE
    )


class Unsigned:
    """A callable of which `inspect` knows no signature."""

    __signature__ = 1

    def __call__(self, *texts):
        return []


def test_signatures_that_fit():
    for function in (
        lambda prompts, completions, **columns: [],
        lambda prompts, completions, answer, level: [],
        lambda *texts, answer, **columns: [],
        Unsigned(),  # whose signature says nothing is believed
    ):
        user_reward.check("mine.f", function, ["level"], "train.jsonl")


def test_a_column_that_is_given_already():
    with pytest.raises(InputError) as raised:
        user_reward.check("mine.f", without, ["prompts"], "train.jsonl")
    assert str(raised.value) == (
        "the data set train.jsonl has a column 'prompts', which reward function mine.f "
        "gets already; rename the column"
    )


def test_a_module_that_exits_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "exiting_reward.py").write_text("import sys\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError) as raised:
        host.host_reward("exiting_reward.f")
    assert str(raised.value) == (
        "reward function 'exiting_reward.f': SystemExit: 0 (line 3 of "
        f"{os.path.join(tmp_path, 'exiting_reward.py')}); give module.name of a "
        "function (prompts, completions, **columns) -> list[float | None]"
    )
    sys.modules.pop("exiting_reward", None)
