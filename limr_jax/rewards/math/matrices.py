r"""Matrices and vectors: `\frac15\begin{pmatrix}1&2\\2&4\end{pmatrix}`, sums of such.

A matrix is its rows of cleaned LaTeX; what stands before it is multiplied in, and the
terms of a sum are added cell by cell, so that every entry is compared as an expression.
"""

import re

from limr_jax.rewards.math.brackets import split_outside_brackets

Rows = tuple[tuple[str, ...], ...]
_NAMES = r"[pbB]matrix|smallmatrix|matrix|array|psmallmatrix|bsmallmatrix"
# With the brackets around an `array`, and with a transpose's T behind.
_ENVIRONMENT = re.compile(
    rf"(?:[(\[]\s*)?\\begin\{{({_NAMES})\*?\}}\s*(?:\{{[lcr|@ ]*\}}|\[[lcr]\])?(.*?)"
    r"\\end\{\1\*?\}(?:\s*[)\]])?(\s*\^\s*\{?\s*(?:T|\\top)\s*\}?)?",
    re.DOTALL,
)
_DETERMINANT = re.compile(
    r"(?:\\det\s*)?\\begin\{vmatrix\}(.*?)\\end\{vmatrix\}"
    r"|\|\s*\\begin\{array\}(?:\{[lcr|@ ]*\})?(.*?)\\end\{array\}\s*\|",
    re.DOTALL,
)
# Not the sign of an exponent, an index, a bracket's first term or a cell's.
_PLUS = re.compile(r"(?<![\^_{(\[,&])\s*[-+]\s*")


def _rows_of(body: str) -> Rows:
    """The cells between the `\\\\` and `&` of an environment's body."""
    rows = (row for row in re.split(r"\\\\|\\cr(?![A-Za-z])", body) if row.strip())
    return tuple(tuple(c.strip(" .,") for c in row.split("&")) for row in rows)


def _term(text: str) -> Rows | None:
    match = _ENVIRONMENT.search(text)
    if not match or r"\begin" in match[2]:
        return None
    behind = text[match.end() :].strip().removeprefix(r"\cdot").strip()
    # A power of a matrix is not made of its cells' powers.
    if behind.startswith(("^", "_", "!", "'")):
        return None
    factor = text[: match.start()].strip().removesuffix(r"\cdot").strip()
    factor = f"({factor})({behind})" if factor and behind else factor or behind
    rows = _rows_of(match[2])
    if not rows or len({*map(len, rows)}) != 1 or re.search(r"\\begin|[<>=]", factor):
        return None
    if match[3]:
        rows = tuple(zip(*rows))
    if not factor:
        return rows
    return tuple(tuple(f"({factor})({cell})" for cell in row) for row in rows)


def parse(text: str) -> Rows | None:
    """The rows of a matrix, or of a sum of matrices; None for anything else."""
    if r"\begin" not in text:
        return None
    terms, signs = split_outside_brackets(text, _PLUS)
    # A sign before the first term leaves an empty term before it.
    if terms and not terms[0]:
        terms = terms[1:]
    else:
        signs = ["+", *signs]
    matrices = [_term(term) for term in terms]
    if None in matrices or len({(len(m), len(m[0])) for m in matrices}) != 1:
        return None
    if len(matrices) == 1 and signs == ["+"]:
        return matrices[0]
    return tuple(
        tuple(_sum(signs, cells) for cells in zip(*rows)) for rows in zip(*matrices)
    )


def _sum(signs: list[str], cells: tuple[str, ...]) -> str:
    return "".join(f"{sign}({cell})" for sign, cell in zip(signs, cells))


def with_determinants(text: str) -> str:
    """Every determinant of two or three rows written out."""
    return _DETERMINANT.sub(_written_out, text)


def _written_out(match: re.Match) -> str:
    rows = _rows_of(match[1] or match[2])
    # Written out, a determinant of n rows has n! terms.
    if not 1 < len(rows) < 4 or {*map(len, rows)} != {len(rows)}:
        return match[0]
    return f"({_expanded(rows)})"


def _expanded(rows: Rows) -> str:
    if len(rows) == 1:
        return f"({rows[0][0]})"
    # Laplace's expansion along the first row.
    return "".join(
        f"{'+-'[k % 2]}({cell})({_expanded([r[:k] + r[k + 1 :] for r in rows[1:]])})"
        for k, cell in enumerate(rows[0])
    )
