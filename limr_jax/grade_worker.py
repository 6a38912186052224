"""One grading process, `python -m limr_jax.grade_worker`: JSON lines in, replies out.

It reads text that a policy wrote, so it is built to be killed: no pickle, no eval, its
own session, a processor-time limit for each item and a memory limit for the process.
It never imports jax. Arguments: CPU seconds for one item, memory in MiB.
"""

import json
import os
import re
import resource
import signal
import sys


class OutOfTime(BaseException):
    """The item used up its processor time. Not an Exception: sympy catches those."""


def _stop(signum, frame):
    raise OutOfTime


def _limit(cpu_seconds: float, start: bool) -> None:
    """Arm (or disarm) the item's limit: a signal first, the kernel's kill after it."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds if start else 0.0, 0.5)
    if start:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        ceiling = usage.ru_utime + usage.ru_stime + cpu_seconds + 2
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(ceiling) + 1, hard))


def _in_dollars(text: str) -> str:
    return text if re.search(r"\$|\\boxed|\\\(|\\\[", text) else f"${text}$"


def _worded(text: str) -> bool:
    """More words than a formula has: math-verify reads those as products of letters."""
    text = re.sub(r"\\(?:begin|end)\{\w+\}", "", text)
    return len(re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", text)) > 4


def by_math_verify(reference: str, prediction: str) -> bool:
    """math-verify's own verdict, both sides in dollars unless already delimited."""
    import math_verify
    from latex2sympy2_extended import NormalizationConfig

    normal = NormalizationConfig(  # its list of units has products in it: 'ab', 'bc'
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all"
    )
    formulas = [math_verify.LatexExtractionConfig(normalization_config=normal)]
    sides = [
        math_verify.parse(
            _in_dollars(text),
            formulas,
            parsing_timeout=None,
        )
        for text in (reference, prediction)
    ]
    return all(sides) and math_verify.verify(*sides, timeout_seconds=None)


def judge(job: dict) -> str | None:
    """The rule that makes an answer right, None if none does.

    job: references, answers: readings of either text, best first.
    """
    from limr_jax import math_answer, math_text
    from limr_jax.math_parse import costly, misread

    decided = False
    for reference in job["references"]:
        for answer in job["answers"]:
            rule = math_answer.same_answer(reference, answer)
            if rule:
                return rule
            decided = decided or math_answer.both_legible(reference, answer)
    first = job["references"][0], job["answers"][0]
    if decided or math_answer.conflict(*first) or any(map(costly, first)):
        return None
    as_read = (*first, *map(math_text.clean, first))
    if any(map(_worded, first)) or any(map(misread, as_read)):
        return None
    return "math-verify" if by_math_verify(*first) else None


def answer_to(line: str, cpu_seconds: float) -> dict:
    """The reply to one line: {"rule": name or null}, or {"error": what ran out}."""
    try:
        try:
            _limit(cpu_seconds, start=True)
            return {"rule": judge(json.loads(line))}
        finally:
            _limit(cpu_seconds, start=False)
    except OutOfTime:
        return {"error": "timeout"}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:
        return {"rule": None}
    except Exception as error:
        return {"error": type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main() -> None:
    cpu_seconds, memory_mib = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # nothing that a library prints is taken for a reply
    sys.set_int_max_str_digits(4300)
    sys.setrecursionlimit(4_000)
    judge(  # load the grammar and fill its caches before the first clock starts
        {"references": [r"\frac{x+1}{2}"], "answers": [r"\text{no} x"]}
    )
    size = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGPROF, _stop)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        reply = answer_to(line, cpu_seconds)
        print(json.dumps(reply), file=replies, flush=True)
        if reply.get("error") == "memory":
            return  # the heap is in pieces: let a fresh process take over


if __name__ == "__main__":
    main()
