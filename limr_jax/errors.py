"""The one exception for a user's mistake, the most common mistake, and exit codes."""

import difflib
import textwrap
from collections.abc import Mapping
from typing import Any

from limr_jax import console

# What a launch script's exit code means; launch/README.md has the same table, and each
# --help.
EXIT_CODES = {
    0: "done; or stopped by SIGTERM with the state saved, and the same command goes on",
    1: "it ran to its end and the answer is no (the text above says which); or another "
    "process of the run is gone or differs; or a fault of the program, with its "
    "traceback",
    2: "one line says what is wrong and what to do: the command line, a config, a "
    "file, the machine; in a run also grading that failed, a loss that is no number, "
    "a disk without room. What was saved stands",
    130: "interrupted by ^C: the last checkpoint stands",
}


class InputError(ValueError):
    """Something that the user gave is wrong: one line with value, limit and remedy.

    Launch scripts print the line and exit with code 2, without a traceback.
    """


def choose(table: Mapping[str, Any], name: str, field: str):
    """The entry of a literal dict of choices.

    field: what the user gave the name as.

    Raises:
      InputError: the name is unknown; the nearest one and all of them are given.
    """
    if name in table:
        return table[name]
    lower = {each.lower(): each for each in table}
    # At cutoff 0 some name is always the nearest, however far off.
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)
    raise InputError(
        f"{field}={name!r} is unknown; did you mean {lower[near[0]]!r}? "
        f"({', '.join(sorted(table))})"
    )


_LONGEST = 2_000  # characters of the line that a program ends with


def one_line(error: BaseException) -> str:
    """What an exception says, on one line, with nothing that a terminal would obey.

    Of a longer one the middle is left out, as its end says what to do. An exception of
    a user's own class may fail to say anything.
    """
    try:
        line = console.shown(" ".join(str(error).split()))
    except Exception:
        return f"{type(error).__name__}, which cannot be printed"
    if len(line) > _LONGEST:
        head, tail = line[: _LONGEST // 2], line[-_LONGEST // 4 :]
        line = f"{head}… ({len(line) - len(head) - len(tail):,} characters) …{tail}"
    return line


def exit_codes(columns: int = 88) -> str:
    """`EXIT_CODES` as the last lines of a --help."""
    lines = ["exit codes:"]
    for code, meaning in EXIT_CODES.items():
        wrapped = textwrap.wrap(meaning, columns - 8)
        lines.append(f"  {code:<4}  {wrapped[0]}")
        lines += [f"        {line}" for line in wrapped[1:]]
    return "\n".join(lines)


def shown(text, limit: int = 100) -> str:
    """A text from a file as a part of one line of at most `limit` characters.

    Control characters are shown as Python's escapes, and a cut as an ellipsis.
    """
    # New lines become blanks: an error is one line.
    line = " ".join(str(text).split())
    line = line if line.isprintable() else repr(line)
    return line if len(line) <= limit else f"{line[:limit]}…"
