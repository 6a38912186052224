r"""Is a mathematical answer the reference's? Rules by the form that the answer has.

`same_answer` parses both into a form (`forms.Form`) and `match_forms` compares them by
the rules of that form; only what has no other form reaches `scalars`. What no rule
recognises is wrong. Runs in a worker process: it may be slow, and it may be killed.

A function called `_match_…` gives the name of the rule, or None; `_same_…` a truth.

Conventions, where graders differ: a bare list has no order, a tuple has; an interval's
brackets count; `x = 5` answers 5, but `y = 5` does not answer `x = 5`; a unit that the
other side lacks is dropped, two different known units differ; 28 % is 28 and 0.28.
"""

import dataclasses
import itertools
import re

from limr_jax.rewards.math import (
    intervals,
    named_parts,
    normalise,
    phrases,
    piecewise,
    relations,
    scalars,
    series,
    sets,
    times_of_day,
    units,
    words,
)
from limr_jax.rewards.math.forms import Form, is_label, parse_form
from limr_jax.rewards.math.letters import substitute, variables
from limr_jax.rewards.math.literals import parse_number, stands_for
from limr_jax.rewards.math.variants import reduce_residues, variants


def same_answer(reference: str, prediction: str) -> str | None:
    """The name of the rule by which two answers are the same; None if none does.

    Both as written, before `normalise.clean`.
    """
    ref, pred = _cleaned(reference), _cleaned(prediction)
    if not ref or not pred:
        return None
    if ", " in reference and _without_spaces(reference) == _without_spaces(prediction):
        return "same text"  # 48,384 may be a list, where the reference is one
    if units.currencies_differ(reference, prediction):
        return _match_converted(ref, pred)
    # The units of a list's members are compared member by member.
    lists = "list" in (parse_form(ref).kind, parse_form(pred).kind)
    if not lists and units.conflict(ref, pred):
        return _match_converted(ref, pred)
    # From the strictest reading to the loosest; the first rule that holds is reported.
    seen = set()
    for ref_v, pred_v in variants(ref, pred):
        if (ref_v, pred_v) in seen or not ref_v or not pred_v:
            continue
        seen.add((ref_v, pred_v))
        rule = match_forms(parse_form(ref_v), parse_form(pred_v))
        if rule:
            return rule
    return None


def _without_spaces(written: str) -> str:
    return re.sub(r"[\s$]", "", written)


def _cleaned(written: str) -> str:
    """One spelling, with words, residues, sums and currencies put as formulas."""
    text = reduce_residues(phrases.as_formula(normalise.clean(written)))
    text = _usual_index(units.in_one_unit(text))
    return units.with_currency(written, text)


_INDEX = re.compile(r"\\(?:sum|prod)\s*_\s*\{\s*([a-z])\s*=")


def _usual_index(text: str) -> str:
    r"""`\sum_{j=0}^n a_j` with the letter that all sums have here."""
    indices = _INDEX.findall(text)
    # Where a k stands already, the sum would come to say something else.
    if len(indices) != 1 or indices[0] == "k" or "k" in variables(text):
        return text
    return substitute(text, indices[0], "k")


def _match_converted(ref: str, pred: str) -> str | None:
    """1500 m is 1.5 km."""
    converted = units.in_reference_unit(ref, pred)
    if converted is None:
        return None
    mine, yours = converted
    return "unit converted" if scalars.same_value(mine, yours) else None


# ---- forms -----------------------------------------------------------------------


def match_forms(ref: Form, pred: Form) -> str | None:
    """The name of the rule by which two forms are the same answer, or None.

    The order of the rules counts: words before numbers, as `(C) 5` is an option, and
    regions before tuples, as (1, 2) may be either.
    """
    if normalise.squeeze(ref.text) == normalise.squeeze(pred.text):
        return "same text"
    numbered = [named_parts.numbered_parts(f.text) for f in (ref, pred)]
    if any(numbered):
        # A bare `5, 7` against `(1) 5 (2) 7` is compared in its order.
        mine, yours = (some or f.parts for some, f in zip(numbered, (ref, pred)))
        same = len(mine) == len(yours) and all(map(_texts_match, mine, yours))
        return "numbered parts" if same else None
    if sets.same_formula(ref.text, pred.text):
        return "sets"
    ref, pred = _without_approximation(ref), _without_approximation(pred)
    # Words before values: `no` and `none` would be products of letters.
    rule = words.match_words(ref, pred)
    if rule or r"\emptyset" in (ref.text, pred.text):
        return rule  # a set that holds the empty set is not empty
    if {ref.kind, pred.kind} == {"relation", "list"}:
        ref, pred = map(relations.by_coordinate, (ref, pred))
    if "relation" in (ref.kind, pred.kind):
        unlabelled = relations.without_labels(ref, pred)
        if unlabelled:
            ref_value, pred_value = unlabelled
            return match_forms(ref_value, pred_value)
    # Before the rules for relations, as conditions have signs of their own.
    if piecewise.parse_pieces(ref.text) or piecewise.parse_pieces(pred.text):
        return "piecewise" if piecewise.same_function(ref, pred) else None
    if ref.kind == pred.kind == "relation" and relations.same_relation(
        ref, pred, same=_texts_match
    ):
        return "relation"
    mine, yours = (intervals.parse_region(f) for f in (ref, pred))
    regions = bool(mine and yours)
    # (1, 2) is a point beside a tuple, and an interval beside an inequality.
    points = ref.kind == pred.kind == "tuple" or {ref.kind, pred.kind} <= {
        "list",
        "set",
    }
    stated = {ref.kind, pred.kind} <= {"relation", "list"}
    # Of inequalities the letter is a part, as x > 5 says nothing of y.
    names = [variables(re.sub(r"\b(?:and|or)\b", " ", f.text)) for f in (ref, pred)]
    if stated and regions and names[0] != names[1]:
        return None  # x > 5 is not y > 5
    # `x > 1 or x < 5` is the whole line, `x > 1 and x < 5` a part of it.
    if all(map(_is_conditions, (ref, pred))):
        points = (ref.joined == "or") is (pred.joined == "or")
    if regions and not points:
        same = intervals.same_region(mine, yours, same_end=_texts_match)
        return "region" if same else None
    if ref.kind == "relation" and pred.kind == "relation":
        return None
    if ref.kind == "relation":
        return "solved equation" if relations.solves(ref, pred) else None
    if ref.kind == "matrix" or pred.kind == "matrix":
        return "matrix" if _same_matrix(ref, pred) else None
    # What stays is not about a letter: values, and collections of them.
    ref, pred = _one_of_alternatives(ref), _one_of_alternatives(pred)
    # `1 \pm 2` is an item, but two answers.
    many = ("list", "set", "tuple")
    if (
        ref.kind in many
        or pred.kind in many
        or _has_plus_minus(ref)
        or _has_plus_minus(pred)
    ):
        return _match_collections(ref, pred)
    return _match_scalars(ref, pred)


def _without_approximation(form: Form) -> Form:
    r"""`\sqrt2 \approx 1.41` is what stands first; `x \approx 11` says that x = 11."""
    if form.kind != "relation" or form.ops[-1] != r"\approx":
        return form
    if len(form.ops) == 1 and is_label(form.parts[0]):
        return dataclasses.replace(form, ops=("=",))
    # Only a number rounds what stands first: `e \approx 2.718 + 1` does not say e.
    if parse_number(units.without_unit(form.parts[-1])) is None:
        return form
    return parse_form(form.text[: form.text.rindex(r"\approx")])


def _one_of_alternatives(form: Form) -> Form:
    r"""One of several ways to write one value: `\frac{9}{2} or 4.5`."""
    if form.kind != "list" or form.joined != "or":
        return form
    first, *others = form.parts
    same = all(scalars.same_value(first, other) for other in others)
    return parse_form(first) if same else form


def _is_conditions(form: Form) -> bool:
    kinds = {parse_form(part).kind for part in form.parts}
    return form.kind == "list" and kinds == {"relation"}


def _texts_match(ref: str, pred: str) -> bool:
    return match_forms(parse_form(ref), parse_form(pred)) is not None


def _match_scalars(ref: Form, pred: Form) -> str | None:
    if scalars.same_value(ref.text, pred.text):
        return "value"
    if r"\dots" in ref.text + pred.text:
        return "series" if _same_series(ref.text, pred.text) else None
    # Only now: a letter that could be a unit may be a variable, as in 3 m.
    mine, yours = (units.without_unit(f.text) for f in (ref, pred))
    if (mine, yours) != (ref.text, pred.text) and mine and yours:
        if units.conflict(ref.text, pred.text):
            return _match_converted(ref.text, pred.text)
        if scalars.same_value(mine, yours):
            return "value without unit"
    ref_time, pred_time = (times_of_day.parse(f.text) for f in (ref, pred))
    if ref_time and pred_time:
        return "time" if times_of_day.same_time(ref_time, pred_time) else None
    return "ratio" if _same_ratio(mine, yours) else None


def _same_in_any_order(mine: list[Form], yours: list[Form]) -> bool:
    """Has each its own match among the others? In any order."""
    left = list(yours)
    for form in mine:
        place = next((k for k, f in enumerate(left) if match_forms(form, f)), None)
        if place is None:
            return False
        del left[place]  # the first match is taken; no other pairing is tried
    return not left


def _same_ratio(ref: str, pred: str) -> bool:
    """`a : b` is a over b; of three or more terms, all in one proportion."""
    sides = [[part.strip() for part in text.split(":")] for text in (ref, pred)]
    if not all(sides[0] + sides[1]) or len(sides[0]) == len(sides[1]) == 1:
        return False
    # Each over the last; a side without a colon is a quotient already.
    quotients = [
        [rf"\frac{{{part}}}{{{side[-1]}}}" for part in side[:-1]] or side
        for side in sides
    ]
    return len(quotients[0]) == len(quotients[1]) and all(
        scalars.same_value(a, b) for a, b in zip(*quotients)
    )


def _same_series(ref: str, pred: str) -> bool:
    """Equal for two lengths of the series that the dots stand for."""
    letters = {series.end_letter(t) for t in (ref, pred) if r"\dots" in t}
    if len(letters) != 1 or None in letters:
        return False
    name = letters.pop()
    # Two lengths, as one may agree by chance: k² and 2^k do at 4.
    for length in (4, 7):
        mine, yours = (series.with_length(t, name, length) for t in (ref, pred))
        if mine is None or yours is None or not scalars.same_value(mine, yours):
            return False
    return True


# ---- collections -----------------------------------------------------------------


_SIGN = re.compile(r"(\\pm|\\mp)(?![A-Za-z])")


def _has_plus_minus(form: Form) -> bool:
    return _SIGN.search(form.text) is not None


def _plus_minus_choices(text: str) -> list[str]:
    r"""`1 \pm a` → `1 + a`, `1 - a`; of several signs each varies by itself."""
    pieces = _SIGN.split(text)
    count = len(pieces) // 2
    # Every sign doubles the choices.
    if not 0 < count <= 4:
        return [text]
    return [
        "".join(
            # Odd places hold the signs, and ∓ takes the other of the two.
            p if k % 2 == 0 else " " + ("+-"[(p == r"\mp") ^ signs[k // 2]]) + " "
            for k, p in enumerate(pieces)
        )
        for signs in itertools.product((0, 1), repeat=count)
    ]


def _listed_answers(form: Form) -> list[Form]:
    """The answers that a form lists, each once for every choice of ± signs."""
    parts = form.parts if form.kind in ("list", "set") else (form.text,)
    members = []
    for part in _permuted(parts):
        read_part = parse_form(part)
        # A system, `x = 1, y = 2`, stays one answer.
        if read_part.kind == "list" and not _is_system(read_part):
            members.extend(_listed_answers(read_part))
        else:
            members.extend(parse_form(t) for t in _plus_minus_choices(part))
    texts = [normalise.squeeze(f.text) for f in members]
    if form.kind == "set" and len(members) <= 64:  # 1/2 and 0.5 are one element
        values = [scalars.exact_value(f.text) for f in members]
        texts = [t if v is None else str(v) for t, v in zip(texts, values)]
    return [  # a point listed twice is listed once; a number may be a double root
        f
        for k, f in enumerate(members)
        if not (f.kind == "tuple" or form.kind == "set") or texts[k] not in texts[:k]
    ]


_PERMUTED = re.compile(
    r"\\text\{\s*(?:(?:all|any|of|its|their|the) )*(cyclic )?permutations?\b[a-z ]*\}"
)


def _permuted(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""`(1, 2, 3) \text{ and its permutations}`: all the tuples that it stands for."""
    permuted = _PERMUTED.fullmatch(parts[-1]) if len(parts) > 1 else None
    tuples = [parse_form(part) for part in parts[:-1]]
    # Four members have 24 orders already.
    if not permuted or any(f.kind != "tuple" or len(f.parts) > 4 for f in tuples):
        return parts
    turns = [
        [f.parts[k:] + f.parts[:k] for k in range(len(f.parts))]
        if permuted[1]
        else itertools.permutations(f.parts)
        for f in tuples
    ]
    return tuple(f"({', '.join(turn)})" for orders in turns for turn in orders)


def _is_system(form: Form) -> bool:
    """`x = 1, y = 2`, one point; but `x = 1, x = 2` are two answers."""
    labels = [p.partition("=")[0].strip() for p in form.parts if "=" in p]
    named = len(labels) == len(form.parts) and all(map(is_label, labels))
    return named and len({*labels}) > 1


def _match_collections(ref: Form, pred: Form) -> str | None:
    joined = {ref.joined, pred.joined}
    if joined == {"and", "or"} and not re.search(r"\d", ref.text):
        return None  # of statements: p and q, p or q
    if ref.kind == "tuple" or pred.kind == "tuple":
        rule = _match_tuples(ref, pred)
        # `(\pm 1, 2)` is two tuples; beside a list, names may pair the parts.
        if rule or "list" not in (ref.kind, pred.kind) and not (
            _has_plus_minus(ref) or _has_plus_minus(pred)
        ):  # fmt: skip
            return rule
    together = _pairs_by_name(ref, pred)
    if together is not None:
        same = bool(together) and all(_texts_match(a, b) for a, b in together)
        return "named parts" if same else None
    mine, yours = _listed_answers(ref), _listed_answers(pred)
    # Pairing takes time quadratic in the members, a parse for each pair.
    if len(mine) != len(yours) or len(mine) > 64:
        return None
    return "list" if _same_in_any_order(mine, yours) else None


def _pairs_by_name(ref: Form, pred: Form) -> list[tuple[str, str]] | None:
    if "set" in (ref.kind, pred.kind) or not (ref.parts and pred.parts):
        return None
    return named_parts.pair_by_name(ref.parts, pred.parts)


def _match_tuples(ref: Form, pred: Form) -> str | None:
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
    mine, yours = _sorted_by_letter(ref.parts), _sorted_by_letter(pred.parts)
    if len(mine) != len(yours) or len(mine) < 2:
        return None
    same = all(_texts_match(a, b) for a, b in zip(mine, yours))
    return "tuple" if same else None


def _sorted_by_letter(parts: tuple[str, ...]) -> tuple[str, ...]:
    """`y = -1`, `x = 2` in the order of their letters; anything else as it stands."""
    named = all(re.match(r"[a-z]\s*=", p) for p in parts)
    return tuple(sorted(parts)) if named else parts


def _same_matrix(ref: Form, pred: Form) -> bool:
    """Entry by entry; a single column or row may be written as a tuple."""
    if ref.kind == pred.kind:
        # A row and a column are two vectors, and two shapes are two matrices.
        shapes = [[len(row) for row in form.rows] for form in (ref, pred)]
        if shapes[0] != shapes[1]:
            return False
    mine, yours = _cells(ref, pred.kind), _cells(pred, ref.kind)
    return (
        bool(mine)
        and len(mine) == len(yours)
        and all(_same_cell(a, b) for a, b in zip(mine, yours))
    )


def _cells(form: Form, beside: str) -> tuple[str, ...]:
    """The entries of a matrix or a tuple, in order; none of what is neither.

    beside: the other form's kind. Beside a tuple a matrix of several rows and columns
    has no entries, as a tuple does not say where its rows end.
    """
    if form.kind != "matrix":
        # Neither a half-open interval nor `17 R 2` is a vector.
        return form.parts if form.ops in (("(", ")"), ("[", "]")) else ()
    several = len(form.rows) > 1 and max(map(len, form.rows)) > 1
    if beside == "tuple" and several:
        return ()
    return tuple(cell for row in form.rows for cell in row)


def _same_cell(ref: str, pred: str) -> bool:
    """Two digits are enough for a fraction in a cell: 0.33."""
    exact, rounded = parse_number(ref), parse_number(pred)
    fraction = exact and exact.step is None and exact.value.denominator > 1
    if not fraction or not rounded:
        return _texts_match(ref, pred)
    if stands_for(rounded, exact.value, scale=1, min_digits=2):
        return True
    return _texts_match(ref, pred)
