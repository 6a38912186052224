"""JEPO in the learner: its rows by hand, its gradient against the formula's own."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy
from tiny_policy import QUICK, QWEN, fp32
from tiny_run import (
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.algorithms import jepo, rloo
from limr_jax.evaluation import benchmarks
from limr_jax.learner import batch as batch_lib
from limr_jax.learner import losses, update
from limr_jax.learner.jepo import (
    ESTIMATORS,
    jensen_loss,
    jepo_batch,
    make_thoughts,
    score_thoughts,
)
from limr_jax.models import lora, transformer
from limr_jax.models.config import Lora
from limr_jax.rollout.types import Rollout
from limr_jax.storage import metrics
from limr_jax.train import train

PHRASE, EOS, PAD = (8, 9), 3, 1
HOW = {"config": QWEN, "dtype": jnp.float32}
P, G, T, A = tiny_policy.PROMPTS, 2, 12, 3


def by_hand():
    """Two prompts of 1 and 2 tokens, two rollouts each, at most 6 tokens."""
    responses = [
        [5, 8, 9, 6, EOS],  # a thought, the phrase, an answer
        [8, 9, 5, 8, 9, 6],  # two phrases, cut at the limit
        [5, 6, EOS],  # no phrase: it is forced
        [5, 6, 7, 5, 6, 7],  # likewise, cut
    ]
    response_BT = np.full((4, 6), PAD, np.int32)
    mask_BT = np.zeros((4, 6), bool)
    for b, response in enumerate(responses):
        response_BT[b, : len(response)] = response
        mask_BT[b, : len(response)] = True
    zeros_BT = np.zeros((4, 6), np.float32)
    return Rollout(
        prompt_PL=jnp.array([[PAD, 30], [31, 32]]),
        position_PL=jnp.array([[-1, 0], [0, 1]]),
        response_BT=jnp.asarray(response_BT),
        mask_BT=jnp.asarray(mask_BT),
        logprob_BT=zeros_BT,
        entropy_BT=zeros_BT,
        truncated_B=jnp.array([False, True, False, True]),
        slot_steps_M=None,
        steps_M=None,
        row_steps_M=None,
    )


def rows_of(rollout, whole_P=(False, False)):
    made = make_thoughts(
        rollout,
        jnp.array([[20, PAD], [21, 22]]),
        jnp.array([1, 2]),
        jnp.array(whole_P),
        phrase=PHRASE,
        eos_id=EOS,
    )
    return jax.tree.map(np.asarray, made)


@pytest.mark.slow
def test_a_thought_ends_with_its_last_phrase_and_the_answer_follows():
    rows = rows_of(by_hand())
    seen = [
        row[position >= 0].tolist()
        for row, position in zip(rows.tokens_BS, rows.position_BS)
    ]
    assert seen == [
        [30, 5, 8, 9, 20, EOS],
        [30, 8, 9, 5, 8, 9, 20, EOS],
        [31, 32, 5, 6, 8, 9, 21, 22, EOS],
        [31, 32, 5, 6, 7, 5, 6, 7, 8, 9, 21, 22, EOS],
    ]
    for position in rows.position_BS:
        there = position[position >= 0]
        np.testing.assert_array_equal(there, np.arange(len(there)))
    assert rows.formatted_B.tolist() == [True, True, False, False]
    # The third ended: its end token was chosen, and the phrase is read in its place.
    assert rows.thought_BY.sum(axis=1).tolist() == [3, 5, 3, 6]
    assert rows.target_BY[2, :5].tolist() == [5, 6, EOS, 9, 21]
    assert rows.answer_BY.sum(axis=1).tolist() == [2, 2, 3, 3]
    # Forced tokens are neither the policy's nor the answer's.
    assert rows.tokens_BS[:, 2:][rows.answer_BY].tolist() == [
        *(20, EOS, 20, EOS),
        *(21, 22, EOS, 21, 22, EOS),
    ]


def test_a_solved_prompts_rollouts_stay_as_they_are():
    rollout = by_hand()
    rows = rows_of(rollout, (True, False))
    tokens_BS, position_BS = rollout.sequences()
    width = tokens_BS.shape[1]
    np.testing.assert_array_equal(rows.position_BS[:2, :width], position_BS[:2])
    there_BS = np.asarray(position_BS)[:2] >= 0
    np.testing.assert_array_equal(
        rows.tokens_BS[:2, :width][there_BS], np.asarray(tokens_BS)[:2][there_BS]
    )
    assert not np.any(rows.answer_BY[:2]) and np.all(rows.position_BS[:2, width:] < 0)
    np.testing.assert_array_equal(rows.thought_BY[:2, :6], rollout.mask_BT[:2])
    assert rows.answer_BY[2:].any()


@pytest.fixture(scope="module")
def written():
    """Rollouts of which some wrote a 'phrase' of one frequent token."""
    return tiny_policy.generate()


@pytest.fixture(scope="module")
def phrase(written):
    return phrase_of(written)


def phrase_of(written):
    """The token that about half of the rollouts wrote, but never as the last."""
    mask_BT, response_BT = np.asarray(written.mask_BT), np.asarray(written.response_BT)
    shares = {
        token: np.any(mask_BT & (response_BT == token), axis=1).mean()
        for token in range(10, 40)
    }
    return (min(shares, key=lambda token: abs(shares[token] - 0.4)),)


def answers():
    random = np.random.default_rng(0)
    answer_PA = random.integers(10, 40, (P, A)).astype(np.int32)
    return answer_PA, random.integers(1, A + 1, P).astype(np.int32)


def exact(params, written, rows, estimator, whole_PG, right_PG):
    """The loss whose gradient is the printed one, differentiated as it stands.

    A response without the phrase is learned as it was written, end token included;
    what is forced after it is read by its answer alone.

    And the mean entropy of the distributions that thoughts were chosen from.
    """

    def read(tokens_BS, position_BS, X):
        hidden_BSD = transformer.forward(params, tokens_BS, position_BS, **HOW)
        logits = hidden_BSD[:, -X - 1 : -1] @ params["embedder"]["embedding"].T
        logprob = jax.nn.log_softmax(logits)
        entropy_BY = -jnp.sum(jnp.exp(logprob) * logprob, axis=2)
        return jnp.take_along_axis(logprob, tokens_BS[:, -X:, None], axis=2)[
            ..., 0
        ], entropy_BY

    X, T = rows.answer_BY.shape[1], written.response_BT.shape[1]
    logprob_BT, entropy_BT = read(*written.sequences(), T)
    end_B = jnp.sum(rows.thought_BY, axis=1, keepdims=True)
    until_BT = jnp.where(
        (rows.formatted_B & ~rows.whole_B)[:, None], jnp.arange(T)[None] < end_B, True
    )
    thought_BT = written.mask_BT & until_BT
    entropy = jnp.mean(entropy_BT, where=thought_BT)
    thought_B = jnp.sum(jnp.where(thought_BT, logprob_BT, 0), axis=1)
    logprob_BY, _ = read(rows.tokens_BS, rows.position_BS, X)
    answer_B = jnp.sum(jnp.where(rows.answer_BY, logprob_BY, 0), axis=1)
    answer_PG, thought_PG = answer_B.reshape(P, G), thought_B.reshape(P, G)
    fixed_PG = jax.lax.stop_gradient(answer_PG)
    all_PG = jnp.ones((P, G), bool)
    if estimator == "one_sample":
        loss_PG = jepo.one_sample_advantage(fixed_PG, all_PG) * thought_PG + answer_PG
        loss_P = jnp.mean(loss_PG, axis=1)
    else:
        advantage_PG = jepo.multi_sample_advantage(fixed_PG, all_PG)
        # ∇ LSE(ℓ) is Σ softmax(ℓ) ∇ℓ.
        bound_P = jax.nn.logsumexp(answer_PG, axis=1)
        loss_P = jnp.sum(advantage_PG * thought_PG, axis=1) + bound_P
    right_P = jnp.mean(right_PG * thought_PG, axis=1)
    loss = -jnp.mean(jnp.where(jnp.any(whole_PG, axis=1), right_P, loss_P))
    return loss, entropy


def batch_of(written, rows, estimator, reward_PG, **changes):
    batch, batch_metrics = jepo_batch(
        written,
        reward_PG,
        np.ones((P, G), bool),
        batch_lib.Scores(thoughts=rows),
        np.float32(0),
        **{
            "estimator": partial(ESTIMATORS[estimator].coefficients, beta_sup=1.0),
            "kl_estimator": "k3",
            **changes,
        },
    )
    return batch_lib.weigh(batch, "rollout"), batch_metrics


OBJECTIVE = partial(
    jensen_loss,
    objective=partial(
        losses.policy_gradient,
        clip_low=0.2,
        clip_high=0.2,
        kl_coefficient=0.0,
        kl_estimator="k3",
        kl_placement="loss",
        entropy_coefficient=0.0,
    ),
)


def test_the_terms_of_the_thought_leave_the_answer_alone():
    """Its old and reference log-probabilities are those of another token."""
    batch = batch_lib.PackedBatch(
        tokens_RW=None,
        position_RW=None,
        mask_RY=jnp.array([[True, True, True]]),
        weight_RY=jnp.ones((1, 3)),
        advantage_RY=jnp.array([[1.0, 0.0, 0.0]]),
        old_logprob_RY=jnp.array([[-1.0, -2.0, -95.0]]),
        reference_RY=jnp.array([[-1.0, -1.0, -95.0]]),
        answer_RY=jnp.array([[False, True, True]]),
        answer_weight_RY=jnp.array([[0.0, 0.25, 0.25]]),
    )
    objective = partial(OBJECTIVE.keywords["objective"], kl_coefficient=0.5)

    def loss(logprob_RY):
        loss_RY, _, _ = jensen_loss(
            logprob_RY, jnp.zeros((1, 3)), batch, objective=objective
        )
        return jnp.sum(loss_RY)

    grad_RY = jax.grad(loss)(jnp.array([[-1.0, -95.0, -1.0]]))
    np.testing.assert_allclose(grad_RY, [[-1, -0.25, -0.25]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "semi"),
    [
        ("one_sample", False),
        ("multi_sample", True),
        pytest.param("one_sample", True, marks=pytest.mark.soak),
        pytest.param("multi_sample", False, marks=pytest.mark.soak),
    ],
)
def test_the_learners_gradient_is_the_formulas(written, phrase, estimator, semi):
    check_gradient(QWEN, written, phrase, estimator, semi)


@pytest.mark.slow
def test_the_gradient_of_adapters_is_the_formulas():
    """Of thoughts and answers under base and adapters, through the merged kernels."""
    config = dataclasses.replace(QWEN, lora=Lora(rank=3, alpha=6.0))
    written = tiny_policy.generate(config=config)
    check_gradient(config, written, phrase_of(written), "multi_sample", semi=False)


def check_gradient(config, written, phrase, estimator, semi):
    """The gradient of what is learned, and the metrics, against the formula's own."""
    reward_PG = np.zeros((P, G), np.float32)
    reward_PG[::3, 0] = semi  # every third prompt has a right rollout
    whole_P = reward_PG.any(axis=1)
    given = (*answers(), whole_P)
    rows = make_thoughts(written, *given, phrase=phrase, eos_id=EOS)
    assert 0 < rows.formatted_B.sum() < P * G
    ended_B = ~np.asarray(written.truncated_B | rows.formatted_B)
    assert ended_B.any()  # their end tokens are learned where the phrase is read

    how = {"temperature": 1.0, "compute": fp32(config)}
    params = jax.tree.map(jnp.asarray, tiny_policy.random_params(config))
    base, learned = lora.split(params)

    def loss(learned, micro):
        params = lora.join(base, learned)
        return losses.policy_loss(params, micro, objective=OBJECTIVE, **how)

    def formulas(learned, *given):
        merged = lora.merge(lora.join(base, learned), config.lora)
        return exact(merged, *given)

    def both(learned):
        params = lora.join(base, learned)
        scored = score_thoughts(params, rows, micro_batch_rows=4, **how)
        batch, batch_metrics = batch_of(written, scored, estimator, reward_PG)
        grads, seen = update.gradients(learned, batch, loss=loss, micro_batch_rows=8)
        whole_PG = jnp.repeat(whole_P[:, None], G, axis=1)
        right_PG = rloo.advantage(reward_PG, jnp.ones((P, G), bool))
        given = (learned, written, rows, estimator, whole_PG, right_PG)
        expected, entropy = jax.grad(formulas, has_aux=True)(*given)
        return grads, expected, batch_metrics, seen["entropy"], entropy

    grads, expected, batch_metrics, *entropies = jax.jit(both, compiler_options=QUICK)(
        learned
    )
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected))
    assert largest > 1e-3
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=2e-6 * largest)
    np.testing.assert_allclose(
        batch_metrics["jepo/solved_share"], whole_P.mean(), atol=1e-6
    )
    np.testing.assert_allclose(*entropies, rtol=1e-5)


@pytest.mark.slow
def test_a_thought_without_the_phrase_keeps_its_penalty_alone(written, phrase):
    rows = make_thoughts(
        written,
        *answers(),
        np.zeros(P, bool),
        phrase=phrase,
        eos_id=EOS,
        forced=False,
    )
    random = np.random.default_rng(1)
    rows = dataclasses.replace(
        rows, answer_B=jnp.asarray(random.normal(size=P * G) - 9)
    )
    reward_PG = np.zeros((P, G), np.float32)
    batch, batch_metrics = batch_of(written, rows, "practical", reward_PG)
    formatted_B = np.asarray(rows.formatted_B)
    weight_B = np.max(np.abs(batch.answer_weight_BT), axis=1)
    assert np.all(weight_B[~formatted_B] == 0) and np.all(weight_B[formatted_B] > 0)
    mixed_P = formatted_B.reshape(P, G).sum(axis=1) == 1
    assert mixed_P.any()
    advantage_PG = np.asarray(batch.advantage_BT[:, 0]).reshape(P, G)
    # Two of a group: ±10 over 14.1; equally formatted they have none of the penalty.
    formatted_PG = formatted_B.reshape(P, G)
    np.testing.assert_allclose(
        advantage_PG[mixed_P],
        np.where(formatted_PG[mixed_P], 0.5**0.5, -(0.5**0.5)),
        rtol=1e-4,
    )
    bad_P = ~formatted_PG.any(axis=1)
    assert bad_P.any() and np.all(advantage_PG[bad_P] == 0)
    np.testing.assert_array_equal(
        batch.mask_BT[~formatted_B][:, :T], written.mask_BT[~formatted_B]
    )
    assert not np.any(batch.mask_BT[~formatted_B][:, T:])
    share = batch_metrics["jepo/unformatted_share"]
    np.testing.assert_allclose(share, 1 - formatted_B.mean(), rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_solved_prompts_rows_are_rloo_s_whatever_the_estimator(
    written, phrase, estimator
):
    """Their advantages are rloo.py's, on every token; none of JEPO's terms."""
    reward_PG = np.zeros((P, G), np.float32)
    reward_PG[::3, 0] = 1
    whole_P = reward_PG.any(axis=1)
    rows = make_thoughts(
        written,
        *answers(),
        whole_P,
        phrase=phrase,
        eos_id=EOS,
        forced=ESTIMATORS[estimator].forced,
    )
    rows = dataclasses.replace(rows, answer_B=-jnp.arange(P * G, dtype=jnp.float32))
    batch, _ = batch_of(written, rows, estimator, reward_PG)
    right_PG = rloo.advantage(jnp.asarray(reward_PG), jnp.ones((P, G), bool))
    whole_B = np.repeat(whole_P, G)
    expected_BT = np.where(written.mask_BT, right_PG.reshape(-1, 1), 0)[whole_B]
    np.testing.assert_array_equal(batch.advantage_BT[whole_B][:, :T], expected_BT)
    assert np.abs(expected_BT).max() == 1
    assert not np.any(batch.answer_weight_BT[whole_B])
    np.testing.assert_array_equal(
        batch.mask_BT[whole_B][:, :T], written.mask_BT[whole_B]
    )


FIELDS = {
    "algorithm": "jepo",
    "loss_normaliser": "rollout",
    "kl__coefficient": 0.001,
    "jepo__beta_sup": 1.0,
    "jepo__estimator": "multi_sample",
    "num_steps": 4,
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"reward": "none", "minibatches_per_step": 2},
        pytest.param({"jepo__semi_verifiable": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_and_its_resume(quick_compiler, problems, tmp_path, changes):
    """Without any verifier, and with one that solves some prompts."""
    held_out = write_problems(tmp_path / "held_out.jsonl", 3, add=2)
    config = configure(problems, data__eval=held_out, **FIELDS, **changes)
    made = set_up(config)
    if config.reward != "none":
        made = with_parity(made)
    train(made, config, tmp_path / "whole")
    rows = list(metrics.read_metrics(tmp_path / "whole"))
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert len({row["compile_count"] for row in rows}) == 1
    # A random policy seldom writes the phrase.
    forced = [row["jepo/unformatted_share"] for row in rows]
    # None: every prompt of the step was solved.
    assert 0.5 < np.mean([share for share in forced if share is not None]) <= 1
    if config.reward == "none":
        assert all(row["invalid_share"] == 1 for row in rows)
        assert all(row["reward"] is row["pass_rate"] is None for row in rows)
        # Held-out problems are graded all the same.
        evaluations = list(metrics.read_metrics(tmp_path / "whole", metrics.EVALS))
        assert [row["step"] for row in evaluations] == [0, 4]
        assert all(row["ungradable_share"] == 0 for row in evaluations)
        assert all(0 <= row["accuracy"] <= 1 for row in evaluations)
        assert benchmarks.set_up(config).identity["reward"] == "token"
        assert all(row["jepo/solved_share"] == 0 for row in rows)
        # ℓ is what is learned: its bound rises from step to step.
        assert rows[-1]["jepo/bound"] > rows[0]["jepo/bound"]
    else:
        assert 0 < np.mean([row["jepo/solved_share"] for row in rows]) < 1
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path / "broken")
    train(made, config, tmp_path / "broken")
    assert run_records(tmp_path / "broken") == run_records(tmp_path / "whole")
