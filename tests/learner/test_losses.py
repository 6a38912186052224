"""Rewards become advantages, and what a KL in them adds, by hand and by enumeration."""

import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ROOT

from limr_jax import check
from limr_jax.algorithms import dr_grpo, kl
from limr_jax.config import load
from limr_jax.learner import advantages, losses
from limr_jax.learner import batch as batch_lib
from limr_jax.learner.advantages import ALGORITHMS

BY_GROUP = [
    name for name, row in ALGORITHMS.items() if row.advantage and not row.needs_critic
]
BASE, _ = load.load([f"--config={ROOT}/configs/base.py"])


def above_the_mean(name) -> bool:
    """Whether a penalty counts above its group's mean, not above the others'."""
    return ALGORITHMS[name].advantage.keywords.get("centre") is dr_grpo.advantage


def advantages_of(name, reward_PG, penalty_PG, valid_PG=None):
    """Of responses of one token, [P, G]."""
    reward_PG = jnp.asarray(reward_PG, jnp.float32)
    valid_PG = jnp.ones(reward_PG.shape, bool) if valid_PG is None else valid_PG
    rollout = types.SimpleNamespace(mask_BT=jnp.ones((reward_PG.size, 1), bool))
    penalty_BT = jnp.asarray(penalty_PG, jnp.float32).reshape(-1, 1)
    row = ALGORITHMS[name]
    own = {field: BASE[row.section][field] for field in row.own}
    advantage_BT, return_BT = row.advantage(
        rollout, reward_PG, valid_PG, penalty_BT, None, **own
    )
    assert return_BT is None
    return np.asarray(advantage_BT).reshape(reward_PG.shape)


PENALTY_PG = [[0.001, 0.002, 0.003, 0.005]]  # their mean is .00275


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GROUP)
def test_a_solved_groups_penalties_stay_as_small_as_they_are(name):
    """Divided by a std of their own they would be −1.2 to 1.0."""
    got_PG = advantages_of(name, np.ones((1, 4)), PENALTY_PG)
    above_PG = 0.00275 - np.array(PENALTY_PG)
    scale = 1 if above_the_mean(name) else 4 / 3
    np.testing.assert_allclose(got_PG, scale * above_PG, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GROUP)
def test_the_penalties_are_added_to_what_rewards_alone_give(name):
    reward_PG = np.array([[1, 0, 0, 1], [0, 0, 0, 1.0]])
    penalty_PG = np.array([*PENALTY_PG, *PENALTY_PG]) * [[1], [100]]
    got_PG = advantages_of(name, reward_PG, penalty_PG)
    alone_PG = advantages_of(name, reward_PG, np.zeros((2, 4)))
    solved_PG = advantages_of(name, np.ones((2, 4)), penalty_PG)
    np.testing.assert_allclose(got_PG, alone_PG + solved_PG, atol=1e-6)
    assert np.abs(alone_PG).max() > 0.4


@pytest.mark.parametrize("name", BY_GROUP)
def test_invalid_rollouts_have_no_penalty_and_are_in_no_baseline(name):
    valid_PG = jnp.array([[True, True, False, False]])
    got_PG = advantages_of(name, np.ones((1, 4)), PENALTY_PG, valid_PG)
    half = 0.0005 if above_the_mean(name) else 0.001
    np.testing.assert_allclose(got_PG, [[half, -half, 0, 0]], atol=1e-8)


LOGITS_V = jnp.array([0.3, -1.0, 0.5, 1.2])
REFERENCE_V = jax.nn.log_softmax(jnp.array([1.0, 0.2, -0.7, 0.1]))


def gradient_of(name, estimator):
    """E[mean_i A_i ∇log π(a_i)] over all groups of two one-token responses."""
    logprob_V = jax.nn.log_softmax(LOGITS_V)
    slope_VV = jax.jacobian(jax.nn.log_softmax)(LOGITS_V)
    penalty_V = estimator(logprob_V, REFERENCE_V)
    total_V = np.zeros(4)
    for a, b in itertools.product(range(4), repeat=2):
        advantage_PG = advantages_of(
            name, np.ones((1, 2)), [[penalty_V[a], penalty_V[b]]]
        )
        probability = np.exp(logprob_V[a] + logprob_V[b])
        slope_GV = np.stack([slope_VV[a], slope_VV[b]])
        total_V += probability * advantage_PG[0] @ slope_GV / 2
    return total_V


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_GROUP)
def test_k1_in_the_reward_descends_the_kl(name):
    """Exactly; Dr. GRPO's own mean takes 1/G of the reward's gradient off as well."""

    def divergence(x_V):
        policy_V = jax.nn.log_softmax(x_V)
        return jnp.sum(jnp.exp(policy_V) * (policy_V - REFERENCE_V))

    exact_V = jax.grad(divergence)(LOGITS_V)
    scale = 0.5 if above_the_mean(name) else 1
    np.testing.assert_allclose(gradient_of(name, kl.k1), -scale * exact_V, atol=1e-6)


def test_k2_and_k3_in_the_reward_do_not():
    """Which is why check.py refuses them there."""
    k1_V, *others = (gradient_of("rloo", k) for k in (kl.k1, kl.k2, kl.k3))
    for other_V in others:
        cosine = k1_V @ other_V / np.linalg.norm(k1_V) / np.linalg.norm(other_V)
        assert cosine < 0.9


def test_every_algorithm_has_its_papers_normaliser():
    papers = {name: row.normaliser for name, row in ALGORITHMS.items()}
    known = {
        "grpo": "sequence",
        "dr_grpo": "constant",
        "rloo": "rollout",
        "rloo_normalised": "rollout",
        "maxrl": "rollout",
        "reinforce_pp": "token",
        "ppo": "token",
        "jepo": "rollout",
    }
    assert papers.items() >= known.items()
    assert set(papers.values()) <= batch_lib.NORMALISERS.keys()
    assert advantages.normaliser("", "dr_grpo") == "constant"
    assert advantages.normaliser("", "grpo") == "sequence"
    assert advantages.normaliser("token", "dr_grpo") == "token"


def test_a_loss_s_paper_s_normaliser_stands_above_the_algorithm_s():
    assert advantages.normaliser("", "dr_grpo", "clip") == "constant"
    assert advantages.normaliser("", "dr_grpo", "gspo") == "sequence"
    assert advantages.normaliser("", "grpo", "cispo") == "token"
    assert advantages.normaliser("rollout", "grpo", "gspo") == "rollout"


@pytest.mark.slow
def test_ten_groups_of_sixty_four_are_a_whole_step():
    """Dynamic sampling at its bound; with the empty places it was .156 of a step."""
    there_B1 = np.repeat(np.arange(64) < 10, 8)[:, None]
    mask_BT = jnp.asarray(np.broadcast_to(there_B1, (512, 5)))
    weights = jax.tree.map(
        lambda weigh: float(jnp.sum(weigh(mask_BT))), batch_lib.NORMALISERS
    )
    expected = {"token": 1, "sequence": 1, "constant": 1, "rollout": 5}
    assert weights == pytest.approx(expected)
    assert pytest.approx(0.156, abs=5e-4) == 10 / 64


@pytest.mark.parametrize("placement", losses.KL_PLACEMENTS)
def test_an_estimator_that_is_not_named_is_right_where_the_kl_stands(placement):
    argv = ["--config", str(ROOT / "configs/tiny.py")]
    argv += [f"--config.kl.placement={placement}", "--config.kl.coefficient=0.1"]
    check.check(load.load(argv)[0])
    named = losses.KL_PLACEMENTS[placement]
    check.check(load.load([*argv, f"--config.kl.estimator={named}"])[0])
