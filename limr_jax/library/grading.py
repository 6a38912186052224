r"""Answers graded against references, a pair at a time or many, without a run.

The rules are those of `reward=math` (limr_jax/rewards/math). What they cannot settle at
once is settled by worker processes, which are started at the first such pair, stay for
later ones, and end with this process. JAX is not loaded.
"""

import os
import threading
from collections.abc import Sequence

from limr_jax import worker_pool
from limr_jax.config import limits
from limr_jax.errors import InputError, shown
from limr_jax.rewards.math.grade import Verdict, grade_math

_SECONDS = limits.Real(0.1, 3600)
_KEPT = 4  # pools, each of another limit of time
_pools: dict[float, worker_pool.WorkerPool] = {}  # the one used last is the last
_lock = threading.Lock()


def grade(
    answer: str, reference: str, *, response: bool = False, seconds: float = 10.0
) -> bool:
    r"""Whether an answer says what the reference says, by the strict rules of a run.

    answer: the answer itself, boxed or not; with `response` a model's whole text, in
    which the last balanced ``\boxed{…}`` counts and nothing else. reference: the right
    answer. seconds: what the pair may take, from 0.1 to 3600, of the clock and of a
    processor; a worker process that has to start first takes a second or so more.

    What cannot be graded (in this time, or at all) is not right; `verdicts` says why.

    Raises:
      InputError: an argument is no text, the reference says nothing, `seconds` is out
        of its range, or no process can be started.

    >>> grade(r"\frac12", "0.5")
    True
    >>> grade("x = 3", "3"), grade("5 squared", "5"), grade(r"\boxed{\{2, 1\}}", "1, 2")
    (True, False, True)
    >>> grade(r"That is \boxed{4}.", "4", response=True)
    True
    >>> grade("That is 4.", "4", response=True)  # no box, no answer
    False
    """
    verdict = verdicts([answer], [reference], response=response, seconds=seconds)[0]
    if verdict.correct is None and verdict.reason == "no reference":
        raise InputError(
            f"reference={shown(reference)!r} says nothing to compare with; give the "
            "right answer as text"
        )
    return verdict.correct is True


def verdicts(
    answers: Sequence[str],
    references: Sequence[str],
    *,
    response: bool = False,
    seconds: float = 10.0,
) -> list[Verdict]:
    r"""A verdict on each answer against its reference, on all cores.

    The arguments are those of `grade`, as lists of one length; each distinct pair is
    graded once. Of a `Verdict`, `correct` is True, False, or None where no verdict
    could be had; `reason` is the rule that decided, or what failed ("timeout", "died",
    "no reference"); `answer` is what was read as the answer, None without one.

    Raises:
      InputError: as `grade` does, but a reference that says nothing is a verdict here.

    >>> verdicts(["1/2", "7"], ["0.5", "8"])[1]
    Verdict(correct=False, reason='another number', answer='7')
    """
    limits.check_value(_SECONDS, seconds, "seconds")
    for name, texts in (("answers", answers), ("references", references)):
        _check_texts(name, texts)
    if len(answers) != len(references):
        raise InputError(
            f"{len(answers)} answers for {len(references)} references; give as many of "
            "one as of the other"
        )
    return grade_math(
        answers,
        references,
        mode="response" if response else "prediction",
        pool=_pool(float(seconds)),
    )


def _check_texts(name: str, texts: Sequence[str]) -> None:
    """InputError where it is no list of texts; a text alone is a list of letters."""
    if isinstance(texts, str) or not hasattr(texts, "__len__"):
        kind = type(texts).__name__
        raise InputError(f"{name} is {kind}; give a list of texts")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{name}[{i}]={shown(repr(text))} is {type(text).__name__}; give text, "
                f"such as {str(text)[:20]!r}"
            )


def _pool(seconds: float) -> worker_pool.WorkerPool:
    """The processes with this limit of time; none is started yet."""
    with _lock:
        pool = _pools.pop(seconds, None)
        if pool is None:
            pool = worker_pool.WorkerPool(wall_seconds=seconds, cpu_seconds=seconds)
        _pools[seconds] = pool
        # Whoever uses the oldest holds it; else its processes end here.
        while len(_pools) > _KEPT:
            _pools.pop(next(iter(_pools)))
        return pool


def _after_fork() -> None:
    """In a forked child: the workers are its parent's, and so are their pipes."""
    global _lock
    _lock = threading.Lock()  # another thread may have held it
    for pool in _pools.values():
        pool.forget()
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)
