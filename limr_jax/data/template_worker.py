"""One process that runs chat templates, `python -m limr_jax.data.template_worker`.

A template is a program that came with a checkpoint. jinja2's sandbox keeps it from this
machine's files, but not from looping or growing without end, some of it while it is
compiled, as constants are folded then. So it runs here, where the kernel limits memory
and each job's processor time, and is killed and replaced (worker_pool.py). It never
imports jax. Arguments: CPU seconds for one job, memory in MiB.

A job is {source, chats, add_generation_prompt, names}. The reply is {texts}, one a
chat, or {error, message} where the template is none ("syntax") or does not want the
messages ("refused"), or {error} with what ran out: "timeout", "memory" or "length".
"""

import functools
import json
import os
import resource
import signal
import sys

import jinja2

from limr_jax import time_limit
from limr_jax.data import chat_template


class _TooLong(Exception):
    """The job's texts are longer than any model reads."""


# A run has one template and many jobs: it is compiled at the first.
_compiled = functools.lru_cache(maxsize=8)(chat_template.compile_template)
_SAID = 1_000  # characters of a message


def _texts(job: dict) -> list[str]:
    """Each chat as the template renders it."""
    template, texts, left = _compiled(job["source"]), [], chat_template.LONGEST
    for messages in job["chats"]:
        pieces = []
        for piece in chat_template.generate(
            template,
            messages,
            add_generation_prompt=job["add_generation_prompt"],
            names=job["names"],
        ):
            # Counted piece by piece: the text of a template that loops is never whole.
            left -= len(piece)
            if left < 0:
                raise _TooLong
            pieces.append(piece)
        texts.append("".join(pieces))
        texts[-1].encode("utf-8")  # raises for half a surrogate pair
    return texts


def answer_to(line: str, cpu_seconds: float) -> dict:
    """The reply to one job (a line of JSON), which may take so many seconds of CPU."""
    # Two deep, since the signal may come while the inner `finally` disarms the clock:
    # then the outer `except` has it.
    try:
        try:
            time_limit.limit(cpu_seconds, start=True)
            return {"texts": _texts(json.loads(line))}
        finally:
            time_limit.limit(cpu_seconds, start=False)
    except time_limit.OutOfTime:
        return {"error": "timeout"}
    except MemoryError:
        return {"error": "memory"}
    except _TooLong:
        return {"error": "length"}
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        return {"error": "syntax", "message": f"{where}{error.message}"[:_SAID]}
    except jinja2.TemplateError as error:
        return {"error": "refused", "message": str(error)[:_SAID]}
    except Exception as error:  # A template is a program: any error can come.
        message = f"{type(error).__name__}: {error}"
        return {"error": "refused", "message": message[:_SAID]}
    finally:
        # Once more, for a signal that came before the inner `finally` had disarmed it.
        signal.setitimer(signal.ITIMER_PROF, 0.0)


def main() -> None:
    """Read jobs from stdin until it is closed."""
    cpu_seconds, memory_mib = float(sys.argv[1]), int(sys.argv[2])
    # Replies get a descriptor of their own: what a library prints to stdout would be
    # read as one.
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    size = memory_mib * 2**20
    # The hard limit as well: nothing in this process can raise it again.
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    signal.signal(signal.SIGPROF, time_limit.stop)
    # The parent waits for this line, so that no job's clock runs during the imports.
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer_to(line, cpu_seconds)), file=replies, flush=True)


if __name__ == "__main__":
    main()
