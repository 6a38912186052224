"""What the compiler says of each program of a plan."""

import concurrent.futures
import dataclasses
import re
import time

import jax

from limr_jax import aot, chips, flops, hlo
from limr_jax.aot import Call, Plan


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program; bytes and FLOPs are of one chip."""

    name: str
    phase: str
    seconds: float  # tracing, lowering and compiling
    error: str  # of a program that does not fit; else empty
    arguments: int
    output: int  # what is not an argument's buffer anew
    temporaries: int
    code: int
    elsewhere: int  # in HBM meanwhile, but no argument
    flops: float
    hbm_bytes: float
    collectives: dict[str, tuple[float, float]]  # kind → (how often, bytes sent)

    @property
    def total(self) -> int:
        """Bytes in HBM at once while it runs, its own and others'."""
        own = self.arguments + self.output + self.temporaries + self.code
        return own + self.elsewhere

    def bound(self, chip: chips.Chip) -> dict[str, float]:
        """Seconds that computing, HBM and the interconnect take at least."""
        sent = sum(size for _, size in self.collectives.values())
        return {
            "compute": self.flops / chip.flops,
            "memory": self.hbm_bytes / chip.hbm_bandwidth,
            "interconnect": sent / chip.ici_bandwidth,
        }


def compile_all(made: Plan, tell=lambda compiled: None) -> list[Compiled]:
    """Compile every program, two at a time; `tell` is called as each is done."""
    done = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        order = aot.longest_first(made.calls)
        futures = {pool.submit(_compile, call): call for call in order}
        for future in concurrent.futures.as_completed(futures):
            compiled = future.result()
            done[futures[future].name] = compiled
            tell(compiled)
    return [done[call.name] for call in made.calls]


def _compile(call: Call) -> Compiled:
    begun, error, memory, moved = time.perf_counter(), "", None, hlo.Cost()
    loops = {"turns": call.turns, "shares": call.shares}
    with jax.set_mesh(call.mesh):
        traced = call.program.trace(*call.args)
        try:
            compiled = traced.lower().compile()
        except jax.errors.JaxRuntimeError as failed:
            error = " ".join(str(failed).split())
            if "RESOURCE_EXHAUSTED" not in error:
                raise
        else:
            memory = compiled.memory_analysis()
            moved = hlo.cost(compiled.as_text(), **loops)
    kernels = flops.kernel_bytes(traced.jaxpr, **loops)
    given = jax.tree.leaves(call.args)
    ids = {id(shape) for shape in given}
    others = {
        id(shape): chip_bytes(shape)
        for shape in jax.tree.leaves(call.alive)
        if id(shape) not in ids
    }
    sizes = {
        "arguments": sum(map(chip_bytes, given)),
        "output": 0,
        "temporaries": wanted(error),
        "code": 0,
    }
    if memory:
        sizes = {
            "arguments": memory.argument_size_in_bytes,
            "output": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "code": memory.generated_code_size_in_bytes,
        }
    return Compiled(
        name=call.name,
        phase=call.phase,
        seconds=time.perf_counter() - begun,
        error=error,
        **sizes,
        elsewhere=sum(others.values()),
        flops=call.times * flops.flops(traced.jaxpr, **loops) / call.mesh.size,
        hbm_bytes=call.times * (moved.hbm_bytes + kernels / call.mesh.size),
        collectives=(call.times * moved).collectives,
    )


def wanted(error: str) -> int:
    """Bytes that the compiler says a program would have needed; 0: it does not say."""
    found = re.search(r"\(([\d.]+)([KMG])\) exceeds", error) or re.search(
        r"Used ([\d.]+)([KMG]) of", error
    )
    if not found:
        return 0
    return int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])


def chip_bytes(shape: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one chip."""
    count = 1
    for size in shape.sharding.shard_shape(shape.shape):
        count *= size
    return count * shape.dtype.itemsize
