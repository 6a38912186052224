"""Rewards on the host: strings in; correctness, shaped reward and validity out.

`host_reward('math')` gives a function of a batch of finished rollouts. Raw correctness
(what samplers and filters see) is apart from the shaped reward (what the learner
sees), and a row that nobody could grade is *invalid*, never 0.

Executing code that a policy wrote is out of scope: a user's function may do that, in a
sandbox of the user's own.
"""

import concurrent.futures
import dataclasses
import importlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from limr_jax import grading, math_extract, workers
from limr_jax.algorithms import dynamic_sampling
from limr_jax.errors import InputError

UserFunction = Callable[..., Sequence[float | None]]
_BUILT_IN = ("math", "limr", "judge")


@dataclasses.dataclass(frozen=True)
class Grades:
    """One entry a row, all of length B.

    correctness_B: 1 right, 0 wrong, nan unknown; raw, unshaped. reward_B: weighted sum
    of `parts` (0 where invalid). valid_B: every part could be had. parts: by name, each
    before its weight, nan where it had no value. reasons: why each row got its grade.
    """

    correctness_B: np.ndarray
    reward_B: np.ndarray
    valid_B: np.ndarray
    parts: dict[str, np.ndarray]
    reasons: tuple[str, ...]


def user_function(path: str) -> UserFunction:
    """The function at `package.module.name` or `package.module:name`.

    Its module is found where Python looks (PYTHONPATH, too) or in the current folder.
    Raises InputError if there is none.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides nothing
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        function = getattr(importlib.import_module(module), name) if module else None
    except Exception as error:  # the module's own code may raise anything
        raise InputError(
            f"reward function {path!r}: {_said(error)}; give module.name of a function "
            "(prompts, completions, **columns) -> list[float | None]"
        ) from error
    if not callable(function):
        raise InputError(
            f"reward={path!r} is unknown; give one of {', '.join(_BUILT_IN)} "
            "or a dotted path to a function"
        )
    return function


def _said(error: Exception) -> str:
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return kind + " ".join(str(error).split())


def _call(name: str, function: UserFunction, prompts, responses, columns) -> np.ndarray:
    """A user's values as floats, None → nan; InputError for another length or type."""
    values = function(list(prompts), list(responses), **columns)
    if values is None or len(values) != len(responses):
        size = "None" if values is None else len(values)
        raise InputError(
            f"reward function {name} gave {size} values for {len(responses)} "
            "completions; give a list of that length, with None where it cannot grade"
        )
    try:
        return np.array([np.nan if v is None else float(v) for v in values], np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"reward function {name}: {error}; give floats") from error


# ---- LIMR's reward ---------------------------------------------------------------

REPEATED_LENGTH, REPEATED_TIMES = 80, 20
_SEARCHED = 20_000  # characters at the end, where repetition shows
_USUAL = set("…–—−·×÷≤≥≠≈±∞∈∪∩√π°′²³½αβγδεθλμσφω")


def odd_share(text: str) -> float:
    """Share of characters that are neither ASCII nor usual in mathematics."""
    odd = sum(c > "\x7e" and c not in _USUAL or c < "\t" for c in text)
    return odd / max(len(text), 1)


def repeats(text: str) -> bool:
    """Does one stretch of 80 characters occur 20 times or more (overlaps count)?"""
    text = text[-_SEARCHED:]
    stretches = range(len(text) - REPEATED_LENGTH + 1)
    counts = Counter(text[k : k + REPEATED_LENGTH] for k in stretches)
    return bool(counts) and max(counts.values()) >= REPEATED_TIMES


def well_formed(response: str, ended: bool) -> bool:
    """LIMR's format: an end token, 1 to 4 boxes, few odd characters, no repetition.

    Departure: the paper names the rules only. What an odd character is, and which
    stretch counts as a repeated pattern, is this project's reading.
    """
    return (
        ended
        and 1 <= len(math_extract.boxes(response)) <= 4
        and odd_share(response) <= 0.3
        and not repeats(response)
    )


def limr_reward(
    responses: Sequence[str],
    verdicts: Sequence[grading.Verdict],
    ended: Sequence[bool],
) -> np.ndarray:
    """+1 right; −0.5 wrong but well formed; −1 bad format or out of time.

    arXiv:2502.11886. nan where the grader failed for another reason than time.
    """
    rewards = []
    for response, verdict, end in zip(responses, verdicts, ended, strict=True):
        if not well_formed(response, bool(end)) or verdict.reason == "timeout":
            rewards.append(-1.0)
        elif verdict.correct is None:
            rewards.append(np.nan)
        else:
            rewards.append(1.0 if verdict.correct else -0.5)
    return np.array(rewards, np.float32)


# ---- the façade ------------------------------------------------------------------


def parse_spec(spec: str | Mapping[str, float]) -> dict[str, float]:
    """`'limr'`, `'math, 0.2*my.module.brevity'` or {name: weight} → {name: weight}.

    The first is the one that correctness comes from. Raises InputError.
    """
    if isinstance(spec, str):
        terms = [t.strip() for t in spec.split(",") if t.strip()]
        pairs = [(t.rpartition("*")[2].strip(), t.rpartition("*")[0]) for t in terms]
    else:
        pairs = [(name, str(weight)) for name, weight in spec.items()]
    weights = {}
    for name, weight in pairs:
        try:
            weights[name] = float(weight or 1.0)
        except ValueError:
            raise InputError(
                f"reward weight {weight!r} of {name} is no number"
            ) from None
    if not weights or len(weights) != len(pairs):
        raise InputError(f"reward={spec!r} must name one or more functions, each once")
    return weights


def shaped_first(spec: str) -> str | None:
    """The first reward's name where it is not what correctness should come from.

    That is: a function of the user's own with a weight, or before a built-in verifier.
    """
    if spec in ("token", "none"):
        return None
    (first, weight), *rest = parse_spec(spec).items()
    verifier = any(name in _BUILT_IN for name, _ in rest)
    return first if first not in _BUILT_IN and (weight != 1 or verifier) else None


def check_judge(weights: Mapping[str, float], given: bool) -> None:
    """InputError where a reward asks a judge that is not there, or none asks it."""
    if "judge" in weights and not given:
        raise InputError(
            "reward=judge has nobody to ask; give a checkpoint as judge.init"
        )
    if given and not set(_BUILT_IN) & set(weights):
        raise InputError(
            f"judge.init is given, but reward={', '.join(weights)} asks no judge; name "
            "math, limr or judge, or leave judge.init empty"
        )


@dataclasses.dataclass(frozen=True)
class HostReward:
    """Called with a batch, gives Grades. Made by `host_reward`; holds the workers."""

    weights: dict[str, float]
    functions: dict[str, UserFunction]
    pool: workers.WorkerPool
    judge: grading.Second | None  # `judge` itself, or the second verifier of the rules
    overlong: tuple[int, int, float] | None
    thread: concurrent.futures.ThreadPoolExecutor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(1, "grading")
    )

    def submit(self, *batch, **more) -> "concurrent.futures.Future[Grades]":
        """Grade in the background, while the devices go on; arguments as for a call."""
        return self.thread.submit(self, *batch, **more)

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: Sequence[str],
        columns: Mapping[str, Sequence] | None = None,
        *,
        ended: Sequence[bool] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Grades:
        """Grade B finished rollouts.

        prompts, responses, references and every column: length B. ended: finished by an
        end token (all, by default). lengths: tokens of the responses, for the penalty.
        """
        ended = [True] * len(responses) if ended is None else ended
        columns = {"answer": list(references)} | dict(columns or {})
        parts, verdicts = {}, None
        if {"math", "limr"} & self.weights.keys():
            verdicts = grading.grade_math(
                responses, references, mode="response", pool=self.pool, prompts=prompts,
                second=None if "judge" in self.weights else self.judge,
            )  # fmt: skip
        for name in self.weights:
            if name == "math":
                parts[name] = _values(v.correct for v in verdicts)
            elif name == "limr":
                parts[name] = limr_reward(responses, verdicts, ended)
            elif name == "judge":
                parts[name] = self._judged(prompts, responses, references)
            else:
                function = self.functions[name]
                parts[name] = _call(name, function, prompts, responses, columns)
        first = next(iter(self.weights))
        if verdicts is not None and first in ("math", "limr"):
            correctness = _values(v.correct for v in verdicts)
            reasons = [v.reason for v in verdicts]
        else:
            known = ~np.isnan(parts[first])
            correctness = np.where(known, parts[first] >= 1.0, np.nan)
            reasons = [first] * len(responses)
        weights = dict(self.weights)
        if self.overlong:
            longest, buffer, weights["overlong"] = self.overlong
            if lengths is None:
                raise InputError("the overlong penalty needs the responses' lengths")
            parts["overlong"] = dynamic_sampling.overlong_penalty(
                np.asarray(lengths, np.float32), max_length=longest, buffer=buffer
            )
        return _combined(correctness, parts, weights, reasons)

    def _judged(self, prompts, responses, references) -> np.ndarray:
        """The judge's opinion on what each box holds; without a box, on all of it."""
        answers = [math_extract.boxed_answer(r) or r.strip() for r in responses]
        rows = list(zip(prompts, answers, references, strict=True))
        opinions = iter(grading.ask(self.judge, [row for row in rows if row[1]]))
        return _values(next(opinions) if answer else False for answer in answers)

    def check_columns(self, columns: Iterable[str]) -> None:
        """InputError where a user's function is given something twice."""
        twice = [name for name in ("prompts", "completions") if name in columns]
        if self.functions and twice:
            raise InputError(
                f"the data set has a column {twice[0]!r}, which reward function "
                f"{next(iter(self.functions))} gets already; rename the column"
            )

    def close(self) -> None:
        """Finish what was submitted; end the workers."""
        self.thread.shutdown()
        self.pool.close()


def _values(verdicts: Iterable[bool | None]) -> np.ndarray:
    """1 right, 0 wrong, nan unknown."""
    return np.array([np.nan if v is None else float(v) for v in verdicts], np.float32)


def _combined(correctness_B, parts, weights, reasons) -> Grades:
    total_B = sum(weights[name] * parts[name] for name in weights)
    total_B = np.asarray(total_B, np.float32)
    # A LIMR row that ran out of time has its reward, −1: such an answer is not right.
    late_B = np.array([r == "timeout" for r in reasons], bool)  # B may be 0
    correctness_B = np.where(late_B & ~np.isnan(total_B), 0.0, correctness_B)
    valid_B = ~np.isnan(total_B) & ~np.isnan(correctness_B)
    return Grades(
        correctness_B=correctness_B.astype(np.float32),
        reward_B=np.where(valid_B, total_B, 0.0).astype(np.float32),
        valid_B=valid_B,
        parts={name: np.asarray(parts[name], np.float32) for name in weights},
        reasons=tuple(reasons),
    )


def host_reward(
    spec: str | Mapping[str, float],
    *,
    workers_count: int | None = None,
    wall_seconds: float = 20.0,
    cpu_seconds: float = 3.0,
    memory_mib: int = 1024,
    judge: grading.Second | None = None,
    overlong_buffer: int | None = None,
    overlong_weight: float = 1.0,
    max_response_length: int | None = None,
) -> HostReward:
    """The reward that `spec` describes (see parse_spec); checks it before it is used.

    Workers start at the first batch that needs one. Raises InputError.
    """
    weights = parse_spec(spec)
    functions = {n: user_function(n) for n in weights if n not in _BUILT_IN}
    check_judge(weights, judge is not None)
    overlong = None
    if overlong_buffer is not None:
        if max_response_length is None:
            raise InputError("overlong_buffer needs max_response_length; give both")
        if not 0 < overlong_buffer <= max_response_length:
            raise InputError(
                f"overlong buffer={overlong_buffer} must lie in 1 … "
                f"{max_response_length}, the longest response; give fewer tokens"
            )
        overlong = (max_response_length, overlong_buffer, overlong_weight)
    pool = workers.WorkerPool(
        workers=workers_count,
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        memory_mib=memory_mib,
    )
    return HostReward(weights, functions, pool, judge, overlong)
