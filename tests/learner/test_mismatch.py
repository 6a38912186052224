"""What sampler and learner's difference costs a gradient, by enumeration."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular

from limr_jax.learner import advantages, losses
from limr_jax.learner.batch import PackedBatch, Scores

WIDE = {"clip_low": 1.0, "clip_high": 1e6}  # no clip but the correction's own
OFF = {
    "kl_coefficient": 0.0,
    "kl_estimator": "k3",
    "kl_placement": "loss",
    "entropy_coefficient": 0.0,
}
# By name: bounds that touch nothing, and bounds that touch some tokens below.
BOUNDS = {
    "tis": ({"cap": 1e6}, {"cap": 1.1}),
    "icepop": ({"low": 0.0, "high": 1e6}, {"low": 0.8, "high": 1.3}),
    "ipo": ({"limit": 1.0}, {"limit": 0.08}),
}
V = 4


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def tables(T):
    """The learner's logits, and the sampler's: the same with an error in each."""
    learner = tabular.table_of(V, T)
    error = 0.4 * np.random.default_rng(9).normal(size=learner.shape)
    return jnp.asarray(learner), jnp.asarray(learner + error)


def correction(name, bounds):
    return partial(losses.CORRECTIONS[name].weight, **bounds)


class Case:
    """Every response of T tokens, each weighted by its chance under the sampler."""

    def __init__(self, T):
        rows = tabular.responses(V, T)
        self.learner, self.sampler = tables(T)
        self.written = tabular.rollout_of(self.sampler, rows, T, group=1)
        self.mask_BT = self.written.mask_BT
        self.old_BT = tabular.rollout_of(self.learner, rows, T, group=1).logprob_BT
        node_BT = tabular.nodes_of(self.written.response_BT, V)
        self.node_BT = jnp.where(self.mask_BT, node_BT, 0)
        whole = partial(tabular.log_prob, before=[()] * len(rows), texts=rows)
        self.sampler_B1 = jnp.exp(whole(self.sampler))[:, None]
        self.learner_B1 = jnp.exp(whole(self.learner))[:, None]
        random = np.random.default_rng(3)
        self.advantage_B1 = jnp.asarray(random.normal(size=(len(rows), 1)))

    def of(self, c_BT):
        """Σ c ∇log π(a_t), π the learner."""

        def total(table):
            logprob_BT = jax.nn.log_softmax(table)[
                self.node_BT, self.written.response_BT
            ]
            return jnp.sum(jnp.where(self.mask_BT, c_BT * logprob_BT, 0))

        return jax.grad(total)(self.learner)

    def learned(self, recompute=True, **options):
        """The expected gradient by the implementation."""
        advantage_BT = jnp.broadcast_to(self.advantage_B1, self.mask_BT.shape)
        batch = PackedBatch(
            tokens_RW=None,
            position_RW=None,
            mask_RY=self.mask_BT,
            weight_RY=jnp.broadcast_to(self.sampler_B1, self.mask_BT.shape),
            advantage_RY=jnp.where(self.mask_BT, advantage_BT, 0),
            old_logprob_RY=self.old_BT if recompute else self.written.logprob_BT,
            sampler_logprob_RY=self.written.logprob_BT if recompute else None,
        )

        def total(table):
            logprob_BT = jax.nn.log_softmax(table)[
                self.node_BT, self.written.response_BT
            ]
            loss_BT, _, _ = losses.policy_gradient(
                logprob_BT, 0.0, batch, **WIDE | OFF | options
            )
            return jnp.sum(jnp.where(self.mask_BT, batch.weight_RY * loss_BT, 0))

        return jax.grad(total)(self.learner)

    def weight_BT(self):
        return jnp.where(
            self.mask_BT, jnp.exp(self.old_BT - self.written.logprob_BT), 0
        )


def size_apart(one, two):
    return float(jnp.linalg.norm(one - two) / jnp.linalg.norm(two))


@pytest.mark.parametrize("name", BOUNDS)
def test_one_token_without_bounds_has_no_bias_and_with_them_that_of_what_they_touch(
    name,
):
    case, (free, bound) = Case(T=1), BOUNDS[name]
    exact = case.of(-case.learner_B1 * case.advantage_B1)
    # Uncorrected, the gradient is that of the wrong policy's tokens.
    assert size_apart(case.learned(), exact) == pytest.approx(0.157, abs=1e-3)
    assert size_apart(case.learned(correction=correction(name, free)), exact) < 1e-12
    found = case.learned(correction=correction(name, bound))
    figure = {"tis": 0.048, "icepop": 0.745, "ipo": 0.295}[name]
    assert size_apart(found, exact) == pytest.approx(figure, abs=1e-3)
    corrected_BT, touched_BT = correction(name, bound)(
        case.written.logprob_BT, case.old_BT
    )
    lost_BT = jnp.where(touched_BT, case.weight_BT() - corrected_BT, 0)
    bias = case.of(case.sampler_B1 * lost_BT * case.advantage_B1)
    assert size_apart(found, exact + bias) < 1e-12


@pytest.mark.parametrize("name", BOUNDS)
def test_longer_responses_keep_the_bias_of_their_prefix(name):
    """A token's weight knows of no other token; their product alone would be exact."""
    case, (free, _) = Case(T=2), BOUNDS[name]
    exact = case.of(-case.learner_B1 * case.advantage_B1)
    found = case.learned(correction=correction(name, free))
    whole_B1 = case.learner_B1 / case.sampler_B1
    prefix_BT = whole_B1 - case.weight_BT()
    bias = case.of(case.sampler_B1 * prefix_BT * case.advantage_B1)
    assert size_apart(found, exact + bias) < 1e-12
    # The figures of algorithms/mismatch.py.
    assert size_apart(case.learned(), exact) == pytest.approx(0.417, abs=1e-3)
    assert size_apart(found, exact) == pytest.approx(0.272, abs=1e-3)


@pytest.mark.parametrize("name", BOUNDS)
def test_in_one_update_the_ratio_itself_is_weighed_alike(name):
    """Without a recomputation w is ρ, and the same bounds give the same gradient."""
    case = Case(T=2)
    for bounds in BOUNDS[name]:
        weighed = {"correction": correction(name, bounds)}
        once = case.learned(recompute=False, **weighed)
        assert size_apart(once, case.learned(**weighed)) < 1e-12


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_recomputed_weights_are_a_factor_of_every_loss(loss):
    """On policy the ratio to the learner's own is 1, so all three are one gradient."""
    case = Case(T=2)
    bounds = {"low": 0.8, "high": 1.3}
    found = case.learned(loss=loss, correction=correction("icepop", bounds))
    weight_BT, _ = correction("icepop", bounds)(case.written.logprob_BT, case.old_BT)
    wanted = case.of(-case.sampler_B1 * weight_BT * case.advantage_B1)
    assert size_apart(found, wanted) < 1e-12


def test_a_kl_in_the_reward_is_the_learners():
    """Weighed by w, one token's gradient is ∇KL(π ‖ π_ref), π the learner."""
    case = Case(T=1)
    error = 0.4 * np.random.default_rng(5).normal(size=case.learner.shape)
    reference = case.learner + error
    rows = tabular.responses(V, 1)
    reference_BT = tabular.rollout_of(reference, rows, 1, group=1).logprob_BT
    batch, told = advantages.rl_batch(
        case.written,
        jnp.zeros((len(rows), 1)),
        jnp.ones((len(rows), 1), bool),
        Scores(reference_BT=reference_BT, old_BT=case.old_BT),
        1.0,
        advantage=lambda rollout, reward_PG, valid_PG, penalty_BT, _: (
            -penalty_BT,
            None,
        ),
        kl_estimator="k1",
        kl_placement="reward",
        entropy_coefficient=0.0,
        mask_truncated=False,
        filter_tau=-1.0,
        filter_normaliser="all",
        filter_keep_kl=True,
    )
    np.testing.assert_allclose(told["kl"], jnp.mean(case.old_BT - reference_BT))

    def divergence(table):
        now, then = (jax.nn.log_softmax(x)[0] for x in (table, reference))
        return jnp.sum(jnp.exp(now) * (now - then))

    case.advantage_B1 = batch.advantage_BT
    found = case.learned(correction=correction("tis", BOUNDS["tis"][0]))
    assert size_apart(found, jax.grad(divergence)(case.learner)) < 1e-6


def test_statistics_by_hand():
    """log w = .1, −.2, 0 of three tokens; what is off the mask counts nowhere."""
    sampler_RY = jnp.array([[-1.0, -2.0, -0.5, 7.0]])
    batch = PackedBatch(
        tokens_RW=None,
        position_RW=None,
        mask_RY=jnp.array([[True, True, True, False]]),
        weight_RY=None,
        advantage_RY=jnp.ones((1, 4)),
        old_logprob_RY=sampler_RY + jnp.array([[0.1, -0.2, 0.0, 50.0]]),
        sampler_logprob_RY=sampler_RY,
    )
    logprob_RY = jnp.array([[-3.0, -3.0, -3.0, 0.0]])  # later updates change nothing
    _, means, maxima = losses.policy_gradient(
        logprob_RY,
        0.0,
        batch,
        **WIDE | OFF,
        correction=correction("tis", {"cap": 1.05}),
    )
    chosen_RY = np.asarray(batch.chosen_RY)
    means = {
        name: np.asarray(x)[chosen_RY].mean()
        for name, x in means.items()
        if name.startswith("mismatch/")
    }
    found = losses.with_sample_size(means)
    x = np.array([0.1, -0.2, 0.0])
    w = np.exp(x)
    wanted = {
        "mismatch/log_weight": 0.1,
        "mismatch/kl": np.mean(w - 1 - x),
        "mismatch/touched_share": 1 / 3,
        "mismatch/ess": w.sum() ** 2 / (w**2).sum() / 3,
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9)
    np.testing.assert_allclose(maxima["mismatch/log_weight_max"].max(), 0.2)
    nothing = dict.fromkeys(
        ("mismatch/weight", "mismatch/weight_squared"), jnp.array(0.0)
    )
    assert losses.with_sample_size(nothing) == {"mismatch/ess": 1}
