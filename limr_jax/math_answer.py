r"""Is a mathematical answer the reference's? Rules by the form that the answer has.

An answer is read into a form first (list, tuple, set, region of the real line, matrix,
relation, text, scalar) and forms are compared by their own rules; only scalars reach
`math_value`. What no rule recognises goes to math-verify as it stands. Runs in a
worker process: it may be slow, and it may be killed.

Conventions, where graders differ: a bare list has no order, a tuple has; an interval's
brackets count; `x = 5` answers 5, but `y = 5` does not answer `x = 5`; a unit that the
other side lacks is dropped, two different known units differ; 28 % is 28 and 0.28.
"""

import itertools
import re

from limr_jax import (
    math_clock,
    math_piecewise,
    math_region,
    math_series,
    math_text,
    math_units,
    math_value,
    math_words,
)
from limr_jax.math_form import Form, is_label, read
from limr_jax.math_variants import letters, put, spaced, variants


def same_answer(reference: str, prediction: str) -> str | None:
    """The rule by which two answers are the same, or None. Both as written."""
    ref, pred = _cleaned(reference), _cleaned(prediction)
    if not ref or not pred:
        return None
    if math_units.conflict(ref, pred):
        return _converted(ref, pred)
    seen = set()
    for ref_v, pred_v in variants(ref, pred):
        if (ref_v, pred_v) in seen or not ref_v or not pred_v:
            continue
        seen.add((ref_v, pred_v))
        rule = match(read(ref_v), read(pred_v))
        if rule:
            return rule
    return None


def _cleaned(written: str) -> str:
    text = math_units.in_one(math_text.clean(written))
    return math_units.with_currency(written, text)


def _converted(ref: str, pred: str) -> str | None:
    """1500 m is 1.5 km."""
    values = math_units.converted(ref, pred)
    return "unit converted" if values and math_value.same_value(*values) else None


def conflict(reference: str, prediction: str) -> bool:
    """Both texts, as written, name a unit, and not the same one."""
    return math_units.conflict(_cleaned(reference), _cleaned(prediction))


def both_legible(reference: str, prediction: str) -> bool:
    """Every leaf of both was evaluated: then 'no rule' means 'not the same answer'."""
    return all(_legible(read(math_text.clean(t))) for t in (reference, prediction))


def _legible(form: Form) -> bool:
    if form.kind == "item":
        parts = [p.strip() for t in _expanded(form.text) for p in t.split(":")]
        return all(map(math_value.legible, parts))
    parts = form.parts[-1:] if form.kind == "relation" and form.labelled else form.parts
    return form.kind in ("list", "set", "tuple", "relation") and all(
        _legible(read(t)) for p in parts for t in _expanded(p)
    )


# ---- forms -----------------------------------------------------------------------


def match(ref: Form, pred: Form) -> str | None:
    """The rule by which two forms are the same answer, or None."""
    if math_text.squeeze(ref.text) == math_text.squeeze(pred.text):
        return "same text"
    rule = math_words.same(ref, pred)
    if rule or r"\emptyset" in (ref.text, pred.text):
        return rule  # a set that holds the empty set is not empty
    if "relation" in (ref.kind, pred.kind):
        unlabelled = _unlabelled(ref, pred)
        if unlabelled:
            return match(*unlabelled)
    if math_piecewise.pieces(ref.text) or math_piecewise.pieces(pred.text):
        return "piecewise" if math_piecewise.same(ref, pred) else None
    if ref.kind == pred.kind == "relation" and _relations(ref, pred):
        return "relation"
    pieces = [math_region.pieces(f) for f in (ref, pred)]
    points = ref.kind == pred.kind == "tuple" or {ref.kind, pred.kind} <= {
        "list",
        "set",
    }
    if all(pieces) and not points:
        return "region" if math_region.same(*pieces, same=_item_texts) else None
    if ref.kind == "relation" and pred.kind == "relation":
        return None
    if ref.kind == "relation":
        return "solved equation" if _solves(ref, pred) else None
    if ref.kind == "matrix" or pred.kind == "matrix":
        return "matrix" if _matrices(ref, pred) else None
    ref, pred = _alternatives(ref), _alternatives(pred)
    many = ("list", "set", "tuple")
    if ref.kind in many or pred.kind in many or _signs(ref) or _signs(pred):
        return _collections(ref, pred)
    return _scalars(ref, pred)


def _alternatives(form: Form) -> Form:
    r"""One of several ways to write one value: `\frac{9}{2} or 4.5`."""
    if form.kind != "list" or form.joined != "or":
        return form
    first, *others = form.parts
    same = all(math_value.same_value(first, other) for other in others)
    return read(first) if same else form


def _item_texts(ref: str, pred: str) -> bool:
    return match(read(ref), read(pred)) is not None


def _scalars(ref: Form, pred: Form) -> str | None:
    if math_value.same_value(ref.text, pred.text):
        return "value"
    if r"\dots" in ref.text + pred.text:
        return "series" if _series(ref.text, pred.text) else None
    bare = [math_units.without(f.text) for f in (ref, pred)]
    if bare != [ref.text, pred.text] and all(bare):
        if math_units.conflict(ref.text, pred.text):
            return _converted(ref.text, pred.text)
        if math_value.same_value(*bare):
            return "value without unit"
    clocks = [math_clock.read(f.text) for f in (ref, pred)]
    if all(clocks):
        return "time" if math_clock.same(*clocks) else None
    return "ratio" if _ratios(*bare) else None


def _ratios(ref: str, pred: str) -> bool:
    """`a : b` is a over b; of three or more terms, all in one proportion."""
    sides = [[part.strip() for part in text.split(":")] for text in (ref, pred)]
    if not all(sides[0] + sides[1]) or len(sides[0]) == len(sides[1]) == 1:
        return False
    quotients = [
        [rf"\frac{{{part}}}{{{side[-1]}}}" for part in side[:-1]] or side
        for side in sides
    ]
    return len(quotients[0]) == len(quotients[1]) and all(
        math_value.same_value(a, b) for a, b in zip(*quotients)
    )


def _series(ref: str, pred: str) -> bool:
    """Equal for two lengths of the series that the dots stand for."""
    letters = {math_series.letter(t) for t in (ref, pred) if r"\dots" in t}
    if len(letters) != 1 or None in letters:
        return False
    name = letters.pop()
    for length in (4, 7):
        filled = [math_series.with_length(t, name, length) for t in (ref, pred)]
        if None in filled or not math_value.same_value(*filled):
            return False
    return True


# ---- relations -------------------------------------------------------------------


def _value(form: Form) -> Form:
    """The right-hand side at the end of `x = … = value`."""
    return read(form.parts[-1])


def _unlabelled(ref: Form, pred: Form) -> tuple[Form, Form] | None:
    """Both sides without `x =`, where the label is only a name for the value."""
    mine = ref.kind == "relation" and ref.labelled
    yours = pred.kind == "relation" and pred.labelled
    if mine and yours:
        labels = ref.parts[0].replace(" ", ""), pred.parts[0].replace(" ", "")
        if labels[0] == labels[1]:
            return _value(ref), _value(pred)
        arguments = [re.search(r"\(([A-Za-z])\)$", label) for label in labels]
        names = [label.partition("(")[0] for label in labels]
        value = pred.parts[-1]
        if all(arguments) and names[0] == names[1]:
            old, new = arguments[1].group(1), arguments[0].group(1)
            return _value(ref), read(put(value, old, new))
        one_function = any(arguments) and not all("(" in label for label in labels)
        is_function = one_function or (
            "y" in labels and all(letters(f.parts[-1]) for f in (ref, pred))
        )
        return (_value(ref), _value(pred)) if is_function else None
    if mine and pred.kind != "relation":
        return _value(ref), pred
    if pred.kind == "relation" and ref.kind != "relation" and pred.ops[-1] in "= \\in":
        asked = not letters(pred.parts[0]) or _ASKED.fullmatch(pred.parts[0])
        return (ref, _value(pred)) if yours or asked else None
    return None


_ASKED = re.compile(r"[a-z](?:\s*[+-]\s*[a-z])+")  # `m + n = 12` answers 12

_FLIPPED = {"<": ">", r"\le": r"\ge"}
_POSITIVE = {"<": True, r"\le": True, "=": False, r"\ne": False}


def _ascending(form: Form) -> tuple[list[str], list[str]]:
    back = {v: k for k, v in _FLIPPED.items()}
    if all(op in back for op in form.ops):
        return form.parts[::-1], [back[op] for op in form.ops[::-1]]
    return list(form.parts), list(form.ops)


def _relations(ref: Form, pred: Form) -> bool:
    (sides_r, ops_r), (sides_p, ops_p) = _ascending(ref), _ascending(pred)
    if ops_r != ops_p:
        return False
    if all(_item_texts(a, b) for a, b in zip(sides_r, sides_p)):
        return True
    if len(ops_r) != 1 or ops_r[0] not in _POSITIVE:
        return False
    names = ref.labelled and pred.labelled and ops_r[0] == "="
    if names and not (letters(sides_r[1]) or letters(sides_p[1])):
        return False  # x = 1 and y = 1
    differences = [f"({s[0]})-({s[1]})" for s in (sides_r, sides_p)]
    return math_value.same_up_to_factor(*differences, positive=_POSITIVE[ops_r[0]])


def _solves(ref: Form, pred: Form) -> bool:
    """`6/x` for `xy = 6`: the expression, put in for the one letter it lacks."""
    if ref.ops != ("=",) or pred.kind != "item":
        return False
    equation = f"({ref.parts[0]})-({ref.parts[1]})"
    missing = letters(equation) - letters(pred.text)
    if len(missing) != 1 or not letters(pred.text) <= letters(equation):
        return False
    if not letters(pred.text):
        return False
    name = missing.pop()
    put_in = put(spaced(equation), name, f"({pred.text})")
    return math_value.same_value("0", put_in) or math_value.same_expression(
        f"{put_in}+({pred.text})", pred.text
    )


# ---- collections -----------------------------------------------------------------


_SIGN = re.compile(r"(\\pm|\\mp)(?![A-Za-z])")


def _signs(form: Form) -> bool:
    return _SIGN.search(form.text) is not None


def _expanded(text: str) -> list[str]:
    r"""`1 \pm a` → `1 + a`, `1 - a`; several signs vary together or apart."""
    pieces = _SIGN.split(text)
    count = len(pieces) // 2
    if not 0 < count <= 4:
        return [text]
    return [
        "".join(
            p if k % 2 == 0 else " " + ("+-"[(p == r"\mp") ^ signs[k // 2]]) + " "
            for k, p in enumerate(pieces)
        )
        for signs in itertools.product((0, 1), repeat=count)
    ]


def _members(form: Form) -> list[Form]:
    """The answers that a form lists, each once for every choice of ± signs."""
    parts = form.parts if form.kind in ("list", "set") else (form.text,)
    if all(p.startswith(f"({k})") for k, p in enumerate(parts, start=1)):
        parts = tuple(p.partition(")")[2].strip() or p for p in parts)  # (1) 5; (2) 7
    members = []
    for part in _permuted(parts):
        read_part = read(part)
        if read_part.kind == "list" and not _is_system(read_part):
            members.extend(_members(read_part))
        else:
            members.extend(read(t) for t in _expanded(part))
    texts = [math_text.squeeze(f.text) for f in members]
    return [  # a point listed twice is listed once; a number may be a double root
        f
        for k, f in enumerate(members)
        if f.kind != "tuple" or texts[k] not in texts[:k]
    ]


_PERMUTED = re.compile(
    r"\\text\{\s*(?:(?:all|any|of|its|their|the) )*(cyclic )?permutations?\b[a-z ]*\}"
)


def _permuted(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""`(1, 2, 3) \text{ and its permutations}`: all the tuples that it stands for."""
    found = _PERMUTED.fullmatch(parts[-1]) if len(parts) > 1 else None
    given = [read(part) for part in parts[:-1]]
    if not found or any(f.kind != "tuple" or len(f.parts) > 4 for f in given):
        return parts
    turns = [
        [f.parts[k:] + f.parts[:k] for k in range(len(f.parts))]
        if found[1]
        else itertools.permutations(f.parts)
        for f in given
    ]
    return tuple(f"({', '.join(turn)})" for some in turns for turn in some)


def _is_system(form: Form) -> bool:
    """`x = 1, y = 2`, one point; but `x = 1, x = 2` are two answers."""
    labels = [p.partition("=")[0].strip() for p in form.parts if "=" in p]
    named = len(labels) == len(form.parts) and all(map(is_label, labels))
    return named and len({*labels}) > 1


def _collections(ref: Form, pred: Form) -> str | None:
    if ref.kind == "tuple" or pred.kind == "tuple":
        rule = _ordered(ref, pred)
        if rule or "list" not in (ref.kind, pred.kind) and not (
            _signs(ref) or _signs(pred)
        ):  # fmt: skip
            return rule
    mine, yours = _members(ref), _members(pred)
    if len(mine) != len(yours) or len(mine) > 64:
        return None
    left = list(yours)
    for form in mine:
        found = next((k for k, f in enumerate(left) if match(form, f)), None)
        if found is None:
            return None
        del left[found]
    return "list"


def _ordered(ref: Form, pred: Form) -> str | None:
    """Tuples: the same things in the same order, in brackets of the same sort."""
    if "set" in (ref.kind, pred.kind):
        return None
    if ref.kind == pred.kind and ref.ops != pred.ops:
        return None
    if (
        ref.ops
        and ref.ops != ("(", ")")
        and pred.kind == "list"
        and len(ref.parts) == 2
    ):
        return None  # the ends of an interval are not the interval
    mine, yours = _by_letter(ref.parts), _by_letter(pred.parts)
    if len(mine) != len(yours) or len(mine) < 2:
        return None
    same = all(_item_texts(a, b) for a, b in zip(mine, yours))
    return "tuple" if same else None


def _by_letter(parts: tuple[str, ...]) -> tuple[str, ...]:
    """`y = -1`, `x = 2` in the order of their letters; anything else as it stands."""
    named = all(re.match(r"[a-z]\s*=", p) for p in parts)
    return tuple(sorted(parts)) if named else parts


def _matrices(ref: Form, pred: Form) -> bool:
    """Entry by entry; a single column or row may be written as a tuple."""
    rows = [
        f.rows if f.kind == "matrix" else (f.parts,) if f.kind == "tuple" else None
        for f in (ref, pred)
    ]
    if not rows[0] or not rows[1]:
        return False
    shapes = [[len(r) for r in form] for form in rows]
    if shapes[0] != shapes[1]:
        if "matrix" == ref.kind == pred.kind:
            return False
        rows = [[tuple(cell for row in form for cell in row)] for form in rows]
    flat = [[cell for row in form for cell in row] for form in rows]
    return len(flat[0]) == len(flat[1]) and all(map(_item_texts, flat[0], flat[1]))
