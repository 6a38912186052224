"""How likely the reference answers are: proxy-NLL, for data without a verifier.

−L̂ of n thoughts a problem (arXiv:2503.19618, n = 4): L̂ = LSE(ℓ) − log n is in
expectation below log π(a*|x) and rises with n. Beside it stand the same with thoughts
that were written for other problems (what a thought is worth is the difference), and
the answer right after the prompt and the answer phrase, without a thought.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax.algorithms import jepo
from limr_jax.data.problems import TokenizedProblems
from limr_jax.data.prompts import PromptBatch, put_prompts
from limr_jax.evaluation import statistics
from limr_jax.evaluation.evaluator import make_evaluator
from limr_jax.jit import jit
from limr_jax.learner.jepo import make_thoughts, score_thoughts
from limr_jax.models.config import ComputeConfig
from limr_jax.multihost import preemption
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.sharding import REPLICATED

KINDS = ("thoughts", "shuffled", "none")


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The proxy-NLL −L̂ of N problems, and the lengths of their answers."""

    nll_N: dict[str, np.ndarray]  # kind of thought, of KINDS → fp32, nats
    tokens_N: np.ndarray  # of the answers, end token included


def make_likelihood(
    mesh,
    problems: TokenizedProblems,
    *,
    thoughts: int,
    seed: int,
    generation: GenerateConfig,
    compute: ComputeConfig,
    phrase: tuple[int, ...],
    eos_id: int,
):
    """The function (params, sampling, advance) → Likelihood of these problems.

    thoughts: how many are sampled a problem, n. phrase: the tokens that introduce an
    answer. `advance(n)` is called whenever another n problems are done.

    Thoughts are drawn from the evaluation's own random stream; ℓ is at their
    temperature.
    """
    evaluator = make_evaluator(
        mesh,
        put_prompts(problems, mesh),
        count=len(problems),
        k=thoughts,
        seed=seed,
        generation=generation,
        compute=compute,
        grade=None,
    )
    score = jit(
        mesh,
        partial(
            _score,
            thoughts_of=partial(make_thoughts, phrase=phrase, eos_id=eos_id),
            compute=compute,
        ),
        out_shardings=NamedSharding(mesh, REPLICATED),
    )

    def likelihood(params, sampling, advance=lambda count: None) -> Likelihood:
        starts, parts = range(0, evaluator.count, evaluator.chunk), []

        def write(start):  # waits, for the reason that `Evaluator.answers` has
            return preemption.ready(evaluator.write(params, sampling, start))

        # Each chunk is scored with the next one, the last with the first, which is kept
        # until then.
        first = following = write(0)
        for start in starts:
            chunk, following = following, first
            if start != starts[-1]:
                following = write(start + evaluator.chunk)
            real = min(evaluator.chunk, evaluator.count - start)
            # `real` is traced: a last chunk that is not full compiles nothing anew.
            nll_and_tokens = score(
                params, chunk.drawn, chunk.rollout, following.rollout, sampling, real
            )
            parts.append(jax.device_get(nll_and_tokens))
            advance(real)
        nll_N, tokens_N = jax.tree.map(
            lambda *x: np.concatenate(x)[: evaluator.count], *parts
        )
        return Likelihood(nll_N=nll_N, tokens_N=tokens_N)

    return likelihood


def _score(
    params,
    drawn: PromptBatch,
    rollout: Rollout,
    following: Rollout,
    sampling,
    real,
    *,
    thoughts_of,
    compute: ComputeConfig,
):
    """({kind: −L̂_P}, tokens_P); the first `real` problems count.

    following: of the next chunk, after the last one the first: a problem's shuffled
    thoughts are those of the next problem, and of the first one for the last.
    """
    P, G = drawn.ids_P.shape[0], rollout.group
    row_B = jnp.arange(P * G)
    # The thoughts of the next problem lie G rows further on. For the last real problem
    # they are the G rows that `shuffle` puts behind this chunk's P · G.
    next_B = jnp.where(row_B < (real - 1) * G, row_B + G, P * G + row_B % G)

    def shuffle(own, others):
        return jnp.concatenate([own, others[:G]])[next_B]

    shuffled = dataclasses.replace(
        rollout,
        response_BT=shuffle(rollout.response_BT, following.response_BT),
        mask_BT=shuffle(rollout.mask_BT, following.mask_BT),
        truncated_B=shuffle(rollout.truncated_B, following.truncated_B),
    )
    # Without a thought all of a problem's rows are the same: one is enough.
    silent = dataclasses.replace(
        rollout,
        response_BT=rollout.response_BT[::G],
        mask_BT=jnp.zeros_like(rollout.mask_BT[::G]),
        # A response that is not truncated would lose its end token, and here is none.
        truncated_B=jnp.ones((P,), bool),
    )
    rollouts = rollout, shuffled, silent
    # No prompt is RLOO's: every row gets the reference answer.
    whole_P = jnp.zeros((P,), bool)

    def nll_P(rollout: Rollout):
        rows = thoughts_of(rollout, drawn.answer_PA, drawn.answer_length_P, whole_P)
        rows = score_thoughts(
            params, rows, sampling.temperature, compute=compute, micro_batch_rows=0
        )
        answer_PG = rows.answer_B.reshape(-1, rollout.group)
        return -jepo.bound(answer_PG, jnp.ones(answer_PG.shape, bool))

    nll = {kind: nll_P(x) for kind, x in zip(KINDS, rollouts)}
    return nll, drawn.answer_length_P + 1  # the end token


def summary(likelihood: Likelihood) -> dict:
    """Nats a problem and a token by name, each with its 95 % t interval over problems.

    `proxy_nll/gain` is what the thoughts are worth: the shuffled ones' proxy-NLL minus
    theirs.
    """
    ones_N = np.ones(len(likelihood.tokens_N))
    figures = {
        f"proxy_nll/{kind}": (nll_N, ones_N) for kind, nll_N in likelihood.nll_N.items()
    }
    own_N, others_N = likelihood.nll_N["thoughts"], likelihood.nll_N["shuffled"]
    figures["proxy_nll/gain"] = (others_N - own_N, ones_N)
    figures["proxy_nll/per_token"] = (own_N, likelihood.tokens_N)
    summarised = {}
    for name, (part_N, whole_N) in figures.items():
        estimate = statistics.ratio(part_N, whole_N)
        summarised[name] = estimate.value
        summarised[f"{name}_interval"] = [estimate.low, estimate.high]
    return summarised
