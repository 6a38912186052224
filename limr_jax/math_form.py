r"""An answer's form: what its outermost signs make of it.

`read` looks at top-level separators, brackets and relation signs only, once for every
level of nesting; what it does not understand is an `item`.
"""

import dataclasses
import functools
import re

MAX_PARTS = 200
_OPEN, _CLOSE = "([{", ")]}"
_SIGNS = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>=]")
_SYMBOL = (
    r"(?:\\[a-zA-Z]+|[A-Za-z]|\\text\{[^{}]*\})"
    r"(?:_(?:\w|\{[^{}]*\})|\^\s*\\prime|')*"
)
_NAME = rf"(?:{_SYMBOL})(?:\s*\([^()]*\))?"
_LABEL = re.compile(
    rf"\s*(?:{_NAME}|\(?{_NAME}(?:\s*[,:]\s*{_NAME})+\)?"
    r"|\\frac\{d ?[a-z]\}\{d ?[a-z]\}|\\frac\{[A-Z]{2,3}\}\{[A-Z]{2,3}\}"
    r"|[A-Z]{2,3}|\|[A-Z]{1,2}\|"
    r"|m?\\angle\s*[A-Z]+|\\overline\{[A-Z]{1,3}\}"
    r"|\\(?:sin|cos|tan|cot|log|ln)\s*(?:\^\s*\d)?\s*\(?\\?[A-Za-z]+\)?"
    r"|[A-Za-z][A-Za-z ]{2,40})\s*"
)
_MATRIX = re.compile(
    r"\(?\s*\\begin\{((?:[pb]|small)?matrix|array)\}(?:\{[lcr|]*\})?(.*)"
    r"\\end\{\1\}\s*\)?(\s*\^\s*\{?\s*(?:T|\\top)\s*\}?)?",
    re.DOTALL,
)
CASES = re.compile(
    r"(?:\\\{)?\s*\\begin\{(cases|array|aligned)\}(?:\{[lcr ]*\})?(.*)\\end\{\1\}",
    re.DOTALL,
)


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
    return _LABEL.fullmatch(text) is not None


_COMMAND = re.compile(r"\\(?:[A-Za-z]+|.)", re.DOTALL)


def split(text: str, pattern: re.Pattern) -> tuple[list[str], list[str]]:
    """Parts and separators at depth 0; brackets of any two sorts may pair up.

    An environment is a pair of brackets, too.
    """
    parts, marks, depth, start, k = [], [], 0, 0, 0
    while k < len(text):
        char = text[k]
        if char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        elif depth == 0:
            found = pattern.match(text, k)
            if found and found.end() > k:
                parts.append(text[start:k].strip())
                marks.append(found.group().strip())
                start = k = found.end()
                continue
        if char == "\\" and k + 1 < len(text) and text[k + 1] not in "{}":
            name = _COMMAND.match(text, k)
            depth += (name[0] == r"\begin") - (name[0] == r"\end")
            k = name.end()
        else:
            k += 1
    return parts + [text[start:].strip()], marks


_LEVELS = [
    (re.compile(r"\s*;\s*"), ";"),
    (re.compile(r"\s*,?\s*(?<![A-Za-z\\])(?:and|or)(?![a-z])\s*,?\s*"), "and"),
    (re.compile(r"\s*,\s*"), ","),
]


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def _list(text: str) -> Form | None:
    for pattern, joined in _LEVELS:
        parts, marks = split(text, pattern)
        kept = tuple(p for p in parts if p)
        if marks and 1 < len(kept) <= MAX_PARTS:
            if joined == "and":
                joined = "and" if any("and" in m for m in marks) else "or"
                if any(len(_WORD.findall(p)) > 3 for p in kept):
                    continue  # a sentence, not a list
            return Form("list", text, kept, joined=joined)
    return None


def _enclosed(text: str) -> tuple[str, str, str] | None:
    r"""(opening, inside, closing) if one pair of brackets holds the whole text."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        opening, inside, closing = r"\{", text[2:-2], r"\}"
    elif text and text[0] in _OPEN and text[-1] in _CLOSE:
        opening, inside, closing = text[0], text[1:-1], text[-1]
    else:
        return None
    depth = 0
    for char in inside:
        depth += (char in _OPEN) - (char in _CLOSE)
        if depth < 0:
            return None
    return (opening, inside, closing) if depth == 0 else None


def _relation(text: str) -> Form | None:
    sides, marks = split(text, _SIGNS)
    if not marks or len(marks) > 8 or not all(sides):
        return None
    return Form("relation", text, tuple(sides), tuple(marks))


def _cases(text: str) -> Form | None:
    """A system of equations, one a row."""
    found = CASES.fullmatch(text)
    if not found or "&" in found.group(2) or r"\begin" in found.group(2):
        return None
    rows = tuple(r.strip(" ,;") for r in found.group(2).split(r"\\") if r.strip())
    return Form("list", text, rows, joined=",") if len(rows) > 1 else None


def _outward(text: str) -> str:
    """`]0, 1[` with its brackets turned, as most of the world writes it."""
    found = re.fullmatch(r"(\]|[(\[])([^\[\]()]+,[^\[\]()]+)(\[|[)\]])", text)
    if not found or (found[1] != "]" and found[3] != "["):
        return text
    opening, closing = found[1].replace("]", "("), found[3].replace("[", ")")
    return opening + found[2] + closing


def _matrix(text: str) -> Form | None:
    found = _MATRIX.fullmatch(text)
    if not found or r"\begin" in found.group(2):
        return None
    rows = [r for r in re.split(r"\\\\", found.group(2)) if r.strip()]
    cells = tuple(tuple(c.strip() for c in row.split("&")) for row in rows)
    if found.group(3) and len({*map(len, cells)}) == 1:
        cells = tuple(zip(*cells))
    return Form("matrix", text, rows=cells)


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Form:
    """The form of a cleaned answer."""
    text = _outward(text.strip().rstrip(",;"))
    environment = _matrix(text) or _cases(text)
    if environment:
        return environment
    listed = _list(text)
    if listed:
        return listed
    found = _relation(text)
    if found:
        return found
    enclosed = _enclosed(text)
    if enclosed:
        opening, inside, closing = enclosed
        inner = _list(inside) if inside.strip() else None
        if opening == "{" and "|" in inside:
            return read(rf"\{{{inside}\}}")
        if opening == r"\{" or opening == "{":
            parts = inner.parts if inner else (inside.strip(),) * bool(inside.strip())
            kind = "set" if opening == r"\{" or inner else None
            return Form(kind, text, parts) if kind else read(inside)
        if inner and inner.joined in ",;":
            rows = tuple(row.parts for row in map(read, inner.parts) if row.square)
            if opening == "[" and len(rows) == len(inner.parts):
                return Form("matrix", text, rows=rows)  # [[1, 2], [3, 4]]
            return Form("tuple", text, inner.parts, (opening, closing))
        if inside.strip():
            return read(inside)
    return Form("item", text)
