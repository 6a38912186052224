"""A benchmark suite: held-out sets with a protocol each, and the policy evaluated."""

import copy
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

import limr_jax
from limr_jax.config import limits
from limr_jax.data.boxed import boxed_answer
from limr_jax.data.datasets import catalogue, tfds
from limr_jax.data.problems import (
    TokenizedProblems,
    load_problems,
    named_file,
    tokenize,
)
from limr_jax.data.special_tokens import encode_answer_phrase
from limr_jax.data.tokenizer import Tokenizer, load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.jit import jit
from limr_jax.learner.field_limits import check_fields
from limr_jax.models import lora, transformer
from limr_jax.models.attention import kernel_check
from limr_jax.models.config import ComputeConfig
from limr_jax.models.from_config import (
    check_adapters,
    check_length,
    compute_config,
    compute_dtype,
    load_base,
    load_learned,
    read_model_config,
)
from limr_jax.platform import resolve
from limr_jax.rewards import in_graph
from limr_jax.rewards.from_config import make_host_reward
from limr_jax.rewards.host_grader import HostGrader
from limr_jax.rollout.sampling import Sampling, put_sampling
from limr_jax.rollout.types import GenerateConfig
from limr_jax.sharding import BATCH, make_mesh
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.workdir import workdir_path

SAMPLED = 0.4  # temperature where a problem has several responses, as LIMR has it
_NO_LIMIT = 2**30  # tokens of a prompt


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One held-out set and how it is answered."""

    spec: str  # as `problems.load_problems` reads it
    k: int  # responses a problem
    temperature: float  # 0: greedy

    @property
    def label(self) -> str:
        """'SET@k': of its folder and its figures; the temperature is no part of it."""
        return f"{self.spec}@{self.k}"


def parse(names: str, *, k: int, temperature: float) -> list[Benchmark]:
    """The benchmarks of a text such as 'math500, aime24@4, amc23:test[:20]@4@0.6'.

    After an @ stand the responses a problem, after another their temperature; `k` and
    `temperature` are for benchmarks without. A temperature below 0 means 0 for one
    response and SAMPLED for several. Raises InputError, one line, for a text that makes
    no sense.
    """
    benchmarks: dict[str, Benchmark] = {}
    own = []  # how many of the two each benchmark has of its own
    for name in filter(None, map(str.strip, names.split(","))):
        spec, suffixes = split_name(name)
        try:
            if len(suffixes) > 2:
                raise ValueError
            own_k = int(suffixes[0]) if suffixes else k
            own_temperature = float(suffixes[1]) if len(suffixes) > 1 else temperature
        except ValueError:
            raise InputError(
                f"benchmark {name!r}: after the @ stand a whole number of responses "
                "and, after another @, their temperature; write aime24@4@0.6"
            ) from None
        if own_temperature < 0:
            own_temperature = 0.0 if own_k == 1 else SAMPLED
        benchmark = Benchmark(_with_split(spec), own_k, own_temperature)
        _check(benchmark)
        # By its label, which names folder and figures, and has no temperature.
        label = benchmark.label
        if label in benchmarks:
            raise InputError(f"benchmark {label} is named twice; name it once")
        benchmarks[label] = benchmark
        own.append(len(suffixes))
    if not benchmarks and names.strip():
        raise InputError(
            f"benchmarks {names!r} name no set; write math500,aime24@4 or the like"
        )
    if not benchmarks:
        raise InputError(
            "no benchmark is named and the config has no data.eval; give "
            "--benchmarks=math500,aime24@4"
        )
    for name, value, unused, default in (
        ("k", k, min(own) > 0, 1),
        ("temperature", temperature, min(own) > 1, -1.0),
    ):
        if unused and value != default:
            raise InputError(
                f"--{name}={value} (benchmarks.{name}) is for benchmarks that do not "
                f"say, but all of {names!r} do, after an @; leave out one of the two"
            )
    return list(benchmarks.values())


def split_name(name: str) -> tuple[str, list[str]]:
    """One benchmark's name as its set and what stands behind it, each after an @.

    'held@out.jsonl[:3]@4@0.6' is 'held@out.jsonl[:3]' and ['4', '0.6'], where there is
    a file held@out.jsonl. InputError: what stands in the brackets is no slice.
    """
    # A file may have an @ in its name: the longest that there is.
    for count in range(name.count("@") + 1):
        spec, *suffixes = name.rsplit("@", count)
        file = named_file(spec)
        if file is not None and os.path.exists(file):
            return spec, suffixes
    spec, *suffixes = name.split("@")
    return spec, suffixes


def _check(benchmark: Benchmark) -> None:
    name = f"benchmark {benchmark.label}:"
    k, temperature = benchmark.k, benchmark.temperature
    limits.check_value(limits.LIMITS["benchmarks.k"], k, f"{name} k")
    if temperature:  # 0 is greedy
        field = "rollout.temperature"
        limits.check_value(limits.LIMITS[field], temperature, f"{name} temperature")
    if temperature == 0 and k > 1:
        raise InputError(
            f"{name} greedy, its {k} responses are the same; give k=1 or a temperature "
            "above 0"
        )


def _with_split(spec: str) -> str:
    """A builder's name alone means its split for evaluation: aime24 → aime24:test."""
    name, bracket, rest = spec.partition("[")
    file = named_file(spec)
    # A folder of that name may be where the set is prepared.
    if ":" in name or name not in tfds.names() or (file and os.path.isfile(file)):
        return spec
    # The embedded sets are not in the catalogue; what they hold out is "eval".
    splits = catalogue.FACTS[name].splits if name in catalogue.FACTS else ("eval",)
    split = next((each for each in ("test", "eval") if each in splits), "")
    return f"{name}:{split}{bracket}{rest}" if split else spec


@dataclasses.dataclass(frozen=True)
class BenchmarkTask:
    """One benchmark: its problems, and how responses to them are drawn and graded."""

    benchmark: Benchmark
    problems: TokenizedProblems
    sampling: Sampling  # on the devices
    grade: Callable  # (Rollout, PromptBatch) → Graded


@dataclasses.dataclass(frozen=True)
class BenchmarkSuite:
    """A policy and the benchmarks that it is evaluated on; nothing has run yet."""

    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    tasks: tuple[BenchmarkTask, ...]
    generation: GenerateConfig
    compute: ComputeConfig
    seed: int
    answer_of: Callable[[str, bool], str | None]  # (response, truncated) → its answer
    # The digest of the policy's parameters (fp32, but for LoRA's base), and they in the
    # dtype of compute; loaded once, and held until `close`.
    load_policy: Callable[[], tuple[str, Any]]
    close: Callable[[], None]  # ends the graders' processes too
    identity: dict  # all that the responses depend on, but for the parameters


def set_up(config, workdir: str = "", step: int | None = None) -> BenchmarkSuite:
    """The benchmark suite of a config, its sets read and tokenized.

    workdir: the run whose checkpoint of `step` (None: the latest) is the policy;
    without one it is the config's own, `model.init`. Raises InputError, one line, for
    what cannot work.
    """
    config = copy.deepcopy(config)  # the caller's stays as it is
    config.overlong.buffer = 0  # shapes what is learned from, not what is right
    if config.reward == "none":  # of training; what is held out has its answers
        config.reward = "token"
    check_fields(config)
    _check_policy(config)
    benchmarks = parse(
        config.benchmarks.names or config.data.eval,
        k=config.benchmarks.k,
        temperature=config.benchmarks.temperature,
    )
    policy = {"init": config.model.init}
    if config.model.lora.rank and config.model.lora.init:
        policy["adapters"] = config.model.lora.init
    if workdir:
        step = trained_policy.latest_step(workdir) if step is None else step
        policy = {"run": str(workdir_path(workdir)), "step": step}
    mesh = make_mesh(**config.mesh)
    tokenizer = load_tokenizer(resolve(config.tokenizer or config.model.init))
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    if workdir:
        trained_policy.check_same(workdir, config.model)
    else:  # a run's adapters lie in its checkpoint
        check_adapters(config.model, model_config)

    load_policy = functools.cache(
        partial(
            _load_policy,
            config,
            model_config,
            mesh,
            workdir=workdir,
            step=step,
        )
    )
    tasks, close_graders = _tasks(
        config,
        benchmarks,
        mesh=mesh,
        tokenizer=tokenizer,
        # As the policy computes with it: the judge needs no other.
        load_base=lambda: lora.split(load_policy()[1])[0],
    )

    def close():
        close_graders()
        load_policy.cache_clear()

    longest = config.benchmarks.max_response_length
    longest = longest or config.rollout.max_response_length
    for task in tasks:
        prompt = int(task.problems.prompt_length_N.max())
        # The longest prompt that there is, for as a rule nothing limits them here.
        check_length(
            config.model,
            model_config,
            tokens=prompt + longest,
            what=f"the longest prompt of {task.benchmark.spec}, {prompt}, + "
            f"benchmarks.max_response_length={longest}",
        )
    longest_prompt = max(int(t.problems.prompt_length_N.max()) for t in tasks)
    model_config, _ = kernel_check.settle(
        model_config,
        mesh,
        compute_dtype(config.model.dtype, mesh.devices.flat),
        rows=kernel_check.of_generation(longest_prompt, longest),
        # A kernel that training demands need not fit these rows.
        attention="auto",
    )
    generation = GenerateConfig(
        group=config.group_size,  # each benchmark has its own k
        response_length=longest,
        slots=config.rollout.slots or config.prompts_per_step * config.group_size,
        compactions=config.rollout.compactions,
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
    )
    compute = compute_config(config.model, model_config, mesh)
    phrase = config.answer_phrase if config.reward == "token" else None
    return BenchmarkSuite(
        mesh=mesh,
        tokenizer=tokenizer,
        tasks=tasks,
        generation=generation,
        compute=compute,
        seed=config.seed,
        answer_of=partial(answer_of, phrase=phrase),
        load_policy=load_policy,
        close=close,
        identity={"policy": policy}
        | _identity(config, tasks, longest=longest, compute=compute),
    )


def _load_policy(config, model_config, mesh, *, workdir: str, step: int | None):
    """`BenchmarkSuite.load_policy` of a run's checkpoint, or of the config's model."""
    read_base = partial(load_base, config, model_config, mesh)
    if workdir:
        params = trained_policy.load_params(
            workdir,
            step,
            model_config=model_config,
            mesh=mesh,
            load_base=read_base,
        )
    else:
        params = lora.join(read_base(), load_learned(config, model_config, mesh))
    digest = params_digest(params)
    dtype = compute_dtype(config.model.dtype, mesh.devices.flat)
    with jax.set_mesh(mesh):
        # Not jitted: what has the dtype of compute is not copied.
        return digest, transformer.compute_params(params, dtype)


def _check_policy(config) -> None:
    """InputError where the config names neither a policy nor a tokenizer."""
    if not config.tokenizer and config.model.init == "random":
        raise InputError(
            "neither a checkpoint nor a tokenizer is named; give "
            "--config.model.init=DIR, or --workdir=RUN"
        )


def _identity(config, tasks, longest: int, compute: ComputeConfig) -> dict:
    """What the responses and their grades depend on, beside the policy."""
    # But `workers`: how many there are changes no grade.
    grader_limits = ("wall_seconds", "cpu_seconds", "memory_mib")
    lora = compute.model.lora
    return {
        "model": str(compute.model),
        "benchmarks": {task.benchmark.label: _task_identity(task) for task in tasks},
        "top_p": config.benchmarks.top_p,
        "max_response_length": longest,
        "reward": config.reward,
        "answer_phrase": config.answer_phrase,
        "grader": {name: config.grader[name] for name in grader_limits},
        "judge": _judge_identity(config.judge) if config.judge.init else None,
        "seed": config.seed,
        "dtype": jnp.dtype(compute.dtype).name,
        "version": limr_jax.__version__,
        # Evaluations that were begun before have no such name.
        **({"lora": str(lora)} if lora else {}),
    }


def _task_identity(task: BenchmarkTask) -> dict:
    # Tokens, too: another tokenizer or template asks the same problems otherwise.
    prompts = hashlib.sha256(task.problems.prompt_NL.tobytes())
    prompts.update(task.problems.prompt_length_N.tobytes())
    return {
        "temperature": task.benchmark.temperature,
        "data": task.problems.problems.digest,
        "prompts": prompts.hexdigest(),
    }


def _judge_identity(section) -> dict:
    fields = section.to_dict()
    if fields.get("dtype") == "auto":  # evaluations begun before have no such name
        del fields["dtype"]
    return fields


def _tasks(config, benchmarks, *, mesh, tokenizer, load_base):
    """The task of each benchmark, and a function that ends their graders."""
    if config.reward == "token":
        phrase = encode_answer_phrase(config, tokenizer)
        rows = NamedSharding(mesh, BATCH)
        verify = jit(mesh, partial(in_graph.grade, phrase=phrase), out_shardings=rows)
        grader_of, close = (lambda problems: verify), (lambda: None)
    else:
        # Without what shapes a reward in training (length, format): right or wrong
        # alone.
        reward = make_host_reward(config, mesh, load_base).verifier()

        def close():
            reward.close()
            if reward.judge:
                reward.judge.close()

        def grader_of(problems):
            return HostGrader(mesh, tokenizer, problems=problems, host_reward=reward)

    def task_of(benchmark):
        problems = _read(config, benchmark.spec, tokenizer)
        return BenchmarkTask(
            benchmark=benchmark,
            problems=problems,
            sampling=put_sampling(
                mesh, temperature=benchmark.temperature, top_p=config.benchmarks.top_p
            ),
            grade=grader_of(problems.problems),
        )

    return tuple(map(task_of, benchmarks)), close


def _read(config, spec: str, tokenizer) -> TokenizedProblems:
    """The set, tokenized; without a limit on prompts no problem is left out."""
    manual_dir = config.data.manual_dir
    return tokenize(
        load_problems(
            spec,
            data_dir=resolve(config.data.cache_dir),
            manual_dir=resolve(manual_dir) if manual_dir else None,
        ),
        tokenizer,
        max_prompt_length=config.benchmarks.max_prompt_length or _NO_LIMIT,
        too_long=config.data.too_long,
    )


def answer_of(response: str, truncated: bool, *, phrase: str | None) -> str | None:
    """The answer that a response gives; None where it gives none.

    With a phrase, as for the in-graph verifier: what stands after the last phrase of a
    response that is not truncated. Without one: what the last balanced box holds.
    """
    if phrase is None:
        return boxed_answer(response)
    _, separator, answer = response.rpartition(phrase)
    return answer.strip() if separator and not truncated else None
