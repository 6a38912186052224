"""The one exception for a user's mistake, and the most common mistake."""

import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """Something that the user gave is wrong: one line with value, limit and remedy.

    Launch scripts print the line and exit with code 2, without a traceback.
    """


def within(
    values: Mapping[str, Any],
    limits: Mapping[str, tuple[float, float]],
    *,
    above_0: Iterable[str] = (),
    section: str = "",
) -> None:
    """InputError unless each field `a.b` of nested values is finite, in its limits.

    limits: field → (least, largest). section: what stands before the fields' names.
    """

    def value_of(field):
        return functools.reduce(lambda part, name: part[name], field.split("."), values)

    for field, (least, largest) in limits.items():
        value = value_of(field)
        if not least <= value <= largest or math.isinf(value):
            limit = f"from {least} to {largest}"
            if largest == math.inf:
                limit = f"at least {least}" + " and finite" * math.isinf(value)
            raise InputError(f"{section}{field}={value} must be {limit}")
    for field in above_0:
        if not 0 < (value := value_of(field)) < math.inf:
            raise InputError(f"{section}{field}={value} must be above 0, and finite")


def choose(table: Mapping[str, Any], name: str, field: str):
    """The entry of a literal dict of choices; an unknown name names the nearest."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.0)
    raise InputError(
        f"{field}={name!r} is unknown; did you mean {near[0]!r}? "
        f"({', '.join(sorted(table))})"
    )
