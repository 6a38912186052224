r"""Sums and products written with dots: `a_0 + a_1 + \dots + a_k` for one given k.

The first and the last term show what runs: where they differ, and only there, an
index goes from the one to the other, by one from term to term; every other term before
the dots has to be what this makes of it. With a number put in for the letter that ends
it, the series is an ordinary expression, and so is what it is compared with.
"""

import re

from limr_jax.rewards.math import scalars
from limr_jax.rewards.math.brackets import split_outside_brackets
from limr_jax.rewards.math.letters import substitute

_DOTS = r"\dots"
_TOKEN = re.compile(r"\\[A-Za-z]+|\d+|\S")
_PLUS = re.compile(r"\+")
_MOST = 50  # terms: every one is a formula to parse
# `3`, `n`, `{k-1}`, `(n-1)`: where in the series a term stands.
_PLACE = re.compile(r"[({]*(?:(\d{1,9})|([A-Za-z])(?:([+-]\d{1,9}))?)[)}]*")


def _depth_end(text: str, brackets: tuple[str, str]) -> int:
    """Where a bracket closes that was not opened in `text`; its length if none does.

    brackets: what opens and what closes, swapped for a text read backwards.
    """
    depth = 0
    for k, char in enumerate(text):
        if char in "([{)]}":
            depth += 1 if char in brackets[0] else -1
            if depth < 0:
                return k
    return len(text)


def _groups_before(text: str) -> list[int]:
    """Where each factor begins of the run `(…)(…)` that `text` ends with."""
    starts = []
    end = len(text)
    while text[:end].rstrip().endswith(")"):
        inside = text[: text[:end].rstrip().rindex(")")]
        back = _depth_end(inside[::-1], (")]}", "([{"))
        if back == len(inside):
            break
        end = len(inside) - back - 1
        starts.insert(0, end)
    return starts


def _index(first: str, last: str) -> tuple[list[str], list[str], str, str] | None:
    """(before, after, from, to) of the one place where two terms differ, in tokens."""
    one, two = _TOKEN.findall(first), _TOKEN.findall(last)
    if len(one) != len(two):
        return None
    # Where two places differ, as in `1\cdot 2` and `n\cdot m`, which one runs is open.
    at = [k for k, (x, y) in enumerate(zip(one, two)) if x != y]
    if len(at) != 1:
        return None
    return one[: at[0]], one[at[0] + 1 :], one[at[0]], two[at[0]]


def _parts(text: str) -> tuple[str, list[str], str, str, str] | None:
    """(head, terms before the dots, operator, last term, tail)."""
    left, _, right = text.partition(_DOTS)
    left, right = left.rstrip(), right.lstrip()
    if left.endswith("+") and right.startswith("+"):
        left, right = left[:-1], right[1:]
        # Within brackets the sum begins behind the last that is open. The left part is
        # read from its end, where a closing bracket is the one that opens.
        start = len(left) - _depth_end(left[::-1], (")]}", "([{"))
        end = _depth_end(right, ("([{", ")]}"))
        terms, _ = split_outside_brackets(left[start:], _PLUS)
        (last, *rest), _ = split_outside_brackets(right[:end], _PLUS)
        tail = "".join("+" + r for r in rest) + right[end:]
        return left[:start], terms, "+", last, tail
    if left.endswith(")") and right.startswith("("):
        starts = _groups_before(left)
        if not starts:
            return None
        factors = [left[a:b] for a, b in zip(starts, [*starts[1:], len(left)])]
        # Of the last factor, which begins at 0: its opening and closing bracket are 2.
        end = _depth_end(right[1:], ("([{", ")]}")) + 2
        return left[: starts[0]], factors, "", right[:end], right[end:]
    return None


def with_length(text: str, letter: str, length: int) -> str | None:
    """The text with the dots filled in and `letter` = `length` everywhere."""
    if text.count(_DOTS) == 1:
        series = _parts(text)
        index = _index(series[1][0], series[3]) if series else None
        if index is None:
            return None
        head, shown, operator, _, tail = series
        before, after, *ends = index
        low, high = (
            length if end == letter else int(end) if end.isdigit() else None
            for end in ends
        )
        if None in (low, high) or max(abs(high - low), len(shown)) > _MOST:
            return None
        # Downwards, too: `a_k + \dots + a_1`.
        step = 1 if low <= high else -1

        def term(place: int) -> str:
            return " ".join([*before, str(place), *after])

        # `1 + 4 + 9 + \dots + n` is not the sum of 1 to n.
        for k, one in enumerate(shown[1:], start=1):
            at_length = _put_in(one, letter, length)
            expected = low + k * step
            place = _place(
                one, before=before, after=after, letter=letter, length=length
            )
            if place != expected and not scalars.same_value(term(expected), at_length):
                return None
        terms = [term(place) for place in range(low, high + step, step)]
        text = f"{head} {operator.join(terms)} {tail}"
    return _put_in(text, letter, length)


def _put_in(text: str, letter: str, length: int) -> str:
    # `2n` is 2 times 4, and not 24; but `_2 n` may be the base of a logarithm.
    text = re.sub(
        rf"(_?)(\d+|\))\s*(?={letter}(?![A-Za-z]))",
        lambda m: m[1] + m[2] + (" " if m[1] else r"\cdot "),
        text,
    )
    return substitute(text, letter, str(length))


def _place(term: str, before: list[str], after: list[str], letter: str, length: int):
    """The index of a term, length - 1 for `a_{k-1}`; None if it is of another sort."""
    tokens = _TOKEN.findall(term)
    end = len(tokens) - len(after)
    if tokens[: len(before)] != before or tokens[end:] != after:
        return None
    match = _PLACE.fullmatch("".join(tokens[len(before) : end]))
    if not match or match[2] not in (None, letter):
        return None
    return int(match[1]) if match[1] else length + int(match[3] or 0)


def end_letter(text: str) -> str | None:
    """The letter that the series runs to (or from)."""
    series = _parts(text) if text.count(_DOTS) == 1 else None
    index = _index(series[1][0], series[3]) if series else None
    ends = [e for e in index[2:] if re.fullmatch("[A-Za-z]", e)] if index else []
    return ends[0] if len(ends) == 1 else None
