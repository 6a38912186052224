r"""Answers of several parts with names: `12\text{ chickens and }18\text{ rabbits}`.

A part's name is its label (`x = 1`, `P(A) = \frac13`, `\text{Ann: } 7`), its number
(`(1) 5`), or what it counts or measures. Parts that have names are compared name by
name; where one side has none, in the order in which they stand.
"""

import re

from limr_jax.rewards.math import units
from limr_jax.rewards.math.forms import MEANING, parse_form

_NUMBERED = re.compile(  # (1), a), ii., \text{Part (a): }
    r"(?:(?:^|(?<=[\s,;.}]))(?:\\text\{\s*)?|\\text\{\s*)"
    r"(?:(?:part|question)\s(N):|(?:part |question )?(?:\((?:\\text\{)?(N)\}?\)"
    r"|(?P<open>N)(?:\)|[.:](?=\s))|(?<=\{)(N)\s*(?=\})))"
    r"[.:]?\s*\}?[.:]?\s*(?=\S)".replace("N", r"[A-J]|\d{1,2}|[ivx]{1,4}"),
    re.IGNORECASE,
)
_SEQUENCES = [
    list("abcdefghij"),
    [str(k) for k in range(1, 21)],
    ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x"],
]
_CALLED = re.compile(
    r"\\text\{\s*[A-Za-z][^{}\d=]*?\s*:?\s*\}\s*[:=]?\s*(?=[-+\w\\(\[.])"
    r"|[A-Za-z][A-Za-z ]+?\s*[:=]?\s*(?=[-+\d\\(\[.])"
)
_SHORT = re.compile(r"([A-Z])\s*:\s*(?=[-+\d\\(\[.])")
_EXTREMES = dict.fromkeys(["minimum", "smallest", "least", "lowest", "minimal"], "min")
_EXTREMES |= dict.fromkeys(
    ["maximum", "largest", "greatest", "highest", "maximal"], "max"
)
_IDLE = {"ha", "have", "get", "got", "i", "are", "wa", "the", "value", "of"}  # no s


def numbered_parts(text: str) -> tuple[str, ...] | None:
    """`(1) 5 (2) 7` without its numbers, in their order; None for anything else."""
    marks = [m for m in _NUMBERED.finditer(text) if not _within_brackets(m)]
    names = [next(filter(None, mark.groups())).lower() for mark in marks]
    if len(marks) < 2 or marks[0].start():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [_AND.sub("", text[m.end() : end]) for m, end in zip(marks, ends)]
    # `(1) 3 + (2) 4` is a sum.
    if not all(re.search(r"\w", part) and part[-1] not in "+-=<>" for part in parts):
        return None
    # In any order, but none is left out: (1), (3) are no numbers of parts.
    for sequence in _SEQUENCES:
        if sorted(names) == sorted(sequence[: len(names)]):
            return tuple(parts[names.index(name)] for name in sequence[: len(names)])
    return None


def _within_brackets(mark: re.Match) -> bool:
    """Is `3)` the end of `(2, 3)`?"""
    before = mark.string[: mark.start()]
    return bool(mark["open"]) and before.count("(") > before.count(")")


_AND = re.compile(r"(?:[\s,;.]|\band\b|\\text\{\s*\})*$")


_COUNTED = re.compile(
    r"([-\d.]+|\\frac\{\d+\}\{\d+\})\s*(?:\\text\{\s*([A-Za-z ]+?)\s*\}|([A-Za-z]{3,}))"
)


def _name(part: str, any_noun: bool) -> tuple[str, str]:
    """(name, value) of one part; the name is '' where it has none.

    any_noun: also what no list of nouns has, `5 \\text{ nickels}`.
    """
    counted = _COUNTED.fullmatch(part) if any_noun else None
    if counted:
        words = (counted[2] or counted[3]).lower().split()
        # `3 dozen` and `2 thirds` are numbers, and name nothing.
        return "" if MEANING & {*words} else _called(words), counted[1]
    form = parse_form(part)
    if form.kind == "relation" and form.labelled and form.ops == ("=",):
        return _plain(form.parts[0]), form.parts[-1]
    part = re.sub(r"\\(?=max|min)", "", part)
    label = _CALLED.match(part) or _SHORT.match(part)
    if label and not part.startswith(("\\frac", "\\sqrt")):
        words = re.findall(r"[A-Za-z]+", label[0].replace(r"\text", ""))
        rest = part[label.end() :]
        called = _called(words)
        if called and not MEANING & {w.lower() for w in words} and rest:
            return called, rest
    # `5 (A)`: a letter in brackets behind a value names it.
    noted = re.search(r"\s*\(([A-Z])\)\s*\}?$", part)
    value, unit = units.split_unit(part)
    if noted and value != part:
        return noted[1], value
    return (units.unit_name(unit), value) if unit else ("", part)


def _plain(label: str) -> str:
    plain = re.sub(r"\\text\{([^{}]*)\}", r"\1", label)
    words = re.fullmatch(r"[A-Za-z ]{3,}", plain) and plain.split()
    return _called(words) if words else plain.replace(" ", "").lower()


def _called(words: list[str]) -> str:
    """`Maximum value` is `max`, `Ann has` is `ann`."""
    lower = [word.lower().rstrip("s") for word in words]
    return " ".join(_EXTREMES.get(w, w) for w in lower if w not in _IDLE)


def pair_by_name(
    ref: tuple[str, ...], pred: tuple[str, ...]
) -> list[tuple[str, str]] | None:
    """Which part of the one is to be compared with which of the other.

    None where neither side's names tell its parts apart; empty where they cannot agree.
    """
    # Any noun first: `5 nickels, 3 dimes` need not be nouns of a list.
    for any_noun in (True, False):
        sides = [[_name(part, any_noun) for part in parts] for parts in (ref, pred)]
        names = [[name for name, _ in side] for side in sides]
        distinct = [all(some) and len({*some}) == len(some) > 1 for some in names]
        if all(distinct) and {*names[0]} == {*names[1]}:
            others = dict(sides[1])
            return [(value, others[name]) for name, value in sides[0]]
    if not any(distinct):
        return None
    if len(ref) != len(pred):
        return []
    if all(distinct):
        # Words may differ and mean the same; a shared name in another place does not.
        letters = [all(len(n) < 3 for n in some) for some in names]
        shared = {*names[0]} & {*names[1]}
        moved = any(names[0].index(n) != names[1].index(n) for n in shared)
        if any(letters) or moved:
            return []  # x = 1, y = 2 is not a = 1, b = 2
    elif any(names[distinct.index(False)]):
        return []  # some of its parts have names, and not names that part them
    else:
        sides = [_in_order(s) if t else s for s, t in zip(sides, distinct)]
    return [(mine, yours) for (_, mine), (_, yours) in zip(*sides)]


def _in_order(side: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Least before greatest, x before y; anything else as it stands."""
    if {name for name, _ in side} == {"min", "max"}:
        return sorted(side, reverse=True)  # min before max
    return sorted(side) if all(len(n) == 1 for n, _ in side) else side
