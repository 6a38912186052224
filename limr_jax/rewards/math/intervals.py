r"""Regions of the real line: intervals, unions, inequalities and set-builders alike.

A region is a tuple of pieces (low, high, low is in, high is in) whose ends are cleaned
LaTeX, so that ends with letters in them are compared as any expression is.
"""

import re

from limr_jax.rewards.math import scalars
from limr_jax.rewards.math.brackets import split_outside_brackets
from limr_jax.rewards.math.forms import Form, is_label, parse_form

Piece = tuple[str, str, bool, bool]
_LINE: Piece = (r"-\infty", r"\infty", False, False)
# A plain U between two brackets is a union.
_CUP = re.compile(r"\\cup(?![A-Za-z])|(?<=[\])])\s*U\s*(?=[\[(])")
_MINUS = re.compile(r"\\(?:setminus|backslash)(?![A-Za-z])|(?<=\})\s*[-\\]\s*(?=\\\{)")
_BAR = re.compile(r"\||:")
_OR = re.compile(r"(?<![A-Za-z\\])or(?![a-z])")
_REALS = re.compile(
    r"\\mathbb\s*\{?\s*R\s*\}?|\\text\{\s*all real numbers\s*\}|all real numbers|\\R"
)
_POSITIVE = re.compile(
    r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\+\}?|_\s*\{?(?:\+|>\s*0)\}?)"
    r"|(?:\\text\{\s*)?(?:all )?positive real(?: number)?s?\s*\}?"
)
_BELOW = {"<": False, r"\le": True}  # is the end itself in?
_ABOVE = {">": False, r"\ge": True}


_EXCEPT = re.compile(
    r"(?:\\text\{\s*)?(?:all )?reals?(?: numbers)?\s*except(?: for)?\s*\}?([^{}]+)\}?"
)


def parse_region(form: Form) -> tuple[Piece, ...] | None:
    """The region that a form describes, None if it describes none."""
    text = form.text
    if _REALS.fullmatch(text):
        return (_LINE,)
    if _POSITIVE.fullmatch(text):
        return (("0", r"\infty", False, False),)
    holes = _EXCEPT.fullmatch(text)
    if holes:
        return _without(parse_form(holes[1]).parts or (holes[1].strip(),))
    if form.kind == "tuple":
        return _interval(form)
    if form.kind == "relation":
        return _inequality(form)
    if form.kind == "set":
        # A finite set is a union of points.
        return _builder(form) or tuple((p, p, True, True) for p in form.parts)
    if form.kind == "list":
        return _joined(form)
    parts, marks = split_outside_brackets(text, _CUP)
    if marks:
        return _concatenated([_piece_or_point(p) for p in parts])
    parts, marks = split_outside_brackets(text, _MINUS)
    if len(parts) == 2 and _REALS.fullmatch(parts[0]):
        holes = parse_form(parts[1]).parts or (parts[1],)
        return _without(holes)
    return None


def _piece_or_point(text: str) -> tuple[Piece, ...] | None:
    return parse_region(parse_form(text))


def _concatenated(regions: list) -> tuple[Piece, ...] | None:
    return tuple(p for region in regions for p in region) if all(regions) else None


def _without(holes: tuple[str, ...]) -> tuple[Piece, ...] | None:
    holes = tuple(h for hole in holes for h in _both_signs(hole))
    # Several holes must be numbers, so that the pieces between them have an order.
    if len(holes) > 1:
        values = [scalars.numeric_value(h) for h in holes]
        if not all(v is not None and v.is_comparable for v in values):
            return None
        order = sorted(range(len(holes)), key=lambda k: values[k])
        holes = tuple(holes[k] for k in order)
    ends = (r"-\infty", *holes, r"\infty")
    return tuple((a, b, False, False) for a, b in zip(ends, ends[1:]))


def _both_signs(text: str) -> tuple[str, ...]:
    r"""`\pm 2` as -2 and 2."""
    size = re.fullmatch(r"\\pm(?![A-Za-z])\s*(.+)", text)
    return (f"-{size[1]}", size[1]) if size else (text,)


def _interval(form: Form) -> tuple[Piece, ...] | None:
    if len(form.parts) != 2:
        return None
    low, high = form.parts
    return ((low, high, form.ops[0] == "[", form.ops[1] == "]"),)


def _inequality(form: Form) -> tuple[Piece, ...] | None:
    """`x > 1`, `1 < x \\le 2`, `x \\ne 3`, `x \\in [1, 2]`."""
    sides, ops = form.parts, form.ops
    if ops == (r"\in",) and is_label(sides[0]):
        return parse_region(parse_form(sides[1]))
    # `5 > x` as `x < 5`.
    if len(ops) == 1 and is_label(sides[1]) and not is_label(sides[0]):
        turn = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
        sides, ops = (sides[1], sides[0]), (turn.get(ops[0], ops[0]),)
    distance = _DISTANCE.fullmatch(sides[0]) if len(ops) == 1 else None
    if distance:
        return _around(distance, ops[0], sides[1])
    if len(ops) == 1 and is_label(sides[0]):
        if ops[0] == r"\ne":
            return _without((sides[1],))
        if ops[0] in _BELOW:
            return ((_LINE[0], sides[1], False, _BELOW[ops[0]]),)
        if ops[0] in _ABOVE:
            return ((sides[1], _LINE[1], _ABOVE[ops[0]], False),)
        return None
    if len(ops) == 2 and is_label(sides[1]):
        if ops[0] in _BELOW and ops[1] in _BELOW:
            return ((sides[0], sides[2], _BELOW[ops[0]], _BELOW[ops[1]]),)
        if ops[0] in _ABOVE and ops[1] in _ABOVE:
            return ((sides[2], sides[0], _ABOVE[ops[1]], _ABOVE[ops[0]]),)
    return None


_DISTANCE = re.compile(r"\|\s*(?P<name>[a-z])\s*(?:([+-])\s*([^|]+?))?\s*\|")


def _around(distance: re.Match, sign: str, size: str) -> tuple[Piece, ...] | None:
    """`|x - a| < r` lies within r of a, `|x| > r` beyond r of 0."""
    # `|x - 2|` is the distance from 2: the sign turns.
    back = {"+": "-", "-": "+", None: ""}[distance[2]]
    middle = f"{back}({distance[3]})" if distance[3] else ""
    low, high = f"-({size}){middle}", f"({size}){middle}"
    if sign in _BELOW:
        return ((low, high, _BELOW[sign], _BELOW[sign]),)
    if sign in _ABOVE:
        edge = _ABOVE[sign]
        return ((_LINE[0], low, False, edge), (high, _LINE[1], edge, False))
    return None


def _builder(form: Form) -> tuple[Piece, ...] | None:
    parts, marks = split_outside_brackets(form.text[2:-2], _BAR)
    if not marks or len(parts) < 2:
        return None
    condition = _text_after_bar(form.text[2:-2])
    # `x \in \mathbb{R}` beside the condition bounds nothing.
    condition = re.sub(r",?\s*[a-z]\s*\\in\s*\\mathbb\s*\{?\s*R\s*\}?", "", condition)
    return parse_region(parse_form(condition.strip(" ,")))


def _text_after_bar(text: str) -> str:
    """The condition of a set-builder: what stands behind its first bar or colon."""
    parts, marks = split_outside_brackets(text, _BAR)
    return text[text.index(marks[0], len(parts[0])) + 1 :]


def _bounded(relation: Form) -> str | None:
    """The name that a relation says something of: x in `1 < x < a` and `|x| < 3`."""
    sides = relation.parts
    distance = _DISTANCE.fullmatch(sides[0])
    if distance:
        return distance["name"]
    named = sides[1:2] if len(sides) == 3 else filter(is_label, sides)
    return next(("".join(side.split()) for side in named), None)


def _regions(forms: list[Form], joined: str) -> list[tuple[Piece, ...] | None] | None:
    """The region of each part of a list; None for a list of points or of values."""
    regions = []
    for part in forms:
        if part.kind == "tuple" and joined == ",":
            return None  # a list of points, not a union
        if part.kind == "relation" and part.ops == ("=",) and part.labelled:
            regions.append(((part.parts[1], part.parts[1], True, True),))
        elif part.kind in ("relation", "tuple"):
            regions.append(parse_region(part))
        else:
            return None
    bounds = any(p.kind == "relation" and p.ops != ("=",) for p in forms)
    if not bounds and not all(p.kind == "tuple" for p in forms):
        return None  # a list of values
    return regions


def _joined(form: Form) -> tuple[Piece, ...] | None:
    """`x < 1 or x > 2`, `a \\le -2 or a = 1`; 'and' between bounds cuts them."""
    forms = [parse_form(p) for p in form.parts]
    # `x > 1 and y < 2` is a region of the plane.
    if len({_bounded(p) for p in forms if p.kind == "relation"}) > 1:
        return None
    holes = [p.parts[1] for p in forms if p.ops == (r"\ne",) and is_label(p.parts[0])]
    if len(holes) == len(forms):
        return _without(tuple(holes))
    regions = _regions(forms, form.joined)
    together = _concatenated(regions) if regions else None
    # `x < 3 or x ≠ 2` is the whole line, and cuts nothing; (1, 2) and (3, 4) are two.
    if not together or form.joined == "or" or any(p.kind == "tuple" for p in forms):
        return together
    if split_outside_brackets(form.text, _OR)[1]:
        return None  # `x < 1 or x > 5 and x ≠ 6`: which of them is cut?
    between = _between(together)
    numbers = all(_size(end) is not None for piece in together for end in piece[:2])
    if numbers:
        # What has nothing in common is listed, 1 < x < 2 and 3 < x < 4; but x < 1 and
        # x > 2 is no x at all.
        return _common(regions) or (None if between else together)
    if len(holes) == 1:
        return _cut(form, holes[0])
    # x > a and x > b: which is the closer, nobody knows.
    half_lines = sum(p[0] == _LINE[0] or p[1] == _LINE[1] for p in together)
    listed = half_lines < (2 if form.joined == "," else 1)
    return between or (together if listed else None)


def _between(pieces: tuple[Piece, ...]) -> tuple[Piece, ...] | None:
    """`x > a` and `x < b`: what lies between their ends, whose order nobody knows."""
    low = [p for p in pieces if p[1] == _LINE[1]]
    high = [p for p in pieces if p[0] == _LINE[0]]
    if not len(low) == len(high) == 1 or len(pieces) != 2 or low == high:
        return None
    return ((low[0][0], high[0][1], low[0][2], high[0][3]),)


def _cut(form: Form, hole: str) -> tuple[Piece, ...] | None:
    """`m < a and m ≠ b`: one interval without a point, which is taken to lie in it."""
    others = [p for p in form.parts if r"\ne" not in p]
    joined = others[0] if len(others) == 1 else f" {form.joined} ".join(others)
    whole = parse_region(parse_form(joined))
    if not whole or len(whole) != 1 or len(others) == len(form.parts):
        return None
    (low, high, low_in, high_in) = whole[0]
    return ((low, hole, low_in, False), (hole, high, False, high_in))


def _common(regions: list[tuple[Piece, ...]]) -> tuple[Piece, ...]:
    """What lies in all of the regions; their ends are numbers."""
    common = regions[0]
    for region in regions[1:]:
        pairs = ((one, two) for one in common for two in region)
        common = tuple(piece for one, two in pairs for piece in _overlap(one, two))
    return common


def _overlap(one: Piece, two: Piece) -> tuple[Piece, ...]:
    # Of two equal ends the open one is the closer.
    low = max(one, two, key=lambda piece: (_size(piece[0]), not piece[2]))
    high = min(one, two, key=lambda piece: (_size(piece[1]), piece[3]))
    size = _size(high[1]) - _size(low[0])
    empty = size < 0 or (size == 0 and not (low[2] and high[3]))
    return () if empty else ((low[0], high[1], low[2], high[3]),)


def merge(region: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """Pieces that meet as one, `(1, 2]` and `[2, 3)`, where all ends are numbers."""
    ends = [[_size(piece[k]) for k in (0, 1)] for piece in region]
    if any(None in pair for pair in ends):
        return region
    merged: list[tuple] = []
    # Of equal ends the closed one begins first: in (1, 2) ∪ [1, 3] the 1 is in.
    in_order = sorted(zip(ends, region), key=lambda pair: (pair[0][0], not pair[1][2]))
    for (low, high), piece in in_order:
        # At a common end one of the two has to hold it: (1, 2) and (2, 3) stay two.
        if merged and (low < merged[-1][0] or low == merged[-1][0] and (
            piece[2] or merged[-1][1][3]
        )):  # fmt: skip
            end, last = merged[-1]
            # Of two equal ends the closed one reaches further.
            if (high, piece[3]) > (end, last[3]):
                merged[-1] = (high, (last[0], piece[1], last[2], piece[3]))
        else:
            merged.append((high, piece))
    return tuple(piece for _, piece in merged)


def _size(end: str) -> float | None:
    if end.strip() in (r"\infty", r"-\infty"):
        return float(end.replace(r"\infty", "inf"))
    value = scalars.numeric_value(end)
    return float(value) if value is not None and value.is_comparable else None


def same_region(ref: tuple[Piece, ...], pred: tuple[Piece, ...], same_end) -> bool:
    """Piece by piece, in any order; `same_end` compares two ends."""
    # Merged only where they differ as they stand: it needs ends that are numbers.
    return _same_pieces(ref, pred, same_end) or _same_pieces(
        merge(ref), merge(pred), same_end
    )


def _same_pieces(ref: tuple[Piece, ...], pred: tuple[Piece, ...], same_end) -> bool:
    if len(ref) != len(pred):
        return False
    left = list(pred)
    for piece in ref:
        place = next(
            (
                k
                for k, other in enumerate(left)
                if piece[2:] == other[2:]
                and same_end(piece[0], other[0])
                and same_end(piece[1], other[1])
            ),
            None,
        )
        if place is None:
            return False
        del left[place]
    return True
