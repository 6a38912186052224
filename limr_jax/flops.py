"""FLOPs of a program, from its jaxpr: matrix products, loop bodies by their trips.

    FLOPs(dot) = 2 · elements of the result · elements contracted

A scan counts its body `length` times, a while loop as often as the constant that its
condition compares a counter with (else the caller says), a conditional as the branches
in the shares that the caller says, or as the cheapest, a shard_map as often as there
are shards.
What is computed again for the gradient is in the jaxpr, so it is counted. Elementwise
work is not: beside a model's products it is small (tests/test_flops.py).

A Pallas kernel counts the products of every block of its grid that it visits, and so
its bytes, which XLA cannot know: each block that is fetched or written (splash.py).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import jax
from jax.extend import core

from limr_jax import live_columns, look_back
from limr_jax.splash import visited_share


def _endless(turns: Sequence[int]) -> Iterator[int]:
    """The numbers one by one, then the last again and again."""
    yield from turns
    while True:
        yield turns[-1]


class Given:
    """What a program does not say of itself."""

    def __init__(
        self,
        turns: Sequence[int] = (1,),
        shares: Sequence[float] = (),
        branch: Callable = min,
        decoded: live_columns.Decoded | live_columns.Read | None = None,
    ):
        self.turns = _endless(turns)
        self.decoded = decoded
        self._shares = shares
        self._branch = branch

    def of_branches(self, counts: list, *, key: Callable | None = None):
        """The branches by their shares; else one, by its count or what `key` says."""
        if len(counts) != len(self._shares):
            return self._branch(counts, key=key)
        first, *rest = (share * x for share, x in zip(self._shares, counts))
        return sum(rest, start=first)


def flops(jaxpr, **given) -> float:
    """Of all devices together.

    turns: of the loops whose condition has no constant, in the order in which they
    begin; the last stands for all that follow. shares: how often each branch is taken,
    of every conditional with as many branches. decoded: what decode's kernel reads of
    a row; without, all.
    """
    return _inside(jaxpr, Given(**given), _products)


def kernel_bytes(jaxpr, **given) -> float:
    """HBM bytes that Pallas kernels read and write, of all devices together."""
    return _inside(jaxpr, Given(**given), _fetched)


def _inside(jaxpr, told: Given, of: Callable) -> float:
    """`of(equation, told)` summed up; None: what is in the equation."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_equation(equation, told, of) for equation in jaxpr.eqns)


def _equation(equation, told: Given, of: Callable) -> float:
    name, given = equation.primitive.name, equation.params
    counted = of(equation, told)
    if counted is not None:
        return counted
    if name == "scan":
        return given["length"] * _inside(given["jaxpr"], told, of)
    if name == "shard_map":
        return given["mesh"].size * _inside(given["jaxpr"], told, of)
    if name == "while":
        trips = _trips(given["cond_jaxpr"].jaxpr)
        trips = next(told.turns) if trips is None else trips
        return trips * _inside(given["body_jaxpr"], told, of)
    if name == "cond":
        return told.of_branches([_inside(x, told, of) for x in given["branches"]])
    within = jax.tree.leaves(
        list(given.values()), is_leaf=lambda x: isinstance(x, core.Jaxpr)
    )
    return sum(
        _inside(inner, told, of)
        for inner in within
        if isinstance(inner, core.Jaxpr | core.ClosedJaxpr)
    )


def _products(equation, told: Given) -> float | None:
    given = equation.params
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * terms
    if equation.primitive.name == "pallas_call":
        if given["name"] == look_back.NAME:
            columns = sum(n * cut.size for n, cut in _blocks(equation, told))
            heads = given["grid_mapping"].block_mappings[0].block_aval.size
            return 2 * 2.0 * heads * columns  # by the keys, and by the values
        # A block that is visited takes the branch that has work.
        body = _inside(given["jaxpr"], Given(branch=max), _products)
        return _visits(equation) * body
    return None


def _visits(equation) -> float:
    """Blocks of its grid that a kernel computes."""
    grid = equation.params["grid_mapping"].grid
    return math.prod(grid) * visited_share(equation.params["name"], grid)


def _blocks(equation, told: Given) -> list[tuple[float, look_back.Cut]]:
    """How many blocks of prompts and of the ring decode's kernel reads, of all rows."""
    mappings = equation.params["grid_mapping"].block_mappings
    prompt, own = (
        look_back.Cut(keys.array_aval.shape[-1], keys.block_aval.shape[-1])
        for keys in (mappings[1], mappings[3])
    )
    read = prompt.columns, own.columns
    if told.decoded is not None:
        read = told.decoded.of_prompt(prompt), told.decoded.of_ring(own)
    rows = mappings[0].array_aval.shape[0]
    return [(rows * n / cut.size, cut) for n, cut in zip(read, (prompt, own))]


def _fetched(equation, told: Given) -> float | None:
    """Bytes of a kernel's blocks: a block stays while its index stays the same."""
    if equation.primitive.name != "pallas_call":
        return None
    given = equation.params["grid_mapping"]
    if equation.params["name"] == look_back.NAME:
        (prompt, cut), (own, _) = _blocks(equation, told)
        if cut.blocks == 1 and told.decoded is not None:
            prompt /= told.decoded.group  # read by the first of its rows
        rows = given.block_mappings[0].array_aval.shape[0]
        # Queries; keys and values of prompts and of the ring; what comes of them.
        times = [rows, prompt, prompt, own, own, rows]
    else:
        times = []
        for blocks in given.block_mappings:
            steps = _steps(blocks.index_map_jaxpr.jaxpr, given.grid)
            times.append(_visits(equation) if steps is None else math.prod(steps))
    return sum(
        n * blocks.block_aval.size * blocks.array_aval.dtype.itemsize
        for n, blocks in zip(times, given.block_mappings, strict=True)
    )


def _steps(jaxpr, grid) -> list[float] | None:
    """Of each axis of the grid up to the last that an index map looks at, its steps.

    None: the map reads which blocks are visited. An axis divided by n steps as rarely.
    """
    axes = {var: (axis, 1) for axis, var in enumerate(jaxpr.invars[: len(grid)])}
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
    found = dict(axes[v] for v in used)
    last = max(found, default=-1)
    return [grid[axis] / found.get(axis, 1) for axis in range(last + 1)]


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
