"""A run that goes on from another run's checkpoint, with something changed: `--fork`.

What is taken is what the other run has learned: policy, critic, optimisers and the
number of steps. Its sampler's state, the answers' lengths and the groups that wait are
taken where they still mean the same; its KL coefficient where no field of the KL has
changed. All random streams depend on the seed and the step, so that with nothing
changed the fork is the run that it left, to the last bit.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax

from limr_jax.config.diff import config_differences, plain
from limr_jax.errors import InputError
from limr_jax.storage import checkpoint, checkpoint_record
from limr_jax.storage.array_digest import named
from limr_jax.storage.workdir import content, read_run

# Parts of `programs.State` that a fork must find in the checkpoint, if it has them.
_LEARNED = ("step", "train", "critic")
_DRAWS = ("sampler", "length_N", "surplus")
# Fields by which these are of another kind.
_DRAW_FIELDS = ("sampler.name", "allocation.", "filter.groups")


@dataclasses.dataclass(frozen=True)
class Fork:
    """A checkpoint of another run."""

    workdir: str
    step: int
    identity: Mapping[str, Any]  # of the run
    record: Mapping[str, Any]  # of the checkpoint: checkpoint_record.make

    @property
    def digest(self) -> str:
        """sha256 of what the checkpoint says of its arrays."""
        arrays = json.dumps(self.record["arrays"], sort_keys=True)
        return hashlib.sha256(arrays.encode()).hexdigest()

    def check(self, template: Any) -> None:
        """InputError where a run of this state cannot go on with what was learned.

        template: shapes of `programs.State`. Before anything is written.
        """
        learned = {
            name: place
            for name, place in named(template).items()
            if name.split("/")[0] in _LEARNED
        }
        checkpoint_record.check_fits(
            f"--fork={self.workdir}, step {self.step},",
            checkpoint_record.shapes(self.record),
            learned,
            partial=True,
        )

    def identity_of(self, identity: Mapping[str, Any]) -> dict[str, Any]:
        """The identity of the run that goes on from here, as `workdir.claim` takes it.

        identity: as `identity.of_run` has it. Where the other run lies may change.
        """
        digests = {**content(identity), "fork.workdir": self.digest[:16]}
        fork = {"workdir": self.workdir, "step": self.step}
        return {**identity, "content": digests, "fork": fork}


def read(workdir: str, step: int | None) -> Fork:
    """A run's checkpoint of that step; None: the newest. InputError: there is none."""
    identity = read_run(workdir)
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        steps = saver.steps()
        if not steps:
            raise InputError(f"--fork={workdir} has no checkpoint yet; let it save one")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise InputError(
                f"--step={step}: {workdir} has no such checkpoint; it has "
                f"{', '.join(map(str, steps))} (checkpoint.keep says how many stay)"
            )
        return Fork(workdir, step, identity, saver.record(step))


def changes(fork: Fork, config) -> list[str]:
    """What the config has otherwise than the run that is left, a line a field."""
    return config_differences(fork.identity["config"], plain(config))


def first_state(
    fork: Fork,
    template: Any,
    *,
    config,
    identity: Mapping[str, Any],
    make: Callable[[], Any],
) -> tuple[Any, Mapping[str, Any], list[str]]:
    """(the state at the fork's step, the checkpoint's meta, parts that begin anew).

    template: shapes of this run's state, with shardings. make: gives a first state of
    this run; it is called where a part begins anew. identity: of this run. Raises
    InputError where the checkpoint lacks what was learned, or has it in other shapes.
    """
    places, saved = named(template), fork.record["arrays"]
    changed = [line.partition(":")[0] for line in changes(fork, config)]
    anew = set()
    if any(field.startswith("kl.") for field in changed):
        anew |= {"kl_coefficient"}
    same_data = content(identity).get("data.train") == content(fork.identity).get(
        "data.train"
    )
    if not same_data or any(field.startswith(_DRAW_FIELDS) for field in changed):
        anew |= {*_DRAWS}
    for name, place in places.items():
        part = name.split("/")[0]
        if part not in _LEARNED and place.size and not _fits(saved.get(name), place):
            anew |= {*_DRAWS} if part in _DRAWS else {part}
    own = {}
    # A part that the state has nothing of is not made.
    anew &= {name.split("/")[0] for name in places}
    if anew:
        made = named(make())
        own = {name: x for name, x in made.items() if name.split("/")[0] in anew}
        del made
    taken = {name: place for name, place in places.items() if name not in own}
    with checkpoint.Checkpointer(fork.workdir, read_only=True) as saver:
        arrays, meta = saver.restore(fork.step, taken, partial=True)
    leaves = [own[name] if name in own else arrays[name] for name in places]
    state = jax.tree.structure(template).unflatten(leaves)
    return state, meta, sorted(anew)


def _fits(saved: Mapping | None, place) -> bool:
    return saved is not None and (tuple(saved["shape"]), saved["dtype"]) == (
        tuple(place.shape),
        jax.numpy.dtype(place.dtype).name,
    )
