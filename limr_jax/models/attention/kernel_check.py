"""The kernels that a run takes, held against XLA's attention before the run begins.

Both are given the same random numbers, in rows as long as the run's own, of one layer,
in the dtype of compute and laid out on the run's mesh. How far they are apart is one
number, the gap: over the vectors of all rows, columns and heads the largest

    |kernel's vector − XLA's| / max(|XLA's|, the root mean square of |XLA's|)

of outputs and, where rows are learned from, of the gradients of queries, keys and
values. A kernel that is further off than the tolerance, or does not compile, is refused
on every process where it is on one. Scores have a standard deviation of three, so that
a few keys have most of a query's weight: one that is wrongly seen, or is not, then
changes whole vectors, and rounding does not.

Axes: B rows, T tokens, J of a decode step, S columns of a row, L of a prompt, P
prompts, H heads, K kv heads, C channels per head.
"""

import concurrent.futures
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import console
from limr_jax.errors import InputError
from limr_jax.models import transformer
from limr_jax.models.attention import dense, ragged_decode, splash
from limr_jax.models.config import ModelConfig
from limr_jax.models.kv_cache import KVCache, Shared, column_counts, write_columns
from limr_jax.multihost import agree
from limr_jax.multihost.arrays import put
from limr_jax.sharding import BATCH, REPLICATED, ROWS, constrain

# The largest gap that rounding makes: products of fp32 numbers on a CPU; numbers that
# are rounded to bf16, or multiplied as such, which a TPU does with fp32 too.
EXACT, ROUNDED = 1e-3, 0.15
_SPREAD = 3.0  # standard deviation of scores
_ROWS, _PROMPTS = 2, 2  # of texts, and of decode's prompts, on a device


@dataclasses.dataclass(frozen=True)
class TextRows:
    """Rows of texts as training, scoring and prefill have them: splash's work."""

    columns: int
    # "packed": prompts with several responses each. "texts": one after another.
    # "padded": one text, padding before it.
    lay: str
    learned: bool  # a backward pass follows

    kernel = "splash"

    def __str__(self) -> str:
        passes = "forward and backward" if self.learned else "forward"
        return f"{self.lay} rows of {self.columns:,} columns, {passes}"

    def fits(self, config: ModelConfig) -> bool:
        return splash.fits(self.columns, config, shared=self.lay == "packed")


@dataclasses.dataclass(frozen=True)
class DecodeRows:
    """Rows of a decode step: ragged decode's work."""

    length: int  # columns of a prompt
    columns: int  # of a response
    step_tokens: int = 1  # J of this loop over decode
    most_tokens: int = 1  # of any loop: a ring has room for them

    kernel = "ragged"

    def __str__(self) -> str:
        rows = f"rows of {self.columns:,} columns, prompts of {self.length:,}"
        several = f", {self.step_tokens} of {self.most_tokens} tokens a step"
        return rows + several * (self.most_tokens > 1)

    def fits(self, config: ModelConfig) -> bool:
        return ragged_decode.shares(
            config,
            length=self.length,
            columns=self.columns,
            step_tokens=self.most_tokens,
        )


Rows = TextRows | DecodeRows


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of one kernel in rows of one kind."""

    kernel: str
    rows: str
    gap: float | None  # None: it did not come to be run
    tolerance: float
    seconds: float  # compiling and running
    fault: str  # why the kernel is refused; empty: it is taken

    def as_json(self) -> dict:
        return dataclasses.asdict(self)


def of_training(
    length: int,
    response: int,
    row_responses: int,
    *,
    step_tokens: Sequence[int] = (1,),
    most_tokens: int = 1,
) -> list[Rows]:
    """The rows of a run of reinforcement learning.

    length, response: columns of prompts and responses. row_responses: as of packing.py.
    step_tokens: J of each loop over decode. most_tokens: GenerateConfig.step_tokens.
    Evaluations have no drafts, so of them are rows of one token. JEPO scores rows of
    other lengths beside these; they are not compared.
    """
    packed = TextRows(length + row_responses * response, "packed", learned=True)
    drafted = [DecodeRows(length, response, J, most_tokens) for J in step_tokens]
    drafted = drafted if most_tokens > 1 else []
    return [packed, *of_generation(length, response), *drafted]


def of_generation(length: int, response: int) -> list[Rows]:
    """The rows of a generation without drafts: prefill's and decode's."""
    prefill = TextRows(length, "padded", learned=False)
    return [prefill, DecodeRows(length, response)]


def settle(
    config: ModelConfig, mesh, dtype, rows: Sequence[Rows], attention: str
) -> tuple[ModelConfig, list[Finding]]:
    """The model with the kernels that hold, and what was found of each.

    attention: `model.attention`. Where it names a kernel and that is refused, or none
    of the rows are for it, the run ends with InputError; else XLA's attention takes its
    place, which is said in one line. All processes call it, and all come to the same.
    Nothing is compiled where no kernel fits, as on a CPU or a GPU.
    """
    findings = check(config, mesh, dtype, rows)
    if attention in KERNELS and attention not in {x.kernel for x in findings}:
        raise InputError(
            f"model.attention={attention}, but nothing in this run is for that kernel: "
            "it is for a TPU, and for rows of the lengths that "
            "limr_jax/models/attention/ says; give auto"
        )
    # The first fault of each kernel.
    faults = {x.kernel: x for x in reversed(findings) if x.fault}
    for kernel, finding in faults.items():
        line = f"the {kernel} kernel, {finding.rows}: {finding.fault}"
        if attention == kernel:
            raise InputError(
                f"model.attention={attention}: {line}; with auto XLA's attention takes "
                "its place"
            )
        console.warn(f"{line}; XLA's attention takes its place")
    return dataclasses.replace(config, refused_kernels=tuple(faults)), findings


def check(config: ModelConfig, mesh, dtype, rows: Sequence[Rows]) -> list[Finding]:
    """What is found of each kernel in each of the rows that it fits."""
    with jax.set_mesh(mesh):
        fitting = [x for x in rows if x.fits(config)]
    if not fitting:
        return []
    devices = mesh.devices.flat
    exact = devices[0].platform == "cpu" and jnp.dtype(dtype) == jnp.float32
    tolerance = EXACT if exact else ROUNDED

    def compile_one(one: Rows):
        begun, program, calls, fault = time.perf_counter(), None, [], ""
        # Whatever a kernel raises is a reason to do without it.
        try:
            program, calls = compiled(one, config, mesh, dtype)
        except Exception as error:
            fault = f"it does not compile ({_line(error)})"
        return program, calls, fault, time.perf_counter() - begun

    with concurrent.futures.ThreadPoolExecutor() as pool:
        programs = list(pool.map(compile_one, fitting))
    # Before any of them runs: a process that lacked one would be waited for.
    faults = _agreed("kernels that compile", [x[2] for x in programs])
    gaps, spent, broken = [], [], [""] * len(fitting)
    for i, (program, calls, _, seconds) in enumerate(programs):
        begun, gap = time.perf_counter(), None
        if not faults[i]:
            try:
                gap = max(_largest(program(*_put(mesh, call))) for call in calls)
            except Exception as error:
                broken[i] = f"it does not run ({_line(error)})"
        gaps.append(gap)
        spent.append(seconds + time.perf_counter() - begun)
    broken = _agreed("kernels that run", broken)
    faults = [a or b for a, b in zip(faults, broken, strict=True)]
    gaps_by_process = agree.exchange("kernels' gaps", gaps)
    findings = []
    for i, one in enumerate(fitting):
        # Of all processes; infinite where anything is no number.
        gap = None if faults[i] else max(gaps_of[i] for gaps_of in gaps_by_process)
        if gap is not None and gap > tolerance:
            faults[i] = f"it is {gap:.2g} apart from XLA's, more than {tolerance:g}"
        findings.append(
            Finding(
                kernel=one.kernel,
                rows=str(one),
                gap=gap,
                tolerance=tolerance,
                seconds=round(spent[i], 2),
                fault=faults[i],
            )
        )
    return findings


def compiled(one: Rows, config: ModelConfig, mesh, dtype):
    """The comparison in rows of one kind, compiled, and the arguments of its calls.

    The arguments are of NumPy, or None. The mesh's devices need not be there.
    """
    with jax.set_mesh(mesh):
        program, calls = _MAKERS[type(one)](one, config, mesh, dtype)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_at(mesh, x)),
            calls[0],
        )
        return program.lower(*shapes).compile(), calls


def _at(mesh, x) -> NamedSharding:
    """How an argument lies on the mesh: rows over its devices, a number on all."""
    return NamedSharding(mesh, BATCH if x.ndim else REPLICATED)


def _put(mesh, call):
    return jax.tree.map(lambda x: put(x, _at(mesh, x)), call)


def numbers(findings: Sequence[Finding]) -> dict[str, float]:
    """A metric for each kernel that was compared: 1 where it is taken, 0 where not."""
    taken = _taken((x.kernel, x.fault) for x in findings)
    return {f"kernel_{name}": float(is_taken) for name, is_taken in taken.items()}


def changes(before: Sequence[Mapping], findings: Sequence[Finding]) -> list[str]:
    """A line for each kernel that a run's last start took and this one does not.

    Or the other way round. before: what `Finding.as_json` gave at the last start.
    """
    now = _taken((x.kernel, x.fault) for x in findings)
    then = _taken((str(row.get("kernel")), row.get("fault")) for row in before)
    words = {True: "taken", False: "refused"}
    return [
        f"the {name} kernel was {words[then[name]]} by this run's last start and is "
        f"{words[now[name]]} by this one: from here on the run is not bit for bit what "
        "it would have been"
        for name in now
        if then.get(name, now[name]) != now[name]
    ]


def _taken(faults: Iterable[tuple[str, str]]) -> dict[str, bool]:
    """By kernel, whether it has no fault in rows of any kind."""
    taken: dict[str, bool] = {}
    for kernel, fault in faults:
        taken[kernel] = taken.get(kernel, True) and not fault
    return taken


def lines(findings: Sequence[Finding]) -> list[str]:
    """A line for each finding, as a person reads it."""
    return [
        f"kernel {x.kernel}, {x.rows}: "
        + (f"refused, {x.fault}" if x.fault else f"taken, gap {x.gap:.2g}")
        + f" (tolerance {x.tolerance:g}, {x.seconds:.1f} s)"
        for x in findings
    ]


def _line(error: Exception) -> str:
    """The beginning of an error, on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _agreed(name: str, faults: Sequence[str]) -> list[str]:
    """Of each of the rows the first process's fault, or none; the same everywhere."""
    reports = agree.exchange(name, list(faults))
    several = len(reports) > 1
    return [
        next(
            (
                f"process {process}: {fault}" if several else fault
                for process, fault in enumerate(of_all)
                if fault
            ),
            "",
        )
        for of_all in zip(*reports, strict=True)
    ]


def _largest(gaps) -> float:
    """The largest number of these arrays' parts that lie on this process's devices.

    Infinite where one is not finite. Read part by part, so that no process waits for
    another's.
    """
    parts = [
        np.asarray(shard.data)
        for x in jax.tree.leaves(gaps)
        for shard in x.addressable_shards
    ]
    largest = max(float(x.max()) for x in parts)
    finite = all(np.isfinite(x).all() for x in parts)
    return largest if finite else math.inf


def _gap(result, reference, *, tokens: int, channels: int):
    """The gap of each row and head. tokens, channels: these axes of both arrays."""
    result, reference = result.astype(jnp.float32), reference.astype(jnp.float32)

    def length(x):
        return jnp.sqrt(jnp.sum(x * x, axis=channels, keepdims=True))

    apart, size = length(result - reference), length(reference)
    typical = jnp.sqrt(jnp.mean(size * size, axis=tokens, keepdims=True))
    # Where nothing is seen at all both are zero.
    scale = jnp.maximum(jnp.maximum(size, typical), jnp.finfo(jnp.float32).tiny)
    return jnp.max(apart / scale, axis=(tokens, channels))


def _numbers(key, shape, *, copies: int, axis: int, dtype, spread: float = 1.0):
    """Random numbers of variance spread², the same on each device that rows lie on.

    shape: of one device's. copies: such devices. axis: of the rows. Uniform, and by the
    devices' own generator, which for a TPU compile in a tenth of the time that normal
    numbers take; what they are depends on the machine.
    """
    side = spread * 3**0.5
    x = jax.random.uniform(key, shape, jnp.float32, -side, side).astype(dtype)
    # A generator is not divided: whole, its numbers would lie on every device.
    x = jnp.expand_dims(x, axis)
    x = jnp.broadcast_to(x, (*shape[:axis], copies, *shape[axis:]))
    return x.reshape(*shape[:axis], copies * shape[axis], *shape[axis + 1 :])


def _keys(count: int):
    return jax.random.split(jax.random.key(0, impl="rbg"), count)


def _query_spread(config: ModelConfig) -> float:
    """Of queries' numbers, with which scores have a standard deviation of _SPREAD."""
    scale = config.attention_scale or config.head_dim**-0.5
    return _SPREAD / (scale * config.head_dim**0.5)


# --- Rows of texts ----------------------------------------------------------------


def _text_program(rows: TextRows, config: ModelConfig, mesh, dtype):
    """The jitted comparison, and the arguments of each of its calls."""
    copies = mesh.shape["data"] * mesh.shape["fsdp"]
    lay = lay_out(rows, _ROWS * copies)

    def compare(position_BT, segment_BT, branch_BT):
        B, T = _ROWS, rows.columns
        H, K, C = config.heads, config.kv_heads, config.head_dim
        numbers = partial(_numbers, copies=copies, axis=0, dtype=dtype)
        keys = _keys(4)
        q = numbers(keys[0], (B, T, H, C), spread=_query_spread(config))
        k, v = numbers(keys[1], (B, K, C, T)), numbers(keys[2], (B, K, T, C))
        # Of a sum over all outputs, whose gradients are compared.
        weight = numbers(keys[3], (B, T, H, C))
        # What comes at padding means nothing.
        live_BT11 = (position_BT >= 0)[:, :, None, None]
        weight = jnp.where(live_BT11, weight, 0)
        q, weight = (constrain(x, ROWS, None, "tensor", None) for x in (q, weight))
        k, v = (constrain(x, ROWS, "tensor", None, None) for x in (k, v))
        # As the run finds it, by `splash.fits`.
        by_kernel = transformer.text_attend_of(
            position_BT, segment_BT=segment_BT, branch_BT=branch_BT, config=config
        )

        def by_xla(kind):
            mask_BTT = dense.seen_mask(position_BT, position_BT, config.window_of(kind))
            if segment_BT is not None:
                mask_BTT &= dense.same_text_mask(segment_BT, branch_BT)
            return partial(dense.attend, mask_BTS=mask_BTT, config=config)

        def results(attend, q, k, v, weight):
            out, pull = jax.vjp(attend, q, k, v)
            outs = [jnp.where(live_BT11, out, 0)]
            return outs + (list(pull(weight)) if rows.learned else [])

        gaps = []
        for kind, attend in by_kernel.items():
            result = results(attend, q, k, v, weight)
            reference = results(by_xla(kind), q, k, v, weight)
            # Of outputs, queries, keys and values, where tokens and channels lie.
            axes = ((1, 3), (1, 3), (3, 2), (2, 3))
            gaps += [
                _gap(a, b, tokens=tokens, channels=channels)
                for a, b, (tokens, channels) in zip(result, reference, axes)
            ]
        return gaps

    return jax.jit(compare), [lay]


def lay_out(rows: TextRows, count: int):
    """(position_BT, segment_BT, branch_BT) of so many rows, no two of them alike.

    As `transformer.forward` takes them; None where the run's rows have none.
    """
    B, T = count, rows.columns
    position_BT = np.full((B, T), -1, np.int32)
    if rows.lay == "padded":
        for b in range(B):
            start = b * T // (2 * B)
            position_BT[b, start:] = np.arange(T - start)
        return position_BT, None, None
    segment_BT, branch_BT = np.zeros((2, B, T), np.int32)
    for b in range(B):
        column, segment = 0, 0
        # Problems of a sixth of the row and three responses, then of a third.
        for share in (6 + b, 3 + b, 2 + b):
            whole, segment = T // share, segment + 1
            parts = (whole // 3, whole // 2, whole // 9, 7)
            for branch, size in enumerate(parts):
                size = min(size, T - T // 16 - column)  # the last columns are padding
                if size < 1:
                    continue
                here = (b, slice(column, column + size))
                text = rows.lay == "texts"
                start = 0 if text or not branch else parts[0]
                position_BT[here] = start + np.arange(size)
                segment_BT[here] = 10 * segment + (branch if text else 0)
                branch_BT[here] = branch
                column += size
    return position_BT, segment_BT, branch_BT if rows.lay == "packed" else None


# --- Rows of decode ---------------------------------------------------------------


def _decode_program(rows: DecodeRows, config: ModelConfig, mesh, dtype):
    """The jitted comparison, and the arguments of its call."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    S, J = rows.columns, rows.step_tokens
    # The first column that each row writes: at both ends of it, and of a part that is
    # written back; the last row has ended.
    part = ragged_decode.PART
    columns = (0, part - 1, S // 2, S, S - 1, S // 3, 4, 0)
    group = len(columns) // _PROMPTS
    column_B = np.tile(np.clip(columns, 0, S - J), shards).astype(np.int32)
    live_B = np.tile(np.arange(len(columns)) < len(columns) - 1, shards)
    prompt_B = np.tile(np.arange(len(columns)) // group, shards).astype(np.int32)
    # The first fills its columns, the second is padded.
    last_P = np.tile([rows.length - 1, rows.length // 2], shards).astype(np.int32)

    def compare(column_B, live_B, prompt_B, last_P):
        last_B = jnp.repeat(last_P, group)
        token_J = jnp.arange(J, dtype=jnp.int32)[None]
        position_BJ = (last_B + 1 + column_B)[:, None] + token_J
        position_BJ = jnp.where(live_B[:, None], position_BJ, -1)
        prompt_counts = column_counts(config, rows.length)
        counts = ragged_decode.row_counts(config, S, rows.most_tokens)
        kinds = dict.fromkeys(config.pattern)

        def positions(count, last_X):
            """Of columns that end with these: int32 [X, count], -1 is empty."""
            place = jnp.arange(1 - count, 1, dtype=jnp.int32)
            return jnp.maximum(last_X[:, None] + place[None], -1)

        prompts = {kind: positions(prompt_counts[kind], last_P) for kind in kinds}
        own = {
            kind: jnp.full((len(column_B), counts[kind]), -1, jnp.int32)
            for kind in kinds
        }
        attend_of = ragged_decode.attend_of(
            position_BJ,
            KVCache((), {}, own),
            shared=Shared(KVCache((), {}, prompts), prompt_B),
            column_B=column_B,
            config=config,
        )
        gaps = []
        for kind in kinds:
            q, prompt_kv, kv, new = _decode_numbers(
                config,
                rows=(len(columns), counts[kind]),
                prompts=(_PROMPTS, prompt_counts[kind]),
                tokens=J,
                copies=shards,
                dtype=dtype,
            )
            index = jnp.int32(1)
            result, kept = attend_of[kind](q, new, kv, prompt_kv, index)
            # A row that has ended writes too, whatever nobody sees.
            written = write_columns(kv, new, column_B, index=index, kind=kind)
            # The newest column at each place of a ring, or of a row that is not full.
            newest_B1 = (column_B + J - 1)[:, None]
            place_1S = jnp.arange(counts[kind], dtype=jnp.int32)[None]
            own_BS = newest_B1 - (newest_B1 - place_1S) % counts[kind]
            own_BS = jnp.where(own_BS < 0, -1, own_BS + last_B[:, None] + 1)
            key_BX = jnp.concatenate(
                [positions(prompt_counts[kind], last_B), own_BS], axis=1
            )
            mask_BJX = dense.seen_mask(position_BJ, key_BX, config.window_of(kind))
            # Each row with a copy of its prompt before its own columns.
            keys, values = (
                jnp.concatenate([jnp.repeat(a[1], group, axis=0), b[1]], axis=axis)
                for a, b, axis in zip(prompt_kv, written, (-1, -2))
            )
            reference = dense.attend(q, keys, values, mask_BTS=mask_BJX, config=config)
            live_B111 = live_B[:, None, None, None]
            # A row that has ended must be finite all the same: 0 · inf is nan.
            result, reference = result * live_B111, jnp.where(live_B111, reference, 0)
            gaps += [
                _gap(result, reference, tokens=1, channels=3),
                _gap(kept[0][1], written[0][1], tokens=3, channels=2),
                _gap(kept[1][1], written[1][1], tokens=2, channels=3),
            ]
        return gaps

    return jax.jit(compare), [(column_B, live_B, prompt_B, last_P)]


def _decode_numbers(
    config: ModelConfig, *, rows, prompts, tokens: int, copies: int, dtype
):
    """Queries; keys and values of two layers of prompts, and of rows; of new tokens.

    rows, prompts: (how many a device has, their columns). tokens: of a row in a step.
    """
    H, K, C = config.heads, config.kv_heads, config.head_dim
    keys = iter(_keys(7))
    numbers = partial(_numbers, copies=copies, dtype=dtype)
    spread = _query_spread(config)
    q = numbers(next(keys), (rows[0], tokens, H, C), axis=0, spread=spread)

    def kv(layers, count, columns):
        shapes = (*layers, count, K, C, columns), (*layers, count, K, columns, C)
        return tuple(
            constrain(
                numbers(next(keys), shape, axis=len(layers)),
                *(None for _ in layers),
                ROWS,
                "tensor",
                *[None] * 2,
            )
            for shape in shapes
        )

    q = constrain(q, ROWS, None, "tensor", None)
    return q, kv((2,), *prompts), kv((2,), *rows), kv((), rows[0], tokens)


_MAKERS = {TextRows: _text_program, DecodeRows: _decode_program}
KERNELS = ("splash", "ragged")
