"""A text of a command line as a value of the type of its default."""

import ast
import math
from collections.abc import Sequence
from typing import Any

from limr_jax.errors import InputError

_BOOL = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}


def parse(text: str, name: str, default: Any, kind: type | None = None) -> Any:
    """The text as a value of the default's type, or of `kind`.

    Raises:
      InputError: the text is none; `name` is what it was given as.
    """
    kind = type(default) if kind is None else kind
    try:
        return _read(text, kind, default)
    # MemoryError and RecursionError: thousands of brackets, to literal_eval.
    except (ValueError, SyntaxError, KeyError, MemoryError, RecursionError):
        description = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            tuple: "a list such as 1,2 of entries like the default's",
            list: "a list such as 1,2 of entries like the default's",
        }.get(kind, f"of type {kind.__name__}")
        raise InputError(
            f"{name}={text}: must be {description} (default {default!r})"
        ) from None


def _read(text: str, kind: type, default: Any) -> Any:
    """ValueError, SyntaxError or KeyError where the text is not of the kind."""
    if kind is str:
        return text
    word = text.strip()
    if default is None and word.lower() in ("", "none"):
        return None
    if kind is bool:
        return _BOOL[word.lower()]
    if kind is int:
        return int(word)
    if kind is float:
        value = float(word)
        if math.isnan(value):
            raise ValueError
        return value
    if kind in (tuple, list):
        return kind(_read_entries(word, default or ()))
    if kind is type(None):
        # No type to go by: a literal of Python where it reads as one, else the text.
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return text
    raise ValueError


def _read_entries(word: str, default: Sequence[Any]) -> list[Any]:
    """`1,2`, `(1, 2)`, `a,b` or `["a", "b"]`, typed by the default's first entry."""
    if word[:1] in ("(", "["):
        try:
            entries = list(ast.literal_eval(word))
        except (ValueError, SyntaxError):
            # [x, y] of bare words is no literal, but is meant as one.
            entries = word[1:].removesuffix({"(": ")", "[": "]"}[word[0]]).split(",")
    else:
        entries = word.split(",")
    # "1,2," is a tuple in Python, and "" or "()" the empty one.
    if entries and entries[-1] == "":
        entries.pop()
    if not default:
        return [_read(str(entry).strip(), type(None), 0) for entry in entries]
    return [_read(str(entry).strip(), type(default[0]), 0) for entry in entries]
