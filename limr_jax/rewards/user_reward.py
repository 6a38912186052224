"""Reward functions of a user's own: loaded, checked before anything runs, and called.

They run in this process, in a thread beside the loop, and without a clock: a function
may well ask a server or a sandbox. While one takes its time, Ctrl-C and SIGTERM end the
run, unless it holds Python's interpreter all the while, as one regular expression does.
Whatever a function raises (SystemExit, too) or returns wrongly is an InputError of one
line.
"""

import functools
import importlib
import inspect
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import numpy as np

from limr_jax.errors import InputError

UserFunction = Callable[..., Sequence[float | None]]
_SIGNATURE = "(prompts, completions, **columns) -> list[float | None]"
_NO_LIST = {
    inspect.iscoroutinefunction: "a coroutine (async def)",
    inspect.isgeneratorfunction: "a generator (it has a yield)",
    inspect.isasyncgenfunction: "an asynchronous generator (async def with a yield)",
}
_LARGEST = float(np.finfo(np.float32).max)
_SHOWN = 200  # characters of what a function raised, returned or was given


def load(path: str) -> UserFunction:
    """The function at `package.module.name` or `package.module:name`.

    Its module is found where Python looks (PYTHONPATH, too) or in the current folder.
    Raises InputError if there is none.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides nothing
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        # "maths" has no module: it is a built-in's name, misspelt.
        function = getattr(importlib.import_module(module), name) if module else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the module's own code may raise anything
        # That a name is missing says it all; of the rest the line that raised helps.
        unknown = isinstance(error, (ImportError, AttributeError))
        reason = _text(error) if unknown else _raised(error)
        raise InputError(
            f"reward function {path!r}: {reason}; give module.name of a function "
            + _SIGNATURE
        ) from error
    if not callable(function):
        raise InputError(
            f"reward={path!r} is unknown; give one of math, limr, judge or a dotted "
            "path to a function"
        )
    return function


def check(name: str, function: UserFunction, columns: Iterable[str], source: str):
    """InputError where the function cannot be called with a data set's columns.

    source: the data set's name. A function that Python knows no signature of is
    believed.
    """
    columns = sorted({"answer", *columns})
    twice = [column for column in ("prompts", "completions") if column in columns]
    if twice:
        raise InputError(
            f"the data set {source} has a column {twice[0]!r}, which reward function "
            f"{name} gets already; rename the column"
        )
    for is_one, kind in _NO_LIST.items():
        if is_one(function):
            raise InputError(
                f"reward function {name} is {kind}, which returns no list when it is "
                f"called; write it as {_SIGNATURE}"
            )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        # As `call` does it: the two texts by place, the columns by name.
        signature.bind([], [], **dict.fromkeys(columns))
    except TypeError as error:
        raise InputError(
            f"reward function {name}{signature} cannot be called with prompts, "
            f"completions and the columns of {source} ({', '.join(columns)}) by name: "
            f"{error}; write it as {_SIGNATURE}"
        ) from None


def call(
    name: str,
    function: UserFunction,
    *,
    prompts: Sequence[str],
    responses: Sequence[str],
    columns: Mapping[str, Sequence],
) -> np.ndarray:
    """Its values as fp32 [B], None and nan as nan; InputError for all that is wrong.

    That is: whatever it raises, another number of values, a value that is no number, or
    none that fp32 can hold, infinity among them.
    """
    if not responses:
        # Of a host or a call whose problems want no further rollout. Few functions are
        # written for no rollouts.
        return np.zeros(0, np.float32)
    # Lists of its own, so that what it does to them changes none of the caller's.
    own = {column: list(values) for column, values in columns.items()}
    try:
        values = function(list(prompts), list(responses), **own)
    except BaseException as error:
        # Ctrl-C comes to the main thread alone; elsewhere it is the function's own.
        by_hand = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and by_hand:
            raise
        raise InputError(
            f"reward function {name} raised {_raised(error)}; give None for what it "
            "cannot grade"
        ) from error
    values = _listed(name, values, len(responses))
    numbers = map(_number, values)
    # fp64, in which 1e39 is a number; in fp32 it would be infinity without a word.
    numbers_B = np.fromiter(numbers, np.float64, len(values))
    wrong = np.flatnonzero(np.abs(numbers_B) > _LARGEST)  # nan is no value, not wrong
    if len(wrong):
        b = wrong[0]
        raise InputError(
            f"reward function {name} gave {_shown(values[b])} "
            f"({type(values[b]).__name__}) for completions[{b}], to the prompt "
            f"{_shown(prompts[b])}; give a finite number, or None where it cannot grade"
        )
    return numbers_B.astype(np.float32)


def _listed(name: str, values, count: int) -> list:
    """The values as a list of that length."""
    remedy = f"give a list of {count}, with None where it cannot grade"
    # They have a length and can be walked through, but "10" is not [1, 0], and a dict
    # or a set is in no order of the completions.
    unordered = isinstance(values, (str, bytes, Mapping, Set))
    try:
        # No length: a generator, say. np.array(1.0) says that it has one, then raises.
        listed = None if unordered or not hasattr(values, "__len__") else list(values)
    except Exception:
        listed = None
    if listed is None:
        raise InputError(
            f"reward function {name} returned {type(values).__name__}, no list of "
            f"numbers; {remedy}"
        )
    if len(listed) != count:
        raise InputError(
            f"reward function {name} gave {len(listed)} values for {count} "
            f"completions; {remedy}"
        )
    return listed


def _number(value) -> float:
    """The value as a float, nan where it is None; infinity where it is no number."""
    if value is None:
        return math.nan
    try:
        # float("1.0") is 1, but text is a mistake here; `call` refuses infinity.
        return math.inf if isinstance(value, (str, bytes)) else float(value)
    except Exception:
        return math.inf


def _raised(error: BaseException) -> str:
    """`ValueError: what it says (line 3 of mine.py)`, on one line."""
    text = _text(error)
    frames = traceback.extract_tb(error.__traceback__)
    # Where it was raised, but for what Python's import and this module do themselves.
    machinery = (__file__, importlib.__file__)
    own = [
        x for x in frames if x.filename not in machinery and "<frozen" not in x.filename
    ]
    place = f" (line {own[-1].lineno} of {own[-1].filename})" if own else ""
    return type(error).__name__ + (f": {text}" if text else "") + place


def _text(error: BaseException) -> str:
    return _safely(lambda: str(error))


def _shown(value) -> str:
    return _safely(lambda: repr(value))


def _safely(describe: Callable[[], str]) -> str:
    """One short line that a terminal prints as it stands, whatever a policy wrote."""
    try:
        text = " ".join(describe().split())
    except Exception:
        return "what cannot be printed"
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + " …"
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


@functools.cache
def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
