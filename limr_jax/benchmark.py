"""Benchmarks: held-out sets, each under a protocol of its own, and who answers them."""

import copy
import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import limr_jax
from limr_jax import checkpoint, data, math_extract, past_run, programs, rollout, text
from limr_jax.compiling import jit
from limr_jax.datasets import facts, prepared
from limr_jax.errors import InputError
from limr_jax.host_grader import HostGrader
from limr_jax.policy import compute_dtype, load_params, read_model_config, resolve
from limr_jax.run import make_host_reward, put_sampling
from limr_jax.sharding import BATCH, make_mesh
from limr_jax.words import answer_phrase

SAMPLED = 0.4  # temperature where a problem has several responses, as LIMR has it
_NO_LIMIT = 2**30  # tokens of a prompt


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One held-out set and how it is answered."""

    spec: str  # as data.load_problems reads it
    k: int  # responses a problem
    temperature: float  # 0: greedy

    @property
    def label(self) -> str:
        return f"{self.spec}@{self.k}"


def parse(names: str, *, k: int, temperature: float) -> list[Benchmark]:
    """'math500, aime24@4, amc23:test[:20]@4@0.6' → benchmarks.

    After an @ stand the responses a problem, after another their temperature; `k` and
    `temperature` are for those without. Below 0 it is 0 for one response, else SAMPLED.
    InputError, one line, for whatever makes no sense.
    """
    made: dict[str, Benchmark] = {}
    own = []  # how many of the two each benchmark gives itself
    for name in filter(None, map(str.strip, names.split(","))):
        # A file may have an @ in its name.
        spec, *given = [name] if pathlib.Path(name).exists() else name.split("@")
        try:
            if len(given) > 2:
                raise ValueError
            count = int(given[0]) if given else k
            heat = float(given[1]) if len(given) > 1 else temperature
        except ValueError:
            raise InputError(
                f"benchmark {name!r}: after the @ stand a whole number of responses "
                "and, after another @, their temperature; write aime24@4@0.6"
            ) from None
        if heat < 0:
            heat = 0.0 if count == 1 else SAMPLED
        one = Benchmark(_with_split(spec), count, heat)
        _check(one)
        if one.label in made:
            raise InputError(f"benchmark {one.label} is named twice; name it once")
        made[one.label] = one
        own.append(len(given))
    if not made:
        raise InputError(
            "no benchmark is named and the config has no data.eval; give "
            "--benchmarks=math500,aime24@4"
        )
    for name, value, told, default in (
        ("k", k, min(own) > 0, 1),
        ("temperature", temperature, min(own) > 1, -1.0),
    ):
        if told and value != default:
            raise InputError(
                f"{name}={value} is for benchmarks that do not say, but all of "
                f"{names!r} do, after an @; leave out one of the two"
            )
    return list(made.values())


def _check(one: Benchmark) -> None:
    if one.k < 1:
        raise InputError(f"benchmark {one.label}: k={one.k} must be at least 1")
    if not math.isfinite(one.temperature):
        raise InputError(
            f"benchmark {one.label}: temperature {one.temperature} is no number to "
            "divide by; give 0.4, or 0 for greedy"
        )
    if one.temperature == 0 and one.k > 1:
        raise InputError(
            f"benchmark {one.label}: greedy, its {one.k} responses are the same; give "
            "k=1 or a temperature above 0"
        )


def _with_split(spec: str) -> str:
    """A builder's name alone means its split for evaluation: aime24 → aime24:test."""
    name, bracket, rest = spec.partition("[")
    if ":" in name or name not in prepared.names():
        return spec
    splits = facts.FACTS[name].splits if name in facts.FACTS else ("eval",)
    split = next((each for each in ("test", "eval") if each in splits), "")
    return f"{name}:{split}{bracket}{rest}" if split else spec


@dataclasses.dataclass(frozen=True)
class Paper:
    """One benchmark, ready to be answered."""

    benchmark: Benchmark
    problems: data.TokenizedProblems
    sampling: rollout.Sampling  # on the devices
    grade: Callable  # (Rollout, Drawn) → Graded


@dataclasses.dataclass(frozen=True)
class Examination:
    """A policy and what it is asked; nothing is answered yet."""

    mesh: jax.sharding.Mesh
    tokenizer: text.Tokenizer
    papers: tuple[Paper, ...]
    generation: dict  # what evaluate.make takes
    seed: int
    answer_of: Callable[[str, bool], str | None]  # (response, truncated) → its answer
    load_params: Callable[[], Any]  # the policy's parameters, fp32
    close: Callable[[], None]  # ends the graders' processes
    identity: dict  # all that the responses depend on, but for the parameters


def set_up(config, workdir: str = "", step: int | None = None) -> Examination:
    """Check the config and read the sets; InputError in one line.

    workdir: the run whose checkpoint of `step` (None: the latest) is the policy;
    without one it is the config's own, `model.init`.
    """
    config = copy.deepcopy(config)
    config.overlong.buffer = 0  # shapes what is learned from, not what is right
    if config.reward == "none":  # of training; what is held out has its answers
        config.reward = "token"
    _check_limits(config)
    given, rollouts = config.benchmarks, config.rollout
    wanted = parse(
        given.names or config.data.eval, k=given.k, temperature=given.temperature
    )
    policy = {"init": config.model.init}
    if workdir:
        step = past_run.latest_step(workdir) if step is None else step
        policy = {"run": str(checkpoint.workdir_path(workdir)), "step": step}
    mesh = make_mesh(**config.mesh)
    tokenizer = text.load_tokenizer(resolve(config.tokenizer or config.model.init))
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    load = partial(load_params, config, model_config, mesh)
    if workdir:
        load = partial(past_run.load_params, workdir, step, model_config, mesh)
    papers, close = _papers(config, wanted, mesh, tokenizer)
    generation = {
        "config": model_config,
        "response_length": given.max_response_length or rollouts.max_response_length,
        "slots": rollouts.slots or config.prompts_per_step * config.group_size,
        "shrinks": rollouts.shrinks,
        "stop_ids": tokenizer.stop_ids,
        "pad_id": tokenizer.pad_id,
        "dtype": compute_dtype(config.model.dtype, mesh.devices.flat),
    }
    phrase = config.answer_phrase if config.reward == "token" else None
    return Examination(
        mesh=mesh,
        tokenizer=tokenizer,
        papers=papers,
        generation=generation,
        seed=config.seed,
        answer_of=partial(answer_of, phrase=phrase),
        load_params=load,
        close=close,
        identity={"policy": policy} | _identity(config, papers, generation),
    )


def _check_limits(config) -> None:
    """Settings that are wrong whatever the policy and the sets."""
    given, rollouts = config.benchmarks, config.rollout
    longest = given.max_response_length or rollouts.max_response_length
    for name, value, least in (
        ("benchmarks.max_response_length", longest, 1),
        ("benchmarks.max_prompt_length", given.max_prompt_length, 0),
        ("rollout.slots", rollouts.slots, 0),
    ):
        if value < least:
            raise InputError(f"{name}={value} must be at least {least}")
    if not config.tokenizer and config.model.init == "random":
        raise InputError(
            "neither a checkpoint nor a tokenizer is named; give "
            "--config.model.init=DIR, or --workdir=RUN"
        )


def _identity(config, papers, generation) -> dict:
    """What the responses and their grades depend on, beside the policy."""
    limits = ("wall_seconds", "cpu_seconds", "memory_mib")
    return {
        "model": str(generation["config"]),
        "benchmarks": {
            paper.benchmark.label: _paper_identity(paper) for paper in papers
        },
        "top_p": config.benchmarks.top_p,
        "max_response_length": generation["response_length"],
        "reward": config.reward,
        "answer_phrase": config.answer_phrase,
        "grader": {name: config.grader[name] for name in limits},
        "judge": config.judge.to_dict() if config.judge.init else None,
        "seed": config.seed,
        "dtype": jnp.dtype(generation["dtype"]).name,
        "version": limr_jax.__version__,
    }


def _paper_identity(paper: Paper) -> dict:
    prompts = hashlib.sha256(paper.problems.prompt_NL.tobytes())
    prompts.update(paper.problems.prompt_length_N.tobytes())
    return {
        "temperature": paper.benchmark.temperature,
        "data": paper.problems.problems.digest,
        "prompts": prompts.hexdigest(),
    }


def _papers(config, wanted, mesh, tokenizer):
    """(a paper for each benchmark, what ends their graders)."""
    if config.reward == "token":
        phrase = answer_phrase(config, tokenizer)
        rows = NamedSharding(mesh, BATCH)
        verify = jit(mesh, partial(programs.verify, phrase=phrase), out_shardings=rows)
        grader, close = (lambda problems: verify), (lambda: None)
    else:
        graded = make_host_reward(config)
        grader, close = partial(_host_grader, mesh, tokenizer, graded), graded.close

    def paper(benchmark):
        sampling = put_sampling(
            mesh, temperature=benchmark.temperature, top_p=config.benchmarks.top_p
        )
        problems = _read(config, benchmark.spec, tokenizer)
        return Paper(benchmark, problems, sampling, grader(problems.problems))

    return tuple(map(paper, wanted)), close


def _host_grader(mesh, tokenizer, graded, problems) -> HostGrader:
    return HostGrader(mesh, tokenizer, problems, graded)


def _read(config, spec: str, tokenizer) -> data.TokenizedProblems:
    """The set, tokenized; without a limit on prompts no problem is left out."""
    given = config.data
    return data.tokenize(
        data.load_problems(
            spec,
            data_dir=resolve(given.cache_dir),
            manual_dir=resolve(given.manual_dir) if given.manual_dir else None,
        ),
        tokenizer,
        max_prompt_length=config.benchmarks.max_prompt_length or _NO_LIMIT,
        too_long=given.too_long,
    )


def answer_of(response: str, truncated: bool, *, phrase: str | None) -> str | None:
    """What a response says the answer is, None where it says nothing.

    With a phrase, for the in-graph verifier: what stands after the last one in a
    response that ended. Without one: what the last balanced box holds.
    """
    if phrase is None:
        return math_extract.boxed_answer(response)
    _, found, answer = response.rpartition(phrase)
    return answer.strip() if found and not truncated else None
