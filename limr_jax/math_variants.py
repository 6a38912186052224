r"""Readings of a pair of answers, from the strictest to the loosest.

A qualifier that only one side has is dropped ("for every integer k"), the free integer
of a family may have any letter, and a unit that only one side names is no difference.
Strings in, strings out; what is the same is not decided here.
"""

import re
from collections.abc import Iterator

from limr_jax import math_units


def variants(ref: str, pred: str) -> Iterator[tuple[str, str]]:
    """Ever looser readings of the pair, each applied to both sides."""
    yield ref, pred
    yield _decimal_comma(ref), _decimal_comma(pred)
    ref, pred = (t.removeprefix(r"\approx").strip() for t in (ref, pred))
    ref, pred = (t.partition(r"\approx")[0].strip() for t in (ref, pred))
    yield ref, pred
    short = _unqualified(*_without_modulus(ref, pred))
    yield short[0], short[1]
    renamed = _renamed(ref, pred, short)
    if renamed:
        yield renamed
    bare = [math_units.without(t) for t in short]
    yield bare[0], bare[1]
    yield tuple(_MAGNITUDE.sub(_power_of_ten, t) for t in (ref, pred))


_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_MAGNITUDE = re.compile(
    rf"(?<=\d)\s*(?:\\text\{{)?\s*({'|'.join(_POWERS)})\b[\sA-Za-z]*\}}?$"
)


def _power_of_ten(match: re.Match) -> str:
    return rf"\cdot 10^{{{_POWERS[match[1]]}}}"


_MODULUS = re.compile(r"\s*\(?\s*\\p?mod(?![a-z]).*$")


def _without_modulus(ref: str, pred: str) -> tuple[str, str]:
    """Without `\\pmod 7`, where only one side has it."""
    if bool(_MODULUS.search(ref)) == bool(_MODULUS.search(pred)):
        return ref, pred
    return _MODULUS.sub("", ref), _MODULUS.sub("", pred)


def _decimal_comma(text: str) -> str:
    return re.sub(r"^(-?\d+),(\d\d)$", r"\1.\2", text)


_QUALIFIER = re.compile(
    r"[,;]?\s*\(?\s*(?:\\text\{\s*)?(?<![A-Za-z\\])(?:for (?:some|all|any|every|each"
    r"|(?:positive |natural )?(?:integers?|numbers?))|where|such that)\b.*$"
    r"|(?<=\S)\s*\\text\{\s*(?:is|are)\b(?!\s*(?:not|wrong|incorrect|false)\b).*$"
    r"|(?<=\S)\s*[,;(]\s*\(?\s*[a-z]\s*\\in\s*(?:\\mathbb\s*\{?)?[ZNR].*$",
    re.DOTALL,
)


def _unqualified(ref: str, pred: str) -> list[str]:
    """Without 'for every integer k', unless both qualify and one holds a value."""
    found = [_QUALIFIER.search(t) for t in (ref, pred)]
    if all(found) and any(re.search(r"[\d=]", m.group()) for m in found):
        return [ref, pred]
    return [_QUALIFIER.sub("", t).rstrip(" ,;(") for t in (ref, pred)]


_PARAMETER = re.compile(r"(?<![A-Za-z\\_])[A-Za-z](?![A-Za-z])")
_ANY_NUMBER = re.compile(r"integer|\\mathbb\s*\{?[ZNR]|\bnatural\b|constant|arbitrary")
_COUNTERS = set("kmnltpNKZ")  # run over the integers where π shows a period
_CONSTANTS = set("CcKk")  # of integration


def letters(text: str) -> set[str]:
    """The letters that stand alone, as variables do; e and i are numbers."""
    plain = re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", " ", spaced(text))
    return set(_PARAMETER.findall(plain)) - {"e", "i"}


def _renamed(ref: str, pred: str, short: list[str]) -> tuple[str, str] | None:
    """A family's free number may have any letter: n π and k π, t and x in Z."""
    values = [re.sub(r"^[^=]*=", "", t) if "=" in t else t for t in short]
    mine, yours = letters(values[0]), letters(values[1])
    old, new = yours - mine, mine - yours
    if len(old) != 1 or len(new) != 1:
        return None
    family = len(mine) == len(yours) == 1 and (
        _ANY_NUMBER.search(ref + pred)
        or (r"\pi" in ref + pred and old | new <= _COUNTERS)
    )
    function = all("(" in t.partition("=")[0] for t in (ref, pred) if "=" in t)
    free = len(mine) == len(yours) == 2 and function and _ANY_NUMBER.search(ref + pred)
    constant = len(mine) == len(yours) > 1 and old | new <= _CONSTANTS
    if not (family or free or constant):
        return None
    return values[0], put(spaced(values[1]), old.pop(), new.pop())


def put(text: str, letter: str, new: str) -> str:
    return re.sub(rf"(?<![A-Za-z\\]){letter}(?![A-Za-z])", lambda _: new, text)


def spaced(text: str) -> str:
    """Products of letters apart: `xy` → `x y`."""
    return re.sub(
        r"\\[A-Za-z]+|[A-Za-z]{2,}",
        lambda m: m[0] if m[0][0] == "\\" else " ".join(m[0]),
        text,
    )
