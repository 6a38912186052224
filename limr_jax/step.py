"""One step: sample → generate → grade, in rounds where it takes several → update."""

import dataclasses
import time
from typing import Any, NamedTuple

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


def _one_round(run: Run, phases, state, prompts) -> tuple[Any, Round]:
    """Sample, generate, grade: the sampler's state, and what came of it."""
    programs = run.programs
    sampler_state, drawn = phases("draw", programs.draw, state, prompts, run.seed)
    hosts.agree_on_step(run.fingerprint, state.step, drawn.ids_P)
    written = phases(
        "generate",
        programs.generate,
        state.train.params,
        state.step,
        drawn,
        run.sampling,
        run.seed,
    )
    graded = phases("grade", run.grade, written, drawn)
    tally = phases("observe", programs.observe, written, graded)
    return sampler_state, Round(drawn, written, graded, tally)


def _collected(run: Run, phases, state, prompts):
    """Rounds until there is a whole batch of groups to learn from, or the bound is met.

    Returns the sampler's state, what is over, the batch, all rounds, and metrics.
    """
    collect, batch, rounds = run.programs.collect, state.surplus, []
    while True:
        sampler_state, new = _one_round(run, phases, state, prompts)
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
        run, phases, state, prompts
    )
    scores = _scores(run, phases, state, reference, *batch)
    with stop.update():
        state, numbers = phases(
            "update",
            run.programs.update,
            state,
            sampler_state,
            surplus,
            *batch,
            scores,
            run.sampling,
        )
    tallies = [each.tally for each in rounds]
    return state, rounds, (numbers | collected, tallies)


def _scores(run: Run, phases, state, reference, drawn, written, graded) -> Scores:
    """What the algorithm wants to know of the rollouts before it learns from them."""
    programs, sampling = run.programs, run.sampling
    found = {}
    if programs.reference:
        found["reference_BT"] = phases(
            "reference", programs.reference, reference, written, sampling
        )
    if programs.values:
        found["value_BT"] = phases(
            "values", programs.values, state.critic.params, written
        )
    if programs.thoughts:
        found["thoughts"] = phases(
            "thoughts",
            programs.thoughts,
            state.train.params,
            written,
            drawn,
            graded,
            sampling,
        )
    return Scores(**found)


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
        start = time.perf_counter()
        out = stop.ready(program(*args))
        spent = time.perf_counter() - start
        self._seconds[name] = self._seconds.get(name, 0.0) + spent
        return out

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
