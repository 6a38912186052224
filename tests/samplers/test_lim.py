"""Every problem once a warm-up epoch; then draws by the score the curve really has."""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from tiny_policy import QUICK

from limr_jax.algorithms import lim
from limr_jax.samplers import lim as online_lim_module

UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never
EPOCHS = 9
jit = functools.partial(jax.jit, compiler_options=QUICK)
CURVE = jit(lambda *cells: lim.carry(*lim.curve(*cells)))
SCORE = jit(lim.score)
THRESHOLD = functools.partial(lim.threshold_weight, threshold=0.6, floor=0.05)


def online_lim(problems, prompts, seed=0, warmup_epochs=1, weights=THRESHOLD):
    return online_lim_module.online_lim(
        problems=problems,
        prompts=prompts,
        key=jax.random.key(seed),
        warmup_epochs=warmup_epochs,
        weights=weights,
    )


class Recorded:
    """A run of the online sampler against the curve of its draws, kept in numpy.

    `rewards(epoch, ids_P)` gives reward_PG and valid_PG of the problems drawn in an
    epoch of their own: the last batch of a warm-up epoch may hold two.
    """

    def __init__(self, problems, prompts, *, warmup_epochs, group=3, **options):
        self.sampler = online_lim(
            problems, prompts, warmup_epochs=warmup_epochs, **options
        )
        self.problems, self.prompts, self.group = problems, prompts, group
        self.warmup, self.warmup_draws = warmup_epochs, warmup_epochs * problems
        self.state = jit(self.sampler.init)()
        self.sample = jit(self.sampler.sample)
        self.update = jit(self.sampler.update)
        self.draws, self.weighted_steps, self.ended = 0, 0, 0
        self.sums = np.zeros((problems, EPOCHS + 1), np.float32)
        self.counts = np.zeros((problems, EPOCHS + 1), np.float32)

    def epochs_of_draw(self):
        """The epoch of each of the next P draws, and how many epochs end with them."""
        draw_P = self.draws + np.arange(self.prompts)
        if self.draws < self.warmup_draws:
            self.draws += self.prompts
            return draw_P // self.problems, self.draws // self.problems
        epoch_steps = -(-self.problems // self.prompts)
        epoch = self.warmup + self.weighted_steps // epoch_steps
        self.weighted_steps += 1
        ended = self.warmup + self.weighted_steps // epoch_steps
        return np.full(self.prompts, epoch), ended

    def step(self, step, rewards):
        """Draw, grade, update; whether an epoch ended."""
        key = jax.random.fold_in(jax.random.key(99), step)
        self.state, ids_P = self.sample(self.state, key)
        ids_P = np.asarray(ids_P)
        assert len(set(ids_P)) == self.prompts
        epoch_P, ended = self.epochs_of_draw()
        reward_PG, valid_PG = rewards(epoch_P, ids_P)
        self.drawn = self.state
        self.state = self.update(self.state, ids_P, reward_PG, valid_PG)
        self.sums[ids_P, epoch_P] += np.where(valid_PG, reward_PG, 0).sum(axis=1)
        self.counts[ids_P, epoch_P] += valid_PG.sum(axis=1)
        before, self.ended = self.ended, ended
        assert int(self.state.order.epoch) == ended
        return ended > before

    def curve(self):
        """value_NE and seen_NE of the epochs that have ended, carried forward."""
        over = np.arange(EPOCHS + 1)[None] < self.ended
        return CURVE(np.where(over, self.sums, 0), np.where(over, self.counts, 0))

    def check(self):
        """Scores and weights are those of the whole curve."""
        value_NE, seen_NE = self.curve()
        ever_seen_N = np.any(seen_NE, axis=1)
        score_N = np.asarray(SCORE(value_NE, seen_NE))
        np.testing.assert_array_equal(self.state.seen_N, ever_seen_N)
        np.testing.assert_allclose(
            np.asarray(self.state.score_N)[ever_seen_N],
            score_N[ever_seen_N],
            rtol=1e-5,
            atol=1e-5,
        )
        weight_N = np.where((score_N >= 0.6) | ~ever_seen_N, 1.0, 0.05)
        sure_N = np.abs(score_N - 0.6) > 1e-4
        np.testing.assert_allclose(
            np.asarray(self.state.weight_N)[sure_N], weight_N[sure_N], rtol=1e-6
        )
        return score_N, ever_seen_N


@pytest.mark.parametrize(
    "problems, prompts, warmup", [(10, 4, 2), (9, 8, 3), (6, 6, 1)]
)
def test_online_scores_are_those_of_the_recorded_curve(problems, prompts, warmup):
    """Early draws, invalid rewards, missing cells, whole epochs without any reward."""
    run = Recorded(problems, prompts, warmup_epochs=warmup)
    random = np.random.default_rng(problems)
    talent_N = np.where(np.arange(problems) % 3, random.uniform(0.1, 0.5, problems), 1)
    silent = {0, 4}  # epochs in which nothing could be graded

    def rewards(epoch_P, ids_P):
        mean_P = np.minimum(talent_N[ids_P] + 0.03 * epoch_P, 1)
        reward_PG = random.normal(mean_P[:, None], 0.1, (prompts, 3)).astype("f")
        valid_PG = random.random((prompts, 3)) < 0.5
        valid_PG &= (ids_P != 1)[:, None]  # problem 1 is never graded
        valid_PG &= ~np.isin(epoch_P, list(silent))[:, None]
        return np.where(valid_PG, reward_PG, np.nan), valid_PG

    ended = partly = 0
    for step in range(200):
        if run.step(step, rewards):
            ended += 1
            score_N, ever_seen_N = run.check()
            partly += np.any(run.counts[ever_seen_N, run.ended - 1] == 0)
            assert not ever_seen_N[1] and run.state.weight_N[1] == 1
        else:  # scores stand still within an epoch
            np.testing.assert_array_equal(run.drawn.score_N, run.state.score_N)
            np.testing.assert_array_equal(run.drawn.weight_N, run.state.weight_N)
        if ended == EPOCHS:
            break
    assert ended == EPOCHS and partly > 0  # there was something to carry forward
    assert 0 < np.sum(score_N[ever_seen_N] >= 0.6) < ever_seen_N.sum()


def test_vector_of_the_paper_through_the_online_path():
    """algorithms.md section 1: four curves, four epochs; 3 of 4 problems a step."""
    curve_NE = np.array(
        [[0, 0.25, 0.5, 0.75], [0, 0, 0, 0], [1, 1, 1, 1], [0.25, 0.5, 0.75, 1]]
    )
    run = Recorded(4, 3, warmup_epochs=4, group=4)

    def rewards(epoch_P, ids_P):
        right_P = 4 * curve_NE[ids_P, np.minimum(epoch_P, 3)]
        reward_PG = (np.arange(4)[None] < right_P[:, None]).astype(np.float32)
        return reward_PG, np.ones((3, 4), bool)

    for step in range(6):  # 18 draws: 4 epochs and 2 early ones of the fifth
        run.step(step, rewards)
    assert run.ended == 4
    np.testing.assert_allclose(run.state.score_N, [0.869565, 0, 0, 0.869565], atol=1e-6)
    np.testing.assert_allclose(run.state.weight_N, [1, 0.05, 0.05, 1], rtol=1e-6)
    value_NE, _ = run.curve()
    np.testing.assert_allclose(
        np.mean(value_NE[:, :4], axis=0), [0.3125, 0.4375, 0.5625, 0.6875], rtol=1e-6
    )


def weighted(sampler, weight_N):
    """The sampler's state after a warm-up of one epoch that gave these weights."""
    state = sampler.init()
    order = dataclasses.replace(state.order, epoch=jnp.int32(1))
    return dataclasses.replace(
        state,
        order=order,
        scored_epochs=jnp.int32(1),
        weight_N=jnp.array(weight_N, jnp.float32),
        seen_N=jnp.array(weight_N) < 1,
    )


def draws_by_weight(weight_N, prompts, count=30_000):
    """Independent draws [count, P] by these weights."""
    sampler = online_lim(len(weight_N), prompts)
    state = weighted(sampler, weight_N)
    keys = jax.random.split(jax.random.key(3), count)
    return np.asarray(jit(jax.vmap(lambda k: sampler.sample(state, k)[1]))(keys))


def test_draws_follow_the_weights_without_replacement():
    """All ordered pairs of 5, at w_i / Σw · w_j / (Σw − w_i)."""
    weight_N = np.array([1, 0.5, 0.25, 0.05, 1])
    ids = draws_by_weight(weight_N, 2)
    pairs = list(itertools.permutations(range(5), 2))
    total = weight_N.sum()
    want = [weight_N[i] / total * weight_N[j] / (total - weight_N[i]) for i, j in pairs]
    got = [np.sum((ids[:, 0] == i) & (ids[:, 1] == j)) for i, j in pairs]
    assert sum(got) == len(ids)
    assert scipy.stats.chisquare(got, np.array(want) * len(ids)).pvalue > UNLIKELY


def test_a_weight_of_0_is_drawn_only_when_all_else_is():
    ids = draws_by_weight([0, 1, 0, 0.001, 0], 3, count=4000)
    assert np.all(np.sort(ids[:, :2]) == [1, 3])
    counts = np.bincount(ids[:, 2], minlength=5)  # by chance, not by index
    assert counts[[1, 3]].sum() == 0
    assert scipy.stats.chisquare(counts[[0, 2, 4]]).pvalue > UNLIKELY


def test_weighted_epochs_are_counted_in_steps():
    """Warm-up of 2 × 10 problems in 5 steps of 4; then ceil(10 / 4) steps an epoch."""
    sampler = online_lim(10, 4, warmup_epochs=2)

    def step(state, step):
        state, ids_P = sampler.sample(state, jax.random.key(step))
        right_PG = jnp.ones((4, 2))
        state = sampler.update(state, ids_P, right_PG, right_PG > 0)
        return state, sampler.report(state, ids_P)["epoch"]

    _, epoch = jit(lambda: jax.lax.scan(step, sampler.init(), jnp.arange(12)))()
    want = [0.4, 0.8, 1.2, 1.6, 2, 7 / 3, 8 / 3, 3, 10 / 3, 11 / 3, 4, 13 / 3]
    np.testing.assert_allclose(epoch, want, rtol=1e-6)


def test_softmax_weights_online():
    """The best score weighs 1, as the never seen does; the others less, floored."""
    weights = functools.partial(lim.softmax_weight, temperature=0.1, floor=0.02)
    run = Recorded(4, 4, warmup_epochs=1, group=2, weights=weights)
    mean_N = np.array([1.0, 0.5, 0.0, 0.0])

    def rewards(epoch_P, ids_P):
        reward_PG = np.repeat(mean_N[ids_P, None], 2, axis=1).astype(np.float32)
        return reward_PG, np.repeat((ids_P != 3)[:, None], 2, axis=1)

    assert run.step(0, rewards)
    # r_avg = .5: scores 1 − (r − .5)² / .25 = 0, 1, 0 of the three that were graded.
    np.testing.assert_allclose(run.state.score_N[:3], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(run.state.weight_N, [0.02, 1, 0.02, 1], rtol=1e-5)


def test_report_by_hand():
    sampler = online_lim(5, 2)
    state = weighted(sampler, [1, 1, 0.05, 0.05, 0.05])
    state = dataclasses.replace(
        state,
        seen_N=jnp.array([True, False, True, True, True]),
        score_N=jnp.array([0.8, 0, 0.5, 0.1, -0.4]),
        step_in_epoch=jnp.int32(2),
    )
    report = jit(sampler.report)(state, np.array([1, 3]))
    want = {
        "epoch": 1 + 2 / 3,
        "lim/score_mean": (0.8 + 0.5 + 0.1 - 0.4) / 4,
        "lim/score_max": 0.8,
        "lim/kept_share": 2 / 5,
        "lim/unseen_share": 1 / 5,
        "lim/drawn_kept_share": 1 / 2,
        "lim/drawn_unseen_share": 1 / 2,
        "lim/effective_problems": 2.15**2 / (2 + 3 * 0.05**2),
    }
    assert report.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(report[name], value, rtol=1e-5, err_msg=name)


def test_report_where_nothing_is_kept_or_seen():
    sampler = online_lim(5, 2)
    report = sampler.report(sampler.init(), np.array([0, 1]))
    np.testing.assert_allclose(report["lim/effective_problems"], 5, rtol=1e-5)
    assert report["lim/unseen_share"] == report["lim/drawn_unseen_share"] == 1
    assert np.isnan(report["lim/score_mean"]) and np.isnan(report["lim/score_max"])
    # A floor of 0 and no problem above the threshold: draws are uniform again.
    report = sampler.report(weighted(sampler, [0.0] * 5), np.array([0, 1]))
    np.testing.assert_allclose(report["lim/effective_problems"], 5, rtol=1e-5)


@pytest.mark.soak
def test_a_million_problems(capsys):
    """Time of draw and update at N = 1e6, P = 1024, G = 8."""
    N, P = 1_000_000, 1024
    sampler = online_lim(N, P)
    draw, update = jax.jit(sampler.sample), jax.jit(sampler.update)
    reward_PG = np.ones((P, 8), np.float32)
    start = jax.jit(sampler.init)()
    last = dataclasses.replace(start.order, position=jnp.int32(N - P // 2))
    by_weight = weighted(sampler, np.where(np.arange(N) % 6, 0.05, 1))
    states = {
        "warm-up": start,
        "warm-up's last": dataclasses.replace(start, order=last),
        "by weight": by_weight,
        "by weight, last": dataclasses.replace(
            by_weight, step_in_epoch=jnp.int32(-(-N // P) - 1)
        ),
    }
    for name, state in states.items():
        for _ in range(2):  # the first one compiles
            clock = time.perf_counter()
            drawn, ids_P = jax.block_until_ready(draw(state, jax.random.key(1)))
            middle = time.perf_counter()
            jax.block_until_ready(update(drawn, ids_P, reward_PG, reward_PG > 0))
            end = time.perf_counter()
        assert len(set(np.asarray(ids_P))) == P
        with capsys.disabled():
            print(
                f"\n{name}: draw {1e3 * (middle - clock):.0f} ms, "
                f"update {1e3 * (end - middle):.0f} ms"
            )
