"""Several processes as one run: they join, and they end together.

One process a host, all of the same command. Here, in agree.py and in watchdog.py a
process has the coordinator's number of it, which is known before any device is;
jax.process_index() says which devices are its own, and on a TPU it may be another
number.
"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
from jax._src.distributed import global_state  # JAX has no public name for the store

from limr_jax import console, platform
from limr_jax.errors import InputError
from limr_jax.multihost import preemption, watchdog
from limr_jax.multihost.agree import Diverged
from limr_jax.multihost.watchdog import LastWords, Watch

STARTED = "LIMR_JAX_SLICE"  # in the environment of what launch/slice.sh starts
JOIN_SECONDS = 300  # until all processes must be there, and then all devices
SAY_SECONDS = (10, 60)  # of it when what is waited for is said
_DEVICES = "the devices of all hosts"
_LEAVE_SECONDS = 300  # until all processes have ended, after the first one has
_LINGER_SECONDS = 5.0  # the coordinator stays, so that others read why it ends


_watch: Watch | None = None


@contextlib.contextmanager
def joined(coordinator: str, processes: int, process: int) -> Iterator[None]:
    """While it lasts, this process is one of several; without others nothing is done.

    On a TPU slice the slice itself says who is who. Elsewhere: coordinator, the
    address:port of process 0; processes, how many; process, which of them this is.
    However the block ends, this process ends with it, and the others learn why.
    """
    if _join(coordinator, processes, process):
        with _together(processes):
            yield
        return  # never: it has ended the process
    yield
    if preemption.came():
        # The interpreter's end would wait for the rollouts that were dropped.
        _exit(0)


def _join(coordinator: str, processes: int, process: int) -> bool:
    """jax.distributed.initialize; whether there is more than this process."""
    flags = (bool(coordinator), processes > 0, process >= 0)
    if any(flags) and not (all(flags) and process < processes):
        raise InputError(
            f"--coordinator={coordinator} --processes={processes} "
            f"--process={process}: give all three, with process from 0 to processes "
            "- 1, or none of them on a TPU slice"
        )
    if not any(flags) and not _tpu():
        return False
    # Ours reaches further: see preemption.py.
    jax.config.update("jax_enable_preemption_service", False)
    with _patience("the other processes", lambda _: _exit(1)):
        try:
            jax.distributed.initialize(
                coordinator or None,
                processes or None,
                process if coordinator else None,
                # Later than `_patience`, which ends with a line; jaxlib would abort.
                initialization_timeout=JOIN_SECONDS + 60,
                shutdown_timeout_seconds=_LEAVE_SECONDS,
            )
        except ValueError as error:  # a TPU, but not of a slice that JAX knows
            if any(flags):
                raise InputError(f"--coordinator={coordinator}: {error}") from error
    if jax.distributed.is_initialized() and global_state.num_processes > 1:
        return True
    with _patience(_DEVICES, lambda _: _exit(1)):
        _check_whole(processes)
    return False


def refuse_part_of_a_slice() -> None:
    """InputError on one host of several where nothing has started the others.

    launch/slice.sh sets STARTED on every host where it starts a command. The others
    would be waited for, for JOIN_SECONDS.
    """
    if not _tpu() or os.environ.get(STARTED):
        return
    hosts = _slice_hosts()
    if hosts > 1:
        raise InputError(
            f"this is one of the slice's {hosts} hosts: launch/slice.sh check NAME "
            "starts all of them (or give --coordinator, --processes and --process on "
            "each)"
        )


def _slice_hosts() -> int:
    """The hosts of this machine's TPU slice, as the slice says; 0: it does not."""
    # JAX has no public name for what `jax.distributed.initialize` asks, nor for how.
    from jax._src.clusters import cloud_tpu_cluster as cluster

    for kind in (cluster.GkeTpuCluster, cluster.GceTpuCluster):
        try:
            if kind.is_env_present():
                return kind.get_process_count()
        except Exception:  # no network, another JAX: joining will say
            continue
    return 0


def _tpu() -> bool:
    """Whether this machine's own TPU chips are to be used."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and platform.attached() and platform.has_libtpu()


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
    arrived, start = threading.Event(), time.monotonic()

    def wait():
        remedy = "is the same command running on every host? launch/slice.sh status"
        for seconds in (*SAY_SECONDS, JOIN_SECONDS):
            if arrived.wait(start + seconds - time.monotonic()):
                return
            line = f"waiting for {what} for {seconds} s; {remedy}"
            _complain(line)
        end(line)

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        arrived.set()


@contextlib.contextmanager
def _together(processes: int) -> Iterator[None]:
    """Whoever ends, ends all; from before the devices start, which may fail or block.

    processes: how many there should be; 0 where only the slice knows.
    """
    global _watch
    process, count = global_state.process_id, global_state.num_processes
    coordinates = global_state.service is not None
    words = LastWords(process)

    def end(code: int, *, early: bool = True) -> NoReturn:
        words.cancel()
        if early and coordinates:
            time.sleep(_LINGER_SECONDS)  # the store is in this process
        _exit(code)

    def give_up(complaint: str) -> NoReturn:
        _complain(f"error: {complaint}")
        end(1)

    def too_long(complaint: str) -> NoReturn:
        _leave(complaint)
        end(1)

    _watch = Watch(global_state.client, process=process, count=count, end=give_up)
    try:
        with _patience(_DEVICES, too_long):
            _check_whole(processes)
        _watch.started(jax.process_index())
        yield
        # The watch beats on meanwhile, so that one that dies before it ends the others.
        jax.distributed.shutdown()  # which waits for the others
        _watch.leave()
    except BaseException as error:
        end(_tell(error))
    end(0, early=False)


def _tell(error: BaseException) -> int:
    """Say why this process ends, here and to the others; its exit code."""
    if isinstance(error, SystemExit):
        # Whatever it says of itself, the others would wait for it.
        _leave(f"SystemExit {error.code or 0} before the end of the run")
        if isinstance(error.code, int | None):
            return error.code or 0
        _complain(str(error.code))
        return 1
    if complaint := platform.complaint(error):
        error = InputError(complaint)
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (InputError, Diverged, KeyboardInterrupt)):
        traceback.print_exception(error)
    # But for exhausted memory, which is this process's own fault.
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EX" not in line:
        # A collective that breaks off: most likely the other side has died. The watch
        # ends this process when it knows which.
        time.sleep(watchdog.DEAD_SECONDS + _LINGER_SECONDS)
    _complain(f"error: {line}")
    _leave(line)
    codes = {InputError: 2, KeyboardInterrupt: 130}  # 130: 128 + SIGINT
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def _leave(reason: str) -> None:
    with contextlib.suppress(Exception):  # the store may be what is gone
        _watch.leave(reason[:500])


def _complain(line: str) -> None:
    with console.above_bar():
        print(console.shown(line), file=sys.stderr, flush=True)


def _exit(code: int) -> NoReturn:
    """End at once: threads and devices may be blocked for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
