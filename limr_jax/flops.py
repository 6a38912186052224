"""FLOPs of a program, from its jaxpr: matrix products, loop bodies by their trips.

    FLOPs(dot) = 2 · elements of the result · elements contracted

A scan counts its body `length` times, a while loop as often as the constant that its
condition compares a counter with (else the caller says), a conditional as its cheapest
branch, a shard_map as often as there are shards.
What is computed again for the gradient is in the jaxpr, so it is counted. Elementwise
work is not: beside a model's products it is small (tests/test_flops.py).
"""

import math
from collections.abc import Iterator, Sequence

import jax
from jax.extend import core


def endless(turns: Sequence[int]) -> Iterator[int]:
    """The numbers one by one, then the last again and again."""
    yield from turns
    while True:
        yield turns[-1]


def flops(jaxpr, *, turns: Sequence[int] = (1,)) -> float:
    """Of all devices together.

    turns: of the loops whose condition has no constant, in the order in which they
    begin; the last stands for all that follow.
    """
    return _inside(jaxpr, endless(turns))


def _inside(jaxpr, turns: Iterator[int]) -> float:
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_equation(equation, turns) for equation in jaxpr.eqns)


def _equation(equation, turns: Iterator[int]) -> float:
    name, given = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * terms
    if name == "scan":
        return given["length"] * _inside(given["jaxpr"], turns)
    if name == "shard_map":
        return given["mesh"].size * _inside(given["jaxpr"], turns)
    if name == "while":
        trips = _trips(given["cond_jaxpr"].jaxpr)
        trips = next(turns) if trips is None else trips
        return trips * _inside(given["body_jaxpr"], turns)
    if name == "cond":
        return min(_inside(branch, turns) for branch in given["branches"])
    within = jax.tree.leaves(
        list(given.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr)
    )
    return sum(
        _inside(inner, turns)
        for inner in within
        if isinstance(inner, core.Jaxpr | core.ClosedJaxpr)
    )


def _trips(condition) -> int | None:
    """The constant that a loop's condition compares a counter with."""
    bounds = [
        int(equation.invars[1].val)
        for equation in condition.eqns
        if equation.primitive.name == "lt"
        and isinstance(equation.invars[1], core.Literal)
        and equation.invars[1].aval.dtype.kind in "iu"
    ]
    return min(bounds) if bounds else None
