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

from limr_jax import data, evaluate, thoughts
from limr_jax.algorithms import jepo
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
    score = jax.jit(
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
        parts = []
        for start in range(0, evaluator.count, evaluator.chunk):
            drawn, written = evaluator.write(params, sampling, start)
            real = min(evaluator.chunk, evaluator.count - start)
            parts.append(jax.device_get(score(params, written, drawn, sampling, real)))
            advance(real)
        sizes = [min(evaluator.chunk, evaluator.count)] * (len(parts) - 1)
        sizes.append(evaluator.count - sum(sizes))
        nll_N, tokens_N = jax.tree.map(
            lambda *x: np.concatenate([y[:size] for y, size in zip(x, sizes)]), *parts
        )
        return Likelihood(nll_N, tokens_N)

    return find


def _score(params, written: Rollout, drawn: Drawn, sampling, real, *, make, options):
    """({kind: −L̂_P}, tokens_P); the first `real` problems count."""
    whole_P, G = jnp.zeros(drawn.ids_P.shape, bool), written.group
    # The next problem's thoughts, the first one's for the last.
    next_B = (jnp.arange(len(whole_P) * G) + G) % (real * G)
    others = dataclasses.replace(
        written,
        **{
            name: getattr(written, name)[next_B]
            for name in ("response_BT", "mask_BT", "truncated_B")
        },
    )
    silent = dataclasses.replace(
        written,
        mask_BT=jnp.zeros_like(written.mask_BT),
        truncated_B=jnp.ones_like(written.truncated_B),
    )

    def nll_P(rollout: Rollout):
        rows = make(rollout, drawn.answer_PA, drawn.answer_length_P, whole_P)
        rows = thoughts.score(params, rows, sampling.temperature, **options)
        answer_PG = rows.answer_B.reshape(-1, rollout.group)
        return -jepo.bound(answer_PG, jnp.ones(answer_PG.shape, bool))

    found = {kind: nll_P(x) for kind, x in zip(KINDS, (written, others, silent))}
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
