"""Chat templates: messages → one text, as the checkpoint's authors wrote it down.

A template is a program that came with a checkpoint, so it runs in jinja2's immutable
sandbox, and that in a process of its own with limits (template_worker.py).
*Departure:* ``strftime_now`` gives a fixed day. A prompt that changes with the
calendar would make a run that is resumed tomorrow a different run.

Text that a user wrote must never be read as a special token, though the template around
it must. Templates mix the two, so the mark is put in beforehand: `protect` puts a
Unicode noncharacter behind the first character of every special token's text within a
message, and the rendered text is cut there before it is encoded. No piece contains such
a special token, all of the template's own are whole, and the pieces put together are
the text to the last character.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterator, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox

from limr_jax.errors import InputError, shown
from limr_jax.worker_pool import WorkerPool

LIMR_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."

# Qwen's format, for a checkpoint that has its two tokens and no template of its own.
CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""

# Unicode promises that these are never characters of a text.
NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]

LONGEST = 2**24  # characters of all the texts of a job

_TODAY = datetime.datetime(2024, 7, 26)


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what an assistant said; here it is only passed on."""

    tags = {"generation"}

    def parse(self, parser):
        # Past the tag's own name; then what stands between the tags, as it is.
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja2's own filter writes <, > and & as \u003c and so on, for the web.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def compile_template(source: str) -> jinja2.Template:
    """The template, ready to render; jinja2.TemplateSyntaxError if it is none."""
    # As transformers sets it up: templates are written for its way with blanks.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _TODAY.strftime
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(source)
    except (jinja2.TemplateSyntaxError, MemoryError):
        raise
    except Exception as error:  # such as Python's own, for a {% break %} in no loop
        message = f"{type(error).__name__}: {error}"
        raise jinja2.TemplateSyntaxError(message, lineno=0) from None


def generate(template: jinja2.Template, messages, add_generation_prompt, names):
    """Yields the parts of the text that a template makes of one chat's messages.

    To be called where a template may do no harm (template_worker.py): it may yield
    without end. messages: objects with `role` and `content`. add_generation_prompt:
    whether the text ends where an answer begins. names: further variables of the
    template (`bos_token`, …), by name.

    Raises:
      jinja2.TemplateError: the template does not want the messages. A template is a
        program, so that it may raise any other exception too.
    """
    yield from template.generate(
        messages=messages,
        add_generation_prompt=add_generation_prompt,
        # None, not absent: to a template that asks `tools is not none`, a name that is
        # absent is something.
        tools=None,
        documents=None,
        **names,
    )


# What the templates of one job may use, and how much is one job.
_CPU_SECONDS, _WALL_SECONDS, _MEMORY_MIB = 5.0, 600.0, 512
_JOB_CHATS, _JOB_CHARACTERS = 64, 2**20


@functools.cache
def _pool() -> WorkerPool:
    """The one process that renders; it starts at the first template."""
    return WorkerPool(
        workers=1,
        wall_seconds=_WALL_SECONDS,
        cpu_seconds=_CPU_SECONDS,
        memory_mib=_MEMORY_MIB,
        module="limr_jax.data.template_worker",
    )


class Refusal(InputError):
    """The template does not want these messages."""


class ChatTemplate:
    """A checkpoint's template: messages → the text that the model reads.

    where: the file that it is from, for messages. InputError if it is no template.
    """

    def __init__(self, source: str, where: str):
        self._source, self._where = source, where
        # Compiled, with nothing to render: a syntax error shows before any prompt does.
        self._texts([], add_generation_prompt=False, names={})

    def render(
        self, chats: Sequence, *, add_generation_prompt: bool, names: dict[str, str]
    ) -> list[str]:
        """Each chat (a list of messages) as one text; names: what else it may read.

        Raises:
          Refusal: the template does not want the messages.
          InputError: it takes more time, memory or characters than it may.
        """
        return [
            text
            for some in _jobs(chats)
            for text in self._texts(some, add_generation_prompt, names)
        ]

    def _texts(self, chats, add_generation_prompt, names) -> list[str]:
        job = {"source": self._source, "chats": chats, "names": names}
        job["add_generation_prompt"] = add_generation_prompt
        (reply,) = _pool().map([job])
        if "texts" in reply:
            return reply["texts"]
        error, message = reply["error"], shown(reply.get("message", ""), limit=300)
        if error == "syntax":
            raise InputError(
                f"{self._where}: the chat template has a syntax error ({message}); "
                "mend it or take it out"
            )
        if error == "refused":
            raise Refusal(
                f"{self._where}: the chat template refuses the messages ({message}); "
                "give roles in the order that it wants"
            )
        raise InputError(
            f"{self._where}: the chat template takes more than {_CPU_SECONDS:g} s of "
            f"processor time, {_MEMORY_MIB} MiB or {LONGEST:,} characters ({error}); "
            "mend it or take it out"
        )


def _jobs(chats: Sequence) -> Iterator[list]:
    """The chats in runs of which none is too much for one job."""
    some, size = [], 0
    for messages in chats:
        length = sum(len(text) for message in messages for text in message.values())
        # A chat that is too much for any job is a job by itself.
        if some and (len(some) == _JOB_CHATS or size + length > _JOB_CHARACTERS):
            yield some
            some, size = [], 0
        some.append([dict(message) for message in messages])
        size += length
    if some:
        yield some


def noncharacter(texts) -> str:
    """A character that occurs in none of the texts, to mark places in them with."""
    for character in NONCHARACTERS:
        if not any(character in text for text in texts):
            return character
    raise InputError(
        "a text holds all 32 of Unicode's noncharacters U+FDD0..U+FDEF, which no text "
        "may; take one out"
    )


def protect(text: str, specials, mark: str) -> str:
    """The text with `mark` behind the first character of each special token's text."""
    # One character cannot be cut in two; no checkpoint has such a special token.
    inside = [special for special in specials if len(special) > 1 and special in text]
    if not inside:
        return text
    # Looking ahead finds places that overlap, too.
    places = re.finditer(f"(?={'|'.join(map(re.escape, inside))})", text)
    starts = [place.start() for place in places]
    cuts = [0, *(start + 1 for start in starts), len(text)]
    return mark.join(text[a:b] for a, b in zip(cuts[:-1], cuts[1:], strict=True))
