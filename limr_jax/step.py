"""One step: sample → generate → grade, in rounds where it takes several → update."""

import dataclasses
import time
from typing import NamedTuple

import jax

from limr_jax import hosts, stop
from limr_jax.objectives import Scores
from limr_jax.programs import Drawn, Graded
from limr_jax.rollout import Rollout
from limr_jax.run import Run
from limr_jax.tally import Tally, over_rounds


class Round(NamedTuple):
    """What came of one generation."""

    drawn: Drawn
    written: Rollout
    graded: Graded
    tally: Tally
    scored: dict  # `_score` of it, where it is the step's batch as it stands


def _one_round(run: Run, phases, state, reference, prompts) -> tuple[dict, Round]:
    """Sample, generate, grade: what the state has anew, and what came of it."""
    programs = run.programs
    sampler_state, drawn = phases("draw", programs.draw, state, prompts, run.seed)
    hosts.agree_on_step(run.fingerprint, state.step, drawn.ids_P)

    def ask(part):
        asked = state.train.params, state.step, part, run.sampling, run.seed
        return phases.start("generate", programs.generate, *asked)

    parts = programs.split(drawn) if programs.split else [drawn]
    coming, answers, grades = ask(parts[0]), [], []
    for part, after in zip(parts, [*parts[1:], None]):
        answers.append(phases.wait("generate", coming))
        # Queued before the hosts grade, so that the devices work meanwhile.
        if after is not None:
            coming = ask(after)
        else:
            written = programs.join(answers) if programs.join else answers[0]
            queued = programs.collect is None
            scoring = _score(run, phases, state, reference, written) if queued else {}
        grades.append(phases.start("grade", run.grade, answers[-1], part))
    scored, grades = _wait(phases, scoring), phases.wait("grade", grades)
    graded = programs.join_grades(grades) if programs.join_grades else grades[0]
    seen = state.length_N, drawn, written, graded
    length_N, tally = phases("observe", programs.observe, *seen)
    anew = {"sampler": sampler_state, "length_N": length_N}
    return anew, Round(drawn, written, graded, tally, scored)


def _collected(run: Run, phases, state, reference, prompts):
    """Rounds until there is a whole batch of groups to learn from, or the bound is met.

    Returns what the state has anew, what is over, the batch, all rounds, and metrics.
    """
    collect, batch, rounds = run.programs.collect, state.surplus, []
    while True:
        anew, new = _one_round(run, phases, state, reference, prompts)
        state = dataclasses.replace(state, **anew)
        rounds.append(new)
        if not collect:
            return anew, None, new[:3], rounds, {}
        batch, surplus, numbers = phases(
            "collect", collect, batch, state.sampler, state.step, *new[:3]
        )
        whole = jax.device_get(numbers["dynamic/used_groups"]) == len(batch.kept_P)
        if whole or len(rounds) == run.max_rounds:
            return anew, surplus, batch.groups, rounds, numbers


def one_step(run: Run, phases, state, reference, prompts):
    """One step: sample, generate, grade, update; the sampler learns in the update."""
    anew, surplus, batch, rounds, collected = _collected(
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
    state = dataclasses.replace(state, length_N=anew["length_N"])
    learned = state, anew["sampler"], surplus, *batch, scores, run.sampling
    with stop.update():
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
        return self.start(name, stop.ready, arrays)

    def finish(self, numbers: dict, tallies: list[Tally]) -> dict:
        """The step's numbers with seconds, tokens a second, and compilations so far.

        The update's tokens are all of its batch, those that the filter drops too.
        """
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
