r"""Readings of a pair of answers, from the strictest to the loosest.

A qualifier that only one side has is dropped ("for every integer k"), and so is a
modulus; a comma may be a decimal point; the free integer of a family, and constants of
integration, may have any letters. Strings in, strings out; what is the same is not
decided here, and units are dropped by `compare`.
"""

import itertools
import re
from collections.abc import Iterator

from limr_jax.rewards.math.letters import spaced_out, substitute, variables


def variants(ref: str, pred: str) -> Iterator[tuple[str, str]]:
    """Ever looser readings of the pair, each applied to both sides."""
    yield ref, pred
    yield _decimal_comma(ref, pred)
    ref_value, pred_value = _without_modulus(ref, pred)
    ref_short, pred_short = _unqualified(ref_value, pred_value)
    yield ref_short, pred_short
    renamed = _renamed(ref, pred, (ref_short, pred_short))
    if renamed:
        yield renamed
    # Last, as it tries several assignments, each with its own comparison.
    yield from _other_constants(ref_short, pred_short)


_CONGRUENT = re.compile(
    r"(?P<name>[a-z]\s*=\s*)?"
    r"(?P<values>-?\d{1,9}(?:(?:\s*,\s*|\s+(?:and|or)\s+)-?\d{1,9})*)?\s*"
    r"(?:\\[pb]?mod(?![a-z])\s*\{?|(?:\\text\{\s*)?\(?(?:\\text\{)?\s*\\?mod(?:ulo)?(?![a-z])\s*\}?)\s*(?P<modulus>[1-9]\d{0,8}|[a-z])(?![A-Za-z])\s*\}?\s*\)?\}?"
)


def reduce_residues(text: str) -> str:
    r"""Every `a \pmod n` with 0 ≤ a < n."""
    # `\pm 2 \pmod 7` is 2 and -2.
    text = re.sub(r"\\pm ?(\d+)(?=[^=]*mod)", r"\1, -\1", text)
    return _CONGRUENT.sub(_congruent, text)


def _congruent(match: re.Match) -> str:
    r"""`x = 11, 12 \pmod 8` as `x = 3 \pmod{8}, x = 4 \pmod{8}`."""
    name, modulus = match["name"] or "", match["modulus"]
    values = re.findall(r"-?\d+", match["values"] or "")
    if modulus.isdigit():
        values = [str(int(value) % int(modulus)) for value in values]
    return ", ".join(rf"{name}{value} \pmod{{{modulus}}}" for value in values or [""])


_RESIDUE = re.compile(r"(?P<name>[a-z] ?= ?)?(?P<value>\d+) \\pmod\{(?P<modulus>\d+)\}")
_FAMILY = re.compile(  # m k + r
    r"(?P<name>[a-z] ?= ?)?(?:(?P<first>\d+) ?\+ ?)?(?P<modulus>\d+) ?[jkmnqt]"
    r"(?: ?(?P<last>[+-] ?\d+))?"
)


def _without_modulus(ref: str, pred: str) -> tuple[str, str]:
    r"""Without `\pmod 7`, where only one side has it, and a residue before it.

    `n = 7 k - 2` is `n = 5 \pmod 7`.
    """
    residues = [_RESIDUE.fullmatch(t) for t in (ref, pred)]
    if all(residues) or not any(residues):
        return ref, pred
    residue, other = (residues[0], pred) if residues[0] else (residues[1], ref)
    family = _FAMILY.fullmatch(_QUALIFIER.sub("", other).strip())
    # `5 + 7k` or `7k + 5`, and not a remainder on both sides.
    if family and (family["first"] is None or family["last"] is None):
        value = int((family["first"] or family["last"] or "0").replace(" ", ""))
        modulus = int(family["modulus"])
        name = residue["name"] if family["name"] is None else family["name"]
        other = (
            rf"{name or ''}{value % modulus if modulus else value} \pmod{{{modulus}}}"
        )
        return (ref, other) if residues[0] else (other, pred)
    # 17 is no residue mod 5: what is compared with one has to be below the modulus.
    value = re.search(r"(\d+)$", other)
    # `x = 3` is not all that a reference of `x = 3 \pmod 5` is.
    incomplete = residues[0] and residue["name"]
    if incomplete or not value or int(value[1]) >= int(residue["modulus"]):
        return ref, pred
    bare = (residue["name"] or "") + residue["value"]
    return (bare, pred) if residues[0] else (ref, bare)


def _decimal_comma(ref: str, pred: str) -> tuple[str, str]:
    """`3,5` for 3.5 where the reference has a point; `1,22` for 1.22 anyway."""
    point = [re.fullmatch(r"-?\d+\.\d+", t) is not None for t in (ref, pred)]
    # `1,2` may be a list: without a point in the reference only two decimals count.
    comma = r"^(-?\d+),(\d+)$" if point[0] else r"^(-?\d+),(\d\d)$"
    return re.sub(r"^(-?\d+),(\d\d)$", r"\1.\2", ref), re.sub(comma, r"\1.\2", pred)


_QUALIFIER = re.compile(
    r"[,;]?\s*\(?\s*(?:\\text\{\s*)?(?<![A-Za-z\\])(?:for (?:some|all|any|every|each"
    r"|(?:positive |natural )?(?:integers?|numbers?))|where|such that)\b.*$"
    r"|(?<=\S)\s*\\text\{\s*(?:is|are)\b(?!\s*(?:not|wrong|incorrect|false)\b).*$"
    r"|(?<=\S)\s*[,;(]\s*\(?\s*[a-z]\s*\\in\s*(?:\\mathbb\s*\{?)?[ZNR].*$",
    re.DOTALL,
)


def _unqualified(ref: str, pred: str) -> tuple[str, str]:
    """Without 'for every integer k', unless both qualify and one holds a value."""
    qualifiers = [_QUALIFIER.search(t) for t in (ref, pred)]
    if all(qualifiers) and any(re.search(r"[\d=]", m.group()) for m in qualifiers):
        return ref, pred
    mine, yours = (_QUALIFIER.sub("", t).rstrip(" ,;(") for t in (ref, pred))
    return mine, yours


_ANY_NUMBER = re.compile(r"integer|\\mathbb\s*\{?[ZNR]|\bnatural\b|constant|arbitrary")
_COUNTERS = set("kmnltpNKZ")  # run over the integers where π shows a period
_CONSTANTS = set("ABCDcKk")  # of integration


def _renamed(ref: str, pred: str, short: tuple[str, str]) -> tuple[str, str] | None:
    """A family's free number may have any letter: n π and k π, t and x in Z."""
    values = [re.sub(r"^[^=]*=", "", t) if "=" in t else t for t in short]
    mine, yours = variables(values[0]), variables(values[1])
    old, new = yours - mine, mine - yours
    if len(old) != 1 or len(new) != 1:
        return None
    # `n\pi` and `k\pi`, over the integers.
    family = len(mine) == len(yours) == 1 and (
        _ANY_NUMBER.search(ref + pred)
        or (r"\pi" in ref + pred and old | new <= _COUNTERS)
    )
    # `f(x) = cx` and `f(x) = ax`, for any real number.
    function = all("(" in t.partition("=")[0] for t in (ref, pred) if "=" in t)
    free = len(mine) == len(yours) == 2 and function and _ANY_NUMBER.search(ref + pred)
    # `x^2 + C` and `x^2 + k`, beside a variable.
    ours = old | new <= _CONSTANTS and (old | new) & {*"CcK"}
    constant = ours and any(x.islower() for x in mine & yours)
    if not (family or free or constant):
        return None
    return values[0], substitute(spaced_out(values[1]), old.pop(), new.pop())


_CONSTANT = re.compile(
    r"(?<![A-Za-z\\_])(?:[CcKk]_\d|[CcKk]_\{\d\}|[A-DK](?![A-Za-z_(]))"
)


def _other_constants(ref: str, pred: str) -> Iterator[tuple[str, str]]:
    """`A cos x + B sin x` for `C_1 cos x + C_2 sin x`: each assignment of the names.

    For two constants or three, each of them written once, beside a variable.
    """
    if r"\text" in ref + pred:
        return
    ref, pred = spaced_out(ref), spaced_out(pred)
    mine, yours = (_CONSTANT.findall(t) for t in (ref, pred))
    free = [variables(_CONSTANT.sub(" ", t)) for t in (ref, pred)]
    once = all(len({*some}) == len(some) for some in (mine, yours))
    # The same letters on both sides keep their places; C_1 and C_2 may swap theirs.
    if {*mine} == {*yours} and not all("_" in name for name in mine):
        return
    if not once or not 1 < len(mine) == len(yours) < 4:
        return
    if not free[0] or free[0] != free[1]:
        return
    for order in itertools.permutations(range(len(mine))):
        names = iter(order)
        yield (
            _CONSTANT.sub(lambda m: rf"\mu_{{c{mine.index(m[0])}}}", ref),
            _CONSTANT.sub(lambda m: rf"\mu_{{c{next(names)}}}", pred),  # noqa: B023
        )
