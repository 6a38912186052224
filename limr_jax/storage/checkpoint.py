"""Everything that a run needs to go on as if it had not stopped.

A workdir (local, or `gs://…` through etils.epath) holds

    run.json           what the run is: config, digests, version    (workdir.claim)
    checkpoints/<step> Orbax: the arrays by name, and a small JSON  (Checkpointer)
    result.json        the finished run's result             (workdir.write_result)

A step appears under its number only when it is complete: Orbax writes beside it and
renames (on gs:// it writes a commit file last), so a kill leaves the last one usable.
The JSON holds a digest of every array and of itself, and with LoRA of the frozen base,
which is no array of it. A step that is not what was saved is `Damaged`, and a run goes
on from the newest one that is whole. Nothing is removed before something has been
restored: only the first save of a new start removes the damaged steps, and what earlier
saves left unfinished.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from limr_jax.errors import InputError
from limr_jax.multihost import agree
from limr_jax.multihost.arrays import put
from limr_jax.storage import array_digest, checkpoint_record, gcs, lease
from limr_jax.storage.array_digest import named
from limr_jax.storage.checkpoint_record import Damaged
from limr_jax.storage.workdir import release, workdir_path

# Orbax logs what is normal here (a read-only directory) and what it raises besides.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

# Orbax logs how many bytes TensorStore has written. TensorStore never frees the lists
# that it tells this by: some 8 KB a save.
with contextlib.suppress(ImportError):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if hasattr(tensorstore_utils, "get_tensorstore_raw_bytes"):
        tensorstore_utils.get_tensorstore_raw_bytes = lambda *_, **__: 0

_STEPS, _STATE, _META = "checkpoints", "state", "meta"
# Arrays that older versions have under other names: how these begin, today and before.
# Of 0.3's sampler.name=dynamic, which is uniform with a filter of groups.
_RENAMED = {"sampler/sampler/": "sampler/order/"}


class Restored(NamedTuple):
    """What `Checkpointer.restore_newest` gives back."""

    step: int
    state: Any  # in the template's structure
    meta: dict[str, Any]


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
        rights = gcs.CHECKPOINTS if read_only else gcs.WRITE
        self.workdir = workdir_path(workdir, rights)
        self.every, self.read_only, self._keep = every, read_only, keep
        self._directory = self.workdir / _STEPS
        with gcs.reading(self._directory):
            exists = self._directory.exists()
        if read_only and not exists:
            raise InputError(f"{self.workdir} has no checkpoints; give a run's workdir")
        self._make_folder(stays=True)
        # Orbax does not make it (create=False), and no host may look for it before.
        agree.barrier("checkpoints: folder made")
        checkpoint_record.silence_unheard()
        self._manager: ocp.CheckpointManager | None = None  # made by the first save
        self._beyond: list[int] = []  # steps newer than the one that was restored

    def _make_folder(self, *, stays: bool = False) -> None:
        if not self.read_only and jax.process_index() == 0:
            gcs.make_folder(self._directory, stays=stays)

    def due(self, step: int) -> bool:
        """Whether this step is one of every `every`, which end with a checkpoint."""
        return step % self.every == 0

    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        digests: Mapping[str, jax.Array] | None = None,
    ) -> bool:
        """Start saving; False where this step is saved already.

        Returns when the arrays are on the host, so that their buffers may be donated;
        the writing goes on behind. An earlier save is waited for; if it failed, that
        is an InputError. meta: what JSON can hold. digests: `array_digest.queue` of
        the state, where the devices may be busy by now; None: it is called here.
        Raises lease.Lost where the workdir is another process's by now.
        """
        arrays = named(state)
        for name, array in arrays.items():
            if not isinstance(array, jax.Array):
                raise TypeError(f"state's {name} is {type(array)}, not a jax.Array")
        self.wait()
        lease.require(self.workdir, sure=True)
        if not gcs.remote(self._directory):
            self._make_folder()  # somebody may have removed it
        # Orbax reads the devices' memory implicitly, which the hot loop forbids.
        with jax.transfer_guard("allow"), _writing(self.workdir):
            manager = self._writer()
            if step in manager.all_steps():
                return False
            if digests is None:
                digests = array_digest.queue(arrays)
            known = array_digest.collect(digests)
            record = checkpoint_record.make(
                step=step, meta=meta, arrays=arrays, digests=known
            )
            return manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(
                        # Orbax refuses arrays without a number in them.
                        {name: array for name, array in arrays.items() if array.size}
                    ),
                    meta=ocp.args.JsonSave(record),
                ),
                force=True,  # when, is the caller's choice
            )

    def _writer(self) -> ocp.CheckpointManager:
        """Orbax's manager, which removes what is unfinished and what was not kept."""
        if self._manager is None:
            self._manager = ocp.CheckpointManager(
                self._directory,
                item_handlers={_STATE: _handler(), _META: ocp.JsonCheckpointHandler()},
                item_names=(_STATE, _META),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep,
                    cleanup_tmp_directories=True,
                    save_root_metadata=False,
                    # A half-deleted step must not stop the start.
                    lightweight_initialize=True,
                    create=False,
                    multiprocessing_options=_everyone(),
                ),
            )
            # Steps that the run has gone back behind: it will come to their numbers
            # again, which must not pass for saved then.
            for step in {*self._beyond} & {*self._manager.all_steps()}:
                self._manager.delete(step)
            self._beyond = []
        return self._manager

    def wait(self) -> None:
        """Wait for the save in flight; InputError if it could not be completed."""
        if self._manager is not None:
            with _writing(self.workdir):
                self._manager.wait_until_finished()

    def steps(self) -> list[int]:
        """The complete steps, whole or damaged, from the oldest to the newest.

        What a run has left behind it, by going on from an older one, is not among them.
        """
        self.wait()
        with gcs.reading(self._directory):
            # From the disk: a save that failed has left Orbax's own list wrong.
            entries = ocp.path.step.standard_name_format().find_all(self._directory)
            steps = {x.step for x in entries if x.path.name == str(x.step)}
        return sorted(steps - {*self._beyond})

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        return max(self.steps(), default=None)

    def record(self, step: int) -> dict[str, Any]:
        """What a complete step says of itself: `checkpoint_record.make`.

        Raises Damaged where that is not what was saved, and InputError for a checkpoint
        of limr_jax 0.2, which says nothing.
        """
        path = self._directory / str(step)
        record = checkpoint_record.read(path, f"{_META}/metadata", step)
        if record is None:
            raise InputError(f"{path} is of limr_jax 0.2, without digests")
        return record

    def restore_newest(
        self, template: Any, *, say: Callable[[str], None]
    ) -> Restored | None:
        """The newest step that is whole, the same on all hosts; None without any step.

        say: takes one line for each newer step, which is damaged. These steps stay on
        the disk until the next `save`. InputError: none is whole, or it does not fit.
        """
        # Process 0's: to read is collective, so all try the same steps in one order.
        steps = agree.broadcast("checkpoints", self.steps())
        complaints = []
        for step in reversed(steps):
            try:
                state, meta = self.restore(step, template)
            # Only damage leads to an older step: a misfit, or no access, ends the run.
            except Damaged as error:
                complaints.append(str(error))
                continue
            for complaint in complaints:
                say(f"{complaint}; going on without it")
            self._beyond = [x for x in steps if x > step]
            return Restored(step, state, meta)
        if not steps:
            return None
        raise InputError(
            f"none of the checkpoints {', '.join(map(str, steps))} in "
            f"{self._directory} is whole ({complaints[0]}): put a whole one there, or "
            "give another --workdir to start anew; nothing was removed"
        )

    def restore(self, step: int, template: Any, *, partial: bool = False):
        """(state, meta) of a step: bit for bit, in the template's structure.

        template: arrays or jax.ShapeDtypeStruct; their shardings are where the arrays
        go (without one: the first device), whatever devices they were saved from.
        partial: the template is a part of what was saved (the parameters alone, say).
        Raises Damaged, on every host, where it is not what was saved; InputError names
        what does not fit, with both shapes, or cannot be reached.
        """
        places = _places(template)
        if step not in (steps := self.steps()):
            path = self._directory / str(step)
            raise InputError(f"{path} is no checkpoint; the steps there are {steps}")
        path = self._directory / str(step)
        record, arrays, problem = None, {}, None
        try:
            record = checkpoint_record.read(path, f"{_META}/metadata", step)
            # A tool may look at it; a run would go on from what nobody can check.
            if record is None and not self.read_only:
                raise Damaged(f"{path} is of limr_jax 0.2, without digests")
            saved = _saved(path, record)
            places = _as_saved(places, saved)
            checkpoint_record.check_fits(path, saved, places, partial=partial)
            arrays = _read_arrays(path, places, partial)
        except Damaged as error:
            problem = str(error)
        # Each host reads what its own devices hold, so that one alone may find damage.
        problems = agree.exchange(f"checkpoint {step} read", problem)
        # To digest is collective, too: only where all have their arrays.
        if not any(problems) and record is not None:
            problems = [checkpoint_record.difference(path, record, arrays)]
        if damage := next(filter(None, problems), None):
            raise Damaged(damage)
        leaves = [arrays[name] for name in places]  # in the order of the tree
        meta = {} if record is None else record["meta"]
        return jax.tree.structure(template).unflatten(leaves), meta

    def close(self) -> None:
        """Wait for the save in flight, and let another process claim the workdir."""
        try:
            self.wait()
            if self._manager is not None:
                with _writing(self.workdir):
                    self._manager.close()
        finally:
            if not self.read_only:
                release(self.workdir)

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def refuse_other_base(
    path: epath.Path, meta: Mapping[str, Any], base: str | None
) -> None:
    """InputError where a checkpoint's adapters are of another frozen base than this.

    meta: the checkpoint's, whose "base" is the digest that it was trained on. base: of
    the one that was loaded (`array_digest.of_tree`); None: there is none.
    """
    if meta.get("base") != base:
        raise InputError(
            f"{path}: its adapters are of a base of the digest {meta.get('base')}, and "
            f"model.init gives one of {base}; give the model.init, the "
            "model.base_dtype and, of a random model, the versions that it was "
            "trained with"
        )


def _everyone() -> ocp.options.MultiprocessingOptions:
    """All processes, by name: then Orbax does not wait for them with the devices."""
    count = jax.process_count()
    return ocp.options.MultiprocessingOptions(
        active_processes=set(range(count)) if count > 1 else None
    )


def _handler() -> ocp.PyTreeCheckpointHandler:
    """How Orbax writes and reads arrays."""
    # A stop saves while the devices are busy with what nobody waits for. So they do
    # not cut up replicated arrays.
    arrays = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
    registry = ocp.type_handlers.create_type_handler_registry
    return ocp.PyTreeCheckpointHandler(
        # It gains little on weights, and takes seconds of two cores.
        use_compression=False,
        type_handler_registry=registry((jax.Array, arrays)),
    )


def _places(template: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each of the template's arrays, by name."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        name: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None) or one
        )
        for name, leaf in named(template).items()
    }


def _saved(path: epath.Path, record: Mapping | None) -> dict[str, Any]:
    """Shape and dtype of each array in the checkpoint, by name."""
    if record is not None:
        return checkpoint_record.shapes(record)
    with checkpoint_record.examining(path, _STATE):
        return dict(_handler().metadata(path / _STATE).tree)


def _as_saved(places: Mapping[str, Any], saved: Mapping) -> dict[str, Any]:
    """The places in their order, by the names that the checkpoint has for them."""

    def old_name(name: str) -> str:
        for new, old in _RENAMED.items():
            other = name.replace(new, old, 1) if name.startswith(new) else name
            if name not in saved and other in saved:
                return other
        return name

    return {old_name(name): place for name, place in places.items()}


def _read_arrays(path: epath.Path, places: Mapping, partial: bool) -> dict:
    """The arrays by name; those without a number in them are made."""
    nonempty = {name: place for name, place in places.items() if place.size}
    how = ocp.checkpoint_utils.construct_restore_args(nonempty)
    with jax.transfer_guard("allow"), checkpoint_record.examining(path, _STATE):
        # The manager's own way waits for all processes, also where one has failed.
        arrays = _handler().restore(
            path / _STATE,
            args=ocp.args.PyTreeRestore(
                nonempty, restore_args=how, partial_restore=partial
            ),
        )
    return arrays | {
        name: put(np.zeros(place.shape, place.dtype), place.sharding)
        for name, place in places.items()
        if not place.size
    }


@contextlib.contextmanager
def _writing(workdir: epath.Path) -> Iterator[None]:
    """A full disk, or one that fails, is the user's to mend: one line."""
    directory = workdir / _STEPS
    try:
        yield
    except InputError:
        raise
    except (*gcs.failures(), ValueError) as error:  # TensorStore's are ValueError.
        # That the folder is gone says more than what TensorStore has missed in it.
        lease.require(workdir, sure=True)
        cause = str(error).split(" [")[0]  # without its source locations
        raise InputError(
            f"a checkpoint could not be written: {cause}; those before it in "
            f"{directory} stay: make room or mend it, then give the same command again"
        ) from error
