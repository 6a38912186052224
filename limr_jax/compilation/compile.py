"""What the compiler says of each program of a plan."""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
from functools import partial

import jax

from limr_jax.compilation import calls, decode_traffic, flops, hlo_cost, slices
from limr_jax.compilation.calls import Call, Plan
from limr_jax.models.attention import ragged_decode


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
    kernels: list[str]  # Pallas's, by name
    # Of a decode step of the plan's lengths, with each number of slots.
    decode_bytes: tuple[float, ...] = ()
    # FLOPs and HBM bytes of a step of one token a row, and of one with drafts, with the
    # largest number of slots that has drafts; empty: none has.
    drafted: tuple[float, ...] = ()

    @property
    def total(self) -> int:
        """Bytes in HBM at once while it runs, its own and others'."""
        own = self.arguments + self.output + self.temporaries + self.code
        return own + self.elsewhere

    def bound(self, chip: slices.Chip) -> dict[str, float]:
        """Seconds that computing, HBM and the interconnect take at least."""
        sent = sum(size for _, size in self.collectives.values())
        return {
            "compute": self.flops / chip.flops,
            "memory": self.hbm_bytes / chip.hbm_bandwidth,
            "interconnect": sent / chip.ici_bandwidth,
        }


def compile_all(plan: Plan, tell=lambda compiled: None) -> list[Compiled]:
    """Compile every program, two at a time; `tell` is called as each is done."""
    done = {}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        order, parts = calls.longest_first(plan.calls), {"generate": plan.decoded}
        futures = {
            pool.submit(compile_call, call, parts.get(call.name, ())): call
            for call in order
        }
        for future in concurrent.futures.as_completed(futures):
            compiled = future.result()
            done[futures[future].name] = compiled
            tell(compiled)
    return [done[call.name] for call in plan.calls]


def compile_call(call: Call, parts: Sequence[decode_traffic.Steps] = ()) -> Compiled:
    """Compile one program. parts: decode's steps by number of slots, of generation."""
    begun, error, memory, moved = time.perf_counter(), "", None, hlo_cost.HloCost()
    text, steps, drafted = "", (), ()
    with jax.set_mesh(call.mesh), tempfile.TemporaryDirectory() as dump:
        traced = call.program.trace(*call.args)
        try:
            options = {"xla_dump_to": dump}
            compiled = traced.lower().compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as failed:
            error = " ".join(str(failed).split())
            # That it does not fit is a finding, and is reported; all else is a fault.
            if "RESOURCE_EXHAUSTED" not in error:
                raise
        else:
            memory, laid_out = compiled.memory_analysis(), _laid_out(dump)
            text = compiled.as_text()
            moved = hlo_cost.cost(text, turns=call.turns, shares=call.shares)
            step = partial(_decode_step, call, text, traced.jaxpr, parts)
            steps = tuple(step(number)[1] for number in range(len(parts)))
            for number, tokens in enumerate(call.step_tokens[: len(parts)]):
                if tokens > 1 and not drafted:
                    drafted = (*step(number), *step(number, drafted=True))
    # From the jaxpr, so both are known of a program that did not compile, too.
    computed = flops.flops(
        traced.jaxpr, turns=call.turns, shares=call.shares, decoded=call.decoded
    )
    kernels = flops.kernel_bytes(
        traced.jaxpr, turns=call.turns, shares=call.shares, decoded=call.decoded
    )
    leaves = jax.tree.leaves(call.args)
    # By identity: one shape is one buffer, in however many places it stands.
    ids = {id(shape) for shape in leaves}
    others = {
        id(shape): chip_bytes(shape)
        for shape in jax.tree.leaves(call.alive)
        if id(shape) not in ids
    }
    arguments = sum(map(chip_bytes, leaves))
    output, temporaries, code = 0, needed_temporaries(error, arguments), 0
    if memory:
        arguments = memory.argument_size_in_bytes
        # A donated argument's buffer holds the result, and counts with the arguments.
        output = memory.output_size_in_bytes - memory.alias_size_in_bytes
        temporaries = memory.temp_size_in_bytes
        if laid_out:
            temporaries = laid_out - arguments - output
        code = memory.generated_code_size_in_bytes
    return Compiled(
        name=call.name,
        phase=call.phase,
        seconds=time.perf_counter() - begun,
        error=error,
        arguments=arguments,
        output=output,
        temporaries=temporaries,
        code=code,
        elsewhere=sum(others.values()),
        # What the jaxpr says is of all chips together, XLA's text of one.
        flops=call.times * computed / call.mesh.size,
        hbm_bytes=call.times * (moved.hbm_bytes + kernels / call.mesh.size),
        collectives=(call.times * moved).collectives,
        kernels=hlo_cost.kernels(text),
        decode_bytes=steps,
        drafted=drafted,
    )


def _laid_out(dump: str | os.PathLike) -> int:
    """HBM bytes of a program's buffers as its compiler has laid them out; 0: not said.

    From what XLA dumps. Its memory analysis says too much of temporaries: 17.18 GiB of
    v4_32's generation in 512 slots, where 12.99 are laid out, and 33.52 of a program
    that compiles for 30.75.
    """
    for path in pathlib.Path(dump).glob("*memory-usage-report.txt"):
        # Color 0 is HBM.
        total = re.search(r"\(color=0\)\nTotal bytes: (\d+)", path.read_text())
        if total:
            return int(total[1])
    return 0


def _decode_step(
    call: Call, text: str, jaxpr, parts, number: int, drafted: bool = False
) -> tuple[float, float]:
    """FLOPs and HBM bytes on a chip of a decode step in the part of that number.

    The program's with one turn of that loop, less those without. Rows have as many
    columns as they have in the mean; XLA's own attention reads as many of each as of a
    row that is nearly full. drafted: of a step that tries several tokens a row.
    """
    tokens = call.step_tokens
    # The loops around the first part's, which refill.
    refills = len(call.turns) - len(calls.decode_turns(tokens[0])) - 1
    # Every step reads the widest cache, as it does with one such row among many.
    widest = (*(0.0 for _ in call.shares[1:]), 1.0)[: len(call.shares)]
    part = parts[number]
    columns = part.read / (part.slots * part.steps) if part.steps else 0
    read = ragged_decode.ColumnsRead(columns)
    before = [0] * refills
    if refills and not number:
        before[0] = 1  # a round that refills no row
    for earlier in tokens[:number]:
        before += [0] * len(calls.decode_turns(earlier))

    def cost(turn):
        kind = "drafted" if drafted else "steps"
        loop = calls.decode_turns(tokens[number], **{kind: turn})
        how = {"turns": (*before, *loop, 0), "shares": widest}
        computed = flops.flops(jaxpr, decoded=read, **how)
        kernels = flops.kernel_bytes(jaxpr, decoded=read, **how)
        moved = hlo_cost.cost(text, **how).hbm_bytes
        return computed / call.mesh.size, moved + kernels / call.mesh.size

    # The other loops count the same in both: one turn of this one is left.
    return tuple(one - none for one, none in zip(cost(1), cost(0)))


def needed_temporaries(error: str, arguments: int) -> int:
    """Bytes beside its arguments that a program that does not fit would have needed.

    The compiler names its temporaries, or all that it would have used, arguments
    included. 0: it does not say.
    """
    size = r"([\d.]+)([KMG])"
    # "HLO temporaries (120.00G) exceeds available HBM", or "Used 45.50G of 30.75G hbm"
    temporaries = re.search(rf"\({size}\) exceeds", error)
    used = re.search(rf"Used {size} of", error)
    if not temporaries and not used:
        return 0
    number, unit = (temporaries or used).groups()
    count = int(float(number) * 2 ** {"K": 10, "M": 20, "G": 30}[unit])
    return count if temporaries else max(0, count - arguments)


def chip_bytes(shape: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one chip."""
    count = 1
    for size in shape.sharding.shard_shape(shape.shape):
        count *= size
    return count * shape.dtype.itemsize
