"""Markdown in which what comes from elsewhere is text: no tag, link, picture or cell.

Names of arms, values of a config, what a run's error says: each may hold what a policy
or a data set wrote, and a page of Markdown is HTML once somebody opens it.
"""

import re
from collections.abc import Iterable, Sequence

from limr_jax import console

# The beginning of a tag or comment, or of a link's address; a lone "<" stays.
_TAG, _LINK = re.compile(r"<(?=[A-Za-z/!?])"), re.compile(r"\](?=[(\[:])")
_LONGEST = 2_000  # characters of one text


class Code(str):
    """What `code` has made; a table leaves it as it is."""


def text(value) -> str:
    """The value as one line that Markdown shows as it stands."""
    line = _LINK.sub(r"\\]", _TAG.sub("&lt;", _line(value)))
    # At the beginning these would make a heading, a quotation, a list.
    return re.sub(r"^(?=[#>*+-]+(\s|$))", r"\\", line)


def code(value) -> Code:
    """The value as a span of code, which no backtick within it ends."""
    line = _line(value)
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    # A blank beside the fence where a backtick would be taken for a part of it.
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Code(f"{fence}{pad}{line}{pad}{fence}")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table: its head, and a line of cells for each row.

    Cells are text, but for what `code` has made.
    """

    def line(cells):
        shown = (x if isinstance(x, Code) else text(x) for x in cells)
        # A | within a cell would begin the next one.
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in shown) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _line(value) -> str:
    """On one line, nothing in it that a terminal would obey, and not too long."""
    line = console.shown(" ".join(str(value).split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
