"""What a compiled program moves: HBM bytes and collectives, from XLA's own text.

XLA's cost_analysis counts the body of a loop once. Here every computation is added up
on its own, and a loop's body counts as often as the loop turns:

    cost(computation) = Σ cost(instruction)
                      + Σ trips · (cost(body) + cost(condition))   of while
                      + Σ share · cost(branch)                     of conditional

The trips of a loop are the constant that its condition compares a counter with; where
there is none (a number that depends on data) they are the caller's, in the order in
which the loops begin. The shares of the branches are the caller's too; a conditional of
another number of branches counts as its cheapest: times made from these are lower
bounds.
Bytes of an instruction are those of its operands and results that lie in HBM; a fusion
that only slices or gathers from an operand reads what it takes, and one that updates a
slice, or scatters, in place writes that. A fusion's collectives count too: libtpu
writes a reduce-scatter as a fusion of an all-reduce and a slice. cost_analysis counts
the same but for asynchronous copies, which it counts at their start and again at their
end. A Pallas kernel counts nothing here: how often it reads what, only its grid says
(flops.kernel_bytes).
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from limr_jax.compilation import flops

_BITS = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 8),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 16),
    **dict.fromkeys(("s32", "u32", "f32"), 32),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 64),
    **dict.fromkeys(("s4", "u4"), 4),
}
# "f32[8,16]{1,0:T(8,128)S(1)}": dtype, sizes, layout
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
# "%sum (a: f32[], b: f32[]) -> f32[] {" or "ENTRY %main (…) -> … {"
_HEAD = re.compile(r"^(?:ENTRY )?%([\w.\-]+) \(.*\{$")
# They move nothing: most are other names of what is there already.
_FREE = {
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
    "add-dependency",
}
# Within a fusion they write nothing: what reads them reads their operand so.
_SEEN_THROUGH = {"bitcast", "copy", "convert"}
# They read as much of their first operand as they give.
_SLICES = {"dynamic-slice", "slice", "gather"}
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is written
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str  # of the result, with layouts
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    inside: str  # between the parentheses: a constant's value, a parameter's number
    root: bool


@dataclasses.dataclass(frozen=True)
class HloCost:
    """What a program moves on one chip."""

    hbm_bytes: float = 0.0  # read and written
    all_bytes: float = 0.0  # on-chip memory included, as cost_analysis has it
    # kind → (how often, bytes that a chip sends), as if over a ring.
    collectives: dict[str, tuple[float, float]] = dataclasses.field(
        default_factory=dict
    )

    def __add__(self, other: "HloCost") -> "HloCost":
        both = dict(self.collectives)
        for kind, (count, size) in other.collectives.items():
            before = both.get(kind, (0, 0))
            both[kind] = (before[0] + count, before[1] + size)
        return HloCost(
            self.hbm_bytes + other.hbm_bytes, self.all_bytes + other.all_bytes, both
        )

    def __rmul__(self, trips: float) -> "HloCost":
        many = {
            kind: (trips * count, trips * size)
            for kind, (count, size) in self.collectives.items()
        }
        return HloCost(trips * self.hbm_bytes, trips * self.all_bytes, many)

    @property
    def collective_bytes(self) -> float:
        return sum(size for _, size in self.collectives.values())


def cost(
    text: str, *, turns: Sequence[int] = (1,), shares: Sequence[float] = ()
) -> HloCost:
    """What the program of this optimised HLO text moves.

    turns: of the loops whose condition has no constant, in the order in which they
    begin; the last stands for all that follow. shares: how often each branch is taken,
    of every conditional with as many branches.
    """
    computations, entry = parse(text)
    # One for the whole walk: it deals out the turns, loop by loop.
    assumed = flops.Assumed(turns=turns, shares=shares)

    # Not cached: a loop without a constant takes the next turns at every visit.
    def of(name: str) -> HloCost:
        here = computations[name]
        costs = (
            _cost_of(line, here=here, computations=computations, of=of, assumed=assumed)
            for line in here.values()
        )
        return sum(costs, start=HloCost())

    return of(entry)


def kernels(text: str) -> list[str]:
    """The names of the Pallas kernels for TPU that an HLO text calls, each once."""
    # '%ragged_decode.3 = … custom_call_target="tpu_custom_call"' is ragged_decode.
    call = re.compile(r'%([\w\-]+)[\w.\-]* = .* custom_call_target="tpu_custom_call"')
    matches = filter(None, map(call.search, text.splitlines()))
    return sorted({match[1] for match in matches})


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each its instructions by name, and the entry's name."""
    computations, entry, lines = {}, None, None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            lines = computations[head[1]] = {}
            entry = head[1] if line.startswith("ENTRY") else entry
        elif lines is not None and " = " in line:
            instruction = _instruction(line)
            lines[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction:
    # "ROOT %w = (s32[], f32[8]{0}) while(%p), condition=%ends, body=%inner": name;
    # type, opcode, operands, attributes
    left, right = line.strip().split(" = ", 1)
    # A tuple's type has blanks in it; any other ends at the first.
    stop = _closed(right, 0) if right.startswith("(") else right.index(" ")
    result, right = right[:stop], right[stop:].lstrip()
    opening = right.index("(")
    closing = _closed(right, opening)
    inside = right[opening + 1 : closing - 1]
    return Instruction(
        name=_NAME.search(left)[1],
        type=result,
        opcode=right[:opening],
        operands=tuple(_NAME.findall(inside)),
        attributes=right[closing:],
        inside=inside,
        root=left.startswith("ROOT"),
    )


def _closed(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start` of a text.

    Raises ValueError where none does.
    """
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i + 1
    raise ValueError(f"no closing parenthesis: {text[start : start + 80]}")


def _sizes(result: str) -> list[tuple[float, bool]]:
    """(bytes, lies in HBM) of each array of a type."""
    sizes = []
    for dtype, dims, layout in _ARRAY.findall(result):
        # What is no array of numbers, such as token[], takes no room.
        if dtype in _BITS:
            elements = math.prod(int(n) for n in dims.split(",") if n)
            # S(1) and the like are memories on the chip.
            sizes.append((elements * _BITS[dtype] / 8, "S(" not in layout))
    return sizes


def _moved(sizes) -> HloCost:
    sizes = list(sizes)
    return HloCost(
        hbm_bytes=sum(size for size, in_hbm in sizes if in_hbm),
        all_bytes=sum(size for size, _ in sizes),
    )


def _called(instruction: Instruction, key: str) -> str:
    return re.search(rf"\b{key}=%([\w.\-]+)", instruction.attributes)[1]


def _cost_of(instruction: Instruction, here, computations, of, assumed) -> HloCost:
    opcode = instruction.opcode
    # An asynchronous instruction counts where it starts.
    if opcode in _FREE or opcode.endswith("-done"):
        return HloCost()
    if opcode == "while":
        condition = _called(instruction, "condition")
        trips = _known_trips(instruction) or _trips(computations[condition])
        # Before the body: an outer loop begins before those within it.
        trips = next(assumed.turns) if trips is None else trips
        # A condition is asked once more than the body turns: that once is left out.
        return trips * (of(_called(instruction, "body")) + of(condition))
    if opcode == "conditional":
        names = _NAME.findall(
            re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)[1]
        )
        branches = [of(name) for name in names]
        return assumed.of_branches(branches, key=lambda c: c.all_bytes)
    if opcode in ("call", "async-start"):
        key = "to_apply" if opcode == "call" else "calls"
        return of(_called(instruction, key))
    kind = opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        return _collective(kind, instruction, here)
    if opcode == "fusion":
        inside = _fused(_called(instruction, "calls"), computations)
        return _fusion(instruction, here, computations) + inside
    return _moved(_plain(instruction, here))


def _plain(instruction: Instruction, here) -> list[tuple[float, bool]]:
    """What one instruction that is not fused reads and writes."""
    result = _sizes(instruction.type)
    operands = [
        _sizes(here[name].type) for name in instruction.operands if name in here
    ]
    # Names of buffers, and Pallas kernels, whose bytes flops.py counts.
    if instruction.opcode == "custom-call" and re.search(
        r'custom_call_target="(AllocateBuffer|ConcatBitcast|Assume\w*|tpu_custom_call)"',
        instruction.attributes,
    ):
        return []
    if instruction.opcode == "slice-start":  # type ((from), to, context)
        return [result[1], (result[1][0], result[0][1])]
    if instruction.opcode.endswith("-start"):  # (to, from, context) or (from, to)
        return result[:2]
    if instruction.opcode in _SLICES:
        # As many bytes as are taken, from where the operand lies; indices whole.
        read = [(result[0][0], operands[0][0][1])] if operands and operands[0] else []
        return result + read + [x for some in operands[1:] for x in some]
    if instruction.opcode in _IN_PLACE:
        # The update is read, and written into the array, of which the rest stays.
        written = operands[_IN_PLACE[instruction.opcode]]
        return written + [(written[0][0], operands[0][0][1])]
    return result + [x for some in operands for x in some]


def _fusion(instruction: Instruction, here, computations) -> HloCost:
    """Bytes at a fusion's boundary; slices count as what they take."""
    inner = computations[_called(instruction, "calls")]
    sizes = []
    for number, name in enumerate(instruction.operands):
        for size, in_hbm in _sizes(here[name].type):
            read = _read(inner, number=number, size=size, computations=computations)
            sizes.append((read, in_hbm))
    for part, (size, in_hbm) in zip(
        _results(inner, computations), _sizes(instruction.type)
    ):
        sizes.append((min(size, part), in_hbm))
    return _moved(sizes)


def _fused(name: str, computations) -> HloCost:
    """The collectives of a fusion; what they read and write, its boundary says."""
    inner, cost = computations[name], HloCost()
    for line in inner.values():
        kind = line.opcode.removesuffix("-start")
        if line.opcode == "fusion":
            cost += _fused(_called(line, "calls"), computations)
        elif kind in COLLECTIVES:
            # libtpu's own name for a sum of which each chip keeps a part.
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            cost += HloCost(collectives=_sent(kind, line, inner))
    return cost


def _results(inner, computations) -> list[float]:
    """Bytes that each result of a fusion writes: of an update in place, the slice."""
    root = next(line for line in inner.values() if line.root)
    parts = (
        [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    written = []
    for part in parts:
        # A bitcast has the same bytes in another shape.
        while part.opcode == "bitcast" and part.operands:
            part = inner[part.operands[0]]
        if part.opcode in _IN_PLACE:
            changed = inner[part.operands[_IN_PLACE[part.opcode]]]
            written.append(_sizes(changed.type)[0][0])
        elif part.opcode == "fusion":
            written += _results(computations[_called(part, "calls")], computations)
        else:
            written += [size for size, _ in _sizes(part.type)]
    return written


def _read(inner, number: int, size: float, computations) -> float:
    """Bytes of a fusion's operand that are read."""
    taken = 0.0
    names = [
        line.name
        for line in inner.values()
        if line.opcode == "parameter" and int(line.inside) == number
    ]
    while names:
        name = names.pop()
        # The fusion gives the operand itself back.
        if inner[name].root:
            return size
        for user in inner.values():
            if name not in user.operands:
                continue
            # As a later operand it is an index, or the update.
            first = user.operands[0] == name
            if user.opcode in _SEEN_THROUGH:
                names.append(user.name)
            elif user.opcode in _SLICES and first:
                # As a share, for it may have been cast by then.
                slice_size, whole = (_sizes(x.type)[0][0] for x in (user, inner[name]))
                taken += size * slice_size / whole
            elif user.opcode == "fusion":
                nested = computations[_called(user, "calls")]
                at = user.operands.index(name)
                # Given back as it is: who reads the result reads the operand.
                if _passed_on(nested) == at:
                    names.append(user.name)
                else:
                    taken += _read(
                        nested, number=at, size=size, computations=computations
                    )
            # What is updated in place is not read; anything else reads all of it.
            elif user.opcode not in _IN_PLACE or not first:
                return size
    # Slices may overlap: it is read once at most.
    return min(taken, size)


def _passed_on(inner) -> int | None:
    """The number of the operand that a fusion gives back, in any layout or dtype."""
    line = next(line for line in inner.values() if line.root)
    while line.opcode in _SEEN_THROUGH:
        line = inner[line.operands[0]]
    return int(line.inside) if line.opcode == "parameter" else None


def _known_trips(loop: Instruction) -> int | None:
    """The trips that XLA itself has noted; its TPU compiler does not."""
    match = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
    return int(match[1]) if match else None


def _trips(condition: dict[str, Instruction]) -> int | None:
    """The constant that the condition compares a counter with; None: there is none."""
    bounds = []
    for line in condition.values():
        if line.opcode == "compare" and "direction=LT" in line.attributes:
            limit = condition[line.operands[1]]
            # s32 in loops of the program, u32 in those that libtpu makes.
            if limit.opcode == "constant" and re.match(r"[su]32\[\]", limit.type):
                bounds.append(int(limit.inside))
    return min(bounds) if bounds else None


def _group_size(attributes: str) -> int:
    """Devices of one group of a collective."""
    # replica_groups={{0,4},{1,5}} has groups of 2,
    plain = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if plain:
        return len(plain[1].split(","))
    # replica_groups=[2,4]<=[8] has 2 groups of 4,
    iota = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if iota:
        return int(iota[1])
    # replica_groups=mesh['a'=4,'b'=2,'c'=2] {'a','c'} has groups of 8.
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 2  # a permutation has pairs


def _collective(kind: str, instruction: Instruction, here) -> HloCost:
    read = [x for name in instruction.operands for x in _sizes(here[name].type)]
    n = _group_size(instruction.attributes)
    # As much is written as is read, but by a gather n parts for the one that it reads,
    # and by a reduce-scatter one part of the n.
    parts = {"all-gather": n, "reduce-scatter": 1 / n}.get(kind, 1)
    written = [(size * parts, in_hbm) for size, in_hbm in read]
    sent = HloCost(collectives=_sent(kind, instruction, here))
    return _moved(read + written) + sent


def _sent(kind: str, instruction: Instruction, here) -> dict:
    """Bytes that a chip sends of one collective, as `HloCost` has them."""
    types = [here[name].type for name in instruction.operands]
    size = sum(size for type in types for size, _ in _sizes(type))
    n = _group_size(instruction.attributes)
    # Round a ring of n: a gather passes n − 1 parts on, a reduce-scatter sends n − 1 of
    # its n parts, and an all-reduce is the one after the other.
    sent = {
        "all-gather": size * (n - 1),
        "all-reduce": 2 * size * (n - 1) / n,
        "collective-permute": size,
    }.get(kind, size * (n - 1) / n)
    return {kind: (1, sent)}
