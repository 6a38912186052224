"""What a launch of a Pallas kernel costs: the one place where that is asked.

XLA knows neither the FLOPs of a kernel nor which blocks of HBM it fetches. So each
kernel's module declares, beside the kernel, a function of what a launch shows:

    @kernel_cost.of("the first letters of the kernel's name")
    def cost(launch: Launch, rows) -> Cost

`rows` is what a caller knows of the rows that decode works on, None where it knows
nothing. A program in which a kernel is launched has imported the kernel's module, so
whoever has its jaxpr finds the cost by name (compilation/flops.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Operand:
    """An array that a kernel reads or writes, a block of it at a time."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    block_bytes: int
    # Blocks that are moved, by the index map alone: a block stays while its index stays
    # the same. None: the map reads which blocks are visited.
    moved: float | None


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel as it stands in a jaxpr: what one device launches."""

    name: str
    grid: tuple
    operands: tuple[Operand, ...]  # what it reads, then what it writes
    step_flops: float  # products of a step of the grid that has work


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one launch of a kernel computes and moves, on one device."""

    flops: float  # of matrix products
    hbm_bytes: float  # read and written


# First letters of a kernel's name → its cost, filled as kernels' modules are imported.
_COSTS: dict[str, Callable[[Launch, Any], Cost]] = {}


def of(prefix: str) -> Callable:
    """Decorates the cost of the kernels whose names begin so."""

    def declare(function: Callable[[Launch, Any], Cost]):
        _COSTS[prefix] = function
        return function

    return declare


def cost(launch: Launch, rows=None) -> Cost:
    """The cost of a launch by the kernel's own function.

    Raises:
      ValueError: no function has been declared for a kernel of this name.
    """
    for prefix, function in _COSTS.items():
        if launch.name.startswith(prefix):
            return function(launch, rows)
    raise ValueError(f"what the kernel {launch.name} costs is not known")
