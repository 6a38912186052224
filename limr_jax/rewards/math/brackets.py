"""Where a cleaned answer comes apart: at marks that no bracket encloses."""

import re

OPEN, CLOSE = "([{", ")]}"
_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)


def split_outside_brackets(
    text: str, pattern: re.Pattern
) -> tuple[list[str], list[str]]:
    """Parts and separators at depth 0; brackets of any two sorts may pair up.

    An environment is a pair of brackets, too.
    """
    parts, marks, depth, start, k = [], [], 0, 0, 0
    while k < len(text):
        char = text[k]
        # `[0, 1)` opens with one sort and closes with another: one count serves all.
        if char in OPEN:
            depth += 1
        elif char in CLOSE:
            depth -= 1
        elif depth == 0:
            mark = pattern.match(text, k)
            # A match of nothing would leave k where it is, for ever.
            if mark and mark.end() > k:
                parts.append(text[start:k].strip())
                marks.append(mark.group().strip())
                start = k = mark.end()
                continue
        # Whole commands at once; but the brace of `\{` is counted as a bracket.
        if char == "\\" and k + 1 < len(text) and text[k + 1] not in "{}":
            name = _COMMAND.match(text, k)
            depth += (name[0] == r"\begin") - (name[0] == r"\end")
            k = name.end()
        else:
            k += 1
    return parts + [text[start:].strip()], marks


def enclosed(text: str) -> tuple[str, str, str] | None:
    r"""(opening, inside, closing) if one pair of brackets holds the whole text."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        opening, inside, closing = r"\{", text[2:-2], r"\}"
    elif text and text[0] in OPEN and text[-1] in CLOSE:
        opening, inside, closing = text[0], text[1:-1], text[-1]
    else:
        return None
    depth = 0
    for char in inside:
        depth += (char in OPEN) - (char in CLOSE)
        # `(a)(b)`: the first bracket closes before the last one does.
        if depth < 0:
            return None
    return (opening, inside, closing) if depth == 0 else None
