"""The parts of a step: draw, generate, grade, observe, collect, score, update.

`train.one_step` calls them in this order. Each gets the run's parts, the phases that
are timed (or recorded), and the state as the part before left it.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from limr_jax.data.prompts import PromptBatch
from limr_jax.learner.batch import Scores
from limr_jax.models import lora
from limr_jax.multihost import agree, preemption
from limr_jax.programs import Programs, State
from limr_jax.rewards.stats import Mean, RolloutStats, over_rounds
from limr_jax.rewards.types import Graded
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import Rollout


@dataclasses.dataclass(frozen=True)
class StepParts:
    """What the steps of a run are made of; nothing in it changes while it runs."""

    programs: Programs
    grade: Callable  # (Rollout, PromptBatch) → Graded, of the training set
    # Generations of a step; more than 1 where groups are filtered, or with ada.
    max_rounds: int
    sampling: Sampling  # of the training rollouts, on the devices
    seed: jax.Array  # uint32, on the devices
    fingerprint: dict[str, str]  # what all hosts must have in common, shortly


class Frozen(NamedTuple):
    """Parameters that no step changes."""

    # LoRA's base, which all adapters of the state are beside; None: all is learned.
    base: Any = None
    # The KL's reference, with LoRA the base; None: no KL, or the state has it.
    reference: Any = None

    def policy(self, state: State):
        """All parameters of the policy, without a copy of any."""
        return lora.join(self.base, state.train.params)

    def reference_of(self, state: State):
        """All parameters of the KL's reference: the state's where it is reset."""
        if state.reference is None:
            return self.reference
        return lora.join(self.base, state.reference)

    def critic(self, state: State):
        """All parameters of the critic: with LoRA its own adapters on the same base."""
        return lora.join(self.base, state.critic.params)


class Groups(NamedTuple):
    """Prompts with all their rollouts and grades."""

    drawn: PromptBatch
    rollout: Rollout
    graded: Graded


class Round(NamedTuple):
    """What came of one draw."""

    groups: Groups
    stats: RolloutStats


class Learned(NamedTuple):
    """What an update learned from."""

    groups: Groups
    scores: Scores


class Generated(NamedTuple):
    """The rollouts of one draw, and what is known of their grades."""

    rollout: Rollout
    grades: list[Graded]  # of all calls of generate but the last
    ungraded: tuple[Rollout, PromptBatch]  # the last call's


class Collected(NamedTuple):
    """The groups to learn from, as far as a step has come."""

    groups: Groups
    pool: Any  # group_buffer.GroupBuffer; None where a step has one round
    numbers: dict[str, jax.Array]  # metrics
    whole: bool  # there are enough, or no further round is allowed


def draw(run: StepParts, phases, state: State, prompts) -> tuple[State, PromptBatch]:
    """The state after a draw, and the P problems that the sampler has chosen.

    prompts: the training set on the devices.

    Raises:
      agree.Diverged: other processes are at another step, or have drawn others.
      preemption.Stopped: the processes have agreed to stop.
    """
    sampler, drawn = phases("draw", run.programs.draw, state, prompts, run.seed)
    # Hosts that drew other problems would hang in the next collective, or spoil it.
    phases.agree(run.fingerprint, state.step, drawn.ids_P)
    return dataclasses.replace(state, sampler=sampler), drawn


def generate(
    run: StepParts, phases, state: State, frozen: Frozen, drawn: PromptBatch
) -> Generated:
    """G rollouts of each problem, in one or several calls.

    The hosts grade the rollouts of a call while the devices are at the next one's.

    Raises:
      host.GradingFailed: the hosts could not grade one of the earlier calls.
      preemption.Stopped: the processes have agreed to stop.
    """
    programs, params = run.programs, frozen.policy(state)

    def start(part):
        return phases.start(
            "generate",
            programs.generate,
            params,
            state.step,
            part,
            run.sampling,
            run.seed,
            state.drafts,
        )

    parts = [drawn]
    if programs.split:
        parts = phases.queue("split", programs.split, drawn)
    queued, rollouts, grades = start(parts[0]), [], []
    # devices  generate 1  generate 2  generate 3
    # hosts                grade 1     grade 2     grade 3, which `grade` begins
    for part, following in zip(parts, [*parts[1:], None]):
        rollouts.append(phases.wait("generate", queued))
        if following is not None:
            # Queued before the hosts grade, lest the devices wait for them.
            queued = start(following)
            grades.append(phases.start("grade", run.grade, rollouts[-1], part))
    whole = rollouts[0]
    if programs.join:
        whole = phases.queue("join", programs.join, rollouts)
    return Generated(whole, grades, ungraded=(rollouts[-1], parts[-1]))


def grade(run: StepParts, phases, generated: Generated, queued: dict) -> Graded:
    """Correctness, reward and validity of each rollout, by the devices or the hosts.

    queued: what `queue_scores` has queued on the devices; it is waited for first, so
    that each phase has its own seconds.

    Raises:
      host.GradingFailed: the hosts could not grade the rollouts.
      preemption.Stopped: the processes have agreed to stop.
    """
    rollout, drawn = generated.ungraded
    # Hosts grade in this line, while the devices are at what is queued.
    last = phases.start("grade", run.grade, rollout, drawn)
    for name, scores in queued.items():
        phases.wait(name, scores)
    grades = phases.wait("grade", [*generated.grades, last])
    if run.programs.join_grades:
        return phases.queue("join_grades", run.programs.join_grades, grades)
    return grades[0]


def observe(
    run: StepParts, phases, state: State, groups: Groups
) -> tuple[State, Round]:
    """What is remembered of each problem's lengths, and the round's statistics."""
    drawn, rollout, graded = groups
    length_N, stats = phases(
        "observe", run.programs.observe, state.length_N, drawn, rollout, graded
    )
    return dataclasses.replace(state, length_N=length_N), Round(groups, stats)


def collect(
    run: StepParts, phases, state: State, before: Collected | None, rounds: list[Round]
) -> tuple[State, Collected]:
    """The newest round's groups with those before it, where a step has rounds.

    before: what the step's earlier rounds came to; None in its first.
    """
    groups = rounds[-1].groups
    if not run.programs.collect:
        return state, Collected(groups, None, {}, whole=True)
    if before:
        pool = before.pool
    elif run.programs.empty:
        pool = phases.queue("empty", run.programs.empty)
    else:
        # A step begins with the groups that the one before it has left over.
        pool = state.surplus
    pool, surplus, whole, sampler, numbers = phases(
        "collect",
        run.programs.collect,
        pool,
        state.sampler,
        state.step,
        groups.drawn,
        groups.rollout,
        groups.graded,
    )
    # The host waits here: whether to generate once more is its decision.
    whole = phases.reached(whole) or len(rounds) == run.max_rounds
    # No earlier round's surplus is lost: until P groups are kept there is none.
    state = dataclasses.replace(state, surplus=surplus, sampler=sampler)
    drawn, rollout, graded = pool.groups
    return state, Collected(Groups(drawn, rollout, graded), pool, numbers, whole)


def queue_scores(
    run: StepParts, phases, state: State, frozen: Frozen, rollout: Rollout
) -> dict[str, jax.Array]:
    """By phase, what other models and the policy say of each token; not waited for."""
    programs, queued = run.programs, {}
    if programs.reference:
        queued["reference"] = phases.start(
            "reference",
            programs.reference,
            frozen.reference_of(state),
            frozen.policy(state) if programs.recompute else None,
            rollout,
            run.sampling,
        )
    if programs.old:
        queued["old"] = phases.start(
            "old", programs.old, frozen.policy(state), rollout, run.sampling
        )
    if programs.values:
        queued["values"] = phases.start(
            "values", programs.values, frozen.critic(state), rollout
        )
    return queued


def score(
    run: StepParts, phases, state: State, frozen: Frozen, groups: Groups, queued: dict
) -> Scores:
    """What other models, or the policy itself, say of the rollouts to learn from.

    queued: what `queue_scores` gave for these rollouts; empty: they are asked now.
    """
    drawn, rollout, graded = groups
    if not queued:
        queued = queue_scores(run, phases, state, frozen, rollout)
        queued = {name: phases.wait(name, scores) for name, scores in queued.items()}
    thoughts = None
    if run.programs.thoughts:
        thoughts = phases(
            "thoughts",
            run.programs.thoughts,
            frozen.policy(state),
            rollout,
            drawn,
            graded,
            run.sampling,
        )
    reference_BT, old_BT = queued.get("reference", (None, None))
    return Scores(
        reference_BT=reference_BT,
        old_BT=queued.get("old", old_BT),
        value_BT=queued.get("values"),
        thoughts=thoughts,
    )


def update(
    run: StepParts,
    phases,
    state: State,
    frozen: Frozen,
    groups: Groups,
    scores: Scores,
    rounds: list[Round],
) -> tuple[State, dict[str, jax.Array]]:
    """The next step's state, and the update's metrics; `state` is given up for it.

    groups: what is learned from. rounds: all that was written, to draft from.

    Raises preemption.Stopped where the processes have agreed to begin no further one.
    """
    drawn, rollout, graded = groups
    with phases.learning():
        state, numbers = phases(
            "update",
            run.programs.update,
            state,
            drawn,
            rollout,
            graded,
            scores,
            run.sampling,
            run.seed,
            frozen.base,
        )
        if remember := run.programs.remember:
            # Here, where no stop comes between: it takes the old table's memory.
            for drawn, rollout, _ in (each.groups for each in rounds):
                table_NDT = phases.queue(
                    "remember", remember, state.drafts, drawn, rollout
                )
                state = dataclasses.replace(state, drafts=table_NDT)
    return state, numbers


_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
# A count that still grows after the first step shows a program compiled anew.
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
        # A jitted program returns once it is queued; `wait` adds what it then takes.
        out = program(*args)
        spent = time.perf_counter() - start
        self._seconds[name] = self._seconds.get(name, 0.0) + spent
        return out

    def wait(self, name, arrays):
        """The arrays, a pytree, once they are ready; the wait is the phase's, too.

        Raises preemption.Stopped when the processes have agreed to stop.
        """
        return self.start(name, preemption.ready, arrays)

    def queue(self, name, program, *args):
        """Queue a program that is no phase of its own."""
        return program(*args)

    def agree(self, *what) -> None:
        """Refuse to go on where other processes are about to do something else.

        The arguments and what it raises are those of `agree.require_same_step`.
        """
        agree.require_same_step(*what)

    def learning(self):
        """A context: an update within it is finished once it has begun."""
        return preemption.update()

    def reached(self, whole: jax.Array) -> bool:
        """The flag on the host; waits for it."""
        return bool(jax.device_get(whole))

    def finish(self, numbers: dict, stats: list[RolloutStats]) -> dict:
        """The step's metrics by name: those given, and of its time and its tokens.

        numbers: of the update, on the host. stats: of each round, on the host. Added
        are what `over_rounds` gives, seconds of the step and of each phase, tokens a
        second, and the compilations of this process so far. The update's tokens are all
        of its batch, those that the filter drops too.
        """
        numbers = {
            name: np.asarray(x) if isinstance(x, Mean) else x
            for name, x in numbers.items()
        } | over_rounds(stats)
        tokens = float(numbers.pop("tokens"))
        # With dynamic sampling more is generated than learned.
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


class Called(NamedTuple):
    """A program, and the arrays or shapes that it is called with."""

    name: str  # of its phase, or of a program that is no phase of its own
    program: Callable
    args: tuple
    results: tuple = ()  # what the step's calls before it gave


class Recording:
    """In the place of `Phases`: what a step calls, with nothing called but for shapes.

    Where only some groups are kept, one round is recorded: another calls the same.
    """

    def __init__(self):
        self.calls: list[Called] = []
        self._results: list[Any] = []

    def __call__(self, name, program, *args):
        if hasattr(program, "lower"):  # a host's grader is no program
            self.calls.append(Called(name, program, args, tuple(self._results)))
        self._results.append(program.eval_shape(*args))
        return self._results[-1]

    start = queue = __call__

    def wait(self, name, arrays):
        return arrays

    def agree(self, *_) -> None:
        """No host has anything to compare."""

    def reached(self, whole) -> bool:
        return True

    def learning(self):
        return contextlib.nullcontext()
