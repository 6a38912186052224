r"""Sums and products written with dots: `a_0 + a_1 + \dots + a_k` for one given k.

The first and the last term show what runs: where they differ, and only there, an
index goes from the one to the other. With a number put in for the letter that ends
it, the series is an ordinary expression, and so is what it is compared with.
"""

import re

from limr_jax.rewards.math.letters import substitute

_DOTS = r"\dots"
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+|\S")


def _depth_end(text: str, stop: str) -> int:
    """Where a bracket closes that was not opened in `text`; its length if none does."""
    # stop: (what opens, what closes), swapped for a text read backwards.
    depth = 0
    for k, char in enumerate(text):
        if char in "([{)]}":
            depth += 1 if char in stop[0] else -1
            if depth < 0:
                return k
    return len(text)


def _groups_before(text: str) -> int:
    """Where the run of `(…)` factors begins that `text` ends with."""
    start = len(text)
    while text[:start].rstrip().endswith(")"):
        inside = text[: text[:start].rstrip().rindex(")")]
        back = _depth_end(inside[::-1], (")]}", "([{"))
        if back == len(inside):
            break
        start = len(inside) - back - 1
    return start


def _index(first: str, last: str) -> tuple[str, str, str, str] | None:
    """(before, after, from, to) of the one place where two terms differ."""
    one, two = _TOKEN.findall(first), _TOKEN.findall(last)
    if len(one) != len(two):
        return None
    places = {(a, b) for a, b in zip(one, two) if a != b}
    if len(places) != 1:
        return None
    (a, b) = places.pop()
    at = [k for k, (x, y) in enumerate(zip(one, two)) if x != y]
    if len(at) != 1:
        return None
    return " ".join(one[: at[0]]), " ".join(one[at[0] + 1 :]), a, b


def _parts(text: str) -> tuple[str, str, str, str, str] | None:
    """(head, first term, operator, last term, tail) around the dots."""
    left, _, right = text.partition(_DOTS)
    left, right = left.rstrip(), right.lstrip()
    if left.endswith("+") and right.startswith("+"):
        left, right = left[:-1], right[1:]
        # Within brackets the sum begins behind the last that is open.
        start = len(left) - _depth_end(left[::-1], (")]}", "([{"))
        end = _depth_end(right, ("([{", ")]}"))
        # Of the terms before the dots only the first is looked at.
        terms = re.split(r"\+", left[start:])
        last, *rest = right[:end].split("+", 1)
        tail = "".join("+" + r for r in rest) + right[end:]
        return left[:start], terms[0], "+", last, tail
    if left.endswith(")") and right.startswith("("):
        start = _groups_before(left)
        first_end = start + left[start:].index("(") + 1
        first_end += _depth_end(left[first_end:], ("([{", ")]}")) + 1
        end = _depth_end(right[1:], ("([{", ")]}")) + 2
        return left[:start], left[start:first_end], "", right[:end], right[end:]
    return None


def with_length(text: str, letter: str, length: int) -> str | None:
    """The text with the dots filled in and `letter` = `length` everywhere."""
    if text.count(_DOTS) == 1:
        series = _parts(text)
        index = _index(series[1], series[3]) if series else None
        if index is None:
            return None
        head, _, operator, _, tail = series
        before, after, low, high = index
        ends = [length if e == letter else int(e) if e.isdigit() else None
                for e in (low, high)]  # fmt: skip
        # Every term is a formula to parse.
        if None in ends or abs(ends[1] - ends[0]) > 50:
            return None
        # Downwards, too: `a_k + \dots + a_1`.
        step = 1 if ends[0] <= ends[1] else -1
        terms = [f"{before} {k} {after}" for k in range(ends[0], ends[1] + step, step)]
        text = f"{head} {operator.join(terms)} {tail}"
    return substitute(text, letter, str(length))


def end_letter(text: str) -> str | None:
    """The letter that the series runs to (or from)."""
    series = _parts(text) if text.count(_DOTS) == 1 else None
    index = _index(series[1], series[3]) if series else None
    ends = [e for e in index[2:] if re.fullmatch("[A-Za-z]", e)] if index else []
    return ends[0] if len(ends) == 1 else None
