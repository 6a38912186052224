r"""An answer's form: what its outermost signs make of it.

`parse_form` looks at top-level separators, brackets and relation signs only, once for
every level of nesting; what it does not understand is an `item`.
"""

import dataclasses
import functools
import re

from limr_jax.rewards.math import matrices
from limr_jax.rewards.math.brackets import enclosed, split_outside_brackets

MAX_PARTS = 200
_SIGNS = re.compile(
    r"\\(?:le|ge|ne|in|approx|su[bp]set(?:eq)?|parallel|perp)(?![A-Za-z])|[<>=]"
)
_SYMBOL = (
    r"(?:\\[a-zA-Z]+|[A-Za-z]|\\text\{[^{}]*\})"
    r"(?:_(?:\w|\{[^{}]*\})|\^\s*\\prime|')*"
)
_NAME = rf"(?:{_SYMBOL})(?:\s*\([^()]*\))?"
_LABEL = re.compile(
    # x, f(x), (x, y) and x : y
    rf"\s*(?:{_NAME}|\(?{_NAME}(?:\s*[,:]\s*{_NAME})+\)?"
    r"|\\frac\{d ?[a-z]\}\{d ?[a-z]\}|\\frac\{[A-Z]{2,3}\}\{[A-Z]{2,3}\}"  # dy/dx
    r"|[A-Z]{2,3}|\|[A-Z]{1,2}\|"  # AB, |AB|
    r"|m?\\angle\s*[A-Z]+|\\(?:overline|vec|mathbf)\{\w{1,3}\}"  # \angle A, \vec{AB}
    r"|\\(?:sin|cos|tan|cot|log|ln)\s*(?:\^\s*\d)?\s*\(?\\?[A-Za-z]+\)?"  # \sin A
    r"|[A-Za-z][A-Za-z ]{2,40})\s*"  # the area
)
CASES = re.compile(
    r"(?:\\\{)?\s*\\begin\{(cases|array|aligned)\}(?:\{[lcr ]*\})?(.*)\\end\{\1\}",
    re.DOTALL,
)


# Words that make another number of the one beside them: no names.
MEANING = """
    not no never minus negative plus times twice thrice double triple half halves
    third thirds fourth fourths quarter quarters fifth fifths root cube cubed squared
    factorial multiple multiples divisor divisors factor factors power powers except
    without less more greater fewer than least most over under above below between from
    to up by mod modulo percent hundred thousand million billion trillion dozen
    inverse reciprocal opposite absolute either or if unless wrong false incorrect log
    ln sin cos tan"""
MEANING = frozenset(MEANING.split())


@dataclasses.dataclass(frozen=True)
class Form:
    """kind: list, tuple, set, relation, matrix or item.

    parts: members, or a relation's sides; ops: a relation's signs, a tuple's brackets;
    rows: a matrix's cells; joined: what stood between a list's members.
    """

    kind: str
    text: str
    parts: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    joined: str = ""

    @property
    def labelled(self) -> bool:
        """`x = …`, `f(x) = …`, `(p, q) = …`, `x \\in …`: a name, then the answer."""
        named = set(self.ops) <= {"="} or self.ops == (r"\in",)
        return self.kind == "relation" and named and is_label(self.parts[0])

    @property
    def square(self) -> bool:
        """A tuple in square brackets."""
        return self.kind == "tuple" and self.ops == ("[", "]")


def is_label(text: str) -> bool:
    """A name for a value; `twice x` is none."""
    words = {w.lower() for w in re.findall(r"(?<![A-Za-z\\])[A-Za-z][a-z]+", text)}
    return _LABEL.fullmatch(text) is not None and not words & MEANING


# Loosest first: in `1, 2; 3, 4` the semicolon parts two pairs.
_LEVELS = [
    (re.compile(r"\s*;\s*"), ";"),
    (re.compile(r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![a-z])\s*,?\s*"), "and"),
    (re.compile(r"\s*,\s*"), ","),
]


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def _list(text: str) -> Form | None:
    for pattern, joined in _LEVELS:
        parts, marks = split_outside_brackets(text, pattern)
        kept = tuple(p for p in parts if p)
        if marks and 1 < len(kept) <= MAX_PARTS:
            if joined == "and":
                joined = "and" if any("and" in m for m in marks) else "or"
                if any(len(_WORD.findall(p)) > 3 for p in kept):
                    continue  # a sentence, not a list
            return Form("list", text, kept, joined=joined)
    return None


def _relation(text: str) -> Form | None:
    sides, marks = split_outside_brackets(text, _SIGNS)
    # Each sign costs a parse of its sides: nobody writes more of them.
    if not marks or len(marks) > 8 or not all(sides):
        return None
    return Form("relation", text, parts=tuple(sides), ops=tuple(marks))


def _outward(text: str) -> str:
    """`]0, 1[` with its brackets turned, as most of the world writes it."""
    match = re.fullmatch(r"(\]|[(\[])([^\[\]()]+,[^\[\]()]+)(\[|[)\]])", text)
    if not match or (match[1] != "]" and match[3] != "["):
        return text
    opening, closing = match[1].replace("]", "("), match[3].replace("[", ")")
    return opening + match[2] + closing


def _matrix(text: str) -> Form | None:
    rows = matrices.parse(text)
    return Form("matrix", text, rows=rows) if rows else None


_DIVIDED = re.compile(  # quotient and remainder
    r"(\d+)\s*(?:\\text\{\s*)?(?:R|r|rem|remainder)\.?:?\s*\}?\s*(\d+)"
)


# The rules of `compare` parse the same texts again and again.
@functools.lru_cache(maxsize=4096)
def parse_form(text: str) -> Form:
    """The form of a cleaned answer."""
    text = _outward(text.strip().rstrip(",;")).removeprefix(r"\approx").strip()
    # From the loosest sign to the closest: a list of relations is a list.
    divided = _DIVIDED.fullmatch(text)
    if divided:
        # With R for brackets, so that `17 R 2` is not the point (17, 2).
        return Form("tuple", text, parts=divided.groups(), ops=("R", "R"))
    matrix = _matrix(text)
    if matrix:
        return matrix
    listed = _list(text)
    if listed:
        return listed
    relation = _relation(text)
    if relation:
        return relation
    brackets = enclosed(text)
    if brackets:
        opening, inside, closing = brackets
        inner = _list(inside) if inside.strip() else None
        # `{x | x > 1}` whose braces lost their backslashes: a set.
        if opening == "{" and "|" in inside:
            return parse_form(rf"\{{{inside}\}}")
        # Bare braces are TeX's own, unless a list stands in them: `{1, 2}` is a set.
        if opening == r"\{" or opening == "{":
            parts = inner.parts if inner else (inside.strip(),) * bool(inside.strip())
            kind = "set" if opening == r"\{" or inner else None
            return Form(kind, text, parts) if kind else parse_form(inside)
        if inner and inner.joined in ",;":  # (4 or 5) is no tuple
            rows = tuple(
                row.parts for row in map(parse_form, inner.parts) if row.square
            )
            if opening == "[" and len(rows) == len(inner.parts):
                return Form("matrix", text, rows=rows)  # [[1, 2], [3, 4]]
            return Form("tuple", text, parts=inner.parts, ops=(opening, closing))
        if inside.strip():
            return parse_form(inside)
    return Form("item", text)
