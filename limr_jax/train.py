"""The loop: sample → generate → grade → update → log → (save) → (evaluate)."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator

import jax
import numpy as np

from limr_jax import checkpoint, data, evaluate, hosts, metrics, stop
from limr_jax.learner import refuse_divergence
from limr_jax.run import Run, evaluator, put_sampling
from limr_jax.step import Phases, Round, one_step


def train(run: Run, config, workdir: str, ahead=None) -> dict | None:
    """Train to `config.num_steps`, from the workdir's last checkpoint if it has one.

    ahead: `ahead.compiling`; without it each program compiles when it is first called.

    Returns the result (kept in result.json too), or None after SIGTERM: then the state
    after the last update is saved, and the same call goes on from there.
    """
    checkpoint.claim(workdir, run.identity)
    finished = checkpoint.read_result(workdir)
    if finished:
        checkpoint.release(workdir)
        return finished
    _name_left_out(run, workdir)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        saver = enter(checkpoint.Checkpointer(workdir, **config.checkpoint))
        enter(jax.set_mesh(run.mesh))
        enter(stop.listening())
        first = _first_state(run, config, saver)
        start = _done(first[0])
        log = enter(metrics.Metrics(workdir, step=start))
        training = _Training(run, config, workdir, saver, log, *first)
        tick = enter(metrics.progress("train", config.num_steps - start))
        try:
            stop.obey()
            hosts.agree("data and first step", run.identity | {"step": start})
            ready = None
            if ahead and start < config.num_steps:
                ready = enter(ahead(run, config, training.prompts))
            training.begin()
            if ready:
                ready()
            enter(jax.transfer_guard("disallow"))
            for _ in range(start, config.num_steps):
                training.step()
                tick()
            return training.end()
        except stop.Stopped:  # rollouts that wait for their update are dropped
            training.save()
            return None


class _Training:
    """A run under way: the state after its last update, and what is kept of it."""

    def __init__(self, run: Run, config, workdir, saver, log, state, reference, clock):
        self._run, self._config, self._workdir = run, config, workdir
        self._saver, self._log = saver, log
        self._state, self._reference, self._clock = state, reference, clock
        self._dump = metrics.Dump(
            workdir,
            step=_done(state),
            max_bytes=config.dump.max_bytes,
            rows_per_step=config.dump.rows_per_step or None,
        )
        self.prompts = data.put(run.train_set, run.mesh)
        self._exam = _Exam(run, config, log)

    def begin(self) -> None:
        """The evaluations that come before the next step, where they are not done."""
        step, params = _done(self._state), self._state.train.params
        if step == 0:
            self._exam.before(params)
        self._exam.now_and_then(step, params)  # where a stop came before it

    def step(self) -> None:
        """The next step, and what is kept of it; a checkpoint where one is due."""
        run, config, phases = self._run, self._config, Phases()
        self._state, rounds, numbers = one_step(
            run, phases, self._state, self._reference, self.prompts
        )
        numbers, step = phases.finish(*hosts.on_host(numbers)), _done(self._state)
        if self._dump.keeps:
            self._dump.add(step, _rows(run, rounds))
        del rounds  # the next evaluation's rollouts take their memory
        shown = self._log.step(step, numbers)
        metrics.say(metrics.line(step, shown, num_steps=config.num_steps))
        refuse_divergence(step, numbers, self._saver.latest)
        if self._saver.due(step) or step == config.num_steps:
            self.save()
        self._exam.now_and_then(step, self._state.train.params)

    def save(self) -> None:
        """A checkpoint of the state after the last update."""
        state = self._state
        self._saver.save(_done(state), state, {"seconds": self._clock()})

    def end(self) -> dict:
        """The last evaluation; the run's result, which is written too."""
        self._exam.after(self._config.num_steps, self._state.train.params)
        with stop.update():
            self._saver.wait()  # without a whole last checkpoint nothing is finished
            result = _result(self._config, self._workdir, self._state, self._exam)
            result |= {"seconds": self._clock()}
            checkpoint.write_result(self._workdir, result)
        return result


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
        path = checkpoint.workdir_path(workdir) / "left_out.json"
        checkpoint.write_json(path, left_out)


def _first_state(run: Run, config, saver):
    """State of a new run or of the last checkpoint, the reference, and the clock."""
    latest = saver.latest()
    params = run.load_params() if latest is None or run.programs.reference else None
    reference = reference_of(run, params)
    seconds_before = 0.0
    if latest is None:
        state = run.programs.init(params)
    else:
        state, meta = saver.restore(latest, run.programs.state)
        seconds_before = meta["seconds"]
        metrics.say(f"going on after step {latest} of {config.num_steps}")
    return state, reference, lambda: round(seconds_before + process_seconds(), 2)


def reference_of(run: Run, params):
    """The reference: the first policy in the dtype of compute; None without KL."""
    return run.programs.copy(params) if run.programs.copy else None


def process_seconds() -> float:
    """Wall time since this process started, imports included."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            started = int(file.read().rsplit(")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf(
            "SC_CLK_TCK"
        )
    except (OSError, AttributeError):  # not Linux: since this module was imported
        return time.monotonic() - _IMPORTED


_IMPORTED = time.monotonic()


class _Exam:
    """The evaluations of a run: before, now and then, after."""

    def __init__(self, run: Run, config, log: metrics.Metrics):
        self._run, self._config, self._log = run, config, log
        self._evaluate = evaluator(run, 1, config.seed) if run.eval_set else None
        self._greedy = put_sampling(run.mesh, temperature=0.0)

    def __len__(self) -> int:
        """Held-out problems; 0 without an evaluation."""
        return len(self._run.eval_set) if self._run.eval_set else 0

    def __call__(self, step: int) -> dict:
        """The figures of the evaluation at this step; empty where there is none."""
        return self._log.evaluated(step) or {}

    def before(self, params) -> None:
        """Greedy accuracy, and pass@k of k samples, of the policy before training."""
        if not self._evaluate or self(0):
            return
        k = self._config.evaluation.samples
        sampled = {}
        if k > 1:
            evaluate_k = evaluator(self._run, k, self._config.seed)
            sampled = self._figures(evaluate_k, params, self._run.sampling)
            sampled = {f"sampled/{name}": x for name, x in sampled.items()}
        greedy = self._figures(self._evaluate, params, self._greedy)
        self._log.evaluation(0, greedy | sampled)
        self._say(0)

    def now_and_then(self, step: int, params) -> None:
        """`after` every so many steps."""
        every = self._config.evaluation.every
        if every and step % every == 0:
            self.after(step, params)

    def after(self, step: int, params) -> None:
        """Greedy accuracy after this step."""
        if self._evaluate and not self(step):
            figures = self._figures(self._evaluate, params, self._greedy)
            self._log.evaluation(step, figures)
            self._say(step)

    def _figures(self, evaluate_set, params, sampling) -> dict:
        start = time.perf_counter()
        with metrics.progress(
            "evaluate", len(self._run.eval_set), unit="problem"
        ) as advance:
            result = evaluate_set(params, sampling, advance)
        levels = self._run.eval_set.problems.columns.get("level")
        seconds = time.perf_counter() - start
        return evaluate.summary(result, levels) | {"seconds": seconds}

    def _say(self, step: int) -> None:
        accuracy, formed = (
            "none" if share is None else f"{share:.1%}"
            for share in (self(step)[name] for name in ("accuracy", "well_formed"))
        )
        metrics.say(
            f"evaluation after step {step}: accuracy {accuracy} of "
            f"{len(self._run.eval_set)} held-out problems, {formed} well formed"
        )


def _rows(run: Run, rounds: list[Round]) -> Iterator[dict]:
    """Each rollout of a step as a row of the dump, used or not, of all hosts'."""
    arrays = hosts.on_host(
        [
            (x.drawn.ids_P, x.graded)
            + (x.written.response_BT, x.written.mask_BT, x.written.truncated_B)
            for x in rounds
        ]
    )
    return itertools.chain.from_iterable(_rows_of(run, *each) for each in arrays)


def _rows_of(run: Run, ids_P, graded, response_BT, mask_BT, truncated_B):
    problems, group = run.train_set.problems, graded.reward_PG.shape[1]
    length_B = mask_BT.sum(axis=1)
    for b, row_T in enumerate(response_BT):
        p, g = divmod(b, group)
        index = int(ids_P[p])
        yield {
            "id": problems.ids[index],
            "sample": g,
            "prompt": problems.messages[index] or problems.prompts[index],
            "response": run.tokenizer.decode(row_T[: length_B[b]]),
            "reward": graded.reward_PG[p, g],
            **{f"reward/{name}": x_PG[p, g] for name, x_PG in graded.parts.items()},
            "correct": graded.correct_PG[p, g],
            "valid": graded.valid_PG[p, g],
            "truncated": truncated_B[b],
            "length": length_B[b],
        }


def _result(config, workdir, state, exam: _Exam) -> dict:
    """The run's one JSON object, all but the seconds; process 0 puts it together."""
    digest = checkpoint.params_digest(state.train.params)
    if jax.process_index() > 0:
        return hosts.first("result", None)
    rows = [*metrics.read_metrics(workdir)]
    before, after = exam(0), exam(config.num_steps)
    k = config.evaluation.samples
    result = {
        "steps": config.num_steps,
        "epochs": int(np.floor(rows[-1]["epoch"])),
        "eval_problems": len(exam) or None,
        "eval_accuracy_before": before.get("accuracy"),
        "eval_accuracy_after": after.get("accuracy"),
        "eval_accuracy_well_formed_before": before.get("accuracy_well_formed"),
        "eval_accuracy_well_formed_after": after.get("accuracy_well_formed"),
        f"pass_at_{k}_before": before.get(f"sampled/pass_at_{k}"),
        "format_valid_before": before.get("well_formed"),
        "params_digest": digest,
        "workdir": str(workdir),
    }
    return hosts.first("result", result)
