"""Several processes as one run: they join, agree on what they do, and end together.

One process a host, all of the same command. What they agree on goes through the
coordinator's key-value store and never through a collective, which would hang, or give
nonsense, where they differ. Here and in watch.py a process has the coordinator's number
of it, which is known before any device is; jax.process_index() says which devices are
its own, and on a TPU it may be another number.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src.distributed import global_state  # JAX has no public name for the store
from jax.sharding import NamedSharding

import limr_jax
from limr_jax import chips, stop, watch
from limr_jax.config import differences
from limr_jax.errors import InputError
from limr_jax.sharding import REPLICATED
from limr_jax.watch import LastWords, Watch

JOIN_SECONDS = 300  # until all processes must be there, and then all devices
SAY_SECONDS = (10, 60)  # of it when what is waited for is said
REPORT_SECONDS = 600.0  # for a process that lives, but does not say what it does
GATHER_BYTES = 2**28  # of an array that each device gets at a time
_DEVICES = "the devices of all hosts"
_LEAVE_SECONDS = 300  # until all processes have ended, after the first one has
_LINGER_SECONDS = 5.0  # the coordinator stays, so that others read why it ends


class Diverged(Exception):
    """The processes are about to do different things; hosts and fields are named."""


_watch: Watch | None = None
_exchanges = 0  # how many there were; every process counts the same
_name_of: dict[int, str] = {}  # `watch.name` of those that have said something


@contextlib.contextmanager
def joined(coordinator: str, processes: int, process: int) -> Iterator[None]:
    """Be one of several processes while it lasts; by oneself, nothing is done.

    On a TPU slice the slice itself says who is who. Elsewhere: coordinator, the
    address:port of process 0; processes, how many; process, which of them this is.
    However the block ends, this process ends with it, and the others learn why.
    """
    if _join(coordinator, processes, process):
        with _together(processes):
            yield
        return  # never: it has ended the process
    yield
    if stop.came():
        # The interpreter's end would wait for the rollouts that were dropped.
        _exit(0)


def _join(coordinator: str, processes: int, process: int) -> bool:
    """jax.distributed.initialize; whether there is more than this process."""
    given = (bool(coordinator), processes > 0, process >= 0)
    if any(given) and not (all(given) and process < processes):
        raise InputError(
            f"--coordinator={coordinator} --processes={processes} "
            f"--process={process}: give all three, with process from 0 to processes "
            "- 1, or none of them on a TPU slice"
        )
    if not any(given) and not _tpu():
        return False
    # Ours reaches further: see stop.py.
    jax.config.update("jax_enable_preemption_service", False)
    with _patience("the other processes", lambda _: _exit(1)):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes or None,
                process if coordinator else None,
                initialization_timeout=JOIN_SECONDS + 60,
                shutdown_timeout_seconds=_LEAVE_SECONDS,
            )
        except ValueError as error:  # a TPU, but not of a slice that JAX knows
            if any(given):
                raise InputError(f"--coordinator={coordinator}: {error}") from error
    if jax.distributed.is_initialized() and global_state.num_processes > 1:
        return True
    with _patience(_DEVICES, lambda _: _exit(1)):
        _check_whole(processes)
    return False


def _tpu() -> bool:
    """Whether this machine's own TPU chips are to be used."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and chips.attached() and chips.has_libtpu()


def _check_whole(processes: int) -> None:
    """InputError unless all processes, and all their devices, have joined."""
    joined_count = global_state.num_processes if jax.distributed.is_initialized() else 1
    here, all_devices = jax.local_device_count(), jax.device_count()
    if (
        jax.process_count() != joined_count
        or (processes and joined_count != processes)
        or all_devices != here * joined_count
    ):
        raise InputError(
            f"half initialised: {joined_count} processes have joined, JAX sees "
            f"{jax.process_count()} with {all_devices} devices, {here} of them here; "
            "start the same command on every host, with the same devices on each"
        )


@contextlib.contextmanager
def _patience(what: str, end: Callable[[str], NoReturn]) -> Iterator[None]:
    """Say what is waited for; after JOIN_SECONDS `end`, where jaxlib would abort."""
    there, start = threading.Event(), time.monotonic()

    def wait():
        remedy = "is the same command running on every host? launch/slice.sh status"
        for seconds in (*SAY_SECONDS, JOIN_SECONDS):
            if there.wait(start + seconds - time.monotonic()):
                return
            line = f"waiting for {what} for {seconds} s; {remedy}"
            _complain(line)
        end(line)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        there.set()


@contextlib.contextmanager
def _together(processes: int) -> Iterator[None]:
    """Whoever ends, ends all; from before the devices start, which may fail or block.

    processes: how many there should be; 0 where only the slice knows.
    """
    global _watch
    process, count = global_state.process_id, global_state.num_processes
    coordinates = global_state.service is not None
    words = LastWords(process)

    def end(code: int) -> NoReturn:
        words.cancel()
        if code and coordinates:
            time.sleep(_LINGER_SECONDS)
        _exit(code)

    def give_up(complaint: str) -> NoReturn:
        _complain(f"error: {complaint}")
        end(1)

    def too_long(complaint: str) -> NoReturn:
        _leave(complaint)
        end(1)

    _watch = Watch(global_state.client, process, count, give_up)
    try:
        with _patience(_DEVICES, too_long):
            _check_whole(processes)
        _watch.started(jax.process_index())
        yield
        jax.distributed.shutdown()  # which waits for the others
        _watch.leave()
        code = 0
    except BaseException as error:
        code = _tell(error)
    end(code)


def _tell(error: BaseException) -> int:
    """Say why this process ends, here and to the others; its exit code."""
    if isinstance(error, SystemExit) and not error.code:
        return 0
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (InputError, Diverged, KeyboardInterrupt)):
        traceback.print_exception(error)
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EX" not in line:
        # A collective that breaks off: most likely the other side has died. The watch
        # ends this process when it knows which.
        time.sleep(watch.DEAD_SECONDS + _LINGER_SECONDS)
    _complain(f"error: {line}")
    _leave(line)
    return {InputError: 2, KeyboardInterrupt: 130}.get(type(error), 1)


def _leave(reason: str) -> None:
    with contextlib.suppress(Exception):  # the store may be what is gone
        _watch.leave(reason[:500])


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """End at once: threads and devices may be blocked for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def exchange(name: str, value: Any) -> list:
    """Every process's value (what JSON can hold), in the order of jax.process_index().

    All processes call it in the same order. Raises Diverged where one that lives does
    not come within REPORT_SECONDS, and Stopped as `stop.until` does.
    """
    if jax.process_count() == 1:
        return [value]
    reports = _reports(name, value).values()
    return [x["value"] for x in sorted(reports, key=lambda x: x["index"])]


def _reports(name: str, value: Any) -> dict[int, dict]:
    """What each process says, by its number; `exchange` has the rest."""
    global _exchanges
    client, process = global_state.client, global_state.process_id
    everyone = range(global_state.num_processes)
    folder, end = f"limr/exchange/{_exchanges}/", time.monotonic() + REPORT_SECONDS
    mine = {"host": socket.gethostname(), "index": jax.process_index()}
    mine |= {"name": name, "value": value}
    client.key_value_set(f"{folder}{process}", json.dumps(mine))
    if _exchanges > 1:  # all have read what was two ago, or they were not in the last
        client.key_value_delete(f"limr/exchange/{_exchanges - 2}/{process}")
    _exchanges += 1
    told = {}

    def all_there() -> bool:
        told.update(
            (int(key.rsplit("/", 1)[1]), json.loads(text))
            for key, text in client.key_value_dir_get(folder)
        )
        if len(told) < len(everyone) and time.monotonic() > end:
            late = [_name(i) for i in everyone if i not in told]
            raise Diverged(
                f"no report of {name!r} within {REPORT_SECONDS:.0f} s from "
                f"{', '.join(late)}"
            )
        return len(told) == len(everyone)

    stop.until(all_there)
    _name_of.update((i, watch.name(i, said)) for i, said in told.items())
    names = {_name_of[i]: told[i]["name"] for i in everyone}
    if len(set(names.values())) > 1:
        raise Diverged(f"the processes are at different places: {names}")
    return {i: told[i] for i in everyone}


def _name(process: int) -> str:
    return _name_of.get(process, f"process {process}")


def barrier(name: str) -> None:
    """Wait for all processes."""
    exchange(name, None)


def first(name: str, value: Any) -> Any:
    """The value of JAX's process 0, on every process."""
    return exchange(name, value if jax.process_index() == 0 else None)[0]


def agree(name: str, values: Mapping[str, Any]) -> None:
    """Raises Diverged, with hosts and fields, unless all processes have these values.

    Every process gets all reports, so each of them raises it.
    """
    if jax.process_count() == 1:
        return
    reports = {i: said["value"] for i, said in _reports(name, values).items()}
    groups: dict[str, list[int]] = {}
    for process, report in reports.items():
        groups.setdefault(json.dumps(report, sort_keys=True), []).append(process)
    if len(groups) == 1:
        return
    (_, [one, *_]), *others = groups.items()
    told = [
        f"{', '.join(map(_name, members))}: "
        + "; ".join(differences(reports[one], reports[members[0]])[:8])
        for _, members in others
    ]
    raise Diverged(
        f"hosts differ in {name}, {_name(one)} → {' | '.join(told)}; start the "
        "same command with the same code, config and data on every host"
    )


def agree_on_step(fingerprint: Mapping[str, Any], step, ids_P: jax.Array) -> None:
    """`agree` on what a step is about to do; nothing where there is one process."""
    if jax.process_count() > 1:
        step, ids_P = jax.device_get((step, ids_P))
        ids = hashlib.sha256(np.ascontiguousarray(ids_P)).hexdigest()
        here = {"step": int(step), "ids": ids, **fingerprint}
        agree(f"step {int(step) + 1}", here)


def code_digest() -> str:
    """Version of this package, a digest of its source, and JAX's version."""
    folder, sha = pathlib.Path(limr_jax.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return f"{limr_jax.__version__} {sha.hexdigest()[:12]} jax {jax.__version__}"


def put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array that every process has, on the devices; no process waits."""
    array = np.asarray(array)
    return put_parts(array.shape, sharding, lambda index: array[index])


def put_parts(shape, sharding: NamedSharding, part: Callable) -> jax.Array:
    """An array of which each process has its own devices' parts: `part(index)`."""
    places = sharding.addressable_devices_indices_map(shape)
    arrays = [jax.device_put(part(index), device) for device, index in places.items()]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def on_host(arrays):
    """A pytree of arrays as NumPy arrays, whole, on every process.

    What other processes' devices hold comes over a collective: all processes call it.
    """

    leaves, tree = jax.tree.flatten(arrays)
    elsewhere = [
        i
        for i, x in enumerate(leaves)
        if not (getattr(x, "is_fully_addressable", True) or x.is_fully_replicated)
    ]
    if elsewhere:
        whole = NamedSharding(leaves[elsewhere[0]].sharding.mesh, REPLICATED)
        gather = jax.jit(_same, out_shardings=whole)
        gathered = gather([leaves[i] for i in elsewhere])
        for i, x in zip(elsewhere, gathered, strict=True):
            leaves[i] = x
    return jax.device_get(tree.unflatten(leaves))


def _same(arrays):
    return arrays


def rows_on_host(array) -> Iterator[np.ndarray]:
    """`on_host` of an array, some rows after the other: GATHER_BYTES at a time, or one.

    So that a device need not hold a stack of all layers. All processes walk through it.
    """
    whole = getattr(array, "is_fully_addressable", True) or array.is_fully_replicated
    if whole or array.nbytes <= GATHER_BYTES:
        yield on_host(array)
        return
    count = array.shape[0]
    step = max(1, GATHER_BYTES // (array.nbytes // count))
    gather = gather_rows(array.sharding.mesh)
    for start in range(0, count, step):
        yield jax.device_get(gather(array, start, count=min(step, count - start)))


def gather_rows(mesh) -> Callable:
    """The program `(array, start, count=…)` → those rows, whole on every device."""
    everywhere = NamedSharding(mesh, REPLICATED)
    return jax.jit(_rows, static_argnames="count", out_shardings=everywhere)


def _rows(array, start, count: int):
    return jax.lax.dynamic_slice_in_dim(array, start, count)
