"""A run that goes on from another run's checkpoint, with something changed: `--fork`.

What is taken is what the other run has learned: policy, critic, optimisers and the
number of steps. Its sampler's state, the answers' lengths and the groups that wait are
taken where they still mean the same; its KL coefficient where no field of the KL has
changed. All random streams depend on the seed and the step, so that with nothing
changed the fork is the run that it left, to the last bit.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from limr_jax.config.diff import config_differences, plain
from limr_jax.errors import InputError
from limr_jax.multihost import agree
from limr_jax.storage import checkpoint, checkpoint_record
from limr_jax.storage.array_digest import named
from limr_jax.storage.checkpoint_record import Damaged
from limr_jax.storage.workdir import content, read_run, workdir_path

# Parts of `programs.State` that a fork must find in the checkpoint, if it has them.
_LEARNED = ("step", "train", "critic")
_DRAWS = ("sampler", "length_N", "surplus")
# Fields by which these mean something else, beside those of the sampler itself: groups
# that wait are of these tokens and rewards, and so is what was seen of each problem.
_DRAW_FIELDS = ("sampler.name", "allocation.", "filter.groups", "data.train")
_DRAW_FIELDS += ("tokenizer", "reward", "answer_phrase", "overlong.", "judge.")
# Fields by which the same parameters are another policy.
_POLICY_FIELDS = ("model.init", "model.architecture", "model.lora.alpha")
_POLICY_FIELDS += ("model.lora.scaling",)


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

    def check(self, template: Any, *, config, identity: Mapping[str, Any]) -> None:
        """InputError where a run of this state cannot go on with what was learned.

        template: shapes of `programs.State`. config, identity: of the run that is to
        go on. Before anything is written.
        """
        changed = changes(self, config, identity)
        for name, line in changed.items():
            if name in _POLICY_FIELDS:
                raise InputError(
                    f"--fork={self.workdir} with another {line}: what it has learned "
                    f"would be another policy; leave {name} as it was"
                )
        # LoRA's base and the reference are not in the checkpoint but drawn again.
        drawn_again = config.model.lora.rank or config.kl.coefficient
        if config.model.init == "random" and "seed" in changed and drawn_again:
            raise InputError(
                f"--fork={self.workdir} with another {changed['seed']}: of "
                "model.init=random the base of LoRA and the KL's reference are drawn "
                "by the seed; leave it as it was"
            )
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
        fork = {"workdir": self.workdir, "step": self.step}
        return _of_fork(identity, fork, self.digest[:16])


def _of_fork(identity: Mapping, fork: Mapping, digest: str) -> dict[str, Any]:
    digests = {**content(identity), "fork.workdir": digest}
    return {**identity, "content": digests, "fork": fork}


def begun(
    new: str, left: str, step: int | None
) -> Callable[[Mapping[str, Any]], dict[str, Any]] | None:
    """`Fork.identity_of` of a fork that has checkpoints of its own; None: it has none.

    new: its workdir. left, step: as `read` takes them. The run that was left may go on
    meanwhile, and take away the checkpoint that the fork began from.
    """
    known = read_run(new, missing_ok=True) or {}
    fork, digest = known.get("fork"), content(known).get("fork.workdir")
    same = (
        isinstance(fork, Mapping)
        and fork.get("workdir") == str(workdir_path(left, ()))
        and step in (None, fork.get("step"))
    )
    # Process 0's answer: the others are to read a checkpoint, or not, together.
    if not agree.broadcast("fork goes on", bool(same and digest)):
        return None
    # The folder of checkpoints may lack, after a kill.
    with (
        contextlib.suppress(InputError),
        checkpoint.Checkpointer(new, read_only=True) as saver,
    ):
        if saver.steps():
            return lambda identity: _of_fork(identity, fork, digest)
    return None


def read(workdir: str, step: int | None) -> Fork:
    """A run's checkpoint of that step; None: the newest. InputError: there is none."""
    # A reward function may make another folder the current one, before it is restored.
    workdir = str(workdir_path(workdir, ()))
    identity = read_run(workdir)
    with checkpoint.Checkpointer(workdir, read_only=True) as saver:
        # Process 0's: the run may save another one while the hosts look.
        steps = agree.broadcast("checkpoints to fork from", saver.steps())
        if not steps:
            raise InputError(f"--fork={workdir} has no checkpoint yet; let it save one")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise InputError(
                f"--step={step}: {workdir} has no such checkpoint; it has "
                f"{', '.join(map(str, steps))} (checkpoint.keep says how many stay)"
            )
        with _naming_others(saver, step):
            record = saver.record(step)
    if "kl_coefficient" not in record["arrays"]:
        raise InputError(
            f"--fork={workdir} is no run of launch/tpu.py; of one of launch/sft.py "
            "export the model (launch/export.py) and give it as model.init"
        )
    return Fork(workdir, step, identity, record)


@contextlib.contextmanager
def _naming_others(saver: checkpoint.Checkpointer, step: int) -> Iterator[None]:
    """Say of a checkpoint that is damaged what to do."""
    try:
        yield
    except Damaged as error:
        steps = saver.steps()
        if step not in steps:
            raise InputError(
                f"--fork={saver.workdir}: the checkpoint of step {step} was removed "
                "while it was read, for the run goes on; give the same command again, "
                f"with --step one of {', '.join(map(str, steps))}"
            ) from error
        others = ", ".join(str(x) for x in steps if x != step)
        remedy = f"give --step with one of {others}" if others else "copy it again"
        raise InputError(f"{error}; {remedy}") from error


def changes(fork: Fork, config, identity: Mapping[str, Any]) -> dict[str, str]:
    """Field → how the config has it otherwise than the run that is left.

    A field that is a path counts by what lies there, if both runs say so.
    """
    lines = config_differences(fork.identity["config"], plain(config))
    changed = {line.partition(":")[0]: line for line in lines}
    old, new = content(fork.identity), content(identity)
    for name in old.keys() & new.keys() - {"fork.workdir"}:
        if old[name] != new[name]:
            changed.setdefault(name, f"{name}: what lies there")
        elif old[name] is not None:
            changed.pop(name, None)
    return dict(sorted(changed.items()))


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
    changed = changes(fork, config, identity)
    anew = set()
    if any(field.startswith("kl.") for field in changed):
        anew |= {"kl_coefficient"}
    # Its own fields may stand in its state: weights by a file of scores, say.
    draw_fields = (*_DRAW_FIELDS, f"sampler.{config.sampler.name}.")
    if any(field.startswith(draw_fields) for field in changed):
        anew |= {*_DRAWS}
    if {"data.train", "tokenizer"} & changed.keys():
        anew |= {"drafts"}  # other problems' rollouts, or other words
    for name, place in places.items():
        part = name.split("/")[0]
        if part not in _LEARNED and place.size and not _fits(saved.get(name), place):
            anew |= {*_DRAWS} if part in _DRAWS else {part}
    own = {}
    # A part that the state has nothing of is not made.
    anew &= {name.split("/")[0] for name in places}
    if anew:
        fresh = named(make())
        own = {name: x for name, x in fresh.items() if name.split("/")[0] in anew}
        # Its other arrays leave the devices before the checkpoint's come.
        del fresh
    taken = {name: place for name, place in places.items() if name not in own}
    with (
        checkpoint.Checkpointer(fork.workdir, read_only=True) as saver,
        _naming_others(saver, fork.step),
    ):
        arrays, meta = saver.restore(fork.step, taken, partial=True)
    leaves = [own[name] if name in own else arrays[name] for name in places]
    state = jax.tree.structure(template).unflatten(leaves)
    return state, meta, sorted(anew)


def _fits(saved: Mapping | None, place) -> bool:
    return saved is not None and (tuple(saved["shape"]), saved["dtype"]) == (
        tuple(place.shape),
        jax.numpy.dtype(place.dtype).name,
    )
