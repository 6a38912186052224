"""Which settings of a run fit a slice, and end in the hours that there are: `--plan`.

Every figure is of real compiles: of generation, of the update, and of the forward
passes between them, which take a step's time. For each mesh two searches run side by
side, as neither program knows the other's setting: generation's slots, from what the
compiled program leaves of a chip's HBM, and the rows of a micro-batch. What learns
otherwise (a coarser base, a lower rank, shorter responses) is tried where nothing that
learns the same ends in time.

What a compile said is kept, so that the same plan of more hours compiles nothing.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator

import jax
from ml_collections import ConfigDict

from limr_jax.compilation import calls, compile, report, slices
from limr_jax.compilation.compile import Compiled
from limr_jax.errors import InputError
from limr_jax.multihost import agree
from limr_jax.platform import resolve
from limr_jax.rewards.from_config import int8_base
from limr_jax.samplers.allocation import largest_group
from limr_jax.samplers.from_config import group_filter
from limr_jax.storage import files

SLOWER = 3  # times its bound, which a real step is taken for
_MOST_HOURS = 100_000
MINUTES = 10  # after which no further compile begins
_BETWEEN = ("old", "reference", "values", "thoughts")
_NOT_COMPILED = f"not compiled: {MINUTES} minutes are over"
_TRIES = 3  # compiles in search of one setting
_ROOM = 0.97  # of a chip's HBM, which a setting that is not compiled yet may need
# Fields that change no program, or not the other search's.
_NO_MATTER = ("num_steps", "seed", "checkpoint", "dump", "evaluation", "benchmarks")
_OF_GENERATION = ("rollout.slots", "rollout.compactions")
_OF_UPDATE = ("micro_batch_rows", "row_responses")
# Variables by which the compiler is told, or replaced.
_OF_COMPILER = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "TPU_LIBRARY_PATH")


class _TimeIsOver(InputError):
    """No further compile begins."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """A slice, and how long the run may take."""

    slice_type: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to run; what is None was not compiled."""

    settings: dict  # field → value: all that differs from the config
    otherwise: int  # changes of what is learned; 0: as the config has it
    reason: str  # why it is none; empty: it fits, and ends in time
    gib: float | None = None  # of a chip's HBM, at most
    seconds: float | None = None  # a step, at least
    steps: tuple[int, int] | None = None  # in the time: by the bound, and SLOWER


def parse_goal(text: str) -> Goal:
    """'v5e-8, 9h': a slice, and hours or minutes ('90m'); InputError."""
    name, _, time_text = text.partition(",")
    length = re.fullmatch(r"(\d+(?:\.\d+)?) *(h|m)", time_text.strip())
    seconds = float(length[1]) * {"h": 3600, "m": 60}[length[2]] if length else 0
    if not 0 < seconds <= 3600 * _MOST_HOURS:
        raise InputError(
            f"--plan={text!r} is not a slice and a time above 0, of at most "
            f"{_MOST_HOURS:,} hours; write --plan 'v5e-8, 9h', or 90m for minutes"
        )
    # gcloud's name of what people call v5e-8.
    slice_type = re.sub(r"^v5e-", "v5litepod-", name.strip())
    if slice_type not in slices.SLICES:
        raise InputError(
            f"--plan={text!r}: {name.strip()!r} is not among the slices: "
            f"{', '.join(slices.SLICES)} (v5e-8 is v5litepod-8)"
        )
    return Goal(slice_type, seconds)


def plan(
    config,
    goal: Goal,
    say: Callable[[str], None] = lambda line: None,
    minutes: float = MINUTES,
) -> list[Row]:
    """Settings of this config for the goal, best first; those that are none at the end.

    say: is told of each compile. InputError: no mesh has anything compiled.
    """
    slice_type = {"slice.type": goal.slice_type}
    # The settings name the slice where the config has another one.
    named = {} if config.slice.type == goal.slice_type else slice_type
    config = _with(config, slice_type)
    compiler = _Compiler(config, say=say, until=time.monotonic() + 60 * minutes)
    devices = slices.devices(goal.slice_type)
    rows: list[Row] = []

    def explore(changes: dict, otherwise: int, grow: bool) -> None:
        row = _explore(_with(config, changes), compiler=compiler, goal=goal, grow=grow)
        settings = named | changes | row.settings
        rows.append(dataclasses.replace(row, settings=settings, otherwise=otherwise))

    for meshes in _meshes(config, len(devices)):
        for mesh in meshes:
            explore(mesh, otherwise=0, grow=False)
            if rows[-1].steps:
                break  # what divides more over the chips has more to gather
    if all(row.gib is None for row in rows):
        reasons = list(dict.fromkeys(row.reason for row in rows))
        raise InputError("; ".join(reasons[:3]))
    # Another mesh would not make up for what the nearest one lacks.
    mesh = {
        name: x for name, x in min(rows, key=_place).settings.items() if "mesh" in name
    }
    for otherwise, changes in enumerate(_otherwise(config, devices)):
        if all(row.reason for row in rows) or not otherwise:
            explore(mesh | changes, otherwise=otherwise, grow=True)
    unique = {json.dumps(row.settings, sort_keys=True): row for row in rows}
    return sorted(unique.values(), key=_place)


def _place(row: Row):
    """Those that end first; then those that fit, those that do not, and the rest."""
    kind = 0 if not row.reason else 1 if row.steps else 2 if row.gib else 3
    # Of those that do not fit what needs the least is the nearest.
    return kind, row.otherwise, row.seconds or row.gib or 0.0


def _otherwise(config, devices) -> Iterator[dict]:
    """Changes of what is learned, each with those before it; the first is none."""
    changes: dict = {}
    yield changes
    model, rollout = config.model, config.rollout
    # Adapters that are there already have their base and their rank.
    if model.lora.rank and model.base_dtype != "int8" and not model.lora.init:
        changes = changes | int8_base(config, devices)
        yield changes
    if model.lora.rank > 16 and not model.lora.init:
        # Their scale stays: alpha / rank, or alpha / sqrt(rank).
        less = 16 / model.lora.rank
        alpha = model.lora.alpha * (
            less if model.lora.scaling == "plain" else less**0.5
        )
        changes = changes | {"model.lora.rank": 16, "model.lora.alpha": _short(alpha)}
        yield changes
    if not model.lora.rank:
        # Adapters are usually learned at ten times the rate.
        changes = changes | {
            "model.lora.rank": 32,
            "model.base_dtype": "int8",
            "optimizer.learning_rate": _short(10 * config.optimizer.learning_rate),
        }
        yield changes
    for part in (2, 4):
        length = rollout.max_response_length // part
        if length >= 128:
            yield changes | {"rollout.max_response_length": length}


def _short(number: float) -> float:
    """1e-05, where a product is 9.999999999999999e-06."""
    return float(f"{number:.6g}")


def _meshes(config, chips: int) -> list[list[dict]]:
    """Meshes as settings: of each list the first that fits is enough.

    The config's own stands first, if it has as many chips. A frozen base may be whole
    on each device of data: then nothing of it is gathered.
    """
    own = [config.mesh[axis] for axis in ("data", "fsdp", "tensor")]
    if own.count(-1) == 1 and 0 not in own:
        others = math.prod(size for size in own if size != -1)
        own = [chips // others if size == -1 else size for size in own]
    lists = [[tuple(own)]] if math.prod(own) == chips else []
    for tensor in range(chips, 0, -1):
        if chips % tensor == 0:
            whole = [(chips // tensor, 1, tensor)] if config.model.lora.rank else []
            lists.append([*whole, (1, chips // tensor, tensor)])
    seen, meshes = set(), []
    for sizes in lists:
        new = [each for each in dict.fromkeys(sizes) if each not in seen]
        # Where the config's own is that of a list, its list has one less.
        seen.update(new)
        meshes.append(
            [
                {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}
                for data, fsdp, tensor in new
            ]
        )
    return meshes


def _explore(config, *, compiler: "_Compiler", goal: Goal, grow: bool) -> Row:
    """Slots and micro-batches that fit the config's mesh, and what they come to.

    grow: the best that fit; else the config's own, or less where they do not fit.
    """
    devices = config.mesh.data * config.mesh.fsdp
    config = _divided(config, devices)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        searches = [
            pool.submit(search, config, devices=devices, compiler=compiler, grow=grow)
            for search in (_search_slots, _search_rows)
        ]
        wrong = [x.exception() for x in searches if x.exception()]
    if wrong:
        for error in wrong:
            if not isinstance(error, InputError | jax.errors.JaxRuntimeError):
                raise error
        reason = " ".join(str(wrong[0]).split())
        if not isinstance(wrong[0], InputError):
            reason = f"does not compile: {reason[:200]}"
        return Row({}, 0, reason)
    settings, programs = {}, []
    for future in searches:
        some, compiled = future.result()
        settings |= some
        programs += compiled
    most = max(programs, key=lambda program: program.total)
    over = [program for program in programs if not compiler.fits(program)]
    gib = most.total / report.GIB
    if over:
        names = ", ".join(program.name for program in over)
        reason = (
            f"does not fit: {names}; {gib:.1f} of {compiler.chip.hbm_gib} GiB at least"
        )
        return Row(settings, 0, reason, gib=gib)
    seconds = compiler.seconds(programs)
    steps = tuple(int(goal.seconds / seconds / slower) for slower in (1, SLOWER))
    reason = ""
    if steps[1] < config.num_steps:
        reason = f"too slow for {config.num_steps:,} steps: " + (
            f"--config.num_steps={steps[1]} would end in time"
            if steps[1]
            else "none would end in time"
        )
    return Row(settings, 0, reason, gib=gib, seconds=seconds, steps=steps)


def _divided(config, devices: int) -> ConfigDict:
    """A copy of the config with slots and a micro-batch that the devices divide.

    Whatever else they do not divide is refused with the program's own words.
    """
    changes = {}
    slots, sizes = config.rollout.slots, _micro_batches(config, devices)
    if slots % devices:
        changes["rollout.slots"] = max(devices, slots // devices * devices)
    if sizes:
        micro = config.micro_batch_rows or sizes[-1]
        lower = [size for size in sizes if size <= micro]
        changes["micro_batch_rows"] = lower[-1] if lower else sizes[0]
    return _with(config, changes)


def _micro_batches(config, devices: int) -> list[int]:
    """Rows that a micro-batch may have on so many devices, rising."""
    rows = config.prompts_per_step * largest_group(config)
    rows //= config.minibatches_per_step
    return [size for size in range(devices, rows + 1, devices) if rows % size == 0]


def _search_slots(config, *, devices: int, compiler: "_Compiler", grow: bool):
    """(settings, [generate]): as few waves of rollouts as fit."""
    # Rows, of which an allocation leaves some empty.
    group = largest_group(config)
    rollouts, unit = config.prompts_per_step * group, devices * group

    def slots_of(waves: int) -> int:
        return -(-rollouts // (waves * unit)) * unit

    slots = min(config.rollout.slots or rollouts, rollouts)
    best, tried = None, set()
    while True:
        tried.add(slots)
        chosen = _with(config, {"rollout.slots": slots})
        try:
            planned, (compiled,) = compiler.compiled(
                chosen, ("generate",), but=_OF_UPDATE
            )
        except _TimeIsOver:
            if best is None:
                raise
            break  # what was found so far is something
        fits = compiler.fits(compiled)
        if fits and (best is None or slots > best[0]["rollout.slots"]):
            best = {"rollout.slots": slots}, [compiled]
        if (fits and not grow) or len(tried) == _TRIES:
            break
        # What a slot takes is known, so what else would fit can be said.
        each = report.column_bytes(planned) * report.slot_columns(planned) / devices
        room = slots + (_ROOM * compiler.limit - compiled.total) / each
        if not fits and room >= slots:  # the compiler did not say how much it is over
            room = slots / 2
        waves = max(1, math.ceil(rollouts / room)) if room >= unit else 0
        # One wave less at least, or what fits is left as it is.
        if not waves or slots_of(waves) in tried:
            break
        if best is not None and slots_of(waves) <= best[0]["rollout.slots"]:
            break
        slots = slots_of(waves)
    return best or ({"rollout.slots": slots}, [compiled])


def _search_rows(config, *, devices: int, compiler: "_Compiler", grow: bool):
    """(settings, [update and the passes between]): the rows with the least bound."""
    names, sizes = (*_BETWEEN, "update"), _micro_batches(config, devices)
    micro = config.micro_batch_rows
    tried: dict[int, list[Compiled]] = {}

    def fits(programs) -> bool:
        return all(map(compiler.fits, programs))

    while len(tried) < _TRIES:
        chosen = _with(config, {"micro_batch_rows": micro})
        try:
            _, programs = compiler.compiled(chosen, names, but=_OF_GENERATION)
        except _TimeIsOver:
            if not any(map(fits, tried.values())):
                raise
            break
        tried[micro] = programs
        if not fits(programs):
            others = [size for size in reversed(sizes) if size <= micro / 2]
        elif grow and max(p.total for p in programs) < compiler.limit / 2:
            others = [size for size in sizes if size >= 2 * micro]
        else:
            break
        if not others or others[0] in tried:
            break
        micro = others[0]
    good = {size: programs for size, programs in tried.items() if fits(programs)}
    size = (
        min(good, key=lambda size: compiler.seconds(good[size])) if good else min(tried)
    )
    return {"micro_batch_rows": size}, tried[size]


class _Compiler:
    """Compiles programs of a config for the slice, and keeps what was said of them."""

    def __init__(self, config, *, say: Callable[[str], None], until: float):
        self.chip = slices.CHIPS[slices.SLICES[config.slice.type].chip]
        self.limit = self.chip.hbm_gib * report.GIB  # bytes
        self._say, self._until = say, until
        self._folder = pathlib.Path(resolve(config.data.cache_dir), "compiled")
        special_tokens, vocab_size = calls.planned_tokens(config)
        # What a checkpoint and a tokenizer say of the programs, not where they lie.
        model = calls.planned_model(config.model, vocab_size)
        self._of = [
            agree.code_digest(),
            _compiler_version(),
            repr(special_tokens),
            repr(model),
        ]
        self._kept, self._over = True, False
        # Two threads trace and compile side by side; what makes a run's programs looks
        # at JAX's settings of the whole process.
        self._making = threading.Lock()

    def fits(self, program: Compiled) -> bool:
        """Whether a chip's HBM has room for the program and what lies beside it."""
        return not program.error and program.total <= self.limit

    def seconds(self, programs: list[Compiled]) -> float:
        """What the programs take at least, one after another."""
        return sum(max(program.bound(self.chip).values()) for program in programs)

    def compiled(self, config, names: tuple[str, ...], but: tuple[str, ...]):
        """(the run's plan, what is said of each program of these names that it has).

        but: fields that do not change these programs.
        """
        with self._making:
            planned = calls.plan(config)
        programs = []
        for call in planned.calls:
            if call.name not in names or call.phase != "step":
                continue
            path = self._folder / f"{self._digest(config, call.name, but)}.json"
            compiled = _read(path)
            if compiled is None:
                if time.monotonic() > self._until:
                    line = f"{_NOT_COMPILED}; the same command goes on where it stopped"
                    if not self._over:  # it is said once
                        self._say(line)
                    self._over = True
                    raise _TimeIsOver(line)
                compiled = compile.compile_call(call)
                self._say(
                    f"compiled {call.name} in {compiled.seconds:.0f} s: "
                    f"{_settings(config, but)}, {compiled.total / report.GIB:.1f} GiB"
                    + (", does not fit" if compiled.error else "")
                )
                self._keep(path, compiled)
            programs.append(compiled)
        return planned, programs

    def _digest(self, config, name: str, but: tuple[str, ...]) -> str:
        fields = json.loads(config.to_json_best_effort())
        for field in (*_NO_MATTER, *but):
            *sections, last = field.split(".")
            inside = fields
            for section in sections:
                inside = inside[section]
            del inside[last]
        of = json.dumps([name, fields, self._of], sort_keys=True)
        return hashlib.sha256(of.encode()).hexdigest()[:24]

    def _keep(self, path: pathlib.Path, compiled: Compiled) -> None:
        try:
            with files.writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(dataclasses.asdict(compiled)))
        except InputError as error:
            if self._kept:  # it is said once
                self._say(f"what was compiled is not kept: {error}")
            self._kept = False


def _compiler_version() -> list[str | None]:
    try:
        version = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        version = None  # it is given by a variable
    return [version, *map(os.environ.get, _OF_COMPILER)]


def _read(path: pathlib.Path) -> Compiled | None:
    try:
        kept = json.loads(path.read_text())
        kept["collectives"] = {k: tuple(x) for k, x in kept["collectives"].items()}
        kept["decode_bytes"] = tuple(kept["decode_bytes"])
        kept["drafted"] = tuple(kept["drafted"])
        return Compiled(**kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # not there, or not of this version: it is compiled again


def _settings(config, but: tuple[str, ...]) -> str:
    mesh = " x ".join(str(config.mesh[axis]) for axis in ("data", "fsdp", "tensor"))
    if but == _OF_UPDATE:
        return f"mesh {mesh}, {config.rollout.slots} slots"
    return f"mesh {mesh}, micro_batch_rows {config.micro_batch_rows}"


def _with(config, settings: dict) -> ConfigDict:
    """A copy of the config with these fields set."""
    copy = ConfigDict(config.to_dict())
    copy.update_from_flattened_dict(settings)
    return copy


def text(rows: list[Row], goal: Goal, config) -> str:
    """The plan as a person reads it."""
    hours = f"{goal.seconds / 3600:g} h"
    lines = [
        f"{goal.slice_type}, {hours}, {config.num_steps:,} steps; bounds, not "
        "measurements, every response at its longest",
        "",
        f"GiB a chip   a step, s   steps in {hours}: at the bound, at 1/{SLOWER} of it",
    ]
    for row in rows:
        gib = "" if row.gib is None else f"{row.gib:.1f}"
        seconds = "" if row.seconds is None else _digits(row.seconds)
        steps = "" if row.steps is None else f"{row.steps[0]:,}, {row.steps[1]:,}"
        lines += [
            f"{gib:>10}   {seconds:>9}   {steps:<16} {row.reason or 'ends in time'}",
            f"    {flags(row)}",
        ]
    missing = _left_out(config)
    if missing:
        lines += [
            "",
            f"neither compiled nor counted here: {', '.join(missing)}; --compile_only "
            "with the settings says whether all programs fit",
        ]
    return "\n".join([*lines, "", _last(rows)])


def _digits(seconds: float) -> str:
    """53, 5.3, 0.053."""
    return f"{seconds:,.0f}" if seconds >= 10 else f"{seconds:.2g}"


def _left_out(config) -> list[str]:
    """What a run spends much on that a plan does not look at."""
    filtered = group_filter(config) != "none" and config.filter.max_rounds > 1
    names = {
        "evaluation": config.data.eval,
        "the judge": config.judge.init,
        "a step's generations after the first": filtered,
    }
    return [name for name, there in names.items() if there]


def as_json(rows: list[Row], goal: Goal) -> dict:
    """The plan as JSON has it; steps are those in the time, as in `text`."""
    return {
        "slice": goal.slice_type,
        "seconds": goal.seconds,
        "slower": SLOWER,
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def flags(row: Row) -> str:
    """The settings as launch/tpu.py takes them."""
    return " ".join(f"--config.{name}={x}" for name, x in row.settings.items())


def _last(rows: list[Row]) -> str:
    best = rows[0]
    if not best.reason:
        return f"best: {flags(best)}"
    if best.steps:
        return f"nothing ends in time; the nearest: {flags(best)}, {best.reason}"
    over = [row.reason for row in rows if row.reason.startswith(_NOT_COMPILED)]
    if over:
        return over[0]
    return "nothing fits: a smaller model, fewer or shorter rollouts, or more chips"
