"""Packed rows: what stands where, and that nothing of the numbers changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy
from tiny_policy import GEMMA, QUICK, QWEN

from limr_jax.learner import batch as batch_lib
from limr_jax.learner import logprobs, losses, packing, update
from limr_jax.models import cpu, transformer

PACK = jax.jit(
    packing.pack,
    static_argnames=("response_length", "responses"),
    compiler_options=QUICK,
)


def texts(prompt_lengths, response_lengths, L, T):
    """position_BS of left-padded prompts and right-padded responses."""
    position_BS = np.full((len(prompt_lengths), L + T), -1, np.int32)
    for row, (prompt, response) in enumerate(zip(prompt_lengths, response_lengths)):
        position_BS[row, L - prompt : L + response] = np.arange(prompt + response)
    return position_BS


@pytest.mark.slow
def test_by_hand():
    """Two problems; prompts of 2 and 3 tokens, S = 4 + 5 columns."""
    problem_B = np.array([0, 0, 0, 1, 1], np.int32)
    position_BS = texts([2, 2, 2, 3, 3], [1, 4, 2, 5, 3], 4, 5)
    keep_B = np.array([True, True, True, True, False])
    packed = PACK(position_BS, problem_B, keep_B, response_length=5)
    # Rollout 3 is the longest: its prompt and 4 of its 5 tokens. Then 0's problem: its
    # prompt, 3 tokens of rollout 1 and one of 2 in a row; rollout 0, which reads only
    # the prompt, in what the first row has left.
    assert packed.rows == 2

    def split(index_RY, columns):
        return [divmod(i, columns) if i >= 0 else None for i in index_RY.flatten()]

    where = split(np.array(packed.source_RW), 9)
    assert where[:9] == [(3, c) for c in (1, 2, 3, 4, 5, 6, 7)] + [(0, 2), (0, 3)]
    assert where[9:18] == [(1, c) for c in (2, 3, 4, 5, 6)] + [(2, 4)] + [None] * 3
    assert not any(where[18:])
    target = split(np.array(packed.target_RY), 5)  # at most 5 + 4 // 2 a row
    assert target[:7] == [(3, t) for t in range(5)] + [(0, 0), None]
    assert target[7:14] == [*((1, t) for t in range(4)), (2, 0), (2, 1), None]
    assert not any(target[14:])
    np.testing.assert_array_equal(packed.from_RY[0, :6], [2, 3, 4, 5, 6, 8])
    # Each response's first token is predicted from the prompt's last column.
    np.testing.assert_array_equal(packed.from_RY[1, :6], [1, 2, 3, 4, 1, 5])
    np.testing.assert_array_equal(packed.place_BT[0], [5, -1, -1, -1, -1])
    assert (np.array(packed.place_BT[4]) == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "k"), [(0, 1), (1, 1), (2, 1), (0, 2), (1, 3)])
def test_every_kept_token_is_there_once_and_prompts_once_a_row(seed, k):
    random = np.random.default_rng(seed)
    P, G, L, T = 8, 4, 10, 24
    problem_B = np.repeat(np.arange(P, dtype=np.int32), G)
    prompts = np.repeat(random.integers(1, L + 1, P), G)
    lengths = np.minimum(random.geometric(1 / 8, P * G), T)
    keep_B = random.random(P * G) < 0.7
    position_BS = texts(prompts, lengths, L, T)
    packed = PACK(position_BS, problem_B, keep_B, response_length=T, responses=k)
    source_RW, target_RY = np.array(packed.source_RW), np.array(packed.target_RY)
    assert source_RW.shape[1] == L + k * T
    used_R = (source_RW >= 0).any(axis=1)
    rows = int(packed.rows)
    assert used_R[:rows].all() and not used_R[rows:].any()
    rollout_RW, column_RW = np.divmod(source_RW, L + T)
    for b in range(P * G):
        responses = np.sort(column_RW[(rollout_RW == b) & (column_RW >= L)])
        read = range(L, L + lengths[b] - 1) if keep_B[b] else ()
        np.testing.assert_array_equal(responses, list(read))
        predicted = target_RY[target_RY // T == b] % T
        np.testing.assert_array_equal(
            np.sort(predicted), np.arange(lengths[b] * keep_B[b])
        )
        if keep_B[b]:
            row = np.unique(
                np.array(packed.place_BT[b, : lengths[b]]) // (k * T + L // 2)
            )
            assert len(row) == 1
            prompt = (rollout_RW[row[0]] // G == b // G) & (column_RW[row[0]] < L)
            np.testing.assert_array_equal(
                column_RW[row[0]][prompt], np.arange(L - prompts[b], L)
            )


def geometric(P, G, mean, T, seed=0):
    random = np.random.default_rng(seed)
    return np.minimum(random.geometric(1 / mean, P * G), T)


@pytest.mark.parametrize(
    ("P", "G", "prompt", "T", "mean", "kept", "micro"),
    [
        (8, 8, 64, 128, 32, 1.0, 4),
        (64, 8, 10, 40, 16, 1.0, 16),
        (64, 8, 10, 40, 16, 0.4, 4),  # few rows: one of 8 or 16 rounds up by too much
    ],
    ids=["benchmark", "main job", "main job, filtered"],
)
def test_padding_is_at_most_15_percent(P, G, prompt, T, mean, kept, micro):
    L = -(-prompt // 8) * 8
    lengths = geometric(P, G, mean, T)
    position_BS = texts([prompt] * P * G, lengths, L, T)
    problem_B = np.repeat(np.arange(P, dtype=np.int32), G)
    keep_B = np.repeat(np.random.default_rng(1).random(P) < kept, G)
    packed = PACK(position_BS, problem_B, keep_B, response_length=T)
    walked = -(-int(packed.rows) // micro) * micro * (L + T)
    assert 1 - (np.array(packed.source_RW) >= 0).sum() / walked <= 0.15
    # Fewer columns than the rollouts have tokens: prompts are shared.
    assert walked < (lengths + prompt)[keep_B].sum() * 1.02


@pytest.mark.slow
def test_rows_for_several_full_responses_spare_prompts():
    """8 prompts of 64 x 8 responses of 128 tokens: columns that are walked."""
    position_BS = texts([64] * 64, [128] * 64, 64, 128)
    problem_B = np.repeat(np.arange(8, dtype=np.int32), 8)
    everything = (position_BS, problem_B, np.ones(64, bool))
    rows = [
        int(PACK(*everything, response_length=128, responses=k).rows) for k in (1, 2, 4)
    ]
    assert rows == [64, 32, 16]
    columns = [count * (64 + k * 128) for count, k in zip(rows, (1, 2, 4))]
    assert columns == [12288, 10240, 9216]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "k", "part"),
    [(QWEN, 1, 160), (GEMMA, 1, 160), (GEMMA, 2, 160), (QWEN, 1, 5), (GEMMA, 2, 8)],
    ids=[
        "full",
        "sliding window",
        "sliding window, wide rows",
        "full, queries in parts",
        "sliding window, wide rows, queries in parts",
    ],
)
def test_log_probabilities_are_the_unpacked(config, k, part, monkeypatch):
    """In parts too: in a packed row nobody sees a later column."""
    written = tiny_policy.generate(config=config, temperature=0.7)
    params = tiny_policy.random_params(config)
    tokens_BS, position_BS = written.sequences()
    options = {"response_length": 12, "compute": tiny_policy.fp32(config)}
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "PART", part)
        packed_BT = jax.jit(
            partial(
                logprobs.response_logprobs,
                micro_batch_rows=4,
                row_responses=k,
                **options,
            ),
            compiler_options=QUICK,
        )(params, tokens_BS, position_BS, 0.7, problem_B=written.problem_B)
    apart_BT, _ = jax.jit(
        partial(logprobs.response_logprob, **options), compiler_options=QUICK
    )(params, tokens_BS, position_BS, None, 0.7)
    mask_BT = np.array(written.mask_BT)
    assert np.abs(np.array(packed_BT - apart_BT))[mask_BT].max() < 1e-5
    assert not np.array(packed_BT)[~mask_BT].any()


@pytest.mark.slow
def test_a_branch_sees_its_prompt_and_itself():
    """Two answers to one prompt in a row are each as they are alone."""
    params = tiny_policy.random_params(GEMMA)
    tokens = np.random.default_rng(0).integers(0, 40, 12).astype(np.int32)
    prompt, one, two = np.split(tokens, [6, 9])
    forward = partial(transformer.forward, config=GEMMA, dtype=jnp.float32)
    positions = np.array([*range(6), 6, 7, 8, 6, 7, 8])
    together = forward(
        params,
        tokens[None],
        positions[None],
        np.zeros((1, 12), np.int32),
        np.repeat([0, 5, 7], [6, 3, 3])[None],
    )[0]
    for columns, answer in ((slice(6, 9), one), (slice(9, 12), two)):
        text = np.concatenate([prompt, answer])[None]
        alone = forward(params, text, np.arange(9)[None])[0]
        np.testing.assert_allclose(together[columns], alone[6:], atol=1e-5)
        np.testing.assert_allclose(together[:6], alone[:6], atol=1e-5)


@pytest.mark.slow
def test_lengths_of_every_kind_compile_once():
    written = tiny_policy.generate()
    params = tiny_policy.random_params(QWEN)
    loss = partial(
        losses.policy_loss,
        temperature=1.0,
        objective=losses.cross_entropy,
        compute=tiny_policy.fp32(QWEN),
    )
    traced = []

    @partial(jax.jit, compiler_options=QUICK)
    def gradients(params, batch):
        traced.append(batch)
        return update.gradients(params, batch, loss=loss, micro_batch_rows=4)

    shares = []
    for longest in (1, 4, 12):
        length_B = np.arange(16) % longest + 1
        mask_BT = np.arange(12)[None] < length_B[:, None]
        tokens_BS, position_BS = written.sequences()
        last_B1 = np.max(position_BS[:, :8], axis=1, keepdims=True)
        position_BT = np.where(mask_BT, last_B1 + 1 + np.arange(12)[None], -1)
        batch = batch_lib.Batch(
            tokens_BS=tokens_BS,
            position_BS=np.concatenate(
                [position_BS[:, :8], position_BT.astype(np.int32)], axis=1
            ),
            mask_BT=jnp.asarray(mask_BT),
            weight_BT=jnp.asarray(mask_BT, jnp.float32) / 16,
            problem_B=written.problem_B,
        )
        _, metrics = gradients(params, batch)
        shares.append(float(metrics["padding_share"]))
    assert len(traced) == 1
    assert min(shares) >= 0 and max(shares) < 1
