"""Drafts: what is looked up, what of it is kept, and that no rollout changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    GEMMA,
    PROMPTS,
    QWEN,
    SHAPE,
    generate,
    generate_on_mesh,
    same,
    tokens_of,
    wrong_at_the_end,
)

from limr_jax.rollout import drafts
from limr_jax.rollout.types import GenerateConfig, Rollout

N = drafts.NONE
T, GROUP = SHAPE.response_length, SHAPE.group

# --- The lookup -------------------------------------------------------------------


def look_up(source, end, tokens):
    [draft] = np.asarray(drafts.look_up(jnp.array([source]), jnp.array([end]), tokens))
    return draft.tolist()


@pytest.mark.parametrize(
    "source, end, draft",
    [
        ([1, 2, 3, 4, 5], [1, 2, 3], [4, 5]),
        ([9, 3, 8, 1, 2, 3, 4, 5], [1, 2, 3], [4, 5]),  # three stand before one
        ([9, 3, 8, 7, 3, 4, 5], [1, 2, 3], [8, 7]),  # the first of equal places
        ([9, 2, 3, 6, 2, 3, 4], [1, 2, 3], [6, 2]),
        ([1, 2, 3], [1, 2, 3], [N, N]),  # nothing follows
        ([1, 2, 3, N, 5], [1, 2, 3], [N, N]),
        ([1, 2, 3, 4, N, 5], [1, 2, 3], [4, N]),  # and nothing from a NONE on
        ([5, 6, 7], [1, 2, 3], [N, N]),
        ([3, 4, 5], [-2, -2, 3], [4, 5]),  # a prompt of one token
        ([N, N, N, 4], [-2, -2, -2], [N, N]),  # NONE is no token to be found
        ([1, 2, 3, N, 1, 2, 3, 7, 8], [1, 2, 3], [7, 8]),
    ],
)
def test_looked_up_by_hand(source, end, draft):
    assert look_up(source, end, 2) == draft


def test_rollouts_stand_behind_their_prompts_end_and_apart():
    rollout_XDT = jnp.array([[[5, 6, N], [7, 8, 9]]])
    source = drafts.sources(rollout_XDT, jnp.array([[1, 2, 3]]))
    assert source.tolist() == [[1, 2, 3, 5, 6, N, N, 1, 2, 3, 7, 8, 9, N]]


def test_ends_of_prompts_shorter_than_what_is_looked_up():
    ends = drafts.prompt_ends(
        jnp.array([[1, 1, 4, 5], [1, 1, 1, 6], [2, 3, 4, 5]]),
        jnp.array([[-1, -1, 0, 1], [-1, -1, -1, 0], [0, 1, 2, 3]]),
    )
    assert ends.tolist() == [[-2, 4, 5], [-2, -2, 6], [3, 4, 5]]
    short = drafts.prompt_ends(jnp.array([[4]]), jnp.array([[0]]))
    assert short.tolist() == [[-2, -2, 4]]


@pytest.mark.parametrize(
    "draft, drawn, ends, count",
    [
        ([4, 5], [4, 5, 6], [0, 0, 0], 3),
        ([4, 5], [4, 7, 6], [0, 0, 0], 2),
        ([4, 5], [9, 5, 6], [0, 0, 0], 1),  # right behind a wrong one is not right
        ([4, 5], [4, 5, 6], [0, 1, 0], 2),  # the text has ended
        ([4, 5], [4, 5, 6], [1, 0, 0], 1),
        ([N, N], [4, 5, 6], [0, 0, 0], 1),
        ([], [4], [0], 1),
    ],
)
def test_accepted_by_hand(draft, drawn, ends, count):
    found = drafts.accepted(
        jnp.array([draft], jnp.int32), jnp.array([drawn]), jnp.array([ends], bool)
    )
    assert found.tolist() == [count]


# --- The table --------------------------------------------------------------------


def config_of(step_tokens=3, **changes) -> GenerateConfig:
    return dataclasses.replace(SHAPE, step_tokens=step_tokens, drafts_kept=2, **changes)


def test_no_table_without_drafts():
    config = config_of(step_tokens=1)
    assert drafts.table_of(config, problems=5, vocab_size=40) is None


@pytest.mark.parametrize("vocab_size, dtype", [(32767, jnp.int16), (32768, jnp.int32)])
def test_tokens_fit_the_table(vocab_size, dtype):
    table = drafts.table_of(config_of(), problems=257, vocab_size=vocab_size)
    assert table.dtype == dtype and table.shape == (512, 2, T)
    table = drafts.table_of(config_of(group=1), problems=5, vocab_size=vocab_size)
    assert table.shape == (256, 1, T) and np.all(table == N)


def test_remembered_by_hand():
    table = jnp.full((4, 2, 3), N, jnp.int16).at[3].set(7)
    response_BT = jnp.arange(4 * 3 * 3).reshape(12, 3)
    mask_BT = jnp.ones((12, 3), bool).at[0, 2].set(False)
    # Problem 3 has written nothing; of problem 1's visits the last with a token counts.
    mask_BT = mask_BT.at[6:9].set(False)
    ids_P = jnp.array([2, 1, 3, 1])
    new = drafts.remember(table, ids_P, response_BT, mask_BT)
    assert new.dtype == jnp.int16
    assert new.tolist() == [
        [[N, N, N], [N, N, N]],
        [[27, 28, 29], [30, 31, 32]],
        [[0, 1, N], [3, 4, 5]],
        [[7, 7, 7], [7, 7, 7]],
    ]
    # Of a problem's rollouts those that were not written stay what they were.
    part_BT = jnp.zeros((6, 3), bool).at[1].set(True).at[3].set(True)
    ids_P = jnp.array([3, 2])
    partly = drafts.remember(new, ids_P, 50 + response_BT[:6], part_BT)
    assert partly[2:].tolist() == [
        [[59, 60, 61], [3, 4, 5]],
        [[7, 7, 7], [53, 54, 55]],
    ]
    ids_P, mask_BT = jnp.array([2, 1, 3, 2]), mask_BT.at[9:].set(False)
    again = drafts.remember(table, ids_P, response_BT, mask_BT)
    assert again[2].tolist() == [[0, 1, N], [3, 4, 5]]
    assert drafts.of_problems(new, jnp.array([2, 0])).tolist() == [
        [[0, 1, N], [3, 4, 5]],
        [[N, N, N], [N, N, N]],
    ]


# --- Rollouts ---------------------------------------------------------------------


def kinds_of(written: Rollout) -> dict[str, np.ndarray]:
    own = tokens_of(written)
    random = np.random.default_rng(3).integers(0, QWEN.vocab_size, own.shape)
    return {
        "own": own,
        "wrong at the end": wrong_at_the_end(own),
        "of other problems": own[::-1].copy(),
        "random": random.astype(np.int32),
        "none": np.full_like(own, N),
    }


def steps(written: Rollout) -> int:
    return int(np.sum(written.row_steps_M))


LONG = {
    "slots": 5,
    "config": GEMMA,
    "response_length": 40,
}


@pytest.mark.parametrize(
    "K, changes",
    [
        pytest.param(1, {}, marks=pytest.mark.slow),
        (3, {"slots": 5}),
        pytest.param(2, {"slots": 5, "config": GEMMA}, marks=pytest.mark.slow),
        pytest.param(8, {"response_length": T}, marks=pytest.mark.slow),
        pytest.param(4, {"temperature": 0.0}, marks=pytest.mark.slow),
        # A window passed several times, fewer and fewer slots.
        pytest.param(4, LONG, marks=pytest.mark.slow),
        pytest.param(3, {"temperature": 1.2, "top_p": 0.8}, marks=pytest.mark.slow),
        *(pytest.param(K, {}, marks=pytest.mark.soak) for K in (2, 3, 4, 5, 6, 7)),
        *(
            pytest.param(K, {"slots": 3, "config": GEMMA}, marks=pytest.mark.soak)
            for K in (1, 3, 4, 5, 6, 7, 8)
        ),
    ],
)
def test_no_rollout_changes(K, changes):
    without = generate(**changes)
    assert steps(without) == int(np.sum(without.mask_BT)) - PROMPTS * GROUP
    counts = {}
    for kind, draft_PDT in kinds_of(without).items():
        with_drafts = generate(draft_PDT=draft_PDT, step_tokens=K + 1, **changes)
        same(without, with_drafts)
        counts[kind] = steps(with_drafts)
    # As few steps as can be where all is known; never more than without.
    length_B = np.asarray(without.mask_BT).sum(axis=1)
    least = int(np.sum(-(-(length_B - 1) // (K + 1))))
    assert least <= counts["own"] <= 1.25 * least
    assert counts["own"] <= counts["wrong at the end"] < steps(without)
    assert max(counts.values()) <= steps(without)


def test_without_a_table_a_step_is_of_one_token():
    """An evaluation has none: the program is that of one token a step."""
    without, with_room = generate(), generate(step_tokens=4)
    same(without, with_room)
    assert steps(without) == steps(with_room)


def test_what_is_wrong_from_the_start_is_not_tried(monkeypatch):
    """On a CPU, where a step of several tokens is dear."""
    tried, accepted = [], drafts.accepted

    def counted(draft_ZK, drawn_ZJ, ends_ZJ):
        if draft_ZK.shape[1]:
            jax.debug.callback(lambda: tried.append(draft_ZK.shape[1]))
        return accepted(draft_ZK, drawn_ZJ, ends_ZJ)

    monkeypatch.setattr(drafts, "accepted", counted)
    # Of this length no other test has compiled the program.
    how = {"response_length": T - 1, "step_tokens": 4}
    own = tokens_of(generate(response_length=T - 1))
    wrong = np.where(own >= 0, (own + 1) % QWEN.vocab_size, N).astype(np.int32)
    behind = np.where(np.arange(T - 1) == 0, own, wrong).astype(np.int32)
    for draft_PDT, is_tried in [(wrong, False), (own, True), (behind, True)]:
        tried.clear()
        generate(draft_PDT=draft_PDT, **how)
        jax.effects_barrier()
        assert bool(tried) == is_tried


@pytest.mark.slow
def test_siblings_of_this_step_are_looked_up():
    """Greedy, all rollouts of a problem are one text: the later ones copy the first."""
    nothing = np.full((PROMPTS, 1, T), N, np.int32)
    how = {"temperature": 0.0, "group": 4, "slots": 2, "step_tokens": 4}
    without = generate(temperature=0.0, group=4)
    written = generate(draft_PDT=nothing, **how)
    same(without, written)
    assert steps(written) < 0.6 * steps(without)


ASKED_PG = np.arange(4)[None] < np.array([4, 0, 1, 2, 4, 1, 0, 3])[:, None]


@pytest.mark.slow
def test_some_rollouts_of_each_problem():
    whole = generate(group=4, slots=32)
    without = generate(group=4, slots=5, asked_PG=ASKED_PG)
    draft_PDT = tokens_of(whole)
    how = {"group": 4, "slots": 5, "asked_PG": ASKED_PG}
    expected_P = np.array([3, 0, 9, 1, 2, 8, 0, 5], np.float32)
    for expected in (None, expected_P):
        written = generate(
            draft_PDT=draft_PDT, step_tokens=4, expected_P=expected, **how
        )
        same(without, written)
        assert steps(written) < 0.5 * steps(without)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, slots",
    [
        ((8, 1, 1), 8),
        ((2, 2, 2), 12),
        *(
            pytest.param(*more, marks=pytest.mark.soak)
            for more in (
                ((8, 1, 1), 16),
                ((1, 4, 2), 8),
                ((2, 1, 1), 4),
                ((1, 2, 1), 8),
            )
        ),
    ],
)
def test_devices_change_nothing(shape, slots):
    without = generate()
    draft_PDT = wrong_at_the_end(tokens_of(without))
    expected_P = np.array([3, 0, 9, 1, 2, 8, 0, 5], np.float32)
    written = generate_on_mesh(
        shape, expected_P, draft_PDT=draft_PDT, slots=slots, step_tokens=4
    )
    same(without, written)
    assert steps(written) < steps(without)


@pytest.mark.parametrize(
    "slots, tokens", [(16, 8), (43, 2), (64, 2), (65, 1), (512, 1)]
)
def test_tokens_of_a_step_by_the_number_of_slots(slots, tokens):
    """On a CPU, where products of up to 128 rows cost about as much as of a few."""
    assert drafts.step_tokens(slots, 9) == tokens
    assert drafts.step_tokens(slots, 1) == 1
    # XLA:CPU casts an int8 base, and reads as much as ever.
    assert drafts.step_tokens(slots, 9, int8=True) == tokens


@pytest.mark.parametrize("int8, tokens", [(False, (1, 1, 4, 5)), (True, (1, 1, 2, 5))])
def test_half_as_many_rows_are_free_where_a_weight_is_a_byte(monkeypatch, int8, tokens):
    """On a TPU, by the bytes that a decode step reads and the FLOPs that it does."""
    monkeypatch.setattr(drafts, "platform", lambda: "tpu")
    generation = dataclasses.replace(
        SHAPE, group=8, slots=256, response_length=64, step_tokens=5, int8=int8
    )
    assert generation.slot_plan(32, 1).sizes == (256, 144, 64, 16)
    assert drafts.loop_tokens(generation, 32, 1) == tokens
