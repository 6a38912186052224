"""A program of a stranger's, for a type checker alone: nothing of it is run.

Each `type: ignore` stands where a mistake must be found: one that is not found is an
error, for an ignore that ignores nothing is one.
"""

from collections.abc import Iterator
from typing import Any, assert_type

import jax

import limr_jax
from limr_jax.algorithms import lim


def right() -> None:
    assert_type(limr_jax.grade("1", "1", response=True, seconds=2), bool)
    assert_type(limr_jax.verdicts(["1"], ["1"]), list[limr_jax.Verdict])
    policy = limr_jax.load_policy("model")
    assert_type(policy, limr_jax.Policy)
    answers = limr_jax.generate(
        policy, ["1+1=", [{"role": "user", "content": "?"}]], samples=2
    )
    assert_type(answers, list[list[limr_jax.Completion]])
    assert_type(answers[0][0].logprobs, tuple[float, ...])
    limr_jax.save_policy(policy, "copy", dtype="bfloat16")
    sampler = limr_jax.prompt_sampler("lim", problems=8, prompts=2, threshold=0.5)
    assert_type(sampler, limr_jax.PromptSampler)
    assert_type(limr_jax.advantage("grpo", [[1.0, 0.0]], epsilon=0.1), jax.Array)
    assert_type(limr_jax.read_curves("run"), dict[str, limr_jax.Curve])
    assert_type(limr_jax.read_rollouts("run"), Iterator[dict[str, Any]])
    curves = limr_jax.reward_curves("run", value="reward")
    assert_type(curves, limr_jax.Curves)
    score_N = limr_jax.algorithms.lim.score(
        jax.numpy.asarray(curves.value_NE), jax.numpy.asarray(curves.seen_NE)
    )
    assert_type(score_N, jax.Array)
    assert_type(lim.keep(score_N, threshold=0.6), jax.Array)


def wrong() -> None:
    limr_jax.grad("1", "1")  # type: ignore[attr-defined]
    limr_jax.grade(0.5, "0.5")  # type: ignore[arg-type]
    limr_jax.grade("1")  # type: ignore[call-arg]
    limr_jax.verdicts(["1"], 1)  # type: ignore[arg-type]
    limr_jax.generate("model", ["1+1="])  # type: ignore[arg-type]
    _ = limr_jax.load_policy("model").weights  # type: ignore[attr-defined]
    limr_jax.prompt_sampler("lim", 8, prompts=2)  # type: ignore[call-arg]
    limr_jax.advantage("grpo", [[1.0]], epsilon="0")  # type: ignore[arg-type]
    _ = limr_jax.read_curves("run")["eval/accuracy"].step  # type: ignore[attr-defined]
    lim.keep(limit=0.6)  # type: ignore[call-arg]
