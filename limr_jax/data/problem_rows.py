"""Rows of a file or of a prepared set → what a set of problems is made of."""

from collections.abc import Sequence
from typing import Any

from limr_jax.data import jsonl
from limr_jax.data.tokenizer import Message, answerable
from limr_jax.errors import InputError


def read_fields(rows: Sequence[tuple[str, dict]]) -> dict[str, Any]:
    """The fields of a `problems.Problems` but its source, of (place, row) in order.

    Raises:
      InputError: a row holds what it may not, or an id twice; the place is named.
    """
    place = {}  # id → where it was first
    prompts, messages, answers, levels = [], [], [], {}
    for where, row in rows:
        jsonl.check_row(row, where)
        problem_id = jsonl.text_field(row, "id", where, numbers=True)
        if problem_id in place:
            raise InputError(
                f"{where}: the id {problem_id!r} is also that of {place[problem_id]}; "
                "give every problem its own"
            )
        place[problem_id] = where
        prompt, chat = _prompt(row, where)
        prompts.append(prompt)
        messages.append(chat)
        answers.append(_answer(row, where))
        jsonl.check_level(row.get("level"), where)
    # Row by row: in one file some may have a `prompt`, and others a `problem`.
    rest = [_columns(row) for _, row in rows]
    # A dict, not a set: columns stay in the order in which they first occur.
    names = dict.fromkeys(name for columns in rest for name in columns)
    columns = {name: tuple(each.get(name) for each in rest) for name in names}
    if "level" in columns:
        # 1 and "1" are one level: figures are given by its name.
        columns["level"] = tuple(levels.setdefault(str(x), x) for x in columns["level"])
    return {
        "ids": tuple(place),
        "prompts": tuple(prompts),
        "messages": tuple(messages),
        "answers": tuple(answers),
        "columns": columns,
    }


def _columns(row: dict) -> dict:
    """What the row has beside its id, its answer and the field that is its prompt."""
    taken = ("id", "answer", _prompt_field(row))
    return {name: value for name, value in row.items() if name not in taken}


def _prompt_field(row: dict) -> str:
    """The field that the prompt stands in; `problem` comes second."""
    return "prompt" if "prompt" in row else "problem"


def _answer(row: dict, where: str) -> str:
    """The reference answer; `reference` has it where `answer` has none."""
    field = "answer"
    if row.get(field) in (None, "") and row.get("reference") is not None:
        field = "reference"
    if field not in row:
        raise InputError(f"{where}: the field 'answer' is missing; add it")
    return jsonl.answer_text(row[field], f"{where}: the field {field!r}")


def _prompt(row: dict, where: str) -> tuple[str, tuple[Message, ...] | None]:
    """The prompt's text, and its messages if it is a chat."""
    field = _prompt_field(row)
    chat = row.get(field)
    if not isinstance(chat, list):
        prompt = jsonl.text_field(row, field, where)
        if not prompt:
            raise InputError(
                f"{where}: the field {field!r} is empty; leave the row out"
            )
        return prompt, None
    # A template could read any other field, and the prompt's text would not show it.
    for message in chat:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise InputError(
                f"{where}: a message of {field!r} is not an object of just role and "
                "content; write it so"
            )
        for part, value in message.items():
            jsonl.text_value(value, f"{where}: a message's {part}")
    if not chat:
        raise InputError(f"{where}: {field!r} has no messages; leave the row out")
    answerable(chat, f"{where}: {field!r}")
    # As the tokenizer joins a chat where it has no template.
    return "\n\n".join(message["content"] for message in chat), tuple(chat)
