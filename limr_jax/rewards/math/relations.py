r"""Equations and inequalities: labels and their values, multiples, solutions."""

import re
from collections.abc import Callable

from limr_jax.rewards.math import scalars
from limr_jax.rewards.math.forms import Form, is_label, parse_form
from limr_jax.rewards.math.letters import spaced_out, substitute, variables


def _value(form: Form) -> Form:
    """The right-hand side at the end of `x = … = value`."""
    return parse_form(form.parts[-1])


def chained(form: Form) -> bool:
    """Is it one value throughout? In `x = 5 y = 2` it is not."""
    last = variables(form.parts[-1])
    between = (side for side in form.parts[1:-1] if not is_label(side))
    return all(variables(side) <= last for side in between)


def without_labels(ref: Form, pred: Form) -> tuple[Form, Form] | None:
    """Both sides without `x =`, where the label is only a name for the value."""
    mine = ref.kind == "relation" and ref.labelled
    yours = pred.kind == "relation" and pred.labelled
    if mine and yours:
        if not (chained(ref) and chained(pred)):
            return None
        labels = ref.parts[0].replace(" ", ""), pred.parts[0].replace(" ", "")
        # One name for both: the values decide. Two names: y = 5 does not answer x = 5.
        if labels[0] == labels[1]:
            return _value(ref), _value(pred)
        arguments = [re.search(r"\(([a-z])\)$", label) for label in labels]
        names = [label.partition("(")[0] for label in labels]
        value = pred.parts[-1]
        if all(arguments) and names[0] == names[1]:
            old, new = arguments[1].group(1), arguments[0].group(1)
            return _value(ref), parse_form(substitute(value, old, new))
        # `y = 2x` and `f(x) = 2x` are one function; f(x) and g(x) are two.
        one_function = any(arguments) and not all("(" in label for label in labels)
        return (_value(ref), _value(pred)) if one_function else None
    if not all(chained(f) for f in (ref, pred) if f.kind == "relation"):
        return None
    if mine and pred.kind != "relation":
        return _value(ref), pred
    # Of the signs only `=` and `\in` are parts of this string.
    if pred.kind == "relation" and ref.kind != "relation" and pred.ops[-1] in "= \\in":
        # `7 + 7 = 14` and `m + n = 14` answer 14; `2x = 14` does not.
        is_value = not variables(pred.parts[0]) or _SUM_OF_LETTERS.fullmatch(
            pred.parts[0]
        )
        return (ref, _value(pred)) if yours or is_value else None
    return None


def by_coordinate(form: Form) -> Form:
    """`(x, y) = (1, 2)` as `x = 1, y = 2`; any other form as it stands."""
    if form.kind != "relation" or form.ops != ("=",):
        return form
    names, values = map(parse_form, form.parts)
    if not names.kind == values.kind == "tuple" or len(names.parts) != len(
        values.parts
    ):
        return form
    return parse_form(
        ", ".join(f"{n} = {v}" for n, v in zip(names.parts, values.parts))
    )


_SUM_OF_LETTERS = re.compile(r"[a-z](?:\s*[+-]\s*[a-z])+")  # `m + n = 12` answers 12

_FLIPPED = {"<": ">", r"\le": r"\ge", r"\subset": r"\supset"}
_FLIPPED |= {r"\subseteq": r"\supseteq"}
_EITHER_WAY = (r"\parallel", r"\perp")
# Signs whose sides may be multiplied; True: by a positive number only.
_POSITIVE = {"<": True, r"\le": True, "=": False, r"\ne": False}


def _ascending(form: Form) -> tuple[list[str], list[str]]:
    back = {v: k for k, v in _FLIPPED.items()}
    # `a > b > c` is turned; `a > b < c` has no one direction, and stays.
    if all(op in back for op in form.ops):
        return form.parts[::-1], [back[op] for op in form.ops[::-1]]
    return list(form.parts), list(form.ops)


def same_relation(ref: Form, pred: Form, same: Callable[[str, str], bool]) -> bool:
    """Side by side; two equations also where one is a multiple of the other."""
    (sides_r, ops_r), (sides_p, ops_p) = _ascending(ref), _ascending(pred)
    if ops_r != ops_p:
        return False
    if all(same(a, b) for a, b in zip(sides_r, sides_p)):
        return True
    if len(ops_r) == 1 and ops_r[0] in _EITHER_WAY:
        return all(same(a, b) for a, b in zip(sides_r, sides_p[::-1]))
    if len(ops_r) != 1 or ops_r[0] not in _POSITIVE:
        return False
    names = ref.labelled and pred.labelled and ops_r[0] == "="
    if names and not (variables(sides_r[1]) or variables(sides_p[1])):
        return False  # x = 1 and y = 1
    # 2x = 4y and x = 2y: what is 0 may be multiplied, in inequalities by what is > 0.
    mine, yours = (f"({left})-({right})" for left, right in (sides_r, sides_p))
    return scalars.same_up_to_factor(mine, yours, positive=_POSITIVE[ops_r[0]])


def solves(ref: Form, pred: Form) -> bool:
    """`6/x` for `xy = 6`: the expression, put in for the one letter it lacks."""
    if ref.ops != ("=",) or pred.kind != "item":
        return False
    equation = f"({ref.parts[0]})-({ref.parts[1]})"
    missing = variables(equation) - variables(pred.text)
    if len(missing) != 1 or not variables(pred.text) <= variables(equation):
        return False
    if not variables(pred.text):
        return False
    name = missing.pop()
    put_in = substitute(spaced_out(equation), name, f"({pred.text})")
    # Nothing is near 0 by a relative tolerance: the expression is added to both.
    return scalars.same_value("0", put_in) or scalars.same_expression(
        f"{put_in}+({pred.text})", pred.text
    )
