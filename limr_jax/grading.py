"""Mathematical answers, graded: read, compared as text, and only then by a worker.

What a policy wrote meets three stages. Its answer is cut out of the text (two modes: a
bare *prediction* may lack a box, a model's *response* may not). A cheap stage here, in
the caller's process and without sympy, settles equal text and literal numbers. What is
left goes to worker processes, each distinct (answer, reference) pair once.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

from limr_jax import math_extract, math_text, math_value, workers

Mode = Literal["prediction", "response"]
# (prompts, answers, references) → right, wrong or None: a second opinion, asked only
# where the rules say wrong.
Second = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[bool | None]]
_UNREADABLE = ("control characters", "answer too long")
_UNPRINTABLE = re.compile("[\x00-\x07\x0e-\x1f\x7f\ud800-\udfff]")
_SENT = 8_000  # characters of a bare text that a worker may see


@dataclasses.dataclass(frozen=True)
class Verdict:
    """correct: None if no verdict could be had; reason: the rule, or what failed.

    answer: what was read as the answer, None without one.
    """

    correct: bool | None
    reason: str
    answer: str | None = None


def read_answers(text: str, mode: Mode, reference: str = "") -> list[str]:
    """What a text may be saying, best first; empty if it holds no answer."""
    if mode == "response":
        answer = math_extract.boxed_answer(text)
        return [] if not answer else [answer]
    readings = math_extract.bare_answers(text)
    single = re.sub(r"\\text\w*\{([^{}]*)\}", r"\1", reference).strip(" ().$")
    is_choice = len(single) == 1 and single in math_extract.CHOICES
    if is_choice and math_extract.prose_words(text[-_SENT:]) > 2:
        letter = math_extract.chosen_letter(text[-_SENT:])
        return [letter] if letter else []
    return readings


def cheap(answers: Sequence[str], references: Sequence[str]) -> Verdict | None:
    """The verdict that needs no worker, None if one is needed."""
    first = answers[0]
    if _UNPRINTABLE.search(first):
        return Verdict(False, _UNREADABLE[0], first[:80])
    if len(first) > math_extract.MAX_ANSWER:
        return Verdict(False, _UNREADABLE[1], first[:80])
    if not references:
        return Verdict(None, "no reference", first)
    if math_text.currency_differs(references[0], first):
        return None
    squeezed = math_text.squeezed(first)
    if squeezed and squeezed == math_text.squeezed(references[0]):
        return Verdict(True, "same text", first)
    if len(answers) == len(references) == 1:
        same = math_value.literals(references[0], first)
        if same is not None:
            return Verdict(same, "number" if same else "another number", first)
    return None


def grade_math(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    mode: Mode,
    pool: workers.WorkerPool,
    prompts: Sequence[str] | None = None,
    second: Second | None = None,
) -> list[Verdict]:
    """A verdict for every (text, reference) pair; never raises for what they hold."""
    verdicts: dict[tuple, Verdict] = {}
    jobs: dict[tuple, dict] = {}
    keys = []
    readings: dict[str, list[str]] = {}
    for text, reference in zip(texts, references, strict=True):
        if reference not in readings:
            readings[reference] = math_extract.bare_answers(
                reference, is_reference=True
            )
        answers = read_answers(text, mode, reference)
        key = (*answers, reference)
        keys.append(key)
        if key in verdicts or key in jobs:
            continue
        if not answers:
            missing = "no answer" if mode == "prediction" else "no box"
            verdicts[key] = Verdict(False, missing)
            continue
        found = cheap(answers, readings[reference])
        if found:
            verdicts[key] = found
            continue
        jobs[key] = {
            "answers": answers,
            "references": readings[reference],
        }
    for key, reply in zip(jobs, pool.map(list(jobs.values()))):
        verdicts[key] = _verdict(reply, jobs[key]["answers"][0])
    graded = [verdicts[key] for key in keys]
    return _second_opinions(graded, prompts or [""] * len(texts), references, second)


def ask(second: Second, questions: Sequence[tuple[str, str, str]]) -> list[bool | None]:
    """An opinion on every (prompt, answer, reference), each distinct one asked once."""
    distinct = list(dict.fromkeys(questions))
    opinions = second(*map(list, zip(*distinct, strict=True))) if distinct else []
    found = dict(zip(distinct, opinions, strict=True))
    return [found[question] for question in questions]


def _verdict(reply: dict, answer: str) -> Verdict:
    if "error" in reply:
        return Verdict(None, reply["error"], answer)
    return Verdict(reply["rule"] is not None, reply["rule"] or "different", answer)


def _second_opinions(
    graded: list[Verdict],
    prompts: Sequence[str],
    references: Sequence[str],
    second: Second | None,
) -> list[Verdict]:
    """A cascade: the second verifier sees only answers that the rules call wrong."""
    asked = [
        k
        for k, v in enumerate(graded)
        if v.correct is False and v.answer and v.reason not in _UNREADABLE
    ]
    if second is None or not asked:
        return graded
    questions = [(prompts[k], graded[k].answer, references[k]) for k in asked]
    for k, opinion in zip(asked, ask(second, questions), strict=True):
        if opinion:
            graded[k] = dataclasses.replace(
                graded[k], correct=True, reason="second verifier"
            )
    return graded
