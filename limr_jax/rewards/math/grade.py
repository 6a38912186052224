"""`grade_math`: verdicts on mathematical answers, most of them by worker processes.

What a policy wrote meets three stages. Its box is cut out of the text, in time linear
in it (two modes: a bare *prediction* may lack a box, a model's *response* may not).
`grade_without_worker` runs in the caller's process, without sympy, and settles equal
texts and literal numbers of a few characters. What is left goes to worker processes,
each distinct (answer, reference) pair once: every regular expression that looks back
and forth over longer text runs behind their clock, as `re` holds the interpreter.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

from limr_jax import worker_pool
from limr_jax.data.boxed import after_thinking, boxed_answer
from limr_jax.rewards.math import extract, normalise, scalars, units

Mode = Literal["prediction", "response"]
# (prompts, answers, references) → for each one True (right), False (wrong) or None (no
# opinion). It sees only answers that the rules call wrong.
SecondVerifier = Callable[
    [Sequence[str], Sequence[str], Sequence[str]], Sequence[bool | None]
]
_UNREADABLE = ("control characters", "answer too long")
_UNPRINTABLE = re.compile("[\x00-\x07\x0e-\x1f\x7f\ud800-\udfff]")
_MOST_SENT = 8_000  # characters at the end of a bare text that a worker may see
_SHORT = 100  # characters of an answer that the caller's process looks at closely


@dataclasses.dataclass(frozen=True)
class Verdict:
    """correct: None if no verdict could be had; reason: the rule, or what failed.

    answer: what was read as the answer, None without one.
    """

    correct: bool | None
    reason: str
    answer: str | None = None


def grade_without_worker(
    answers: Sequence[str], references: Sequence[str]
) -> Verdict | None:
    """The verdict on readings of an answer; None where a worker has to say.

    answers, references: best reading first, at least one answer.
    """
    first = answers[0]
    if _UNPRINTABLE.search(first):
        return Verdict(False, _UNREADABLE[0], first[:80])
    if len(first) > extract.MAX_ANSWER:
        return Verdict(False, _UNREADABLE[1], first[:80])
    if not references:
        return Verdict(None, "no reference", first)
    # `clean` looks back and forth: over longer text it belongs behind a clock.
    if max(len(first), len(references[0])) > _SHORT:
        return None
    # `clean` drops a currency's sign: $5 and €5 would be the same text.
    if units.currencies_differ(references[0], first):
        return None
    squeezed = normalise.squeezed(references[0])
    # `$ $` and `\text{ }` say nothing, either.
    if not squeezed:
        return Verdict(None, "no reference", first)
    if squeezed == normalise.squeezed(first):
        return Verdict(True, "same text", first)
    # With a second reading a wrong first one is no verdict yet.
    if len(answers) == len(references) == 1:
        same = scalars.compare_literals(references[0], first)
        if same is not None:
            return Verdict(same, "number" if same else "another number", first)
    return None


def grade_math(
    texts: Sequence[str],
    references: Sequence[str],
    *,
    mode: Mode,
    pool: worker_pool.WorkerPool,
    prompts: Sequence[str] | None = None,
    second: SecondVerifier | None = None,
) -> list[Verdict]:
    """A verdict for every (text, reference) pair; never raises for what they hold.

    mode: "response" needs a box, "prediction" does not. prompts: for `second` alone,
    which may turn a wrong answer into a right one, never the other way round.

    Raises:
      InputError: no worker process can be started, or `pool` was closed meanwhile.
      ValueError: not as many references as texts, or `second` has not as many opinions
        as it was asked for.
    """
    verdicts: dict[tuple, Verdict] = {}
    jobs: dict[tuple, dict] = {}
    keys = []
    for text, reference in zip(texts, references, strict=True):
        job = _job(text, reference, mode)
        # The rollouts of a group often agree; each distinct pair is graded once.
        key = (*job["answers"], job["text"], reference)
        keys.append(key)
        if key in verdicts or key in jobs:
            continue
        settled = _settled(job, mode)
        if settled:
            verdicts[key] = settled
        else:
            jobs[key] = job
    for key, reply in zip(jobs, pool.map(list(jobs.values()))):
        verdicts[key] = _verdict(reply, jobs[key]["answers"])
    graded = [verdicts[key] for key in keys]
    return _second_opinions(
        graded,
        prompts=prompts or [""] * len(texts),
        references=references,
        second=second,
    )


def _job(text: str, reference: str, mode: Mode) -> dict:
    """What a worker needs: the answer in the box, or else the text to read it from."""
    text = after_thinking(text)
    response = mode == "response"
    # A response's last box is its answer; a bare prediction may box a list's members.
    boxed = (boxed_answer if response else extract.joined_boxes)(text)
    # An empty box answers nothing: no other answer is looked for in the text.
    alone = "" if response or boxed is not None else text[-_MOST_SENT:].strip()
    return {"answers": [boxed] if boxed else [], "text": alone, "reference": reference}


def _settled(job: dict, mode: Mode) -> Verdict | None:
    """The verdict on a job that needs no worker."""
    answers, text, reference = job["answers"], job["text"], job["reference"]
    if not answers and not text:
        return Verdict(False, "no box" if mode == "response" else "no answer")
    # Too long to be read before a clock runs; only an unreadable box is settled here.
    if len(text) > _SHORT or len(reference) > _SHORT:
        return grade_without_worker(answers, [reference]) if answers else None
    answers = answers or extract.readings(text, reference)
    if not answers:
        return Verdict(False, "no answer")
    return grade_without_worker(
        answers, extract.bare_answers(reference, is_reference=True)
    )


def ask_each_once(
    second: SecondVerifier, questions: Sequence[tuple[str, str, str]]
) -> list[bool | None]:
    """An opinion on every (prompt, answer, reference), each distinct one asked once."""
    distinct = list(dict.fromkeys(questions))
    if not distinct:
        return []
    prompts, answers, references = map(list, zip(*distinct, strict=True))
    opinions = second(prompts, answers, references)
    opinion_on = dict(zip(distinct, opinions, strict=True))
    return [opinion_on[question] for question in questions]


def _verdict(reply: dict, answers: list[str]) -> Verdict:
    answer = (answers or reply.get("answers") or [None])[0]
    if "error" in reply:
        return Verdict(None, reply["error"], answer)
    if answer is None:
        return Verdict(False, "no answer")
    return Verdict(reply["rule"] is not None, reply["rule"] or "different", answer)


def _second_opinions(
    graded: list[Verdict],
    prompts: Sequence[str],
    references: Sequence[str],
    second: SecondVerifier | None,
) -> list[Verdict]:
    """A cascade: the second verifier sees only answers that the rules call wrong.

    Not those that the rules could not read: it might be talked into anything there.
    """
    called_wrong = [
        k
        for k, v in enumerate(graded)
        if v.correct is False and v.answer and v.reason not in _UNREADABLE
    ]
    if second is None or not called_wrong:
        return graded
    questions = [(prompts[k], graded[k].answer, references[k]) for k in called_wrong]
    for k, opinion in zip(called_wrong, ask_each_once(second, questions), strict=True):
        if opinion:
            graded[k] = dataclasses.replace(
                graded[k], correct=True, reason="second verifier"
            )
    return graded
