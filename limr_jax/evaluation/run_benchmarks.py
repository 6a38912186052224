"""Running a benchmark suite: every response kept on disk, and figures made of them.

The folder of an evaluation holds

    run.json                what is evaluated, and how         (claim)
    <benchmark>/rollouts/*  every response as text             (rollout_dump.Dump)
    result.json             the figures with their intervals   (write_result)

Figures are made of the responses on disk, so that an evaluation that was stopped goes
on after its last whole chunk and says the same as one that was not.
"""

import dataclasses
import fractions
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from limr_jax import console
from limr_jax.data.prompts import put_prompts
from limr_jax.errors import InputError
from limr_jax.evaluation import accuracy, statistics
from limr_jax.evaluation.accuracy import Figure
from limr_jax.evaluation.benchmarks import BenchmarkSuite, BenchmarkTask
from limr_jax.evaluation.evaluator import Evaluation, make_evaluator, ungradable
from limr_jax.rewards.math import normalise
from limr_jax.rewards.math.extract import MAX_ANSWER
from limr_jax.rewards.math.literals import parse_number
from limr_jax.rewards.types import CODE, REASONS
from limr_jax.storage import files, rollout_dump
from limr_jax.storage.workdir import claim, read_run, release, write_result

_ALL = 2**62  # bytes of a dump: no response ever goes
_INTERVAL = {"response_length": statistics.ratio}  # of what is no share


def run_suite(suite: BenchmarkSuite, out) -> dict:
    """Write and grade the responses that `out` lacks; return the suite's result.

    The result is a dict that JSON can hold, and is kept in out/result.json too. The
    suite is closed. Raises InputError, with the fields that differ, where `out` holds
    another evaluation.
    """
    start = time.monotonic()
    out = pathlib.Path(out).absolute()  # wherever a reward function goes meanwhile
    digest = (read_run(out, missing_ok=True) or {}).get("params_digest")
    if digest:  # refused, if it is, before the parameters are loaded
        _claim(suite, out, digest)
    try:
        digest, params = suite.load_policy()
        _claim(suite, out, digest)
        with jax.set_mesh(suite.mesh):
            for task in suite.tasks:
                _write_responses(suite, task, params=params, folder=folder(out, task))
        result = _result(suite, out, digest)
        result["seconds"] = round(time.monotonic() - start, 2)
        write_result(out, result)
    finally:
        suite.close()
        release(out)
    return result


def _claim(suite: BenchmarkSuite, out, digest: str) -> None:
    # Wherever the policy lies, its parameters are what is evaluated.
    content = dict.fromkeys(("policy.run", "policy.init"), digest[:16])
    policy = {"params_digest": digest, "content": content}
    claim(out, suite.identity | policy, flag="--out")


def folder(out, task: BenchmarkTask) -> pathlib.Path:
    """The folder below `out` that holds the responses to one benchmark."""
    return pathlib.Path(out, files.folder_name(task.benchmark.label))


def _write_responses(
    suite: BenchmarkSuite, task: BenchmarkTask, params, folder: pathlib.Path
) -> None:
    """The responses to every problem that has none on disk, chunk by chunk.

    A chunk's rows stand under the number of problems that are done with it, so that
    an evaluation may go on in chunks of another size.
    """
    count, k = len(task.problems), task.benchmark.k
    done = max((row["step"] for row in rollout_dump.read_dump(folder)), default=0)
    if done == count:
        return
    # Needed: where a row cannot be written the evaluation ends, for figures are made of
    # them all.
    dump = rollout_dump.Dump(folder, step=done, max_bytes=_ALL, needed=True)
    evaluator = make_evaluator(
        suite.mesh,
        put_prompts(task.problems, suite.mesh),
        count=count,
        k=k,
        seed=suite.seed,
        # 28 bits of the digest, for fold_in takes 32: the noise of a set is its own,
        # whatever the set is called.
        number=int(task.problems.problems.digest[:7], 16),
        generation=suite.generation,
        compute=suite.compute,
        grade=task.grade,
    )
    label = f"evaluate {task.benchmark.label}"
    if done:
        console.say(f"{label}: going on after {done} of {count} problems")
    with console.progress(label, count - done, unit="problem") as advance:
        for result in evaluator.answers(params, task.sampling, done):
            first, done = done, done + len(result.valid_Nk)
            dump.add(done, _rows(suite, task, result=result, first=first))
            advance(done - first)


def _rows(suite, task, result: Evaluation, first: int) -> Iterator[dict]:
    """Each response to the problems from place `first` on, as a row of the dump."""
    problems = task.problems.problems
    levels = problems.columns.get("level") or [None] * len(problems)
    for n, k in np.ndindex(result.valid_Nk.shape):
        length = result.length_Nk[n, k]
        response = suite.tokenizer.decode(result.response_NkT[n, k, :length])
        truncated = bool(result.truncated_Nk[n, k])
        yield {
            "id": problems.ids[first + n],
            "sample": k,
            "level": levels[first + n],
            "prompt": problems.messages[first + n] or problems.prompts[first + n],
            "response": response,
            "answer": suite.answer_of(response, truncated),
            "reference": problems.answers[first + n],
            "correct": result.correct_Nk[n, k],
            "valid": result.valid_Nk[n, k],
            "reason": REASONS[result.reason_Nk[n, k]],
            "well_formed": result.well_formed_Nk[n, k],
            "truncated": truncated,
            "length": length,
        }


@dataclasses.dataclass(frozen=True)
class StoredResponses:
    """The responses to one benchmark as they lie on disk."""

    result: Evaluation  # without the tokens
    answers: list[list[str | None]]  # of each problem's k responses
    levels: tuple  # of each problem; None where it has none


def read_responses(folder, task: BenchmarkTask) -> StoredResponses:
    """All responses to a benchmark that lie in `folder`.

    Raises InputError where one is missing, or not in its place.
    """
    problems, k = task.problems.problems, task.benchmark.k
    rows = list(rollout_dump.read_dump(folder))
    expected = [(problem, sample) for problem in problems.ids for sample in range(k)]
    # The order too: figures take responses by their place.
    if [(row["id"], row["sample"]) for row in rows] != expected:
        raise InputError(
            f"{folder} does not hold {k} responses to each of {len(problems)} problems "
            "in their order; remove that folder and they are made again"
        )

    def by_problem(values, dtype):
        return np.array(list(values), dtype).reshape(len(problems), k)

    def column(name, dtype):
        return by_problem((row[name] for row in rows), dtype)

    return StoredResponses(
        result=Evaluation(
            correct_Nk=column("correct", np.float32),
            valid_Nk=column("valid", bool),
            well_formed_Nk=column("well_formed", bool),
            truncated_Nk=column("truncated", bool),
            length_Nk=column("length", np.int32),
            # T = 0: a dump holds texts.
            response_NkT=np.zeros((len(problems), k, 0), np.int32),
            reason_Nk=by_problem((CODE[_reason(row)] for row in rows), np.int8),
        ),
        answers=[
            [row["answer"] for row in rows[i : i + k]] for i in range(0, len(rows), k)
        ],
        levels=tuple(row["level"] for row in rows[::k]),
    )


def _reason(row: dict) -> str:
    """Why a response has its grade; an earlier version's rows do not say."""
    return row.get("reason") or ("graded" if row["valid"] else "error")


def votes(answers: Sequence[str | None]) -> list[int]:
    """The vote of each response to one problem: the place of the first that agrees.

    A response without an answer has −1. Two answers agree if they are numbers of
    exactly the same value, or the same text without LaTeX's dressing. No reference is
    compared with, and no worker needed; who votes with whom does not depend on the
    order.
    """
    first: dict = {}
    return [
        -1 if answer is None else first.setdefault(_canonical(answer), i)
        for i, answer in enumerate(answers)
    ]


def _canonical(answer: str) -> fractions.Fraction | str:
    """The same for two answers that agree: an exact number, or a bare text."""
    # The grader reads none that is longer; here each is its own text.
    if len(answer) > MAX_ANSWER:
        return answer
    number = parse_number(normalise.clean(answer))
    if number:
        # 28% and 0.28 are one vote, 28 another.
        return number.value / 100 if number.percent else number.value
    return normalise.squeezed(answer) or answer


def _result(suite: BenchmarkSuite, out, digest: str) -> dict:
    """The suite's one JSON object, all but the seconds."""
    reports, accuracies = {}, []
    for task in suite.tasks:
        responses = read_responses(folder(out, task), task)
        right = figures(responses)["accuracy"]
        accuracies.append(statistics.proportion(right.part_N, right.whole_N))
        reports[task.benchmark.label] = {
            "problems": len(task.problems),
            "left_out": list(task.problems.left_out),
            "k": task.benchmark.k,
            "temperature": task.benchmark.temperature,
        } | report(responses)
    return {
        "policy": suite.identity["policy"],
        "params_digest": digest,
        "reward": suite.identity["reward"],
        "top_p": suite.identity["top_p"],
        "max_response_length": suite.identity["max_response_length"],
        "seed": suite.seed,
        "benchmarks": reports,
        # Of the benchmarks, each of the same weight.
        "mean_accuracy": statistics.average(accuracies).as_json(),
        "out": str(out),
    }


def figures(responses: StoredResponses) -> dict[str, Figure]:
    """The figures of `accuracy.figures`, with the answered share and maj@k.

    Those two need the answers' texts.
    """
    by_name = accuracy.figures(responses.result)
    vote_Nk = np.array([votes(answers_k) for answers_k in responses.answers])
    count, k = vote_Nk.shape
    answered_N = np.sum(vote_Nk >= 0, axis=1)
    by_name["answered"] = Figure(answered_N, np.full(count, k))
    if k > 1:
        majority_N = accuracy.maj_at_k(vote_Nk, accuracy.right(responses.result))
        by_name[f"maj_at_{k}"] = Figure(majority_N, np.ones(count))
    return by_name


def report(responses: StoredResponses) -> dict:
    """The figures of one benchmark with their 95 % intervals, whole and by level.

    It is a dict that JSON can hold: figure → value, low, high; and the number of
    responses that could not be graded by reason.
    """
    by_name, levels = figures(responses), responses.levels

    def at(chosen_N) -> dict:
        return {
            name: _INTERVAL.get(name, statistics.proportion)(
                figure.part_N[chosen_N], figure.whole_N[chosen_N]
            ).as_json()
            for name, figure in by_name.items()
        }

    named = sorted({level for level in levels if level is not None}, key=str)
    masks = {level: np.array([x == level for x in levels]) for level in named}
    by_level = {
        str(level): {"problems": int(mask.sum())} | at(mask)
        for level, mask in masks.items()
    }
    whole = at(np.ones(len(levels), bool))
    return whole | {
        "ungradable": ungradable(responses.result),
        "levels": by_level,
    }
