"""Rounds of a step: what they draw, and what becomes of the groups that are kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_table import RL, row_of
from tiny_policy import QUICK

from limr_jax.data.prompts import PromptBatch
from limr_jax.rewards.types import Graded
from limr_jax.rollout.types import Rollout
from limr_jax.samplers import group_buffer, group_filter, importance
from limr_jax.samplers.uniform import uniform

KEY = jax.random.key(0)
jit = functools.partial(jax.jit, compiler_options=QUICK)


@pytest.mark.parametrize(
    ("problems", "prompts", "max_rounds"),
    [(12, 4, 3), (13, 3, 4), (20, 4, 2), (5, 5, 1)],
)
def test_no_problem_twice_in_a_step_and_all_once_an_epoch(
    problems, prompts, max_rounds
):
    """Whatever number of rounds a step takes."""
    sampler = group_filter.in_rounds(
        uniform(problems=problems, prompts=prompts, key=KEY),
        keep=group_filter.mixed,
        problems=problems,
        prompts=prompts,
        max_rounds=max_rounds,
    )
    sample, end_step = jit(sampler.sample), jit(sampler.end_step)
    random, state, drawn = np.random.default_rng(1), sampler.init(), []
    for step in range(40):
        of_step = []
        rounds = random.integers(1, max_rounds + 1)
        for _ in range(rounds):
            state, ids_P = sample(state, jax.random.fold_in(KEY, step))
            of_step += ids_P.tolist()
        assert len(set(of_step)) == len(of_step)
        drawn += of_step
        report = sampler.report(state, ids_P)
        assert report["dynamic/rounds"] == rounds
        np.testing.assert_allclose(report["epoch"], len(drawn) / problems, rtol=1e-6)
        state = end_step(state)
        assert state.rounds == 0 and state.drawn_N is None
    epochs = len(drawn) // problems
    whole = np.reshape(drawn[: epochs * problems], (epochs, problems))
    np.testing.assert_array_equal(
        np.sort(whole), np.tile(np.arange(problems), (epochs, 1))
    )
    if problems > 5:
        assert len({tuple(order) for order in whole}) == epochs


def test_keep_is_of_valid_rollouts_and_raw_correctness():
    nan = jnp.nan
    correct_PG = jnp.array([[1, 1, 0], [0, 0, 0], [1, 0, nan], [1, 0, 1], [0, 1, 1]])
    valid_PG = jnp.array([[1, 1, 0], [1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]], bool)
    keep_P = jit(group_filter.mixed)(correct_PG, valid_PG)
    np.testing.assert_array_equal(keep_P, [False, False, True, False, True])


def round_of(first, kept, G=2, T=3):
    """A round of P = 3 problems whose every array says which problem it is of."""
    ids_P = np.arange(first, first + 3, dtype=np.int32)
    of_B = np.repeat(ids_P, G)
    tokens_BT = np.repeat(of_B[:, None], T, axis=1)
    written = Rollout(
        prompt_PL=np.repeat(ids_P[:, None], 4, axis=1),
        position_PL=np.repeat(ids_P[:, None], 4, axis=1),
        response_BT=tokens_BT,
        mask_BT=tokens_BT > 0,
        logprob_BT=-tokens_BT.astype(np.float32),
        entropy_BT=tokens_BT.astype(np.float32),
        truncated_B=of_B % 2 == 0,
        slot_steps_M=np.array([7], np.int32),
        steps_M=np.array([7], np.int32),
        row_steps_M=np.array([7], np.int32),
    )
    drawn = PromptBatch(
        ids_P, written.prompt_PL, written.prompt_PL, ids_P[:, None], ids_P
    )
    # A right and a wrong rollout where the group is kept, else two right ones.
    right_PG = np.stack([np.ones(3), ~np.array(kept)], axis=1).astype(np.float32)
    valid_PG = np.ones((3, G), bool)
    return drawn, written, Graded(10 + right_PG, right_PG, valid_PG, valid_PG)


@pytest.fixture(scope="module")
def collect():
    """Rounds of three, beginning with nothing: (waiting, step, round) → …"""

    @functools.partial(jit, static_argnames="max_age")
    def collect(waiting, step, groups, max_age=1):
        options = {"keep": group_filter.mixed, "max_age": max_age}
        return group_buffer.collect(waiting, step, *groups, **options)

    return collect


NOTHING = group_buffer.empty(*round_of(0, [True] * 3))


def whole_groups(batch, want):
    """Asserts that the kept places hold these problems, and every row of each."""
    kept = np.asarray(batch.kept_P)
    drawn, written, graded = jax.device_get(batch.groups)
    assert drawn.ids_P[kept].tolist() == want
    np.testing.assert_array_equal(graded.valid_PG, np.stack([kept, kept], axis=1))
    for p, problem in zip(np.flatnonzero(kept), want, strict=True):
        np.testing.assert_array_equal(written.prompt_PL[p], problem)
        np.testing.assert_array_equal(drawn.answer_PA[p], problem)
        for b in (2 * p, 2 * p + 1):
            np.testing.assert_array_equal(written.response_BT[b], problem)
            np.testing.assert_array_equal(written.logprob_BT[b], -problem)
            assert written.truncated_B[b] == (problem % 2 == 0)
        np.testing.assert_array_equal(graded.correct_PG[p], [1, 0])
        np.testing.assert_array_equal(graded.reward_PG[p], [11, 10])


def test_rounds_by_hand(collect):
    """One of three is kept, then three of three: two are over, and come first next."""
    batch, surplus, whole, told = collect(
        NOTHING, 4, round_of(10, [False, True, False])
    )
    assert not whole
    whole_groups(batch, [11])
    assert not surplus.kept_P.any()
    assert (told["dynamic/used_groups"], told["dynamic/used_rollouts"]) == (1, 2)
    assert told["dynamic/used_tokens"] == 6
    assert np.asarray(told["dynamic/used_pass_rate"]) == 0.5
    batch, surplus, whole, told = collect(batch, 4, round_of(20, [True] * 3))
    assert whole
    whole_groups(batch, [11, 20, 21])
    assert np.asarray(surplus.groups[0].ids_P)[np.asarray(surplus.kept_P)].tolist() == [
        22
    ]
    assert told["dynamic/used_groups"] == 3 and told["dynamic/surplus_groups"] == 1
    assert told["dynamic/carried_groups"] == told["dynamic/age_max"] == 0
    # The next step: what is older comes first, and has an age.
    batch, surplus, _, told = collect(surplus, 5, round_of(30, [True, True, True]))
    whole_groups(batch, [22, 30, 31])
    assert told["dynamic/carried_groups"] == told["dynamic/age_max"] == 1
    np.testing.assert_allclose(told["dynamic/age_mean"], 1 / 3, rtol=1e-6)


def test_the_page_says_what_each_number_is(collect):
    numbers = collect(NOTHING, 0, round_of(10, [True] * 3))[-1]
    for name in [*numbers, *importance.metrics(jnp.ones(2))]:
        # It is taken for the learned tokens, and not logged.
        assert row_of(name, RL) or name == "dynamic/used_tokens", name


def test_rollouts_that_were_not_asked_for_are_not_used(collect):
    """Two groups are kept, one of two rollouts and one of one and an empty row."""
    drawn, written, graded = round_of(10, [True, False, True])
    asked_PG = np.array([[1, 1], [1, 1], [1, 0]], bool)
    drawn = dataclasses.replace(drawn, asked_PG=asked_PG)
    waiting = group_buffer.empty(drawn, written, graded)
    _, _, _, told = collect(waiting, 4, (drawn, written, graded))
    assert (told["dynamic/used_groups"], told["dynamic/used_rollouts"]) == (2, 3)


def test_at_the_bound_empty_places_are_invalid(collect):
    batch, surplus, _, told = collect(NOTHING, 0, round_of(10, [False] * 3))
    whole_groups(batch, [])
    assert told["dynamic/used_groups"] == 0 and not surplus.kept_P.any()
    assert np.isnan(told["dynamic/used_pass_rate"]) and np.isnan(
        told["dynamic/age_mean"]
    )


def test_what_is_too_old_is_dropped(collect):
    _, surplus, _, _ = collect(NOTHING, 0, round_of(10, [True] * 3))
    assert not surplus.kept_P.any()
    three = dataclasses.replace(NOTHING, kept_P=np.ones(3, bool))
    groups = group_buffer.without_round_fields(*round_of(40, [True] * 3))
    born_P = np.array([6, 5, 7], np.int32)
    three = dataclasses.replace(three, groups=groups, born_P=born_P)
    fresh = round_of(50, [True] * 3)
    whole_groups(collect(three, 7, fresh)[0], [40, 42, 50])
    whole_groups(collect(three, 7, fresh, max_age=0)[0], [42, 50, 51])
    whole_groups(collect(three, 9, fresh)[0], [50, 51, 52])
