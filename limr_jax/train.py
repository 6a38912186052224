"""The loop: draw → generate → grade → score → update → log → save → evaluate.

`one_step` is the algorithm; `train` repeats it, keeps what it gave, and can go on from
what it kept. step.py has the parts of a step, programs.py what runs on the devices.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from limr_jax import alarms, console, fork, step
from limr_jax.data.prompts import put_prompts
from limr_jax.errors import InputError
from limr_jax.evaluation.during_training import DuringTraining
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.models.attention import kernel_check
from limr_jax.multihost import agree, preemption
from limr_jax.multihost.arrays import on_host
from limr_jax.rewards.host import GradingFailed
from limr_jax.rewards.types import REASONS
from limr_jax.rollout.sampling import put_sampling
from limr_jax.setup import Run, evaluator
from limr_jax.step import Phases
from limr_jax.storage import (
    array_digest,
    batch_file,
    checkpoint,
    files,
    metrics,
    rollout_dump,
    wandb_sink,
)
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.dump_rows import dump_rows
from limr_jax.storage.workdir import (
    KERNELS,
    claim,
    read_kernels,
    read_result,
    read_run,
    release,
    workdir_path,
    write_json,
    write_result,
)


def train(
    run: Run, config, workdir: str, ahead=None, forked: fork.Fork | None = None
) -> dict | None:
    """Train to `config.num_steps`, from the workdir's last checkpoint if it has one.

    forked: another run's checkpoint, from which a workdir without one begins.

    ahead: `warm_up.compiling`; without it each program compiles when it is first
    called.

    Returns the result (kept in result.json too), or None after SIGTERM: then the state
    after the last update is saved, and the same call goes on from there.

    Raises:
      InputError: the workdir is another run's, or cannot be read or written; none of
        its checkpoints is whole; updates were no finite numbers, or rollout and
        learner have parted (alarms.py).
      host.GradingFailed: the hosts could not grade a step. The state before it is
        saved first.
      agree.Diverged: the processes differ in what they are about to do.
    """
    # Whatever a reward function makes the current folder.
    workdir = workdir_path(workdir, ())
    begun = _begun_fork(run, config, workdir, forked)
    claim(workdir, run.identity)
    finished = read_result(workdir)
    if finished:
        release(workdir)
        return finished
    _name_left_out(run, workdir)
    _keep_kernels(run, workdir)
    # Left in reverse: logs are whole before the checkpointer gives up the workdir.
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(run.close)
        saver = enter(checkpoint.Checkpointer(workdir, **config.checkpoint))
        enter(jax.set_mesh(run.mesh))
        enter(preemption.listening())
        with console.phase("reading weights"):
            state, frozen, about_base, clock = _first_state(
                run, config, saver, begun=begun, forked=forked
            )
        start = _done(state)
        # It drops the lines of steps after the checkpoint, which will come again.
        log = enter(metrics.Metrics(workdir, step=start))
        name = workdir.name
        enter(wandb_sink.following(log.folder, config, name=name, **config.wandb))
        dump = rollout_dump.Dump(workdir, step=start, **config.dump)
        stack.callback(dump.close)
        prompts = put_prompts(run.train_set, run.mesh)
        watch, divergence = _alarms(config, log)
        held_out = _held_out(run, config, log)
        # Queued after each update: when a stop comes the devices may be busy.
        digests = array_digest.queue(state)
        # Its step lines are what stands where there is no terminal.
        tick = enter(
            console.progress("train", config.num_steps, done=start, every=None)
        )
        time_left = console.TimeLeft(config.num_steps)

        def save() -> None:
            meta = about_base | {"seconds": clock()}
            with console.phase("saving"):
                saver.save(_done(state), state, meta, digests=digests)

        def look(step: int, numbers, learned) -> None:
            """Warn of what goes wrong; InputError where the run cannot go on."""
            for alarm in watch.judge(step, numbers):
                log.warning(alarm.step, alarm.name, alarm.text)
            if alarm := divergence.judge(step, numbers):
                batch = batch_file.save(workdir, step, learned)
                log.warning(alarm.step, alarm.name, alarm.text)
                divergence.refuse(step, numbers, latest=saver.latest, batch=batch)
            watch.refuse_drift(step, numbers, saver.latest)

        try:
            preemption.obey()
            # After the restore: hosts that found other data or checkpoints end here.
            agree.require_same("data and first step", run.identity | {"step": start})
            ready = None
            # The step's programs compile in threads during the first evaluation.
            if ahead and start < config.num_steps:
                ready = enter(ahead(run, prompts))
            held_out.before_training(start, frozen.policy(state))
            if ready:
                with console.phase("compiling"):
                    ready()
            enter(_guarded())
            due = False
            for done in range(start + 1, config.num_steps + 1):
                phases = Phases()
                state, rounds, learned, numbers = one_step(
                    run, phases, state, frozen, prompts
                )
                digests = array_digest.queue(state)
                numbers, stats = on_host(numbers)
                numbers = phases.finish(numbers, stats)
                if dump.keeps:
                    dump.add(done, _rows(run, rounds))
                numbers |= kernel_check.numbers(run.kernels)
                shown = log.step(done, numbers)
                left = time_left.after(done, shown["seconds"])
                tick(left=left)
                console.say_step(
                    done,
                    held_out.accuracy() | shown,
                    num_steps=config.num_steps,
                    left=left,
                )
                # After the log, which shows it, and before the save, which must not.
                look(done, numbers, learned)
                # The next evaluation's rollouts take their memory.
                del rounds, learned
                due = due or saver.due(done)
                # Until updates are finite again the checkpoints before stay.
                if (due and not divergence.in_a_row) or done == config.num_steps:
                    save()
                    due = False
                held_out.evaluate_where_due(done, frozen.policy(state))
            # Nothing happens if the last step was evaluated where it was due.
            policy = frozen.policy(state)
            held_out.evaluate(config.num_steps, policy)
            return _finish(run, config, saver, policy, log, clock)
        except preemption.Stopped:  # rollouts that wait for their update are dropped
            # `one_step` gave nothing back: state and digests are the last update's.
            save()
            return None
        except GradingFailed as error:
            raise GradingFailed(f"{error}; {_saved(saver, save, state)}") from error


def one_step(run: step.StepParts, phases, state, frozen: step.Frozen, prompts):
    """One step: the next state, its rounds, what it learned from, and its numbers.

    The numbers are (metrics, statistics of each round). A round is a draw with its
    rollouts and grades. Where groups are filtered there are several; what they have
    over waits in the state for the next step. With ada a problem has rollouts in
    several.
    """
    collected, rounds = None, []
    while not (collected and collected.whole):
        state, drawn = step.draw(run, phases, state, prompts)
        generated = step.generate(run, phases, state, frozen, drawn)
        queued = {}
        if not run.programs.collect:
            # Before the hosts grade, so that the devices work meanwhile.
            queued = step.queue_scores(run, phases, state, frozen, generated.rollout)
        graded = step.grade(run, phases, generated, queued)
        groups = step.Groups(drawn, generated.rollout, graded)
        state, newest = step.observe(run, phases, state, groups)
        rounds.append(newest)
        state, collected = step.collect(run, phases, state, collected, rounds)
    groups = collected.groups
    scores = step.score(run, phases, state, frozen, groups, queued)
    state, numbers = step.update(run, phases, state, frozen, groups, scores)
    numbers = numbers | collected.numbers, [x.stats for x in rounds]
    return state, rounds, step.Learned(groups, scores), numbers


def sampled_responses(config) -> int:
    """Responses a problem of the sampled evaluation before training; 0: there is none.

    Of one response pass@k would hardly say more than the greedy evaluation does.
    """
    k = config.evaluation.samples
    return k if k > 1 else 0


def _held_out(run: Run, config, log: metrics.Metrics) -> DuringTraining:
    """The run's evaluations; of nothing without a held-out set."""
    k = sampled_responses(config)
    return DuringTraining(
        eval_set=run.eval_set,
        evaluator=evaluator(run, 1, config.seed) if run.eval_set else None,
        make_sampled=partial(evaluator, run, k, config.seed) if k else None,
        greedy=put_sampling(run.mesh, temperature=0.0),
        sampling=run.sampling,
        every=config.evaluation.every,
        log=log,
    )


def _alarms(config, log: metrics.Metrics):
    """`Alarms` and `Divergence` of the run, as the steps before have left them."""
    algorithm = ALGORITHMS[config.algorithm]
    last = max(config.alarms.flat_steps, config.divergence.patience)
    # Process 0's lines: all processes end a run at the same step.
    before, raised = agree.broadcast(
        "alarms",
        [
            alarms.kept(log.written(), last),
            [row.get("name") for row in log.written(metrics.WARNINGS)],
        ],
    )
    watch = alarms.Alarms(
        config.alarms,
        by_group=(
            (algorithm.needs_verifier or config.jepo.semi_verifiable)
            and algorithm.needs_group
            and config.group_size > 1
        ),
        graded=config.reward != "none",
        before=before,
        raised=raised,
    )
    return watch, alarms.Divergence(config.divergence.patience, before)


def _saved(saver, save: Callable[[], None], state) -> str:
    """Save the state after the last update: a line on it, or on why it failed."""
    try:
        save()
        saver.wait()
    except InputError as error:
        return str(error)
    return (
        f"the state after step {_done(state)} is saved: mend it, then give the same "
        "command again"
    )


def _finish(run: Run, config, saver, policy, log: metrics.Metrics, clock) -> dict:
    """The run's result, written once the last checkpoint is whole."""
    with preemption.update():
        with console.phase("saving"):
            saver.wait()  # without a whole last checkpoint nothing is finished
        result = _result(run, config, saver.workdir, policy, log)
        result |= {"seconds": clock()}
        write_result(saver.workdir, result)
    return result


def _guarded() -> contextlib.AbstractContextManager:
    """No transfer but those that are written out.

    With JAX_DEBUG_NANS=1 JAX looks at every program's outputs on the host, and runs
    what made one that is not a number again, there.
    """
    return jax.transfer_guard("allow" if jax.config.jax_debug_nans else "disallow")


def _done(state) -> int:
    """Updates so far."""
    return int(jax.device_get(state.step))


def _name_left_out(run: Run, workdir) -> None:
    """left_out.json: by set, the ids of all problems whose prompts are too long."""
    sets = {"train": run.train_set, "eval": run.eval_set}
    left_out = {
        name: tokenized.left_out
        for name, tokenized in sets.items()
        if tokenized is not None and tokenized.left_out
    }
    if left_out and jax.process_index() == 0:
        path = workdir_path(workdir) / "left_out.json"
        write_json(path, left_out)


def _keep_kernels(run: Run, workdir) -> None:
    """kernels.json: what the last start found of each kernel that fits its rows."""
    if run.kernels and jax.process_index() == 0:
        before = []
        # Only a record, which is written anew: damaged, it ends no run.
        with contextlib.suppress(InputError):
            before = read_kernels(workdir)
        for line in kernel_check.changes(before, run.kernels):
            console.warn(line)
        rows = [finding.as_json() for finding in run.kernels]
        # JSON has no infinity, the gap of what is no number.
        content = files.finite({"kernels": rows})
        write_json(workdir_path(workdir) / KERNELS, content)


def _begun_fork(run: Run, config, workdir, forked: fork.Fork | None):
    """`_begin` of a fork whose workdir is new; None of any other run.

    So that a checkpoint that is damaged, or of another base, leaves no workdir behind.
    """
    new = forked and read_run(workdir, missing_ok=True) is None
    # Process 0's answer, since all restore together.
    if not forked or not agree.broadcast("workdir is new", new):
        return None
    with jax.set_mesh(run.mesh):
        return _begin(run, config, forked)


def _begin(run: Run, config, forked: fork.Fork | None):
    """(state, what is frozen, what a checkpoint says of LoRA's base, seconds so far).

    Of a run without a checkpoint of its own.
    """
    # A fork has its policy already; the reference is the first one.
    params = None if forked and not run.programs.copy else run.load_params()
    frozen, about_base = _frozen(run, params)
    if not forked:
        return run.programs.init(params), frozen, about_base, 0.0

    def make():
        # It takes the memory of its argument.
        return run.programs.init(run.load_params() if params is None else params)

    state, meta, anew = fork.first_state(
        forked, run.programs.state, config=config, identity=run.identity, make=make
    )
    checkpoint.refuse_other_base(forked.workdir, meta, about_base.get("base"))
    console.say(_of_fork(forked, config, run.identity, anew))
    return state, frozen, about_base, meta["seconds"]


def _frozen(run: Run, params) -> tuple[step.Frozen, dict]:
    """`frozen_of`, and what a checkpoint says of LoRA's base."""
    frozen = frozen_of(run, params)
    if frozen.base is None:
        return frozen, {}
    return frozen, {"base": array_digest.of_tree(frozen.base)}


def _first_state(run: Run, config, saver, *, begun, forked: fork.Fork | None):
    """State of a new run or of the last checkpoint, what is frozen, and the clock.

    begun: what `_begin` gave already, or None. Before the clock: what a checkpoint says
    of LoRA's base, as a dict.
    """
    old = saver.restore_newest(run.programs.state, say=console.say)
    if old is None:
        metrics.refuse_lost(saver.workdir, saver.every)
        begun = begun or _begin(run, config, forked)
        state, frozen, about_base, seconds_before = begun
    else:
        # The reference is the first policy, so with KL it is loaded at every start, but
        # where the checkpoint has it since it is reset.
        params = run.load_params() if run.programs.copy else None
        frozen, about_base = _frozen(run, params)
        checkpoint.refuse_other_base(saver.workdir, old.meta, about_base.get("base"))
        state, seconds_before = old.state, old.meta["seconds"]
        console.say(f"going on after step {old.step} of {config.num_steps}")

    def clock():
        return round(seconds_before + process_seconds(), 2)

    return state, frozen, about_base, clock


def _of_fork(forked: fork.Fork, config, identity, anew: list[str]) -> str:
    changes = "; ".join(fork.changes(forked, config, identity).values()) or "nothing"
    line = (
        f"going on from {forked.workdir} after step {forked.step}; changed: {changes}"
    )
    return f"{line}; begins anew: {', '.join(anew)}" if anew else line


def frozen_of(run: Run, params) -> step.Frozen:
    """LoRA's base, loaded, and the reference, which it is then.

    Without LoRA the reference is the first policy, `params`, in the dtype of compute.
    """
    base = run.load_base()
    if run.programs.copy:
        return step.Frozen(base, run.programs.copy(params))
    return step.Frozen(base, base if run.programs.reference else None)


def process_seconds() -> float:
    """Wall time since this process started, imports included."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            # Field 22, clock ticks after boot; the name may hold blanks and ")" itself.
            started = int(file.read().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf(
            "SC_CLK_TCK"
        )
    except (OSError, AttributeError):  # not Linux: since this module was imported
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


def _rows(run: Run, rounds: list[step.Round]) -> Iterator[dict]:
    """Each rollout of a step as a row of the dump, used or not, of all hosts'."""
    # At once, not as the rows are read: all hosts take part, and one of them reads.
    arrays = on_host(
        [
            {
                "ids_P": drawn.ids_P,
                "graded": graded,
                "response_BT": rollout.response_BT,
                "mask_BT": rollout.mask_BT,
                "truncated_B": rollout.truncated_B,
                "asked_B": rollout.asked_B,
            }
            for drawn, rollout, graded in (each.groups for each in rounds)
        ]
    )
    return itertools.chain.from_iterable(_rows_of(run, **each) for each in arrays)


def _rows_of(run: Run, *, graded, **arrays) -> Iterator[dict]:
    return dump_rows(
        run.train_set.problems,
        run.tokenizer.decode,
        **arrays,
        reward_PG=graded.reward_PG,
        correct_PG=graded.correct_PG,
        valid_PG=graded.valid_PG,
        parts=graded.parts,
        reason_PG=graded.reason_PG,
        reasons=REASONS,
    )


def _result(run: Run, config, workdir, policy, log: metrics.Metrics) -> dict:
    """The run's one JSON object, all but the seconds; process 0 puts it together."""
    # Before the others return: every process takes part in the digest.
    digest = params_digest(policy)
    if jax.process_index() > 0:
        return agree.broadcast("result", None)
    before, after = (log.evaluated(n) or {} for n in (0, config.num_steps))
    k, epoch = config.evaluation.samples, log.last.get("epoch")
    result = {
        "steps": config.num_steps,
        "epochs": None if epoch is None else int(np.floor(epoch)),
        "eval_problems": len(run.eval_set) if run.eval_set else None,
        "eval_accuracy_before": before.get("accuracy"),
        "eval_accuracy_after": after.get("accuracy"),
        "eval_accuracy_well_formed_before": before.get("accuracy_well_formed"),
        "eval_accuracy_well_formed_after": after.get("accuracy_well_formed"),
        f"pass_at_{k}_before": before.get(f"sampled/pass_at_{k}"),
        "format_valid_before": before.get("well_formed"),
        "params_digest": digest,
        "workdir": str(workdir),
    }
    return agree.broadcast("result", result)
