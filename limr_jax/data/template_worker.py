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

import jinja2

from limr_jax import time_limit, worker_process
from limr_jax.data import chat_template


class _TooLong(Exception):
    """The job's texts are longer than any model reads."""


# A run has one template and many jobs: it is compiled at the first.
_compiled = functools.lru_cache(maxsize=8)(chat_template.compile_template)
_MESSAGE_LENGTH = 1_000  # characters of a message


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
    try:
        texts = time_limit.within(cpu_seconds, lambda: _texts(json.loads(line)))
        return {"texts": texts}
    except time_limit.OutOfTime:
        return {"error": "timeout"}
    except MemoryError:
        return {"error": "memory"}
    except _TooLong:
        return {"error": "length"}
    except jinja2.TemplateSyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        return {
            "error": "syntax",
            "message": f"{where}{error.message}"[:_MESSAGE_LENGTH],
        }
    except jinja2.TemplateError as error:
        return {"error": "refused", "message": str(error)[:_MESSAGE_LENGTH]}
    except Exception as error:  # A template is a program: any error can come.
        message = f"{type(error).__name__}: {error}"
        return {"error": "refused", "message": message[:_MESSAGE_LENGTH]}


if __name__ == "__main__":
    worker_process.serve(answer_to)
