"""An examination is sat: every response kept on disk, and figures made of them.

The folder of an evaluation holds

    run.json                what is evaluated, and how         (checkpoint.claim)
    <benchmark>/rollouts/*  every response as text             (metrics.Dump)
    result.json             the figures with their intervals   (checkpoint.write_result)

Figures are made of the responses on disk, so that an evaluation that was stopped goes
on after its last whole chunk and says the same as one that was not.
"""

import dataclasses
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import numpy as np

from limr_jax import checkpoint, data, evaluate, math_text, math_value, metrics, model
from limr_jax.benchmark import Examination, Paper
from limr_jax.errors import InputError
from limr_jax.math_extract import MAX_ANSWER
from limr_jax.randomness import stream_key

_ALL = 2**62  # bytes of a dump: no response ever goes


def sit(exam: Examination, out) -> dict:
    """Answer what is not answered yet, and return the result, kept in `out` too.

    InputError: `out` holds another evaluation, with the fields that differ.
    """
    start = time.monotonic()
    digest = (checkpoint.read_run(out, missing_ok=True) or {}).get("params_digest")
    if digest:  # refused, if it is, before the parameters are loaded
        _claim(exam, out, digest)
    try:
        params = exam.load_params()
        digest = checkpoint.params_digest(params)
        _claim(exam, out, digest)
        with jax.set_mesh(exam.mesh):
            smaller = partial(model.compute_params, dtype=exam.generation["dtype"])
            params = jax.jit(smaller)(params)
            for paper in exam.papers:
                _answer(exam, paper, params, _folder(out, paper))
        result = _result(exam, out, digest)
        result["seconds"] = round(time.monotonic() - start, 2)
        checkpoint.write_result(out, result)
    finally:
        exam.close()
        checkpoint.release(out)
    return result


def _claim(exam: Examination, out, digest: str) -> None:
    checkpoint.claim(out, exam.identity | {"params_digest": digest}, flag="--out")


def _folder(out, paper: Paper) -> pathlib.Path:
    return pathlib.Path(out, re.sub(r"[^\w.@-]+", "_", paper.benchmark.label))


def _answer(exam: Examination, paper: Paper, params, folder: pathlib.Path) -> None:
    """Every problem that has no responses on disk, chunk by chunk.

    A chunk's rows stand under the number of problems that are done with it, so that
    an evaluation may go on in chunks of another size.
    """
    count, k = len(paper.problems), paper.benchmark.k
    done = max((row["step"] for row in metrics.read_dump(folder)), default=0)
    if done == count:
        return
    dump = metrics.Dump(folder, step=done, max_bytes=_ALL)
    evaluator = evaluate.make(
        exam.mesh,
        data.put(paper.problems, exam.mesh),
        count=count,
        k=k,
        seed=exam.seed,
        number=int(paper.problems.problems.digest[:7], 16),
        generation=exam.generation,
        grade=paper.grade,
    )
    label = f"evaluate {paper.benchmark.label}"
    if done:
        metrics.say(f"{label}: going on after {done} of {count} problems")
    with metrics.progress(label, count - done, unit="problem") as advance:
        for result in evaluator.answers(params, paper.sampling, done):
            first, done = done, done + len(result.valid_Nk)
            dump.add(done, _rows(exam, paper, result, first))
            advance(done - first)


def _rows(exam, paper, result: evaluate.Evaluation, first: int) -> Iterator[dict]:
    """Each response to the problems from `first` on, as a row of the dump."""
    problems = paper.problems.problems
    levels = problems.columns.get("level") or [None] * len(problems)
    for n, k in np.ndindex(result.valid_Nk.shape):
        length = result.length_Nk[n, k]
        response = exam.tokenizer.decode(result.response_NkT[n, k, :length])
        truncated = bool(result.truncated_Nk[n, k])
        yield {
            "id": problems.ids[first + n],
            "sample": k,
            "level": levels[first + n],
            "prompt": problems.messages[first + n] or problems.prompts[first + n],
            "response": response,
            "answer": exam.answer_of(response, truncated),
            "reference": problems.answers[first + n],
            "correct": result.correct_Nk[n, k],
            "valid": result.valid_Nk[n, k],
            "well_formed": result.well_formed_Nk[n, k],
            "truncated": truncated,
            "length": length,
        }


@dataclasses.dataclass(frozen=True)
class Answered:
    """One benchmark as it lies on disk."""

    result: evaluate.Evaluation  # without the tokens
    answers: list[list[str | None]]  # of each problem's k responses
    levels: tuple  # of each problem; None where it has none


def read(folder, paper: Paper) -> Answered:
    """All responses to a benchmark; InputError where one is missing."""
    problems, k = paper.problems.problems, paper.benchmark.k
    rows = list(metrics.read_dump(folder))
    wanted = [(problem, sample) for problem in problems.ids for sample in range(k)]
    if [(row["id"], row["sample"]) for row in rows] != wanted:
        raise InputError(
            f"{folder} does not hold {k} responses to each of {len(problems)} problems "
            "in their order; remove that folder and they are made again"
        )

    def column(name, dtype):
        return np.array([row[name] for row in rows], dtype).reshape(len(problems), k)

    return Answered(
        result=evaluate.Evaluation(
            correct_Nk=column("correct", np.float32),
            valid_Nk=column("valid", bool),
            well_formed_Nk=column("well_formed", bool),
            truncated_Nk=column("truncated", bool),
            length_Nk=column("length", np.int32),
            response_NkT=np.zeros((len(problems), k, 0), np.int32),
        ),
        answers=[
            [row["answer"] for row in rows[i : i + k]] for i in range(0, len(rows), k)
        ],
        levels=tuple(row["level"] for row in rows[::k]),
    )


def votes(answers: Sequence[str | None]) -> list[int]:
    """Which of one problem's responses vote alike: the first that does; -1: no answer.

    Two answers are one if they are the same text without LaTeX's dressing, or numbers
    of the same value. No reference is asked, and no worker.
    """
    alike: list[int] = []
    for i, answer in enumerate(answers):
        firsts = [j for j in dict.fromkeys(alike) if j >= 0]
        same = (j for j in firsts if _same(answers[j], answer))
        alike.append(-1 if answer is None else next(same, i))
    return alike


def _same(one: str, other: str | None) -> bool:
    if other is None or max(len(one), len(other)) > MAX_ANSWER:
        return one == other
    texts = math_text.squeezed(one), math_text.squeezed(other)
    return one == other or texts[0] == texts[1] != "" or _same_number(one, other)


def _same_number(one: str, other: str) -> bool:
    return bool(math_value.literals(one, other))


def _result(exam: Examination, out, digest: str) -> dict:
    """The evaluation's one JSON object, all but the seconds."""
    reports, accuracy_RS = {}, []
    for i, paper in enumerate(exam.papers):
        answered = read(_folder(out, paper), paper)
        key = stream_key(exam.seed, "bootstrap", i)
        figures, accuracy_R = report(answered, key)
        reports[paper.benchmark.label] = {
            "problems": len(paper.problems),
            "left_out": list(paper.problems.left_out),
            "k": paper.benchmark.k,
            "temperature": paper.benchmark.temperature,
        } | figures
        accuracy_RS.append(accuracy_R)
    values = [each["accuracy"]["value"] for each in reports.values()]
    mean = None if None in values else float(np.mean(values))
    return {
        "policy": exam.identity["policy"],
        "params_digest": digest,
        "reward": exam.identity["reward"],
        "top_p": exam.identity["top_p"],
        "max_response_length": exam.identity["max_response_length"],
        "seed": exam.seed,
        "benchmarks": reports,
        # Of the benchmarks, each of the same weight.
        "mean_accuracy": _with_interval(mean, np.mean(accuracy_RS, axis=0)),
        "out": str(out),
    }


def report(answered: Answered, key) -> tuple[dict, np.ndarray]:
    """(figures of one benchmark, whole and by level; its accuracy resampled)."""
    result, levels = answered.result, answered.levels
    k = result.valid_Nk.shape[1]
    vote_Nk = np.array([votes(each) for each in answered.answers])
    figures = evaluate.figures(result)
    figures["answered"] = (np.sum(vote_Nk >= 0, axis=1), np.full(len(vote_Nk), k))
    if k > 1:
        whole_N = result.valid_Nk.all(axis=1)
        majority_N = evaluate.maj_at_k(vote_Nk, result.correct_Nk)
        figures[f"maj_at_{k}"] = (majority_N * whole_N, whole_N)
    part_FN, whole_FN = (np.stack(x) for x in zip(*figures.values(), strict=True))
    named = sorted({level for level in levels if level is not None}, key=str)
    masks = [np.array([level == each for level in levels]) for each in named]
    chosen_XN = np.stack([np.ones(len(levels), bool), *masks])
    part_XFN = part_FN * chosen_XN[:, None]
    whole_XFN = whole_FN * chosen_XN[:, None]
    share_XF = evaluate.share(part_XFN.sum(-1), whole_XFN.sum(-1))
    share_RXF = evaluate.bootstrap(part_XFN, whole_XFN, key)

    def told(x):
        return {
            name: _with_interval(share_XF[x, f], share_RXF[:, x, f])
            for f, name in enumerate(figures)
        }

    by_level = {
        str(level): {"problems": int(mask.sum())} | told(x)
        for x, (level, mask) in enumerate(zip(named, masks, strict=True), 1)
    }
    return told(0) | {"levels": by_level}, share_RXF[:, 0, 0]


def _with_interval(value, resampled_R) -> dict:
    """A figure and its 95 % interval; None where there is no number."""
    low, high = evaluate.interval(resampled_R)
    numbers = {"value": value, "low": low, "high": high}
    return {
        name: float(x) if x is not None and np.isfinite(x) else None
        for name, x in numbers.items()
    }
