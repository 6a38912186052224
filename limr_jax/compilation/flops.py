"""FLOPs of a program, from its jaxpr: matrix products, loop bodies by their trips.

    FLOPs(dot) = 2 · elements of the result · elements contracted

A scan counts its body `length` times, a while loop as often as the constant that its
condition compares a counter with (else by the caller's `turns`), a conditional as the
branches in the caller's `shares`, or as the cheapest, a shard_map as often as there are
shards.
What is computed again for the gradient is in the jaxpr, so it is counted. Elementwise
work is not: beside a model's products it is small (tests/compilation/test_flops.py).

A Pallas kernel's FLOPs, and its bytes, which XLA cannot know, are what its own module
declares (models/attention/kernel_cost.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.extend import core

from limr_jax.models.attention import kernel_cost
from limr_jax.models.attention.kernel_cost import Launch, Operand


def _endless(turns: Sequence[int]) -> Iterator[int]:
    """The numbers one by one, then the last again and again."""
    yield from turns
    while True:
        yield turns[-1]


class Assumed:
    """What a program does not show of itself: as `flops` takes it, and `branch`."""

    def __init__(
        self,
        turns: Sequence[int] = (1,),
        shares: Sequence[float] = (),
        branch: Callable = min,
        decoded=None,
    ):
        # branch: which one counts of a conditional that `shares` does not speak of.
        self.turns = _endless(turns)
        self.decoded = decoded
        self._shares = shares
        self._branch = branch

    def of_branches(self, counts: list, *, key: Callable | None = None):
        """The branches by their shares; else one of them, by its count or `key`."""
        if len(counts) != len(self._shares):
            return self._branch(counts, key=key)
        # Not from 0: what is added up may be an HloCost.
        first, *rest = (share * x for share, x in zip(self._shares, counts))
        return sum(rest, start=first)


def flops(
    jaxpr,
    *,
    turns: Sequence[int] = (1,),
    shares: Sequence[float] = (),
    decoded=None,
) -> float:
    """FLOPs of the program, summed over all devices.

    turns: of the loops whose condition has no constant, in the order in which they
    begin; the last stands for all that follow. shares: how often each branch is taken,
    of every conditional with as many branches. decoded: the rows that ragged decode
    works on (`ragged_decode.Rounds` or `ColumnsRead`); None: whole rows.
    """
    assumed = Assumed(turns=turns, shares=shares, decoded=decoded)
    return _inside(jaxpr, assumed, _products)


def kernel_bytes(
    jaxpr,
    *,
    turns: Sequence[int] = (1,),
    shares: Sequence[float] = (),
    decoded=None,
) -> float:
    """HBM bytes that Pallas kernels read and write, summed over all devices.

    The arguments are those of `flops`.
    """
    assumed = Assumed(turns=turns, shares=shares, decoded=decoded)
    return _inside(jaxpr, assumed, _kernel_bytes)


def _inside(jaxpr, assumed: Assumed, of: Callable) -> float:
    """The sum of `of(equation, assumed)`, or where it is None of what is within."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_equation(equation, assumed, of) for equation in jaxpr.eqns)


def _equation(equation, assumed: Assumed, of: Callable) -> float:
    name, params = equation.primitive.name, equation.params
    # Asked first: a kernel's jaxpr is not walked, since its cost is declared.
    counted = of(equation, assumed)
    if counted is not None:
        return counted
    if name == "scan":
        return params["length"] * _inside(params["jaxpr"], assumed, of)
    if name == "shard_map":
        # The body is what one device does.
        return params["mesh"].size * _inside(params["jaxpr"], assumed, of)
    if name == "while":
        trips = _trips(params["cond_jaxpr"].jaxpr)
        # Before the body: an outer loop begins before those within it.
        trips = next(assumed.turns) if trips is None else trips
        return trips * _inside(params["body_jaxpr"], assumed, of)
    if name == "cond":
        return assumed.of_branches(
            [_inside(x, assumed, of) for x in params["branches"]]
        )
    # Whatever else holds a jaxpr (jit, checkpoint, …) runs it once.
    within = jax.tree.leaves(
        list(params.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr)
    )
    return sum(
        _inside(inner, assumed, of)
        for inner in within
        if isinstance(inner, core.Jaxpr | core.ClosedJaxpr)
    )


def _products(equation, assumed: Assumed) -> float | None:
    params = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * terms
    if equation.primitive.name == "pallas_call":
        return kernel_cost.cost(_launch(equation), assumed.decoded).flops
    return None


def _kernel_bytes(equation, assumed: Assumed) -> float | None:
    if equation.primitive.name != "pallas_call":
        return None
    return kernel_cost.cost(_launch(equation), assumed.decoded).hbm_bytes


def _launch(equation) -> Launch:
    """What the equation of a `pallas_call` shows."""
    mapping = equation.params["grid_mapping"]

    def operand(blocks) -> Operand:
        # Which block is fetched is a jaxpr too, a function of the place in the grid.
        steps = _steps(blocks.index_map_jaxpr.jaxpr, mapping.grid)
        return Operand(
            shape=blocks.array_aval.shape,
            block=blocks.block_aval.shape,
            block_bytes=blocks.block_aval.size * blocks.array_aval.dtype.itemsize,
            moved=None if steps is None else math.prod(steps),
        )

    return Launch(
        name=equation.params["name"],
        grid=mapping.grid,
        operands=tuple(map(operand, mapping.block_mappings)),
        # A step that has work takes the branch that computes.
        step_flops=_inside(equation.params["jaxpr"], Assumed(branch=max), _products),
    )


def _steps(jaxpr, grid) -> list[float] | None:
    """The steps of each axis of the grid, up to the last that the index map reads.

    None: the map reads a table of the blocks that are visited. An axis that the map
    divides by n makes an n-th of its steps.
    """
    # Variable → (axis of the grid, what it has been divided by).
    axes = {var: (axis, 1) for axis, var in enumerate(jaxpr.invars[: len(grid)])}
    # Behind the grid's axes come prefetched tables, known only when it runs.
    tables = set(jaxpr.invars[len(grid) :])
    for equation in jaxpr.eqns:
        known = [v for v in equation.invars if isinstance(v, core.Var)]
        if any(v in tables for v in known):
            tables.update(equation.outvars)
        elif equation.primitive.name == "div" and known and known[0] in axes:
            axis, rarely = axes[known[0]]
            axes[equation.outvars[0]] = axis, rarely * int(equation.invars[1].val)
    used = [v for v in jaxpr.outvars if isinstance(v, core.Var)]
    if any(v in tables for v in used):
        return None
    rarely = dict(axes[v] for v in used)
    # A block stays while its index does: axes further in move nothing.
    last = max(rarely, default=-1)
    return [grid[axis] / rarely.get(axis, 1) for axis in range(last + 1)]


def _trips(condition) -> int | None:
    """The constant that a loop's condition compares a counter with."""
    # `i < 12`: 12 turns of a counter that begins at 0.
    bounds = [
        int(equation.invars[1].val)
        for equation in condition.eqns
        if equation.primitive.name == "lt"
        and isinstance(equation.invars[1], core.Literal)
        and equation.invars[1].aval.dtype.kind in "iu"
    ]
    return min(bounds) if bounds else None
