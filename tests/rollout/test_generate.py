"""Rollouts: what was drawn, that it is the learner's policy, and on what it depends."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import (
    GEMMA,
    GENERATE,
    LEARNED,
    LENGTH,
    PROMPTS,
    QUICK,
    QWEN,
    SHAPE,
    fp32,
    generate,
    generate_on_mesh,
    key_of,
    prompts_of,
    random_params,
    same,
    sampling,
)

from limr_jax import prng
from limr_jax.models import transformer
from limr_jax.rollout import generate as rollout
from limr_jax.rollout.sampling import Sampling, filter_logits, token_logprob
from limr_jax.rollout.types import Rollout

T, GROUP, STOP, PAD = 12, SHAPE.group, SHAPE.stop_ids, SHAPE.pad_id
CONFIGS = {"qwen": QWEN, "gemma": GEMMA}
TEMPERATURE = 1.3
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


@jax.jit
def noise_of(key, problem_B, sample_B, t):
    key_B = prng.rollout_keys(key, problem_B, sample_B)
    return prng.gumbel(key_B, t, QWEN.vocab_size)


@jax.jit
def plain_logits(params, tokens_BS, position_BS):
    """Logits of every position by one forward pass of QWEN."""
    how = {"config": QWEN, "dtype": jnp.float32}
    return transformer.unembed(
        params, transformer.forward(params, tokens_BS, position_BS, **how), **how
    )


@each_config
def test_logprobs_are_the_learners(config):
    """Prefill and decode, rings of the window included = one forward, to 1e-5."""
    written = generate(config=config, temperature=TEMPERATURE)
    logprob_BT, entropy_BT = LEARNED(
        random_params(config),
        *written.sequences(),
        None,
        np.float32(TEMPERATURE),
        response_length=T,
        compute=fp32(config),
    )
    mask_BT = np.asarray(written.mask_BT)
    assert 60 < mask_BT.sum() < mask_BT.size
    for got, want in (
        (written.logprob_BT, logprob_BT),
        (written.entropy_BT, entropy_BT),
    ):
        got, want = np.asarray(got), np.asarray(want)
        np.testing.assert_allclose(got[mask_BT], want[mask_BT], atol=1e-5)
        assert not got[~mask_BT].any()
    # In nats: never more than the uniform distribution's.
    assert np.asarray(entropy_BT)[mask_BT].max() < np.log(config.vocab_size)


@pytest.mark.parametrize("temperature", [0.0, TEMPERATURE])
def test_tokens_are_those_of_the_plainest_sampler(temperature):
    """A whole forward pass a token, no cache, no early exit; greedy at 0."""
    written = generate(temperature=temperature)
    problem_B = np.repeat(np.arange(PROMPTS, dtype=np.int32), GROUP)
    sample_B = np.tile(np.arange(GROUP, dtype=np.int32), PROMPTS)
    tokens_PL, position_PL = prompts_of(range(PROMPTS))
    tokens_BS = np.pad(np.repeat(tokens_PL, GROUP, 0), [(0, 0), (0, T)])
    position_BS = np.pad(
        np.repeat(position_PL, GROUP, 0), [(0, 0), (0, T)], constant_values=-1
    )
    for t in range(T):
        column = LENGTH + t
        logits_BSV = plain_logits(random_params(QWEN), tokens_BS, position_BS)
        score_BV = np.asarray(logits_BSV)[:, column - 1]
        if temperature:
            score_BV = score_BV / np.float32(temperature)
            score_BV = score_BV + noise_of(key_of(), problem_B, sample_B, t)
        tokens_BS[:, column] = np.argmax(score_BV, axis=1)
        position_BS[:, column] = position_BS[:, column - 1] + 1
    mask_BT = np.asarray(written.mask_BT)
    np.testing.assert_array_equal(
        np.asarray(written.response_BT)[mask_BT], tokens_BS[:, LENGTH:][mask_BT]
    )
    # It went on to each row's first end token.
    stops_BT = np.isin(tokens_BS[:, LENGTH:], STOP)
    want_B = np.where(stops_BT.any(1), stops_BT.argmax(1) + 1, T)
    np.testing.assert_array_equal(mask_BT.sum(axis=1), want_B)
    if not temperature:  # and all rollouts of a problem are one
        np.testing.assert_array_equal(mask_BT[::2], mask_BT[1::2])


@pytest.mark.slow
@pytest.mark.parametrize("config, slots", [(QWEN, 1), (GEMMA, 5)])
def test_refilled_slots_change_nothing(config, slots):
    """Rows of all ages side by side; of GEMMA's rings too, which turn many times."""
    whole, refilled = generate(config=config), generate(config=config, slots=slots)
    same(whole, refilled)
    # Rows began after others had ended.
    assert refilled.slot_steps_M[0] > slots * (T + 1)


@pytest.mark.slow
def test_fewer_and_fewer_slots_change_nothing():
    """Forty tokens at most: sizes 16, 7, 2; or 5, 2, 1 after a queue."""
    whole = generate(config=GEMMA, response_length=40)
    length_B = np.asarray(whole.mask_BT).sum(axis=1)
    np.testing.assert_array_equal(length_B[:, None] > np.arange(40), whole.mask_BT)
    assert sorted(length_B)[-2] < 40  # nobody waits for the limit
    assert whole.slot_steps_M[0] < 16 * (max(length_B) - 1)
    same(whole, generate(config=GEMMA, response_length=40, slots=5))
    same(generate(config=GEMMA), head(whole))


def head(written: Rollout) -> Rollout:
    """What a limit of T would have left of it."""
    cut = {
        name: getattr(written, name)[:, :T]
        for name in ("response_BT", "mask_BT", "logprob_BT", "entropy_BT")
    }
    length_B = np.asarray(written.mask_BT).sum(axis=1)
    stopped_B = ~np.asarray(written.truncated_B) & (length_B <= T)
    return dataclasses.replace(written, **cut, truncated_B=~stopped_B)


@pytest.mark.slow
@pytest.mark.parametrize("group, slots", [(1, 3), (3, 7), (4, 2)])
def test_groups_of_any_size(group, slots):
    """The g-th rollout of a problem is the same in a group of any size."""
    written = generate(group=4)
    some = generate(group=group, slots=slots)
    rows = np.arange(PROMPTS * 4).reshape(PROMPTS, 4)[:, :group].reshape(-1)
    same(written, some, rows)


def test_slots_beyond_the_rollouts_are_not_used():
    same(generate(), generate(slots=64))
    assert generate(slots=64).slot_steps_M[0] == generate().slot_steps_M[0]


def test_waste_by_hand():
    """Ends counted where they fall: slots and steps from the lengths alone."""
    written = generate(slots=1)
    length_B = np.asarray(written.mask_BT).sum(axis=1)
    assert written.slot_steps_M.tolist() == [sum(length_B - 1)]
    assert written.waste()[0] == 0


def test_other_problems_in_the_batch_change_nothing():
    """Nor their order; nor that all of a batch ended early (the loop's early exit)."""
    written = generate()
    order = [5, 2, 7, 0, 1, 6, 3, 4]
    rows = np.array([p * GROUP + g for p in order for g in range(GROUP)])
    same(written, generate(order), rows)
    length_PG = np.asarray(written.mask_BT).sum(axis=1).reshape(PROMPTS, GROUP)
    early = int(np.argmin(length_PG.max(axis=1)))
    assert length_PG[early].max() < T - 2
    rows = np.tile(early * GROUP + np.arange(GROUP), PROMPTS)
    same(written, generate([early] * PROMPTS), rows)


@pytest.mark.slow
def test_prompt_padding_changes_nothing():
    """Three columns more: a row and a window's ring begin at another column."""
    written = generate(config=GEMMA)
    wider = generate(config=GEMMA, L=LENGTH + 3)
    same(written, wider)
    tokens_BS, position_BS = wider.sequences()
    assert tokens_BS.shape == (PROMPTS * GROUP, LENGTH + 3 + T)
    np.testing.assert_array_equal(position_BS[:, 3:], written.sequences()[1])


MESHES = [
    ((8, 1, 1), 16),
    ((8, 1, 1), 8),
    ((1, 4, 2), 8),
    ((2, 2, 2), 12),
    ((2, 1, 1), 4),
    ((1, 2, 1), 8),
]
# A row a device, and several; every axis; with and without an order to begin in.
IN_CI = {
    (*MESHES[0], False),
    (*MESHES[1], True),
    (*MESHES[2], False),
    (*MESHES[3], True),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, slots, expected",
    [
        pytest.param(
            *mesh,
            expected,
            marks=[] if (*mesh, expected) in IN_CI else pytest.mark.soak,
        )
        for mesh, expected in itertools.product(MESHES, (False, True))
    ],
)
def test_devices_change_nothing(shape, slots, expected):
    expected_P = np.array([3, 0, 9, 1, 2, 8, 0, 5], np.float32) if expected else None
    written = generate_on_mesh(shape, expected_P, slots=slots)
    assert len(written.response_BT.sharding.device_set) == math.prod(shape)
    assert written.slot_steps_M.shape == (shape[0] * shape[1],)
    same(generate(), written)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, alone",
    [
        ((8, 1, 1), True),
        pytest.param((2, 4, 1), True, marks=pytest.mark.soak),
        ((4, 1, 2), False),
    ],
)
def test_devices_wait_only_for_those_they_compute_with(shape, alone):
    """One slot each: a device's decode steps are those of its own rollouts."""
    devices = shape[0] * shape[1]
    written = generate_on_mesh(shape, slots=devices)
    length_MB = np.asarray(written.mask_BT).sum(axis=1).reshape(devices, -1)
    steps_M = (length_MB - 1).sum(axis=1)
    assert len(set(steps_M)) > 1
    if alone:
        assert written.slot_steps_M.tolist() == steps_M.tolist()
    else:
        assert len(set(written.slot_steps_M.tolist())) == 1
        assert written.slot_steps_M[0] >= steps_M.max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, layers",
    [
        (QWEN, 2),  # unrolled
        (GEMMA, 10),  # scanned
        pytest.param(QWEN, 10, marks=pytest.mark.soak),
        pytest.param(GEMMA, 2, marks=pytest.mark.soak),
    ],
)
def test_prompts_a_few_at_a_time(monkeypatch, config, layers):
    """Four at a time are prefilled as all eight are, and each stays where it was."""
    config = dataclasses.replace(config, layers=layers)
    given = random_params(config), *prompts_of(range(PROMPTS))
    found = []
    for parts in (1, 2):
        monkeypatch.setattr(rollout, "row_parts", lambda *_, parts=parts: parts)
        prefill = functools.partial(
            rollout._prefill, config=SHAPE, compute=fp32(config)
        )
        prefill = jax.jit(prefill, compiler_options=QUICK)
        found.append(jax.tree.leaves(prefill(*given)))
    for whole, parted in zip(*found, strict=True):
        np.testing.assert_allclose(parted, whole, atol=1e-5)


def test_prompts_a_few_at_a_time_on_a_mesh(monkeypatch):
    wanted = generate()
    monkeypatch.setattr(rollout, "row_parts", lambda *_: 2)
    same(wanted, generate_on_mesh((2, 2, 2), slots=12))


# Of eight problems with room for four rollouts each: none, some and all of them.
ASKED_PG = np.arange(4)[None] < np.array([4, 0, 1, 2, 4, 1, 0, 3])[:, None]
ASKED_PG[3] = [False, True, False, True]  # as a later round of ada asks
EXPECTED_P = np.array([3, 0, 9, 1, 2, 8, 0, 5], np.float32)


def only_those_asked(written: Rollout, whole: Rollout):
    """What was asked for is as it would be among all, and the rest is not there."""
    asked_B = ASKED_PG.reshape(-1)
    np.testing.assert_array_equal(written.asked_B, asked_B)
    same(whole, jax.tree.map(lambda x: x[asked_B], _rows(written)), asked_B)
    rest = jax.tree.map(lambda x: np.asarray(x)[~asked_B], _rows(written))
    assert not rest.mask_BT.any() and not rest.truncated_B.any()
    assert np.all(rest.response_BT == PAD) and not rest.logprob_BT.any()


def _rows(written: Rollout) -> Rollout:
    """Only the fields that have a row a rollout."""
    return dataclasses.replace(
        written,
        prompt_PL=None,
        position_PL=None,
        slot_steps_M=None,
        steps_M=None,
        row_steps_M=None,
    )


@pytest.mark.parametrize(
    "config, slots, expected",
    [
        (QWEN, 32, None),
        pytest.param(QWEN, 5, EXPECTED_P, marks=pytest.mark.slow),
        pytest.param(GEMMA, 3, None, marks=pytest.mark.slow),
    ],
)
def test_some_rollouts_of_each_problem(config, slots, expected):
    whole = generate(config=config, group=4, slots=32)
    written = generate(
        config=config, group=4, slots=slots, asked_PG=ASKED_PG, expected_P=expected
    )
    only_those_asked(written, whole)


def test_what_is_not_asked_for_costs_no_decode_step():
    """One slot: as many steps as the tokens that were asked for, but the first ones."""
    written = generate(group=4, slots=1, asked_PG=ASKED_PG)
    length_B = np.asarray(written.mask_BT).sum(axis=1)
    quota = int(ASKED_PG.sum())
    assert written.slot_steps_M.tolist() == [length_B.sum() - quota]
    assert written.quota == quota and written.waste()[0] == 0
    nothing = generate(group=4, slots=1, asked_PG=np.zeros_like(ASKED_PG))
    assert nothing.slot_steps_M.tolist() == [0] and not nothing.mask_BT.any()


def test_all_slots_empty_but_few():
    """Fewer rollouts than slots: at once in the least slots that hold them."""
    few_PG = np.zeros_like(ASKED_PG)
    few_PG[2, :2] = True
    written = generate(group=4, slots=32, asked_PG=few_PG, response_length=40)
    steps = int(np.asarray(written.mask_BT).sum(axis=1).max()) - 1
    assert written.slot_steps_M[0] < 32 * steps / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, slots",
    [
        ((8, 1, 1), 8),
        ((2, 2, 2), 12),
        *(
            pytest.param(*mesh, marks=pytest.mark.soak)
            for mesh in (((1, 4, 2), 8), ((2, 1, 1), 4), ((4, 1, 2), 32))
        ),
    ],
)
def test_devices_change_nothing_of_some_rollouts(shape, slots):
    """A device may have none that is asked for, where another has all."""
    written = generate_on_mesh(
        shape, EXPECTED_P, ASKED_PG, group=4, slots=slots, mean_group=2
    )
    only_those_asked(written, generate(group=4, slots=32))


def test_slots_must_divide_over_the_devices():
    with pytest.raises(ValueError, match="slots=0 for 1 devices"):
        generate(slots=0)
    with pytest.raises(ValueError, match="slots=12 for 8 devices"):
        generate_on_mesh((8, 1, 1), slots=12)


@pytest.mark.slow
def test_a_draw_is_of_seed_step_problem_and_sample():
    """The same again for the same; another for any of them changed."""
    first = generate()
    same(first, generate())
    tokens_PGT = np.asarray(first.response_BT).reshape(PROMPTS, GROUP, T)
    assert all(np.any(row[0] != row[1]) for row in tokens_PGT)
    for key in (key_of(step=1), key_of(seed=1)):
        again = np.asarray(generate(key=key).response_BT)
        assert np.all(np.any(again != np.asarray(first.response_BT), axis=1))
    # Another problem with the same prompt and parameters.
    again = GENERATE(
        random_params(QWEN),
        *prompts_of(range(PROMPTS)),
        np.arange(PROMPTS, dtype=np.int32) + PROMPTS,
        key_of(),
        sampling(),
        config=SHAPE,
        compute=fp32(QWEN),
    )
    again = np.asarray(again.response_BT)
    assert np.all(np.any(again != np.asarray(first.response_BT), axis=1))


def test_end_tokens():
    """Masks hold the end token and nothing after it; 12 steps, 192 rollouts."""
    lengths, ends = [], set()
    for step in range(12):
        written = generate(key=key_of(step=step))
        response_BT = np.asarray(written.response_BT)
        mask_BT = np.asarray(written.mask_BT)
        length_B = mask_BT.sum(axis=1)
        np.testing.assert_array_equal(mask_BT, np.arange(T)[None] < length_B[:, None])
        assert length_B.min() >= 1
        stops_BT = np.isin(response_BT, STOP)
        last_B = response_BT[np.arange(len(length_B)), length_B - 1]
        truncated_B = np.asarray(written.truncated_B)
        np.testing.assert_array_equal(truncated_B, ~np.isin(last_B, STOP))
        assert np.all(length_B[truncated_B] == T)
        np.testing.assert_array_equal(stops_BT.sum(axis=1), ~truncated_B)
        assert np.all(response_BT[~mask_BT] == PAD)
        assert not np.asarray(written.logprob_BT)[~mask_BT].any()
        assert not np.asarray(written.entropy_BT)[~mask_BT].any()
        assert np.all(np.asarray(written.logprob_BT)[mask_BT] < 0)
        assert np.all(np.asarray(written.entropy_BT)[mask_BT] > 0)
        check_positions(written, length_B)
        lengths += zip(length_B.tolist(), truncated_B.tolist())
        ends |= {*last_B.tolist()}
    assert {1, T} <= {n for n, truncated in lengths if not truncated}  # both ends
    assert (T, True) in lengths
    assert {*STOP} <= ends


def check_positions(written, length_B):
    """A row counts from 0 at its prompt's first token to its last chosen one."""
    _, position_BS = written.sequences()
    assert position_BS.dtype == jnp.int32
    prompt_B = np.repeat(np.asarray(written.position_PL)[:, -1] + 1, GROUP)
    for row, prompt, length in zip(np.asarray(position_BS), prompt_B, length_B):
        np.testing.assert_array_equal(row[row >= 0], np.arange(prompt + length))
        assert row[LENGTH - prompt] == 0 and row[LENGTH] == prompt


@pytest.mark.slow
def test_rows_that_all_end_at_the_first_token():
    """Any token ends: nothing is decoded, and what was prefilled stays as it was."""
    every = generate(stop_ids=tuple(range(QWEN.vocab_size)))
    assert np.asarray(every.mask_BT).sum(axis=1).tolist() == [1] * PROMPTS * GROUP
    assert not np.asarray(every.truncated_B).any()
    first = generate()
    np.testing.assert_array_equal(every.response_BT[:, 0], first.response_BT[:, 0])
    np.testing.assert_array_equal(every.logprob_BT[:, 0], first.logprob_BT[:, 0])


# --- Filters ------------------------------------------------------------------------

FILTER = jax.jit(filter_logits)


def kept(logits_V, top_p, top_k, min_p):
    """The tokens that stay, one by one from the most probable."""
    order = np.argsort(-logits_V, kind="stable")
    if top_k:
        order = order[:top_k]
    probability = np.exp(logits_V[order].astype(np.float64) - logits_V.max())
    probability /= probability.sum()
    stay, mass = [], 0.0
    for token, p in zip(order, probability):
        if stay and (mass >= top_p or p < min_p * probability[0]):
            break
        stay.append(token)
        mass += p
    return np.isin(np.arange(len(logits_V)), stay)


def test_filters_against_numpy():
    """One by one and together; other values compile nothing new."""
    random = np.random.default_rng(0)
    logits_BV = random.normal(0, 2, (40, 33)).astype(np.float32)
    logits_BV *= np.geomspace(0.05, 3, 40, dtype=np.float32)[:, None]
    values = [
        (top_p, top_k, min_p)
        for top_p in (1.0, 0.95, 0.5, 0.01)
        for top_k in (0, 1, 5, 33, 50)
        for min_p in (0.0, 0.1, 0.9)
    ]
    for top_p, top_k, min_p in values:
        options = {"top_p": top_p, "top_k": top_k, "min_p": min_p}
        got_BV = np.asarray(FILTER(logits_BV, sampling(**options)))
        kept_BV = np.stack([kept(row, **options) for row in logits_BV])
        np.testing.assert_array_equal(np.isfinite(got_BV), kept_BV, err_msg=options)
        np.testing.assert_array_equal(got_BV[kept_BV], logits_BV[kept_BV])
    assert FILTER._cache_size() == 1


def test_filters_by_hand():
    logits_1V = np.log(np.array([[0.15, 0.5, 0.05, 0.3]], np.float32))
    for options, want in (
        ({}, [0, 1, 2, 3]),
        ({"top_k": 2}, [1, 3]),
        ({"top_p": 0.0}, [1]),  # the most probable one always stays
        ({"top_p": 0.49}, [1]),
        ({"top_p": 0.51}, [1, 3]),  # the token that passes the bound stays
        ({"top_p": 0.9}, [0, 1, 3]),
        ({"min_p": 0.2}, [0, 1, 3]),  # at least a tenth
        ({"min_p": 0.5}, [1, 3]),
        # Top-p after top-k: .5 of .8 is .625 of what is left.
        ({"top_k": 2, "top_p": 0.62}, [1]),
        ({"top_k": 2, "top_p": 0.63}, [1, 3]),
    ):
        filtered_V = np.asarray(FILTER(logits_1V, sampling(**options)))[0]
        assert np.flatnonzero(np.isfinite(filtered_V)).tolist() == want, options


def test_a_negative_zero_ties_with_zero():
    filtered_V = FILTER(
        np.array([[1.0, 0.0, -0.0, -1.0]], np.float32), sampling(top_k=2)
    )
    assert np.isfinite(filtered_V).tolist() == [[True, True, True, False]]


@pytest.mark.slow
def test_filters_that_are_none_are_not_there():
    """Each as with the values that turn the others off; without any, nothing to do."""
    logits_BV = np.random.default_rng(0).normal(0, 2, (40, 33)).astype(np.float32)
    values = {"top_p": np.float32(0.6), "top_k": np.int32(5), "min_p": np.float32(0.1)}
    for names in (
        *itertools.combinations(values, 1),
        *itertools.combinations(values, 2),
    ):
        given = {name: values[name] for name in names}
        found_BV = FILTER(logits_BV, Sampling(**given))
        np.testing.assert_array_equal(found_BV, FILTER(logits_BV, sampling(**given)))
    traced = jax.make_jaxpr(filter_logits)(logits_BV, Sampling())
    assert not traced.eqns


def test_draws_stay_within_the_filter_and_logprobs_are_of_all():
    """Top-k 1 is argmax at any temperature, and its log-prob is unfiltered."""
    greedy = generate(temperature=0.0)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 0.99999}):
        written = generate(temperature=TEMPERATURE, **options)
        np.testing.assert_array_equal(written.response_BT, greedy.response_BT)
        np.testing.assert_array_equal(written.mask_BT, greedy.mask_BT)
    scaled_BV = np.asarray(
        plain_logits(
            random_params(QWEN),
            *(np.repeat(x, GROUP, 0) for x in prompts_of(range(PROMPTS))),
        )
    )[:, -1] / np.float32(TEMPERATURE)
    want_B = scaled_BV.max(axis=1) - np.log(np.exp(scaled_BV).sum(axis=1))
    np.testing.assert_allclose(written.logprob_BT[:, 0], want_B, atol=1e-5)
    # Between: fewer tokens to choose from, but still more than one.
    some, all_ = generate(top_k=3), generate()
    assert np.any(np.asarray(some.response_BT) != np.asarray(all_.response_BT))
    assert np.any(np.asarray(some.response_BT) != np.asarray(greedy.response_BT))


def test_values_of_sampling_compile_nothing():
    generate()
    before = GENERATE._cache_size()
    for options in (
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"top_k": 4, "min_p": 0.2},
        {"key": key_of(seed=9, step=4)},
    ):
        generate(**options)
    assert GENERATE._cache_size() == before


def test_token_logprob_by_hand():
    logits_XV = np.log(np.array([[0.5, 0.25, 0.25], [0.9, 0.1, 1e-12]], np.float32))
    logprob_X, entropy_X = token_logprob(logits_XV + 5, np.array([1, 0]))
    np.testing.assert_allclose(logprob_X, np.log([0.25, 0.9]), atol=1e-6)
    np.testing.assert_allclose(
        entropy_X,
        [1.5 * np.log(2), 0.9 * np.log(1 / 0.9) + 0.1 * np.log(10)],
        atol=1e-6,
    )
