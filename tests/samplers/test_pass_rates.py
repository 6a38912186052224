"""CDAS, prioritized, informative, MoPPS behind the interface: numbers by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_policy import QUICK

from limr_jax.samplers.cdas import cdas
from limr_jax.samplers.informative import informative
from limr_jax.samplers.mopps import mopps
from limr_jax.samplers.prioritized import prioritized

UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never
KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options=QUICK)
# algorithms.md, section 3: four problems, all of them, then problems 1 and 2.
PAPER = [(0.0625, [-0.5, -0.25, 0, 0.5]), (0.0508606, [-0.5, -0.086252, -0.11719, 0.5])]
CODE = [
    (0.03125, [-0.25, -0.125, 0, 0.25]),
    (0.0377671, [-0.25, -0.070339, -0.080729, 0.25]),
]
PASS_RATE_4 = np.array([1, 0.75, 0.5, 0])


def rewards(pass_rate_P, invalid=0):
    """Groups of 4 with these pass rates, and so many invalid rollouts besides."""
    right_PG = np.arange(4)[None] < 4 * np.asarray(pass_rate_P)[:, None]
    # Invalid ones say 0, as the graders do, or whatever else.
    junk_PG = np.resize([0.0, 1.0, np.nan], (len(right_PG), invalid))
    correct_PG = np.concatenate([right_PG, junk_PG], axis=1).astype(np.float32)
    return correct_PG, np.arange(4 + invalid)[None] < np.full((len(right_PG), 1), 4)


@pytest.mark.slow
@pytest.mark.parametrize(("initial_count", "want"), [(0, PAPER), (1, CODE)])
@pytest.mark.parametrize("invalid", [0, 3])
def test_cdas_gives_the_vector(initial_count, want, invalid):
    all_4, two = (
        cdas(problems=4, prompts=n, key=KEY, initial_count=initial_count)
        for n in (4, 2)
    )
    state, ids_P = jit(all_4.sample)(all_4.init(), KEY)
    assert sorted(ids_P.tolist()) == [0, 1, 2, 3]
    state = jit(all_4.update)(state, ids_P, *rewards(PASS_RATE_4[ids_P], invalid))
    competence, difficulty_N = want[0]
    np.testing.assert_allclose(state.learned.competence, competence, rtol=1e-5)
    np.testing.assert_allclose(state.learned.difficulty_N, difficulty_N, rtol=1e-4)
    # Past the first epoch: the nearest with D ≤ C is problem 2, with D > C problem 3.
    later = dataclasses.replace(state, step=jnp.int32(2))
    drawn, ids_P = jit(two.sample)(later, KEY)
    assert sorted(ids_P.tolist()) == [2, 3]
    report = jit(two.report)(drawn, ids_P)
    np.testing.assert_allclose(report["cdas/drawn_easy_share"], 0.5)
    np.testing.assert_allclose(report["cdas/competence"], competence, rtol=1e-5)
    np.testing.assert_allclose(report["cdas/drawn_gap"], difficulty_N[3] / 2, rtol=1e-5)
    state = jit(two.update)(state, jnp.array([1, 2]), *rewards([0.5, 0.75], invalid))
    competence, difficulty_N = want[1]
    np.testing.assert_allclose(state.learned.competence, competence, rtol=1e-5)
    np.testing.assert_allclose(state.learned.difficulty_N, difficulty_N, rtol=1e-4)


def test_cdas_visits_all_first_and_then_aligns():
    """10 problems, 4 a step: three steps by order, then the nearest to C."""
    sampler = cdas(problems=10, prompts=4, key=KEY, initial_count=0)
    state, drawn = sampler.init(), []
    pass_rate_N = np.round(np.linspace(0, 1, 10) * 4) / 4
    for step in range(6):
        state, ids_P = jit(sampler.sample)(state, jax.random.key(step))
        if step >= 3:
            gap_N = np.asarray(state.learned.difficulty_N - state.learned.competence)
            easy, hard = np.sort(-gap_N[gap_N <= 0]), np.sort(gap_N[gap_N > 0])
            got_P = gap_N[np.asarray(ids_P)]
            np.testing.assert_array_equal(np.sort(-got_P[got_P <= 0]), easy[:2])
            np.testing.assert_array_equal(np.sort(got_P[got_P > 0]), hard[:2])
        state = jit(sampler.update)(state, ids_P, *rewards(pass_rate_N[ids_P]))
        drawn += ids_P.tolist()
    assert sorted(drawn[:10]) == list(range(10))
    report = sampler.report(state, ids_P)
    assert report["epoch"] == 2 and report["cdas/unseen_share"] == 0


def test_a_problem_without_a_valid_rollout_is_not_learned_from():
    ids_P = jnp.array([2, 0])
    correct_PG, valid_PG = rewards([0.5, 0.0])
    valid_PG[1] = False
    for sampler in (
        cdas(problems=3, prompts=2, key=KEY, initial_count=0),
        prioritized(problems=3, prompts=2, floor=0),
        informative(problems=3, prompts=2, group=4, decay=0.5, floor=0),
        mopps(problems=3, prompts=2, pool=8, target=0.5, decay=0.5, prior=1.0),
    ):
        before = sampler.init()
        after = jit(sampler.update)(before, ids_P, correct_PG, valid_PG)
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after)):
            if old.shape == (3,) and old.dtype != bool:
                np.testing.assert_array_equal(old[:2], new[:2])
        changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, after)
        assert any(jax.tree.leaves(changed))


def test_prioritized_draws_by_one_less_the_pass_rate():
    """Pass rates 0, 1/4, 1/2 and 1: one of four problems, at 1 : .75 : .5 : 0."""
    sampler = prioritized(problems=4, prompts=1, floor=0.0)
    state = jit(sampler.update)(
        sampler.init(), jnp.arange(1, 4), *rewards([0.25, 0.5, 1.0], invalid=2)
    )
    np.testing.assert_array_equal(state.right_N, [0, 1, 2, 4])
    np.testing.assert_array_equal(state.valid_N, [0, 4, 4, 4])
    keys = jax.random.split(KEY, 9000)
    ids = jit(jax.vmap(lambda key: sampler.sample(state, key)[1]))(keys)
    counts = np.bincount(np.ravel(ids), minlength=4)
    assert counts[3] == 0
    want = np.array([1, 0.75, 0.5]) / 2.25 * len(keys)
    assert scipy.stats.chisquare(counts[:3], want).pvalue > UNLIKELY
    report = jit(sampler.report)(state, jnp.array([1, 2]))
    np.testing.assert_allclose(report["prioritized/drawn_weight"], 0.625)
    np.testing.assert_allclose(report["prioritized/weight_mean"], 2.25 / 4)
    np.testing.assert_allclose(report["prioritized/unseen_share"], 0.25)
    share = np.array([1, 0.75, 0.5]) / 2.25
    np.testing.assert_allclose(
        report["prioritized/effective_problems"], 1 / np.sum(share**2), rtol=1e-5
    )
    # All that have a weight, and then one that has none: a batch is never short.
    whole = prioritized(problems=4, prompts=4, floor=0.0)
    assert sorted(whole.sample(state, KEY)[1].tolist()) == [0, 1, 2, 3]


def test_informative_draws_by_the_chance_of_both_outcomes():
    """Counts (3, 1), (1, 3), (1, 1) and all right for long: .543 : .543 : .6 : .01."""
    sampler = informative(problems=4, prompts=1, group=4, decay=1.0, floor=0.01)
    state = sampler.init()
    for visit, pass_rate_P in enumerate([[0.5, 0.0], [1.0, 0.5]]):
        # Two rollouts of the four are invalid, whatever they look like.
        correct_PG, valid_PG = rewards(pass_rate_P)
        valid_PG = valid_PG & (np.arange(4)[None] % 2 == visit)
        state = jit(sampler.update)(state, jnp.array([0, 1]), correct_PG, valid_PG)
    np.testing.assert_array_equal(state.posterior.right_N, [4, 2, 1, 1])
    np.testing.assert_array_equal(state.posterior.wrong_N, [2, 4, 1, 1])
    posterior = state.posterior._replace(
        right_N=jnp.array([3.0, 1.0, 1.0, 1e4]), wrong_N=jnp.array([1.0, 3.0, 1.0, 1.0])
    )
    state = dataclasses.replace(state, posterior=posterior)
    keys = jax.random.split(KEY, 9000)
    ids = jit(jax.vmap(lambda key: sampler.sample(state, key)[1]))(keys)
    weight_N = np.array([0.542857, 0.542857, 0.6, 0.01])
    counts = np.bincount(np.ravel(ids), minlength=4)
    want = weight_N / weight_N.sum() * len(keys)
    assert scipy.stats.chisquare(counts, want).pvalue > UNLIKELY
    report = jit(sampler.report)(state, jnp.array([0, 2]))
    np.testing.assert_allclose(
        report["informative/drawn_chance"], (0.542857 + 0.6) / 2, rtol=1e-5
    )
    assert report["informative/floor_share"] == 0.25


@pytest.mark.slow
def test_mopps_counts_by_hand_and_takes_the_nearest():
    sampler = mopps(problems=6, prompts=2, pool=8, target=0.5, decay=0.5, prior=1.0)
    state = jit(sampler.update)(
        sampler.init(), jnp.array([2, 0]), *rewards([0.75, 0.25], invalid=2)
    )
    np.testing.assert_allclose(state.posterior.alpha_N, [2, 1, 4, 1, 1, 1])
    np.testing.assert_allclose(state.posterior.beta_N, [4, 1, 2, 1, 1, 1])
    report = jit(sampler.report)(state, jnp.array([2, 1]))
    np.testing.assert_allclose(report["mopps/drawn_pass_rate"], (4 / 6 + 1 / 2) / 2)
    np.testing.assert_allclose(report["mopps/drawn_evidence"], 2, rtol=1e-6)
    # So much evidence that the draw is the mean: problems 1 and 4 are nearest to 1/2.
    mean_N = jnp.array([0.05, 0.48, 0.95, 0.3, 0.52, 0.8])
    posterior = state.posterior._replace(
        alpha_N=1e6 * mean_N, beta_N=1e6 * (1 - mean_N)
    )
    sure = dataclasses.replace(state, posterior=posterior)
    for seed in range(4):
        _, ids_P = jit(sampler.sample)(sure, jax.random.key(seed))
        assert sorted(ids_P.tolist()) == [1, 4]


def test_mopps_takes_from_a_pool_only():
    """A pool of one batch is the batch: every problem equally often, sure or not."""
    sampler = mopps(problems=8, prompts=2, pool=1, target=0.5, decay=0.5, prior=1.0)
    mean_N = jnp.linspace(0.01, 0.99, 8)
    posterior = sampler.init().posterior._replace(
        alpha_N=1e6 * mean_N, beta_N=1e6 * (1 - mean_N)
    )
    state = dataclasses.replace(sampler.init(), posterior=posterior)
    keys = jax.random.split(KEY, 4000)
    ids = np.asarray(jit(jax.vmap(lambda key: sampler.sample(state, key)[1]))(keys))
    assert np.all(ids[:, 0] != ids[:, 1])
    # Pairs without replacement vary less than independent draws do.
    counts = np.bincount(ids.ravel(), minlength=8)
    assert scipy.stats.chisquare(counts).pvalue > UNLIKELY
