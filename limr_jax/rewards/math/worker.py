"""`python -m limr_jax.rewards.math.worker`: a grading process; JSON lines in and out.

It reads text that a policy wrote, so it is built to be killed: no pickle, no eval, its
own session, a processor-time limit for each item and a memory limit for the process.
It never imports jax. Arguments: CPU seconds for one item, memory in MiB.
"""

import json
import os
import resource
import signal
import sys

from limr_jax import time_limit


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
    try:
        # Two levels: the signal may come while the inner one stops the clock.
        try:
            time_limit.limit(cpu_seconds, start=True)
            job = json.loads(line)
            return {"rule": matching_rule(job), "answers": job["answers"][:1]}
        finally:
            time_limit.limit(cpu_seconds, start=False)
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
    finally:
        # Once more: the signal may have come while `limit` was stopping the clock.
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main() -> None:
    """Answer jobs until stdin ends, or memory runs out."""
    cpu_seconds, memory_mib = float(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)  # nothing that a library prints is taken for a reply
    # Longer integers take quadratic time to print, in C, where no signal is heard.
    sys.set_int_max_str_digits(4300)
    sys.setrecursionlimit(4_000)
    matching_rule(  # load the grammar and fill its caches before the first clock starts
        {"references": [r"\frac{x+1}{2}"], "answers": [r"\text{no} x"]}
    )
    size = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGPROF, time_limit.stop)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        reply = answer_to(line, cpu_seconds)
        print(json.dumps(reply), file=replies, flush=True)
        if reply.get("error") == "memory":
            return  # the heap is in pieces: let a fresh process take over


if __name__ == "__main__":
    main()
