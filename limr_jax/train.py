"""The loop: sample → generate → grade → update → log → (save) → (evaluate)."""

import contextlib
import dataclasses
import os
import signal
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import checkpoint, data, evaluate, metrics, model
from limr_jax.objectives import Scores
from limr_jax.programs import Drawn, Graded
from limr_jax.rollout import Rollout
from limr_jax.run import Run, evaluator, put_sampling
from limr_jax.sharding import param_shardings
from limr_jax.tally import Tally, over_rounds


def train(run: Run, config, workdir: str) -> dict | None:
    """Train to `config.num_steps`, from the workdir's last checkpoint if it has one.

    Returns the result (kept in result.json too), or None after SIGTERM: then the state
    is saved, and the same call goes on from there.
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
        stop = enter(_stop_signal())
        state, reference, clock = _first_state(run, config, saver)
        start = int(jax.device_get(state.step))
        log = enter(metrics.Metrics(workdir, step=start))
        dump = metrics.Dump(
            workdir,
            step=start,
            max_bytes=config.dump.max_bytes,
            rows_per_step=config.dump.rows_per_step or None,
        )
        prompts = data.put(run.train_set, run.mesh)
        exam = _Exam(run, config, log)
        exam.before(state.train.params)
        exam.now_and_then(start, state.train.params)  # where a stop came before it
        advance = enter(metrics.progress("train", config.num_steps - start))
        enter(jax.transfer_guard("disallow"))

        for step in range(start + 1, config.num_steps + 1):
            phases = Phases()
            state, rounds, numbers = one_step(run, phases, state, reference, prompts)
            numbers = phases.finish(*jax.device_get(numbers))
            dump.add(step, _rows(run, rounds))
            shown = log.step(step, numbers)
            metrics.say(metrics.line(step, shown, num_steps=config.num_steps))
            stopping = stop()
            if saver.due(step) or stopping or step == config.num_steps:
                saver.save(step, state, {"seconds": clock()})
            if stopping:
                return None
            exam.now_and_then(step, state.train.params)
            advance()

        exam.after(config.num_steps, state.train.params)
        saver.wait()  # a run whose last checkpoint is not whole is not finished
        result = _result(config, workdir, state, exam) | {"seconds": clock()}
        checkpoint.write_result(workdir, result)
        return result


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


class Round(NamedTuple):
    """What came of one generation."""

    drawn: Drawn
    written: Rollout
    graded: Graded
    tally: Tally
    scored: dict  # `_score` of it, where it is the step's batch as it stands


def _one_round(run: Run, phases, state, reference, prompts) -> tuple[Any, Round]:
    """Sample, generate, grade: the sampler's state, and what came of it."""
    programs = run.programs
    sampler_state, drawn = phases("draw", programs.draw, state, prompts, run.seed)
    written = phases(
        "generate",
        programs.generate,
        state.train.params,
        state.step,
        drawn,
        run.sampling,
        run.seed,
    )
    # Queued before the hosts grade, so that the devices work meanwhile.
    queued = programs.collect is None
    scoring = _score(run, phases, state, reference, written) if queued else {}
    graded = phases.start("grade", run.grade, written, drawn)
    scored, graded = _wait(phases, scoring), phases.wait("grade", graded)
    tally = phases("observe", programs.observe, written, graded)
    return sampler_state, Round(drawn, written, graded, tally, scored)


def _collected(run: Run, phases, state, reference, prompts):
    """Rounds until there is a whole batch of groups to learn from, or the bound is met.

    Returns the sampler's state, what is over, the batch, all rounds, and metrics.
    """
    collect, batch, rounds = run.programs.collect, state.surplus, []
    while True:
        sampler_state, new = _one_round(run, phases, state, reference, prompts)
        state = dataclasses.replace(state, sampler=sampler_state)
        rounds.append(new)
        if not collect:
            return sampler_state, None, new[:3], rounds, {}
        batch, surplus, numbers = phases(
            "collect", collect, batch, sampler_state, state.step, *new[:3]
        )
        whole = jax.device_get(numbers["dynamic/used_groups"]) == len(batch.kept_P)
        if whole or len(rounds) == run.max_rounds:
            return sampler_state, surplus, batch.groups, rounds, numbers


def one_step(run: Run, phases, state, reference, prompts):
    """One step: sample, generate, grade, update; the sampler learns in the update."""
    sampler_state, surplus, batch, rounds, collected = _collected(
        run, phases, state, reference, prompts
    )
    scored = rounds[-1].scored
    if run.programs.collect:
        scored = _wait(phases, _score(run, phases, state, reference, batch[1]))
    scores = Scores(
        reference_BT=scored.get("reference"),
        value_BT=scored.get("values"),
        thoughts=_thoughts(run, phases, state, *batch),
    )
    learned = state, sampler_state, surplus, *batch, scores, run.sampling
    state, numbers = phases("update", run.programs.update, *learned)
    tallies = [each.tally for each in rounds]
    return state, rounds, (numbers | collected, tallies)


def _score(run: Run, phases, state, reference, written) -> dict:
    """What the reference and the critic say of the rollouts, by phase; queued only."""
    programs, asked = run.programs, {}
    if programs.reference:
        asked["reference"] = programs.reference, reference, written, run.sampling
    if programs.values:
        asked["values"] = programs.values, state.critic.params, written
    return {name: phases.start(name, *program) for name, program in asked.items()}


def _wait(phases, queued: dict) -> dict:
    return {name: phases.wait(name, arrays) for name, arrays in queued.items()}


def _thoughts(run: Run, phases, state, drawn, written, graded):
    """How likely thoughts make the reference answers; None where nobody asks."""
    program = run.programs.thoughts
    if not program:
        return None
    asked = state.train.params, written, drawn, graded, run.sampling
    return phases("thoughts", program, *asked)


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
    if not run.programs.reference:
        return None
    return jax.jit(
        # A copy: the policy's own buffers are donated.
        lambda x: jax.tree.map(jnp.copy, model.compute_params(x, run.dtype)),
        out_shardings=param_shardings(run.mesh, params),
    )(params)


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


@contextlib.contextmanager
def _stop_signal():
    """Yields a function that says whether SIGTERM has come."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(True))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compilations: list[float] = []  # seconds of each one in this process


def _note_compilation(event: str, seconds: float, **_) -> None:
    if event == _COMPILE_EVENT:
        _compilations.append(seconds)


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


class Phases:
    """Seconds of each phase of one step."""

    def __init__(self):
        self._seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def __call__(self, name, program, *args):
        """Run it to its end."""
        return self.wait(name, self.start(name, program, *args))

    def start(self, name, program, *args):
        """Queue it on the devices; what the hosts do in it is done on return."""
        start = time.perf_counter()
        out = program(*args)
        spent = time.perf_counter() - start
        self._seconds[name] = self._seconds.get(name, 0.0) + spent
        return out

    def wait(self, name, arrays):
        """Until these are ready; the phase's seconds grow by the wait."""
        return self.start(name, jax.block_until_ready, arrays)

    def finish(self, numbers: dict, tallies: list[Tally]) -> dict:
        """The step's numbers with seconds, tokens a second, and compilations so far."""
        numbers = numbers | over_rounds(tallies)
        tokens = float(numbers.pop("tokens"))
        learned = float(numbers.pop("dynamic/used_tokens", tokens))
        seconds = {f"seconds_{name}": s for name, s in self._seconds.items()}
        whole = time.perf_counter() - self._start
        return {
            **numbers,
            **seconds,
            "seconds": whole,
            "tokens": tokens,
            "tokens_per_second": tokens / whole,
            "generate_tokens_per_second": tokens / self._seconds["generate"],
            "update_tokens_per_second": learned / self._seconds["update"],
            "compile_count": len(_compilations),
        }


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


def _rows(run: Run, rounds: list[Round]):
    """Each rollout of a step as a row of the dump, used or not."""
    for each in rounds:
        yield from _rows_of(run, *jax.device_get(each[:3]))


def _rows_of(run: Run, drawn, written, graded):
    problems, group = run.train_set.problems, written.group
    length_B = written.mask_BT.sum(axis=1)
    for b, row_T in enumerate(written.response_BT):
        p, g = divmod(b, group)
        index = int(drawn.ids_P[p])
        yield {
            "id": problems.ids[index],
            "sample": g,
            "prompt": problems.prompts[index],
            "response": run.tokenizer.decode(row_T[: length_B[b]]),
            "reward": graded.reward_PG[p, g],
            **{f"reward/{name}": x_PG[p, g] for name, x_PG in graded.parts.items()},
            "correct": graded.correct_PG[p, g],
            "valid": graded.valid_PG[p, g],
            "truncated": written.truncated_B[b],
            "length": length_B[b],
        }


def _result(config, workdir, state, exam: _Exam) -> dict:
    """The run's one JSON object, all but the seconds."""
    rows = [*metrics.read_metrics(workdir)]
    before, after = exam(0), exam(config.num_steps)
    k = config.evaluation.samples
    return {
        "steps": config.num_steps,
        "epochs": int(np.floor(rows[-1]["epoch"])),
        "eval_problems": len(exam) or None,
        "eval_accuracy_before": before.get("accuracy"),
        "eval_accuracy_after": after.get("accuracy"),
        "eval_accuracy_well_formed_before": before.get("accuracy_well_formed"),
        "eval_accuracy_well_formed_after": after.get("accuracy_well_formed"),
        f"pass_at_{k}_before": before.get(f"sampled/pass_at_{k}"),
        "format_valid_before": before.get("well_formed"),
        "params_digest": checkpoint.params_digest(state.train.params),
        "workdir": str(workdir),
    }
