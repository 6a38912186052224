"""Replays of recorded curves: four problems, three epochs, numbers by hand."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from tiny_policy import QUICK

from limr_jax import platform
from limr_jax.config import config_file
from limr_jax.errors import InputError
from limr_jax.samplers.interface import PromptSampler
from limr_jax.studies import replay
from limr_jax.studies.reward_curves import Curves

BASE = config_file.load(str(platform.launch_root() / "configs/base.py"))
CONFIG = replay.ReplayConfig(prompts=2, group=2, seed=0, size=2)
# With groups of two a rate of .5 has signal .5, and 0 and 1 have none.
VECTOR = {
    "rises": [0, 0.5, 1],
    "half": [0.5, 0.5, 0.5],
    "never": [0, 0, 0],
    "late": [0, 0, 0.5],
}


def curves(rows) -> Curves:
    """None: missing."""
    value_NE = np.array(list(rows.values()), float)
    return Curves(tuple(rows), np.nan_to_num(value_NE), ~np.isnan(value_NE))


@pytest.fixture
def only(monkeypatch):
    """Replays of these samplers alone: each is a program for the compiler."""

    def leave(*names):
        monkeypatch.setattr(replay, "samplers", lambda section: list(names))

    return leave


def test_signal_groups_and_regret_by_hand(only):
    only("uniform")
    result = replay.replay(curves(VECTOR), BASE.sampler, CONFIG)
    # Two steps an epoch; the best pair has signal .5, 1 and 1.
    assert result["steps"] == 6
    assert result["oracle_signal_groups"] == 2 * (0.5 + 1 + 1)
    rows = result["selectors"]
    got = {name: row["signal_groups_by_epoch"] for name, row in rows.items()}
    # A subset's epoch is 2 steps of 2 draws, each of its mean.
    assert got == {
        "uniform": [0.5, 1, 1],  # every problem once an epoch
        "LIM set": [1, 1, 2],
        "LINEAR set": [0, 1, 1],
        "std set": [0, 1, 1],
        "hardest set": [0, 1, 0],
        "RAND set": got["RAND set"],
    }
    assert [row["regret"] for row in rows.values()][:5] == [2.5, 1, 3, 3, 4]
    assert all(row["regret"] == 5 - row["signal_groups"] for row in rows.values())
    chosen = {name: row["chosen"] for name, row in rows.items()}
    # r_avg = [.125, .25, .5]: scores .792, .871, .792, .950.
    assert chosen["LIM set"] == ["half", "late"]
    assert chosen["LINEAR set"] == chosen["std set"] == ["rises", "late"]
    assert chosen["hardest set"] == ["rises", "never"]  # three fail; the first two
    assert [rows[x]["visited_share"] for x in ("uniform", "LIM set")] == [1, 0.5]
    overlap = result["overlap"]
    assert overlap["LIM set"]["std set"] == overlap["std set"]["LIM set"] == 1 / 3
    assert overlap["LINEAR set"]["std set"] == 1
    assert overlap["LIM set"]["hardest set"] == 0


def test_the_size_of_choices(only):
    only()
    default = functools.partial(replay.ReplayConfig, prompts=2, group=2, seed=0)
    assert replay.replay(curves(VECTOR), BASE.sampler, default())["size"] == 4
    # LIM keeps none: as many as a step draws.
    rows = dict.fromkeys("abc", [1, 1, 1]) | {"d": [0, 1, 1]}
    assert replay.replay(curves(rows), BASE.sampler, default())["size"] == 2


def test_a_sampler_learns_from_what_it_drew():
    """By 1 − pass rate so far: what is always right is drawn once, and never again."""
    rows = {"always": [1] * 8, "never": [0] * 8}
    config = replay.ReplayConfig(prompts=1, group=4, seed=1)
    ids_EXP = replay._draws(
        "prioritized", section=BASE.sampler, whole=curves(rows), config=config
    )
    assert ids_EXP.shape == (8, 2, 1)
    assert np.bincount(ids_EXP.reshape(-1)).tolist() == [1, 15]


def test_luck_is_of_the_problem_and_the_rollout_alone():
    draw = jax.jit(replay.outcomes, static_argnames="group", compiler_options=QUICK)
    key = jax.random.key(0)
    rate_P, ids_P = np.array([0.5, 0, 0.5, 1], np.float32), np.array([7, 1, 3, 5])
    zero_P = np.zeros(4, np.int32)
    all_PG = draw(rate_P, ids_P, key=key, first_P=zero_P, group=16)
    assert all_PG[1].tolist() == [0] * 16 and all_PG[3].tolist() == [1] * 16
    assert 0 < all_PG[0].mean() < 1 and all_PG[0].tolist() != all_PG[2].tolist()
    # In another order, as another sampler may draw them.
    again_PG = draw(rate_P[::-1], ids_P[::-1], key=key, first_P=zero_P, group=16)
    np.testing.assert_array_equal(again_PG[::-1], all_PG)
    # A second visit goes on where the first one ended.
    late_PG = draw(rate_P, ids_P, key=key, first_P=zero_P + 4, group=16)
    np.testing.assert_array_equal(late_PG[:, :12], all_PG[:, 4:])
    # More rollouts are right at a higher rate, and those that were are.
    more_PG = draw(rate_P + 0.2, ids_P, key=key, first_P=zero_P, group=16)
    assert (more_PG >= all_PG).all()


def test_a_second_visit_in_an_epoch_has_other_rollouts(monkeypatch):
    """A sampler that always draws problem 0, and remembers what it saw."""
    seen = []

    def make_sampler(section, data, **_):
        def update(state, ids_P, correct_PG, valid_PG):
            jax.debug.callback(lambda x: seen.append(x.tolist()), correct_PG[0])
            return state

        return PromptSampler(
            init=lambda: np.int32(0),
            sample=lambda state, key: (state, np.array([0], np.int32)),
            update=update,
            report=None,
        )

    monkeypatch.setattr(replay, "make_sampler", make_sampler)
    rows = {"a": [0.5, 0.5], "b": [0, 0], "c": [0, 0]}
    config = replay.ReplayConfig(prompts=1, group=8, seed=0)
    replay._draws("any", section=BASE.sampler, whole=curves(rows), config=config)
    jax.effects_barrier()
    assert len({tuple(x) for x in seen}) == len(seen) == 6


def test_gaps_take_the_last_known_rate():
    rows = {"a": [None, 0.5, None, 1], "b": [None] * 4, "c": [0, None, None, None]}
    whole = replay.fill(curves(rows))
    assert whole.ids == ("a", "c")  # b was never seen
    assert whole.value_NE.tolist() == [[0.5, 0.5, 0.5, 1], [0] * 4]
    assert whole.seen_NE.sum() == 3


def test_most_drawn():
    ids_X = np.array([3, 1, 3, 0, 1, 2])
    # 1 and 3 twice, 1 last; then 2 and 0 once, 2 last.
    assert replay.most_drawn(ids_X, 3).tolist() == [1, 3, 2]
    assert replay.most_drawn(ids_X, 9).tolist() == [1, 3, 2, 0]


def test_samplers_that_need_nothing_but_rewards():
    assert replay.samplers(BASE.sampler) == [
        "uniform",
        "lim",
        "cdas",
        "prioritized",
        "greso",
        "informative",
        "bots",
        "dps",
        "mopps",
    ]


@pytest.mark.parametrize(
    ("rows", "change", "reason"),
    [
        (
            VECTOR,
            {"prompts": 5},
            "--problems_per_step 5 must be from 1 to the 4 problems that have a curve",
        ),
        (
            VECTOR,
            {"size": 0},
            "--size 0 must be from 1 to the 4 problems that have a curve",
        ),
        (
            VECTOR | {"late": [0, -1, 1]},
            {},
            "'late' has -1 in epoch 1, which is no pass rate; give curves of 0 to 1",
        ),
        (
            {"a": [0.5], "b": [None]},
            {"prompts": 1, "size": 1},
            "1 problems with a curve leave nothing to choose; give 2 or more",
        ),
    ],
)
def test_what_cannot_be_replayed_is_one_line(rows, change, reason):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(InputError) as caught:
        replay.replay(curves(rows), BASE.sampler, config)
    assert str(caught.value) == reason


def test_the_table():
    row = {"visited_share": 0.5, "chosen": ["a"]}
    result = {"problems": 1024, "epochs": 2, "steps": 4, "problems_per_step": 512}
    result |= {"group": 8, "missing_cells": 7, "size": 1, "oracle_signal_groups": 200.0}
    result |= {
        "selectors": {
            "uniform": row | {"signal_groups": 50.0, "regret": 150.0},
            "dps": row | {"signal_groups": 180.0, "regret": 20.0},
        },
        "overlap": {
            "uniform": {"uniform": 1.0, "dps": 0.25},
            "dps": {"uniform": 0.25, "dps": 1.0},
        },
    }
    assert replay.table(result).splitlines() == [
        "1,024 problems x 2 epochs: 4 steps of 512 problems x 8 rollouts; 7 missing "
        "cells were filled; choices of 1",
        "",
        "selector      signal groups  a step   regret  visited",
        "oracle                200.0   50.00      0.0",
        "dps                   180.0   45.00     20.0    50.0%",
        "uniform                50.0   12.50    150.0    50.0%",
        "",
        "overlap         0    1",
        " 0  dps      1.00",
        " 1  uniform  0.25 1.00",
    ]


def test_finished_scores():
    scores_of = {
        "one": {"a": 0.7, "b": 0.6, "c": 0.1, "d": -np.inf},
        "two": {"a": 0.2, "b": 0.9, "e": 0.8},
    }
    given = {"threshold": 0.6, "size": None, "seed": 0}
    result = replay.of_scores(scores_of, **given)
    assert result["chosen"]["one"] == ["a", "b"]
    assert result["chosen"]["two"] == ["b", "e"]
    assert result["overlap"]["one"]["two"] == 1 / 3
    rand = result["chosen"]["RAND of one"]
    assert len(rand) == 2 and set(rand) < {"a", "b", "c"}  # none without a score
    result = replay.of_scores(scores_of, **given | {"size": 1})
    assert [result["chosen"][x] for x in scores_of] == [["a"], ["b"]]
    assert replay.scores_table(result).splitlines()[:3] == [
        "        1 of one",
        "        1 of two",
        "        1 of RAND of one",
    ]
    for change, reason in (
        ({"size": 4}, "one: 4 problems cannot be kept of 3 that have a score; give a"),
        ({"size": 0}, "one: 0 problems cannot be kept of 3 that have a score; give a"),
        ({"threshold": 0.95}, "one: no score of at least 0.95; give --size K"),
    ):
        with pytest.raises(InputError) as caught:
            replay.of_scores(scores_of, **given | change)
        assert str(caught.value).startswith(reason)
