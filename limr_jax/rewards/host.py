"""`HostReward`: strings in; correctness, shaped reward and validity out, on the host.

`host_reward('math')` makes one from what config.reward says. Nothing here knows of
devices: `host_grader.HostGrader` turns rollouts into strings, asks a HostReward, and
puts its grades on the devices. Raw correctness (what samplers and filters see) is apart
from the shaped reward (what the learner sees), and a row that nobody could grade is
*invalid*, never 0.

Executing code that a policy wrote is out of scope: a user's function may do that, in a
sandbox of the user's own.
"""

import concurrent.futures
import dataclasses
import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from limr_jax import worker_pool
from limr_jax.algorithms import dynamic_sampling
from limr_jax.data.boxed import boxed_answer
from limr_jax.errors import InputError
from limr_jax.rewards import limr, user_reward
from limr_jax.rewards.math.grade import SecondVerifier, ask_each_once, grade_math
from limr_jax.rewards.types import CODE
from limr_jax.rewards.user_reward import UserFunction

_BUILT_IN = ("math", "limr", "judge")
_LARGEST_WEIGHT = 1e6  # rewards are fp32
# What the graders say, where `types.REASONS` has another name for it.
_RENAMED = {
    "no box": "no_answer",
    "no answer": "no_answer",
    "control characters": "unreadable",
    "answer too long": "unreadable",
}


class GradingFailed(InputError):
    """The hosts could not grade a step: the run ends after its last update."""


@dataclasses.dataclass(frozen=True)
class HostGrades:
    """Grades of the B rows that one process grades, as NumPy arrays.

    correctness_B: fp32, 1 right, 0 wrong, nan unknown; raw, unshaped. reward_B: fp32,
    the weighted sum of `parts` (0 where invalid). valid_B: bool, every part has a
    value. parts: fp32 [B] by name, each before its weight, nan where it has no value.
    well_formed_B: bool, keeps LIMR's format. reasons: why each row got its grade: the
    rule of the first part, or what an invalid row lacks.
    """

    correctness_B: np.ndarray
    reward_B: np.ndarray
    valid_B: np.ndarray
    well_formed_B: np.ndarray
    parts: dict[str, np.ndarray]
    reasons: tuple[str, ...]

    @property
    def reason_B(self) -> np.ndarray:
        """The reasons as places in `types.REASONS`, int8 [B]."""
        names = (_RENAMED.get(x, x.replace(" ", "_")) for x in self.reasons)
        # A rule ("same text") and a part's name have no code: a valid row is "graded".
        others = (CODE["graded" if valid else "error"] for valid in self.valid_B)
        return np.array(list(map(CODE.get, names, others)), np.int8)

    def spread(self, asked_B: np.ndarray) -> "HostGrades":
        """The grades of more rows: those of `asked_B` are these, the others invalid.

        asked_B: bool, of all rows, True at as many as there are grades.
        """

        def over_all(x, fill):
            spread_B = np.full(len(asked_B), fill, x.dtype)
            spread_B[asked_B] = x
            return spread_B

        reasons = iter(self.reasons)
        return HostGrades(
            correctness_B=over_all(self.correctness_B, np.nan),
            reward_B=over_all(self.reward_B, 0),
            valid_B=over_all(self.valid_B, False),
            well_formed_B=over_all(self.well_formed_B, False),
            parts={name: over_all(x, np.nan) for name, x in self.parts.items()},
            reasons=tuple(
                next(reasons) if is_asked else "no answer" for is_asked in asked_B
            ),
        )


def parse_spec(spec: str | Mapping[str, float]) -> dict[str, float]:
    """`'limr'`, `'math, 0.2*my.module.brevity'` or {name: weight} → {name: weight}.

    The first is the one that correctness comes from. Raises InputError.
    """
    if isinstance(spec, str):
        terms = [t.strip() for t in spec.split(",") if t.strip()]
        # "0.2*my.f" → ("my.f", "0.2"); "math" → ("math", ""), whose weight is 1.
        pairs = [(t.rpartition("*")[2].strip(), t.rpartition("*")[0]) for t in terms]
    else:
        # As text: below "0.0" is a weight, and only "" stands for 1.
        pairs = [(name, str(weight)) for name, weight in spec.items()]
    weights = {}
    for name, weight in pairs:
        try:
            weights[name] = float(weight or 1.0)
        except ValueError:
            raise InputError(
                f"reward weight {weight!r} of {name} is no number"
            ) from None
        # Not `>`: nan, which float() reads, is refused too.
        if not abs(weights[name]) <= _LARGEST_WEIGHT:
            raise InputError(
                f"reward weight {weight!r} of {name} must be from -1e+06 to 1e+06"
            )
    # A name that is given twice is one key of the dict.
    if not weights or len(weights) != len(pairs):
        raise InputError(f"reward={spec!r} must name one or more functions, each once")
    if not any(weights.values()):
        raise InputError(f"reward={spec!r} weighs everything 0; give a weight")
    return weights


def shaped_first(spec: str) -> str | None:
    """The first reward's name where correctness should not come from it; else None.

    That is a function of a user's own that has a weight, or that stands before a
    built-in verifier.
    """
    if spec in ("token", "none"):
        return None
    (first, weight), *rest = parse_spec(spec).items()
    verifier = any(name in _BUILT_IN for name, _ in rest)
    return first if first not in _BUILT_IN and (weight != 1 or verifier) else None


def check_judge(weights: Mapping[str, float], has_judge: bool) -> None:
    """InputError where a reward asks a judge that is not there, or none asks it."""
    if "judge" in weights and not has_judge:
        raise InputError(
            "reward=judge has nobody to ask; give a checkpoint as judge.init"
        )
    if has_judge and not set(_BUILT_IN) & set(weights):
        raise InputError(
            f"judge.init is given, but reward={', '.join(weights)} asks no judge; name "
            "math, limr or judge, or leave judge.init empty"
        )


@dataclasses.dataclass(frozen=True)
class Overlong:
    """DAPO's penalty of long responses, a part of the reward; lengths are in tokens."""

    longest: int  # of the longest response that there can be
    buffer: int  # the last ones before that, over which it falls from 0 to −1
    weight: float

    def __call__(self, length_B: np.ndarray) -> np.ndarray:
        """The part's value for each response, −1 to 0, before its weight."""
        return dynamic_sampling.overlong_penalty(
            length_B, max_length=self.longest, buffer=self.buffer
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostReward:
    """A callable that grades a batch of strings; `host_reward` makes it."""

    weights: dict[str, float]  # of each part, by name; correctness is of the first
    functions: dict[str, UserFunction]  # the parts that are a user's own
    pool: worker_pool.WorkerPool  # the grading processes
    judge: SecondVerifier | None  # grades for reward=judge; else the rules' second look
    overlong: Overlong | None  # None: no penalty

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of `HostGrades.parts`."""
        return (*self.weights, *(["overlong"] if self.overlong else []))

    def submit(self, *batch, **options) -> "concurrent.futures.Future[HostGrades]":
        """Grade in the background, while the devices go on; arguments as for a call."""
        future = concurrent.futures.Future()

        def grade():
            try:
                future.set_result(self(*batch, **options))
            # Whatever it is: a future that is never set is waited for for ever.
            except BaseException as error:
                future.set_exception(error)

        # No executor: the process's end would wait for a function that hangs.
        threading.Thread(target=grade, name="grading", daemon=True).start()
        return future

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[str],
        references: Sequence[str],
        columns: Mapping[str, Sequence] | None = None,
        *,
        ended: Sequence[bool] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> HostGrades:
        """Grade B finished rollouts.

        prompts, responses, references and every column: length B. ended: finished by an
        end token (all, by default). lengths: tokens of the responses, for the penalty.
        InputError for what a user's function does wrong, or where no worker starts.
        """
        ended = [True] * len(responses) if ended is None else ended
        columns = {"answer": list(references)} | dict(columns or {})
        # Whatever the reward is: `well_formed` is a metric of every run.
        well_formed = map(limr.well_formed, responses, map(bool, ended))
        well_formed_B = np.fromiter(well_formed, bool, len(responses))
        verdicts = None
        # Once for both: the parts of `math, 0.5*limr` look at the same verdicts.
        if {"math", "limr"} & self.weights.keys():
            verdicts = grade_math(
                responses, references, mode="response", pool=self.pool, prompts=prompts,
                # The judge's word is a part of its own then; see `verifier`.
                second=None if "judge" in self.weights else self.judge,
            )  # fmt: skip
        parts, reasons = {}, {}
        for name in self.weights:
            if name in ("math", "limr"):
                right_B = _values(v.correct for v in verdicts)
                limr_B = limr.rewards(well_formed_B, verdicts)
                parts[name] = right_B if name == "math" else limr_B
                reasons[name] = [v.reason for v in verdicts]
            elif name == "judge":
                parts[name] = self._judged(prompts, responses, references)
                reasons[name] = _reasons(parts[name], name, "no opinion")
            else:
                parts[name] = user_reward.call(
                    name,
                    self.functions[name],
                    prompts=prompts,
                    responses=responses,
                    columns=columns,
                )
                reasons[name] = _reasons(parts[name], name, "no value")
        first = next(iter(self.weights))
        if first in ("math", "limr"):
            # Not the part's value, which may be LIMR's −0.5 or −1.
            correctness_B = right_B
        else:
            # nan >= 1 is False, but a row without a value is unknown, not wrong.
            known_B = ~np.isnan(parts[first])
            correctness_B = np.where(known_B, parts[first] >= 1.0, np.nan)
        weights = dict(self.weights)
        if self.overlong:
            if lengths is None:
                raise InputError("the overlong penalty needs the responses' lengths")
            parts["overlong"] = self.overlong(np.asarray(lengths, np.float32))
            weights["overlong"] = self.overlong.weight
        return _combined(correctness_B, well_formed_B, parts, weights, reasons)

    def _judged(self, prompts, responses, references) -> np.ndarray:
        """The judge's opinion on what each box holds; without a box, on all of it.

        fp32 [B]: 1 right, 0 wrong, nan where it has no opinion.
        """
        # A proof has no box. An empty box is one, and answers nothing.
        boxed = [boxed_answer(response) for response in responses]
        answers = [
            response.strip() if answer is None else answer
            for answer, response in zip(boxed, responses, strict=True)
        ]
        rows = list(zip(prompts, answers, references, strict=True))
        # Nobody is asked about an empty answer: it is wrong.
        opinions = iter(ask_each_once(self.judge, [row for row in rows if row[1]]))
        return _values(next(opinions) if answer else False for answer in answers)

    def check_columns(self, columns: Iterable[str], source: str) -> None:
        """InputError where a user's function cannot take the columns of a data set.

        source: the data set's name.
        """
        for name, function in self.functions.items():
            user_reward.check(name, function, columns, source)

    def close(self) -> None:
        """End the workers; the next call starts fresh ones. Waits for nothing."""
        self.pool.close()

    def verifier(self) -> "HostReward":
        """A HostReward of the first part alone, for held-out answers; the same workers.

        The other parts only shape the reward: an answer is not ungradable because one
        of them has no value for it.
        """
        first = next(iter(self.weights))
        # A judge that is a part of its own is not the rules' second verifier, too.
        needs_judge = first == "judge" or "judge" not in self.weights
        return dataclasses.replace(
            self,
            weights={first: 1.0},
            judge=self.judge if needs_judge else None,
            overlong=None,
        )


def _values(verdicts: Iterable[bool | None]) -> np.ndarray:
    """fp32 [B]: 1 right, 0 wrong, nan unknown."""
    return np.array([np.nan if v is None else float(v) for v in verdicts], np.float32)


def _reasons(values_B: np.ndarray, name: str, otherwise: str) -> list[str]:
    """The part's name for each row; `otherwise` where it has no value."""
    return [otherwise if absent else name for absent in np.isnan(values_B)]


def _combined(correctness_B, well_formed_B, parts, weights, reasons) -> HostGrades:
    """HostGrades from the parts' values.

    reasons: by part, one for each row; a part without reasons (the overlong penalty)
    always has a value. Raises InputError where a reward is more than fp32 holds.
    """
    parts = {name: np.asarray(parts[name], np.float32) for name in weights}
    # In fp64, where no term overflows: inf − inf would be nan, a row without a value.
    terms = (weights[name] * parts[name].astype(np.float64) for name in weights)
    total_B = np.asarray(sum(terms), np.float64)
    huge_B = np.abs(total_B) > np.finfo(np.float32).max
    if huge_B.any():
        raise InputError(
            f"the rewards of completions[{np.flatnonzero(huge_B)[0]}] add up to more "
            "than fp32 holds; lower the weights"
        )
    # The first part's reason, unless a part has no value: then the first such one's.
    row_reasons = list(next(iter(reasons.values())))
    # From the last part to the first, so that the first has the last word.
    for name, column in reversed(reasons.items()):
        absent_B = np.isnan(parts[name])
        row_reasons = [
            x if absent else y for x, y, absent in zip(column, row_reasons, absent_B)
        ]
    # LIMR's −1 of a row without its format, or out of time, whatever the grader says
    # of its answer: such an answer is not right.
    refused_B = ~np.isnan(total_B) & np.isnan(correctness_B)
    correctness_B = np.where(refused_B, 0.0, correctness_B)
    valid_B = ~np.isnan(total_B) & ~np.isnan(correctness_B)
    return HostGrades(
        correctness_B=correctness_B.astype(np.float32),
        # Not nan where it is invalid: no program of the run is handed one.
        reward_B=np.where(valid_B, total_B, 0.0).astype(np.float32),
        valid_B=valid_B,
        well_formed_B=well_formed_B,
        parts=parts,
        reasons=tuple(row_reasons),
    )


def host_reward(
    spec: str | Mapping[str, float],
    *,
    workers_count: int | None = None,
    wall_seconds: float = 20.0,
    cpu_seconds: float = 3.0,
    memory_mib: int = 1024,
    judge: SecondVerifier | None = None,
    overlong_buffer: int | None = None,
    overlong_weight: float = 1.0,
    max_response_length: int | None = None,
) -> HostReward:
    """The reward that `spec` describes (see parse_spec); checks it before it is used.

    Workers start at the first batch that needs one. Raises InputError.
    """
    weights = parse_spec(spec)
    functions = {n: user_reward.load(n) for n in weights if n not in _BUILT_IN}
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
        overlong = Overlong(max_response_length, overlong_buffer, overlong_weight)
    pool = worker_pool.WorkerPool(
        workers=workers_count,
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        memory_mib=memory_mib,
    )
    return HostReward(
        weights=weights, functions=functions, pool=pool, judge=judge, overlong=overlong
    )
