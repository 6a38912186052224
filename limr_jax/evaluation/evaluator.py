"""How good the policy is: held-out problems, k responses each, every one graded."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from limr_jax.data.prompts import PromptBatch, Prompts, prompt_batch
from limr_jax.jit import jit
from limr_jax.models.config import ComputeConfig
from limr_jax.multihost import preemption
from limr_jax.multihost.arrays import on_host, put
from limr_jax.prng import stream_key
from limr_jax.rewards.types import CODE, INVALID
from limr_jax.rollout.generate import generate
from limr_jax.rollout.sampling import Sampling
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.sharding import BATCH, REPLICATED


class Evaluation(NamedTuple):
    """The responses of an evaluation and their grades; N problems, k responses each."""

    correct_Nk: np.ndarray  # fp32
    valid_Nk: np.ndarray  # bool
    well_formed_Nk: np.ndarray  # bool
    truncated_Nk: np.ndarray  # bool
    length_Nk: np.ndarray  # int32, tokens with the end token
    response_NkT: np.ndarray  # int32
    reason_Nk: np.ndarray  # int8, why each has its grade: places in types.REASONS


class GeneratedChunk(NamedTuple):
    """The responses to some problems of a set, on the devices, not yet graded."""

    start: int  # place in the set of the first problem
    drawn: PromptBatch
    rollout: Rollout


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One held-out set, its program for k responses a problem, and its grader."""

    prompts: Prompts  # on the devices
    count: int  # problems
    chunk: int  # problems a call
    generate: Callable  # (params, Prompts, ids_P, Sampling, key) → drawn, rollout
    key: jax.Array  # of the random stream
    grade: Callable  # (Rollout, PromptBatch) → Graded
    replicated: NamedSharding

    def __call__(self, params, sampling: Sampling, advance=lambda n: None):
        """The Evaluation of the whole set under these parameters.

        `advance(n)` is called whenever another n problems are graded.
        """
        parts = []
        for part in self.answers(params, sampling):
            parts.append(part)
            advance(len(part.valid_Nk))
        return jax.tree.map(lambda *x: np.concatenate(x), *parts)

    def answers(
        self, params, sampling: Sampling, start: int = 0
    ) -> Iterator[Evaluation]:
        """The Evaluations of the problems from `start` on, a chunk at a time.

        The devices write the next chunk while the hosts grade one.
        """
        written_chunk = None
        # None: a last turn, in which nothing is written and the last chunk is graded.
        for first in (*range(start, self.count, self.chunk), None):
            # A device that is done before the others would meet them in the next one's
            # first sum, and a CPU's ends the process if it waits there for 40 s.
            preemption.ready(written_chunk)
            next_chunk = None
            if first is not None:
                next_chunk = self.write(params, sampling, first)
            if written_chunk is not None:
                yield self._graded(written_chunk)
            written_chunk = next_chunk

    def _graded(self, chunk: GeneratedChunk) -> Evaluation:
        graded = self.grade(chunk.rollout, chunk.drawn)
        # Without the problems that fill up the last chunk.
        real = min(self.chunk, self.count - chunk.start)
        evaluation = _on_host(chunk.rollout, graded)
        return jax.tree.map(lambda x_Nk: x_Nk[:real], evaluation)

    def write(self, params, sampling: Sampling, start: int) -> GeneratedChunk:
        """Queue the generation of the chunk of problems from place `start` on.

        The last chunk is filled up with problems that are counted already.
        """
        ids = np.minimum(np.arange(start, start + self.chunk), self.count - 1)
        drawn, rollout = self.generate(
            params,
            self.prompts,
            put(ids.astype(np.int32), self.replicated),
            sampling,
            self.key,  # a jitted program takes its arguments by their places
        )
        return GeneratedChunk(start, drawn, rollout)


def _on_host(rollout: Rollout, graded) -> Evaluation:
    """The Evaluation of one chunk, as NumPy arrays."""
    group = rollout.group
    arrays = on_host(
        {
            "graded": graded,
            "truncated_B": rollout.truncated_B,
            "mask_BT": rollout.mask_BT,
            "response_BT": rollout.response_BT,
        }
    )
    graded = arrays["graded"]
    reason_PG = graded.reason_PG
    if reason_PG is None:  # a grader that gives no reasons
        reason_PG = np.where(graded.valid_PG, CODE["graded"], CODE["error"])

    def by_problem(x_BX):
        return x_BX.reshape(-1, group, *x_BX.shape[1:])

    return Evaluation(
        correct_Nk=graded.correct_PG,
        valid_Nk=graded.valid_PG,
        well_formed_Nk=graded.well_formed_PG,
        truncated_Nk=by_problem(arrays["truncated_B"]),
        length_Nk=by_problem(arrays["mask_BT"].sum(axis=1, dtype=np.int32)),
        response_NkT=by_problem(arrays["response_BT"]),
        reason_Nk=reason_PG,
    )


def program(
    mesh,
    *,
    count: int,
    k: int,
    generation: GenerateConfig,
    compute: ComputeConfig,
) -> tuple[Callable, int]:
    """The jitted program that writes k responses a problem; and P, problems of a call.

    The program: (params, Prompts, ids_P, Sampling, key) → (PromptBatch, Rollout).
    Prompts: of the whole set; ids_P: int32, places of problems in it; key: of the
    random stream. The Rollout has P · k rows, of which row b is of problem b // k. Both
    results lie spread over the mesh by rows.
    count: problems of the set. generation: its `group` is replaced by k, its `slots` by
    P · k. That is at most the `slots` given, or else one problem a device.
    """
    # Devices that rows lie over; `tensor` divides the model instead.
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    slots = generation.slots
    # A multiple of the devices, each of which has as many problems of a chunk.
    chunk = max(1, min(slots // k, count) // rows) * rows
    # A slot for every rollout of the chunk: none waits.
    config = dataclasses.replace(generation, group=k, slots=chunk * k, mean_group=None)

    def answer(params, prompts, ids_P, sampling, key):
        drawn = prompt_batch(prompts, ids_P)
        rollout = generate(
            params,
            drawn.prompt_PL,
            drawn.position_PL,
            problem_P=drawn.ids_P,
            key=key,
            sampling=sampling,
            config=config,
            compute=compute,
        )
        return drawn, rollout

    return jit(mesh, answer, out_shardings=NamedSharding(mesh, BATCH)), chunk


def make_evaluator(
    mesh,
    prompts: Prompts,
    *,
    count: int,
    k: int,
    seed: int,
    number: int = 0,
    generation: GenerateConfig,
    compute: ComputeConfig,
    grade: Callable,
) -> Evaluator:
    """The evaluator of a set with k responses a problem, k for `generation.group`.

    prompts: of the set, on the devices; the first `count` problems of them count.
    grade: (Rollout, PromptBatch) → Graded.

    It draws from a random stream of its own: it changes nothing of a run, and the same
    parameters give the same evaluation at any step. `number` tells sets apart, so that
    the n-th problems of two do not meet the same noise.
    """
    answer, chunk = program(
        mesh, count=count, k=k, generation=generation, compute=compute
    )
    replicated = NamedSharding(mesh, REPLICATED)
    return Evaluator(
        prompts=prompts,
        count=count,
        chunk=chunk,
        generate=answer,
        # An argument, so that another seed compiles nothing anew; uint32, since JAX
        # would take an int as int32.
        key=jax.jit(stream_key, static_argnums=1, out_shardings=replicated)(
            np.uint32(seed), "eval", number
        ),
        grade=grade,
        replicated=replicated,
    )


def ungradable(result: Evaluation) -> dict[str, int]:
    """How many responses could not be graded, by reason: the reasons that occurred."""
    reasons = np.asarray(result.reason_Nk)[~result.valid_Nk]
    counts = {name: int(np.sum(reasons == CODE[name])) for name in INVALID}
    return {name: number for name, number in counts.items() if number}
