"""The loop: draw → generate → grade → score → update → log → save → evaluate.

`one_step` is the algorithm; `train` repeats it, keeps what it gave, and can go on from
what it kept. step.py has the parts of a step, programs.py what runs on the devices.
"""

import contextlib
import os
import time
from collections.abc import Callable
from functools import partial

import jax

from limr_jax import alarms, console, first_state, fork, outputs, step
from limr_jax.data.prompts import put_prompts
from limr_jax.errors import InputError
from limr_jax.evaluation.during_training import DuringTraining
from limr_jax.learner.advantages import ALGORITHMS
from limr_jax.models.attention import kernel_check
from limr_jax.multihost import agree, preemption
from limr_jax.multihost.arrays import on_host
from limr_jax.rewards.host import GradingFailed
from limr_jax.rollout.sampling import put_sampling
from limr_jax.setup import Run, evaluator
from limr_jax.step import Phases
from limr_jax.storage import (
    array_digest,
    batch_file,
    checkpoint,
    metrics,
    rollout_dump,
    wandb_sink,
)
from limr_jax.storage.workdir import (
    claim,
    read_result,
    release,
    workdir_path,
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
    begun = first_state.of_new_fork(run, config, workdir, forked)
    claim(workdir, run.identity)
    finished = read_result(workdir)
    if finished:
        release(workdir)
        return finished
    outputs.write_left_out(run, workdir)
    outputs.write_kernels(run, workdir)
    # Left in reverse: logs are whole before the checkpointer gives up the workdir.
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(run.close)
        saver = enter(checkpoint.Checkpointer(workdir, **config.checkpoint))
        enter(jax.set_mesh(run.mesh))
        enter(preemption.listening())
        with console.phase("reading weights"):
            state, frozen, about_base, seconds_before = first_state.restore_or_begin(
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

        def clock() -> float:
            return round(seconds_before + process_seconds(), 2)

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
                    dump.add(done, outputs.rollout_rows(run, rounds))
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
    state, numbers = step.update(run, phases, state, frozen, groups, scores, rounds)
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
        result = outputs.result_of(run, config, saver.workdir, policy, log)
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
