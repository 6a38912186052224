"""How good the policy is: held-out problems, k responses each, every one graded."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import data, hosts, programs, rollout, stop
from limr_jax.compiling import jit
from limr_jax.randomness import stream_key
from limr_jax.sharding import BATCH, REPLICATED


class Evaluation(NamedTuple):
    """What was written and what it was worth; n problems, k responses each."""

    correct_Nk: np.ndarray  # fp32
    valid_Nk: np.ndarray  # bool
    well_formed_Nk: np.ndarray  # bool
    truncated_Nk: np.ndarray  # bool
    length_Nk: np.ndarray  # int32, tokens with the end token
    response_NkT: np.ndarray  # int32


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One held-out set, its program for k responses a problem, and its grader."""

    prompts: data.Prompts  # on the devices
    count: int  # problems
    chunk: int  # problems a call
    generate: Callable
    key: jax.Array  # of the random stream
    grade: Callable  # (Rollout, Drawn) → Graded
    replicated: NamedSharding

    def __call__(self, params, sampling: rollout.Sampling, advance=lambda n: None):
        """Answer and grade every problem; `advance(n)` is called as they are done."""
        parts = []
        for part in self.answers(params, sampling):
            parts.append(part)
            advance(len(part.valid_Nk))
        return Evaluation(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def answers(
        self, params, sampling: rollout.Sampling, start: int = 0
    ) -> Iterator[Evaluation]:
        """The problems from `start` on, a chunk at a time, answered and graded.

        The devices write the next chunk while the hosts grade one.
        """
        asked = None
        for first in (*range(start, self.count, self.chunk), None):
            # A device that is done before the others would meet them in the next one's
            # first sum, and a CPU's ends the process if it waits there for 40 s.
            stop.ready(asked)
            coming = None
            if first is not None:
                coming = first, *self.write(params, sampling, first)
            if asked is not None:
                yield self._graded(*asked)
            asked = coming

    def _graded(self, start: int, drawn, written: rollout.Rollout) -> Evaluation:
        graded = self.grade(written, drawn)
        real = min(self.chunk, self.count - start)
        return Evaluation(*(x[:real] for x in _on_host(written, graded)))

    def write(self, params, sampling: rollout.Sampling, start: int):
        """(Drawn, Rollout) of the chunk from `start` on."""
        # The last chunk is filled up with problems that are counted already.
        ids = np.minimum(np.arange(start, start + self.chunk), self.count - 1)
        return self.generate(
            params,
            self.prompts,
            hosts.put(ids.astype(np.int32), self.replicated),
            sampling,
            self.key,
        )


def _on_host(written: rollout.Rollout, graded) -> list[np.ndarray]:
    """The fields of `Evaluation` for one chunk."""
    group = written.group
    arrays = hosts.on_host(
        {
            "graded": graded,
            "truncated_B": written.truncated_B,
            "mask_BT": written.mask_BT,
            "response_BT": written.response_BT,
        }
    )
    graded = arrays["graded"]
    by_problem = lambda x: x.reshape(-1, group, *x.shape[1:])  # noqa: E731
    return [
        graded.correct_PG,
        graded.valid_PG,
        graded.well_formed_PG,
        by_problem(arrays["truncated_B"]),
        by_problem(arrays["mask_BT"].sum(axis=1, dtype=np.int32)),
        by_problem(arrays["response_BT"]),
    ]


def program(mesh, *, count: int, k: int, generation: dict) -> tuple[Callable, int]:
    """The jitted program of k responses a problem, and how many problems a call."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    slots = generation["slots"] or count * k
    chunk = max(1, min(slots // k, count) // rows) * rows
    generation = {**generation, "group": k, "slots": chunk * k}

    def answer(params, prompts, ids_P, sampling, key):
        drawn = programs.pick(prompts, ids_P)
        written = rollout.generate(
            params,
            drawn.prompt_PL,
            drawn.position_PL,
            drawn.ids_P,
            key,
            sampling,
            **generation,
        )
        return drawn, written

    return jit(mesh, answer, out_shardings=NamedSharding(mesh, BATCH)), chunk


def make(
    mesh,
    prompts: data.Prompts,
    *,
    count: int,
    k: int,
    seed: int,
    number: int = 0,
    generation: dict,
    grade: Callable,
) -> Evaluator:
    """An evaluator of k responses a problem; `generation` as for `programs.build`.

    It draws from a random stream of its own: it changes nothing of a run, and the same
    parameters give the same evaluation at any step. `number` tells sets apart, so that
    the n-th problems of two do not meet the same noise.
    """
    answer, chunk = program(mesh, count=count, k=k, generation=generation)
    replicated = NamedSharding(mesh, REPLICATED)
    return Evaluator(
        prompts=prompts,
        count=count,
        chunk=chunk,
        generate=answer,
        # An argument, so that another seed compiles nothing anew.
        key=jax.jit(stream_key, static_argnums=1, out_shardings=replicated)(
            np.uint32(seed), "eval", number
        ),
        grade=grade,
        replicated=replicated,
    )


def pass_at_k(correct: np.ndarray, total: np.ndarray, k: int) -> np.ndarray:
    """Unbiased chance that one of k draws is right, from c right of n (n ≥ k).

    1 − C(n − c, k) / C(n, k), as a product (arXiv:2107.03374).
    """
    wrong, total = np.asarray(total - correct)[..., None], np.asarray(total)[..., None]
    i = np.arange(k)
    return 1.0 - np.prod(np.maximum(wrong - i, 0) / (total - i), axis=-1)


def maj_at_k(vote_Nk: np.ndarray, correct_Nk: np.ndarray) -> np.ndarray:
    """How right the majority of each problem's k responses is, 0 to 1: [N].

    vote_Nk: responses that give the same answer have the same number, −1 has none. The
    answer with most votes counts; several with most each count their equal share, as
    an even draw among them would on average. 0 where no response has an answer.
    """
    same_Nkk = (vote_Nk[:, :, None] == vote_Nk[:, None, :]) & (vote_Nk >= 0)[..., None]
    votes_Nk = same_Nkk.sum(axis=2)
    wins_Nk = (votes_Nk == votes_Nk.max(axis=1, keepdims=True)) & (votes_Nk > 0)
    # Those who voted for one answer share its weight of 1.
    weight_Nk = wins_Nk / np.maximum(votes_Nk, 1)
    return (weight_Nk * correct_Nk).sum(axis=1) / np.maximum(weight_Nk.sum(axis=1), 1)


def figures(result: Evaluation) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each figure as (part_N, whole_N): its value is the share of their sums.

    Invalid responses are left out, never wrong. pass@j, for j of 2, 4, 8, … up to k,
    is over the problems whose k responses are all valid.
    """
    valid_Nk, k = result.valid_Nk, result.correct_Nk.shape[1]
    right_Nk = np.where(valid_Nk, result.correct_Nk, 0.0).astype(np.float64)
    formed_Nk = result.well_formed_Nk & valid_Nk
    valid_N, formed_N = valid_Nk.sum(axis=1), formed_Nk.sum(axis=1)
    all_N = np.full(len(valid_Nk), k)
    made = {
        "accuracy": (right_Nk.sum(axis=1), valid_N),
        "accuracy_well_formed": ((right_Nk * formed_Nk).sum(axis=1), formed_N),
        "well_formed": (formed_N, valid_N),
        "truncated_share": (result.truncated_Nk.sum(axis=1), all_N),
        "invalid_share": ((~valid_Nk).sum(axis=1), all_N),
        "response_length": (result.length_Nk.sum(axis=1), all_N),
    }
    whole_N = valid_N == k
    for j in sorted({2**i for i in range(1, k.bit_length())} | {k} - {1}):
        passed_N = pass_at_k(right_Nk.sum(axis=1), all_N, j)
        made[f"pass_at_{j}"] = (passed_N * whole_N, whole_N)
    return made


def summary(result: Evaluation, levels: Sequence | None = None) -> dict[str, float]:
    """The figures of one evaluation, accuracy by level too; levels: one a problem.

    A share of nothing (no response valid, none well formed) is not a number.
    """
    made = figures(result)
    right_N, valid_N = made["accuracy"]
    for level in sorted({x for x in levels or () if x is not None}, key=str):
        at_N = np.array([x == level for x in levels])
        made[f"accuracy_level_{level}"] = (right_N * at_N, valid_N * at_N)
    return {
        name: float(share(part_N.sum(), whole_N.sum()))
        for name, (part_N, whole_N) in made.items()
    }


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; not a number where the whole is 0."""
    some = np.asarray(whole) > 0
    return np.where(some, part / np.where(some, whole, 1), np.nan)


def bootstrap(
    part_XN: np.ndarray, whole_XN: np.ndarray, key: jax.Array, draws: int = 2000
) -> np.ndarray:
    """Figures of N problems drawn anew with replacement, `draws` times: [draws, X].

    Draw by draw the same problems for each of the figures. X may be several axes.
    """
    N, draw = part_XN.shape[-1], jax.jit(jax.random.randint, static_argnums=(1, 2, 3))
    block = max(1, min(draws, 2**22 // N))  # rows of [block, N] counts at a time
    shares = []
    for i in range(-(-draws // block)):
        index_RN = np.asarray(draw(jax.random.fold_in(key, i), (block, N), 0, N))
        index_RN = index_RN + N * np.arange(block)[:, None]
        times_RN = np.bincount(index_RN.ravel(), minlength=block * N).reshape(block, N)
        part_RX = np.tensordot(times_RN, part_XN, axes=(1, -1))
        whole_RX = np.tensordot(times_RN, whole_XN, axes=(1, -1))
        shares.append(share(part_RX, whole_RX))
    return np.concatenate(shares)[:draws]


def interval(value_R: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; those that are no number do not count."""
    known = value_R[np.isfinite(value_R)]
    if not known.size:
        return float("nan"), float("nan")
    return tuple(np.percentile(known, [2.5, 97.5]).tolist())
