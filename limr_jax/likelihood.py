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

from limr_jax import data, evaluate, stop, thoughts
from limr_jax.algorithms import jepo
from limr_jax.compiling import jit
from limr_jax.programs import Drawn
from limr_jax.rollout import Rollout
from limr_jax.sharding import REPLICATED

KINDS = ("thoughts", "shuffled", "none")


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """−L̂ in nats for each of N problems, by kind of thought."""

    nll_N: dict[str, np.ndarray]
    tokens_N: np.ndarray  # of the answers, end token included


def make(
    mesh,
    problems: data.TokenizedProblems,
    *,
    n: int,
    seed: int,
    generation: dict,
    phrase: tuple[int, ...],
    eos_id: int,
):
    """(params, sampling, advance) → Likelihood of these problems, n thoughts each.

    Thoughts are drawn from the evaluation's own random stream; ℓ is at their
    temperature. `generation` as for `evaluate.make`.
    """
    evaluator = evaluate.make(
        mesh,
        data.put(problems, mesh),
        count=len(problems),
        k=n,
        seed=seed,
        generation=generation,
        grade=None,
    )
    score = jit(
        mesh,
        partial(
            _score,
            make=partial(thoughts.make, phrase=phrase, eos_id=eos_id),
            options={
                "config": generation["config"],
                "dtype": generation["dtype"],
                "micro_batch_rows": 0,
            },
        ),
        out_shardings=NamedSharding(mesh, REPLICATED),
    )

    def find(params, sampling, advance=lambda count: None) -> Likelihood:
        starts, parts = range(0, evaluator.count, evaluator.chunk), []

        def write(start):  # waits, for the reason that `Evaluator.answers` has
            return stop.ready(evaluator.write(params, sampling, start))

        first = following = write(0)
        for start in starts:
            (drawn, written), following = following, first
            if start != starts[-1]:
                following = write(start + evaluator.chunk)
            real = min(evaluator.chunk, evaluator.count - start)
            found = score(params, drawn, written, following[1], sampling, real)
            parts.append(jax.device_get(found))
            advance(real)
        whole = jax.tree.map(lambda *x: np.concatenate(x)[: evaluator.count], *parts)
        return Likelihood(*whole)

    return find


def _score(
    params, drawn: Drawn, written: Rollout, following: Rollout, sampling, real,
    *, make, options,
):  # fmt: skip
    """({kind: −L̂_P}, tokens_P); the first `real` problems count.

    following: of the next chunk, after the last one the first: a problem's shuffled
    thoughts are those of the next problem, and of the first one for the last.
    """
    P, G = drawn.ids_P.shape[0], written.group
    row_B = jnp.arange(P * G)
    next_B = jnp.where(row_B < (real - 1) * G, row_B + G, P * G + row_B % G)
    shuffled = {
        name: jnp.concatenate([getattr(written, name), getattr(following, name)[:G]])
        for name in ("response_BT", "mask_BT", "truncated_B")
    }
    # Without a thought all of a problem's rows are the same: one is enough.
    silent = {
        "response_BT": written.response_BT[::G],
        "mask_BT": jnp.zeros_like(written.mask_BT[::G]),
        "truncated_B": jnp.ones((P,), bool),
    }
    rollouts = (
        written,
        dataclasses.replace(written, **{k: x[next_B] for k, x in shuffled.items()}),
        dataclasses.replace(written, **silent),
    )
    whole_P = jnp.zeros((P,), bool)

    def nll_P(rollout: Rollout):
        rows = make(rollout, drawn.answer_PA, drawn.answer_length_P, whole_P)
        rows = thoughts.score(params, rows, sampling.temperature, **options)
        answer_PG = rows.answer_B.reshape(-1, rollout.group)
        return -jepo.bound(answer_PG, jnp.ones(answer_PG.shape, bool))

    found = {kind: nll_P(x) for kind, x in zip(KINDS, rollouts)}
    return found, drawn.answer_length_P + 1


def summary(found: Likelihood, key: jax.Array) -> dict:
    """Nats a problem and a token, each with a bootstrap interval over problems.

    `gain` is what the thoughts are worth: the shuffled ones' proxy-NLL above theirs.
    """
    ones_N = np.ones(len(found.tokens_N))
    figures = {
        f"proxy_nll/{kind}": (nll_N, ones_N) for kind, nll_N in found.nll_N.items()
    }
    own_N, others_N = found.nll_N["thoughts"], found.nll_N["shuffled"]
    figures["proxy_nll/gain"] = (others_N - own_N, ones_N)
    figures["proxy_nll/per_token"] = (own_N, found.tokens_N)
    part_XN, whole_XN = (np.stack(x) for x in zip(*figures.values()))
    draws_RX = evaluate.bootstrap(part_XN, whole_XN, key)
    made = {}
    for x, name in enumerate(figures):
        made[name] = float(part_XN[x].sum() / whole_XN[x].sum())
        made[f"{name}_interval"] = [*evaluate.interval(draws_RX[:, x])]
    return made
