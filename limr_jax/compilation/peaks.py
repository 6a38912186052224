"""What a device gives at best: bytes a second, FLOP/s, and bytes between devices.

Measured, and so what a step's programs are held against. All times are the best of five
rounds of ten calls, after a first one that compiles.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax.sharding import REPLICATED

ROUNDS, CALLS = 5, 10


def rates(device, *, numbers: int, size: int) -> dict[str, float]:
    """Bytes a second of one device's memory, copied and read, and its bf16 FLOP/s.

    numbers: of the fp32 array that is copied and read: more than any cache holds. size:
    of the square matrices that are multiplied, large enough to fill the device.
    """
    with jax.default_device(device):
        x_X = jnp.arange(numbers, dtype=jnp.float32)
        copied = _seconds(jax.jit(lambda x_X: x_X + 1), x_X)
        read = _seconds(jax.jit(jnp.sum), x_X)
        del x_X
        # Of random numbers: a product of zeros takes less power, and so is quicker.
        keys = jax.random.split(jax.random.key(0))
        factors = [jax.random.normal(key, (size, size), jnp.bfloat16) for key in keys]
        product = _seconds(jax.jit(jnp.matmul), *factors)
    both = {"copied": 8 * numbers / copied, "read": 4 * numbers / read}
    return {
        **{f"{name}_bytes_per_second": rate for name, rate in both.items()},
        "bytes_per_second": max(both.values()),
        "flops_per_second": 2 * size**3 / product,
    }


def collectives(mesh, *, numbers: int) -> dict[str, dict[str, float]]:
    """Bytes a second that each device sends, by axis of the mesh and collective.

    Axes of one device are left out. numbers: fp32, of the array that a device has
    whole. Counted as in hlo_cost.py: round a ring of n devices both kinds send n − 1 of
    the array's n parts. All processes call it.
    """

    def rate(axis: str, kind: str) -> float:
        n, (program, array) = mesh.shape[axis], _collective(mesh, axis, kind, numbers)
        return 4 * numbers * (n - 1) / n / _seconds(program, array)

    return {
        axis: {kind: rate(axis, kind) for kind in ("all-gather", "reduce-scatter")}
        for axis, n in mesh.shape.items()
        if n > 1
    }


def _collective(mesh, axis: str, kind: str, numbers: int):
    """A jitted collective along one axis, and its argument."""
    numbers -= numbers % mesh.shape[axis]
    cut, whole = PartitionSpec(axis), REPLICATED
    if kind == "all-gather":
        function, specs = (
            partial(jax.lax.all_gather, axis_name=axis, tiled=True),
            (cut, whole),
        )
    else:
        function = partial(jax.lax.psum_scatter, axis_name=axis, tiled=True)
        specs = (whole, cut)
    # check_vma: that what is gathered is the same everywhere is not to be proved.
    program = jax.shard_map(
        function, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False
    )
    make = jax.jit(
        partial(jnp.ones, numbers, jnp.float32),
        out_shardings=NamedSharding(mesh, specs[0]),
    )
    return jax.jit(program), make()


def _seconds(function, *arrays) -> float:
    """Of one call."""
    jax.block_until_ready(function(*arrays))
    rounds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(CALLS):
            out = function(*arrays)  # the last one's memory is free again
        jax.block_until_ready(out)
        rounds.append((time.perf_counter() - begun) / CALLS)
    return min(rounds)
