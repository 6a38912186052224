"""Everything that a run needs to go on as if it had not stopped, and whose it is.

A workdir (local, or `gs://…` through etils.epath) holds

    run.json           what the run is: config, digests, version        (claim)
    checkpoints/<step> Orbax: the arrays by name, and a small JSON  (Checkpointer)
    result.json        the finished run's result                        (write_result)

A step appears under its number only when it is complete: Orbax writes beside it and
renames (on gs:// it writes a commit file last), so a kill leaves the last one usable.
Steps older than the newest `keep` are deletions that were interrupted, and go.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from limr_jax import bucket, files, hosts
from limr_jax.config import differences, plain
from limr_jax.errors import InputError

# Orbax logs what is normal here (a read-only directory) and what it raises besides.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

_RUN, _RESULT, _STEPS, _LOCK = "run.json", "result.json", "checkpoints", ".lock"
_locks: dict[str, IO] = {}  # workdirs that this process writes: the open, locked file


def workdir_path(workdir: str | epath.PathLike, rights=bucket.READ) -> epath.Path:
    """The workdir as an absolute path; gs:// stays as it is, and is asked for."""
    bucket.check(workdir, rights)
    path = epath.Path(workdir)
    return path if bucket.remote(path) else epath.Path(pathlib.Path(path).absolute())


class Checkpointer:
    """Saves and restores a pytree of arrays by step. All processes call each method.

    every: steps between checkpoints, for `due`; `save` itself saves whenever called.
    keep: the newest so many stay.
    read_only: for tools that look at a run, finished or going on; nothing is written.
    Closing it waits for the save in flight and lets another process claim the workdir.
    """

    def __init__(
        self,
        workdir: str | epath.PathLike,
        *,
        every: int = 1,
        keep: int = 1,
        read_only: bool = False,
    ):
        if min(every, keep) < 1:
            raise InputError(
                f"checkpoint.every={every}, checkpoint.keep={keep}: each at least 1"
            )
        rights = bucket.CHECKPOINTS if read_only else bucket.WRITE
        self.workdir = workdir_path(workdir, rights)
        self.every, self.read_only = every, read_only
        directory = self.workdir / _STEPS
        with bucket.reading(directory):
            there = directory.exists()
        if read_only and not there:
            raise InputError(f"{self.workdir} has no checkpoints; give a run's workdir")
        if not read_only and jax.process_index() == 0:
            bucket.make_folder(directory, stays=True)
        hosts.barrier("checkpoints: folder made")
        # A stop saves while the devices are busy with what nobody waits for. So they do
        # not cut up replicated arrays; nor do processes that are named wait by them.
        arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry
        count = jax.process_count()
        everyone = ocp.options.MultiprocessingOptions(
            active_processes=set(range(count)) if count > 1 else None
        )
        self._manager = ocp.CheckpointManager(
            directory,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    # It gains little on weights, and takes seconds of two cores.
                    use_compression=False,
                    type_handler_registry=registry((jax.Array, arrays)),
                ),
                "meta": ocp.JsonCheckpointHandler(),
            },
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else keep,
                cleanup_tmp_directories=not read_only,
                save_root_metadata=False,
                # A half-deleted step must not stop the start.
                lightweight_initialize=True,
                read_only=read_only,
                create=False,
                multiprocessing_options=everyone,
            ),
        )
        if not read_only:
            for step in sorted(self._manager.all_steps())[:-keep]:
                self._manager.delete(step)

    def due(self, step: int) -> bool:
        """Whether `every` says that this step ends with a checkpoint."""
        return step % self.every == 0

    def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> bool:
        """Start saving; False where this step is saved already.

        Returns when the arrays are on the host, so that their buffers may be donated;
        the writing goes on behind. An earlier save is waited for; if it failed, that
        is an InputError. meta: what JSON can hold.
        """
        arrays = named(state)
        for name, array in arrays.items():
            if not isinstance(array, jax.Array):
                raise TypeError(f"state's {name} is {type(array)}, not a jax.Array")
        self.wait()
        if step in self._manager.all_steps():
            return False
        # Orbax reads the devices' memory implicitly, which the hot loop forbids.
        with jax.transfer_guard("allow"), _writing(self._manager.directory):
            return self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(
                        # Orbax refuses arrays without a number in them.
                        {name: array for name, array in arrays.items() if array.size}
                    ),
                    meta=ocp.args.JsonSave(dict(meta)),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Until the save in flight is complete; InputError if it could not be."""
        with _writing(self._manager.directory):
            self._manager.wait_until_finished()

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        self.wait()
        with bucket.reading(self._manager.directory):
            # From the disk: a save that failed has left Orbax's own list wrong.
            return max(self._manager.all_steps(read=True), default=None)

    def restore(self, step: int, template: Any, *, partial: bool = False):
        """(state, meta) of a step: bit for bit, in the template's structure.

        template: arrays or jax.ShapeDtypeStruct; their shardings are where the arrays
        go (without one: the first device), whatever devices they were saved from.
        partial: the template is a part of what was saved (the parameters alone, say).
        InputError names what does not fit, with both shapes.
        """
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = {
            name: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or one
            )
            for name, leaf in named(template).items()
        }
        self.wait()
        path = self._manager.directory / str(step)
        saved = self._manager.item_metadata(step)["state"] if path.exists() else None
        if saved is None:
            steps = sorted(self._manager.all_steps())
            raise InputError(f"{path} is no checkpoint; the steps there are {steps}")
        _check_fits(path, dict(saved.tree), places, partial)
        wanted = {name: place for name, place in places.items() if place.size}
        how = ocp.checkpoint_utils.construct_restore_args
        with jax.transfer_guard("allow"), bucket.reading(path):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        wanted, restore_args=how(wanted), partial_restore=partial
                    ),
                    meta=ocp.args.JsonRestore(),
                ),
            )
            empty = {
                name: hosts.put(np.zeros(place.shape, place.dtype), place.sharding)
                for name, place in places.items()
                if not place.size
            }
        arrays = restored["state"] | empty
        leaves = [arrays[name] for name in places]
        return jax.tree.structure(template).unflatten(leaves), restored["meta"]

    def close(self) -> None:
        try:
            self.wait()
            with _writing(self._manager.directory):
                self._manager.close()
        finally:
            if not self.read_only:
                release(self.workdir)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextlib.contextmanager
def _writing(directory: epath.Path) -> Iterator[None]:
    """A full disk, or one that fails, is the user's to mend: one line."""
    try:
        yield
    except (*bucket.failures(), ValueError) as error:  # TensorStore's are ValueError.
        cause = str(error).split(" [")[0]
        raise InputError(
            f"a checkpoint could not be written: {cause}; the one before it in "
            f"{directory} stays: make room or mend it, then give the same command again"
        ) from error


def _check_fits(path, saved, wanted, partial: bool) -> None:
    """InputError unless each wanted array is there, in its shape and dtype."""
    remedy = "give the config that it was saved with, or another --workdir"
    extra = [] if partial else sorted(saved.keys() - wanted.keys())
    absent = [name for name in wanted if name not in saved and wanted[name].size]
    if absent or extra:
        what = [f"lacks {name}" for name in absent[:1]]
        what += [f"has {name}" for name in extra[:1]]
        count = len(absent) + len(extra)
        raise InputError(
            f"{path} does not fit: it {' and '.join(what)} ({count} names differ); "
            f"{remedy}"
        )
    for name in sorted(saved.keys() & wanted.keys()):
        leaf = wanted[name]
        here, there = tuple(leaf.shape), tuple(saved[name].shape)
        if here != there:
            raise InputError(
                f"{path} does not fit: {name} has shape {there}, not {here}; {remedy}"
            )
        if np.dtype(saved[name].dtype) != np.dtype(leaf.dtype):
            raise InputError(
                f"{path} does not fit: {name} is {saved[name].dtype}, "
                f"not {np.dtype(leaf.dtype)}; {remedy}"
            )


def named(tree: Any) -> dict[str, Any]:
    """The tree's leaves by name, `params/blocks/0/attention/q/kernel`, in its order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def params_digest(params: Any) -> str:
    """sha256, in hex, of names, shapes, dtypes and bytes, in the names' order.

    Sharded arrays are gathered some rows at a time; every process gets the digest."""
    digest = hashlib.sha256()
    with jax.transfer_guard("allow"):
        for name, array in sorted(named(params).items()):
            digest.update(f"{name}:{array.dtype.name}{list(array.shape)}:".encode())
            for rows in hosts.rows_on_host(array):
                digest.update(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def claim(
    workdir: str | epath.PathLike,
    identity: Mapping[str, Any],
    *,
    flag: str = "--workdir",
) -> None:
    """Make the workdir this run's, or check that it is; before anything is written.

    identity: nested, as JSON can hold it: `config` (with every field), the data's
    digest, the version, …. A new workdir gets it as run.json. An existing one must
    hold the same, except that `config.num_steps` may have grown (then the old result
    goes). Otherwise, or while another process writes there (seen on a disk; gs:// has
    no locks): InputError, which names `flag`, and the workdir is as it was. Held until
    `release` or the process ends.
    """
    path = workdir_path(workdir, bucket.WRITE)
    identity = plain(identity)
    old = read_run(path, missing_ok=True)
    if old is None:
        with bucket.reading(path):
            mine = [name for name in (_STEPS, _RESULT) if (path / name).exists()]
        if mine:
            raise InputError(
                f"{path} holds {mine[0]} but no {_RUN}; give another {flag}"
            )
    else:
        _check_same(path, old, identity, flag)
    hosts.barrier("claim: compared")
    if jax.process_index() == 0:
        bucket.make_folder(path)
        _lock(path)
        if old != identity:
            with bucket.reading(path):
                (path / _RESULT).unlink(missing_ok=True)
            write_json(path / _RUN, identity)
    hosts.barrier("claim: written")
    if fields := differences(read_run(path, missing_ok=True) or {}, identity):
        raise InputError(
            f"{path / _RUN} of process 0 is not this host's ({'; '.join(fields[:3])}): "
            f"give all hosts one {flag} that they share, gs://BUCKET/RUN, and one data"
        )


def release(workdir: str | epath.PathLike) -> None:
    """Let another process claim the workdir; no error where it was not claimed."""
    file = _locks.pop(str(workdir_path(workdir)), None)
    if file is not None:
        file.close()


def read_run(workdir: str | epath.PathLike, *, missing_ok: bool = False):
    """The identity in a workdir's run.json; InputError where there is none."""
    path = workdir_path(workdir) / _RUN
    if (found := _read_json(path)) is None and not missing_ok:
        raise InputError(f"{path} does not exist; give the workdir of a run")
    return found


def write_result(workdir: str | epath.PathLike, result: Mapping[str, Any]) -> None:
    """Keep a finished run's result (process 0 writes)."""
    if jax.process_index() == 0:
        write_json(workdir_path(workdir) / _RESULT, plain(result))


def read_result(workdir: str | epath.PathLike) -> dict[str, Any] | None:
    """The result of a finished run; None where the run is not finished."""
    return _read_json(workdir_path(workdir) / _RESULT)


def write_json(path: epath.Path, value: Any) -> None:
    """Whole or not at all."""
    files.write_text(path, json.dumps(value, indent=2) + "\n")


def _read_json(path: epath.Path) -> dict[str, Any] | None:
    """The object in a file; None without the file."""
    try:
        if not path.exists():
            return None
        value = json.loads(path.read_text())
    except (*bucket.failures(), ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} does not hold a JSON object")
    return value


def _check_same(path, old: Mapping[str, Any], new: Mapping[str, Any], flag) -> None:
    """InputError unless new is old, or old with more steps."""

    def steps(identity):
        config = identity.get("config")
        return config.get("num_steps") if isinstance(config, dict) else None

    may_grow = isinstance(steps(old), int) and isinstance(steps(new), int)
    if may_grow:
        grown = max(steps(old), steps(new))
        old = dict(old, config=dict(old["config"], num_steps=grown))
    fields = differences(old, new)
    if fields:
        raise InputError(
            f"{path} holds a run that differs in {'; '.join(fields[:8])}"
            f"{f' and {len(fields) - 8} more' if len(fields) > 8 else ''}: start it "
            f"with what it had{' (only num_steps may grow)' if may_grow else ''}, or "
            f"give another {flag}"
        )


def _lock(path: epath.Path) -> None:
    """One writing process a workdir. The kernel lets go when the process dies.

    POSIX locks, since a forked grader's copy of the file does not hold them.
    """
    if bucket.remote(path) or str(path) in _locks:
        return
    file = open(path / _LOCK, "a")  # noqa: SIM115 (held for the run's life)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise InputError(
            f"{path} is being written by another process; wait for it or stop it"
        ) from None
    _locks[str(path)] = file
