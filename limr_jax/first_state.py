"""The state that a run begins from: new, its last checkpoint's, or a fork's.

Beside it stands what no step changes: LoRA's base and the reference model.
"""

from typing import Any, NamedTuple

import jax

from limr_jax import console, fork, programs, step
from limr_jax.multihost import agree
from limr_jax.setup import Run
from limr_jax.storage import array_digest, checkpoint, metrics
from limr_jax.storage.workdir import read_run


class FirstState(NamedTuple):
    """What the loop begins with."""

    state: programs.State
    frozen: step.Frozen
    about_base: dict[str, Any]  # what a checkpoint says of LoRA's base
    seconds: float  # that the run has taken before


def of_new_fork(
    run: Run, config, workdir, forked: fork.Fork | None
) -> FirstState | None:
    """The first state of a fork whose workdir is new; None of any other run.

    So that a checkpoint that is damaged, or of another base, leaves no workdir behind.
    """
    new = forked and read_run(workdir, missing_ok=True) is None
    # Process 0's answer, since all restore together.
    if not forked or not agree.broadcast("workdir is new", new):
        return None
    with jax.set_mesh(run.mesh):
        return _begin(run, config, forked)


def restore_or_begin(
    run: Run,
    config,
    saver: checkpoint.Checkpointer,
    *,
    begun: FirstState | None,
    forked: fork.Fork | None,
) -> FirstState:
    """That of the last checkpoint, or of a new run where there is none.

    begun: what `of_new_fork` gave. Raises InputError where none of the checkpoints is
    whole, or where they are lost and the logs are not.
    """
    old = saver.restore_newest(run.programs.state, say=console.say)
    if old is None:
        metrics.refuse_lost(saver.workdir, saver.every)
        return begun or _begin(run, config, forked)
    # The reference is the first policy, so with KL it is loaded at every start, but
    # where the checkpoint has it since it is reset.
    params = run.load_params() if run.programs.copy else None
    frozen, about_base = _frozen(run, params)
    checkpoint.refuse_other_base(saver.workdir, old.meta, about_base.get("base"))
    console.say(f"going on after step {old.step} of {config.num_steps}")
    return FirstState(old.state, frozen, about_base, old.meta["seconds"])


def frozen_of(run: Run, params) -> step.Frozen:
    """LoRA's base, loaded, and the reference, which it is then.

    Without LoRA the reference is the first policy, `params`, in the dtype of compute.
    """
    base = run.load_base()
    if run.programs.copy:
        return step.Frozen(base, run.programs.copy(params))
    return step.Frozen(base, base if run.programs.reference else None)


def _begin(run: Run, config, forked: fork.Fork | None) -> FirstState:
    """That of a run without a checkpoint of its own."""
    # A fork has its policy already; the reference is the first one.
    params = None if forked and not run.programs.copy else run.load_params()
    frozen, about_base = _frozen(run, params)
    if not forked:
        return FirstState(run.programs.init(params), frozen, about_base, 0.0)

    def make():
        # It takes the memory of its argument.
        return run.programs.init(run.load_params() if params is None else params)

    state, meta, anew = fork.first_state(
        forked, run.programs.state, config=config, identity=run.identity, make=make
    )
    checkpoint.refuse_other_base(forked.workdir, meta, about_base.get("base"))
    console.say(_of_fork(forked, config, run.identity, anew))
    return FirstState(state, frozen, about_base, meta["seconds"])


def _frozen(run: Run, params) -> tuple[step.Frozen, dict]:
    """`frozen_of`, and what a checkpoint says of LoRA's base."""
    frozen = frozen_of(run, params)
    if frozen.base is None:
        return frozen, {}
    return frozen, {"base": array_digest.of_tree(frozen.base)}


def _of_fork(forked: fork.Fork, config, identity, anew: list[str]) -> str:
    changes = "; ".join(fork.changes(forked, config, identity).values()) or "nothing"
    line = (
        f"going on from {forked.workdir} after step {forked.step}; changed: {changes}"
    )
    return f"{line}; begins anew: {', '.join(anew)}" if anew else line
