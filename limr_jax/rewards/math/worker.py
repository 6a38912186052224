"""`python -m limr_jax.rewards.math.worker`: a grading process; JSON lines in and out.

It reads text that a policy wrote, so it is built to be killed: no pickle, no eval, its
own session, a processor-time limit for each item and a memory limit for the process.
It never imports jax. Arguments: CPU seconds for one item, memory in MiB.
"""

import json
import sys

from limr_jax import time_limit, worker_process


class NoReference(Exception):
    """The reference says nothing to compare with."""


def matching_rule(job: dict) -> str | None:
    """The rule that makes an answer right, None if none does.

    job["answers"], job["references"]: readings of either text, best first. Where there
    are none they are read from job["text"] and job["reference"], and put there.
    Raises NoReference.
    """
    from limr_jax.rewards.math import compare, extract, normalise

    if not job["answers"]:
        job["answers"] = extract.readings(job["text"], job["reference"])
    if not job.get("references"):
        read = extract.bare_answers(job["reference"], is_reference=True)
        job["references"] = [one for one in read if normalise.clean(one)]
    if not job["references"]:
        raise NoReference
    if not job["answers"]:
        return None
    for reference in job["references"]:
        for answer in job["answers"]:
            rule = compare.same_answer(reference, answer)
            if rule:
                return rule
    return None


def answer_to(line: str, cpu_seconds: float) -> dict:
    """The reply to one line: {"rule": name or null}, or {"error": what ran out}.

    With the `answers` that were read, where the job left that to the worker.
    """

    def graded() -> dict:
        job = json.loads(line)
        return {"rule": matching_rule(job), "answers": job["answers"][:1]}

    try:
        return time_limit.within(cpu_seconds, graded)
    except time_limit.OutOfTime:
        return {"error": "timeout"}
    except NoReference:
        return {"error": "no reference"}
    except MemoryError:
        return {"error": "memory"}
    except RecursionError:  # text nested deeper than any answer is wrong, not invalid
        return {"rule": None}
    except Exception as error:
        return {"error": type(error).__name__}


def prepare() -> None:
    """Limits of Python's own, and what a first job would load within its time."""
    # Longer integers take quadratic time to print, in C, where no signal is heard.
    sys.set_int_max_str_digits(4300)
    sys.setrecursionlimit(4_000)
    matching_rule(  # load the grammar and fill its caches before the first clock starts
        {"references": [r"\frac{x+1}{2}"], "answers": [r"\text{no} x"]}
    )


def out_of_memory(reply: dict) -> bool:
    """Whether a job has left the heap in pieces."""
    return reply.get("error") == "memory"


if __name__ == "__main__":
    worker_process.serve(answer_to, prepare=prepare, is_last=out_of_memory)
