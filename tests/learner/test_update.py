"""The update, against the same gradients written out rollout by rollout.

`direct` reads each rollout alone and unpadded; every expected gradient is that of a sum
of its log-probabilities and entropies, with coefficients made here by hand in NumPy.
"""

import dataclasses
import functools
import operator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_policy
from jax.sharding import NamedSharding
from tiny_policy import QUICK, QWEN, fp32

from limr_jax import prng, sharding
from limr_jax.learner import advantages, logprobs, losses, update
from limr_jax.learner import batch as batch_lib
from limr_jax.learner.optimizer import make_optimizer
from limr_jax.models import transformer

HOW = {"config": QWEN, "dtype": jnp.float32}
COMPUTE = fp32(QWEN)
TEMPERATURE = 0.7
P, G, T = tiny_policy.PROMPTS, 2, 12
# What rl_batch and policy_gradient take from a config, all of it off.
BATCH = {
    "advantage": advantages.ALGORITHMS["grpo"].advantage,
    "mask_truncated": False,
    "filter_tau": -1.0,
    "filter_normaliser": "all",
    "filter_keep_kl": True,
}
BOTH = {
    "kl_coefficient": 0.0,
    "kl_estimator": "k3",
    "kl_placement": "loss",
    "entropy_coefficient": 0.0,
}
CLIP = {"clip_low": 0.2, "clip_high": 0.3, "clip_dual": 3.0}
NO_KL = {name: x for name, x in BOTH.items() if name != "kl_coefficient"}


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, tiny_policy.random_params(QWEN))


@pytest.fixture(scope="module")
def written():
    """Sixteen rollouts of very different lengths, some of them truncated."""
    written = tiny_policy.generate(temperature=TEMPERATURE)
    lengths = np.asarray(written.mask_BT).sum(axis=1)
    assert lengths.min() < 4 and lengths.max() == T
    assert 0 < np.asarray(written.truncated_B).sum() < P * G
    return written


@pytest.fixture(scope="module")
def reward_PG():
    return np.random.default_rng(1).integers(0, 2, (P, G)).astype(np.float32)


ALL_VALID = np.ones((P, G), bool)


def noise_like(x, seed, size=0.3):
    random = np.random.default_rng(seed)
    return x + np.float32(size) * random.standard_normal(x.shape, np.float32)


def make_batch(
    written,
    reward_PG,
    valid_PG=ALL_VALID,
    reference_BT=None,
    normaliser="token",
    **changes,
):
    """rl_batch, with BATCH and BOTH but for the changes; of one update.

    No array is weakly typed, as JAX makes some of them: that would be another program.
    """
    batch, _ = rl_batch(written, reward_PG, valid_PG, reference_BT, **changes)
    weighed = batch_lib.weigh(batch, normaliser)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), weighed)


def rl_batch(
    written, reward_PG, valid_PG=ALL_VALID, reference_BT=None, value_BT=None, **changes
):
    options = BATCH | BOTH | changes
    coefficient = np.float32(options.pop("kl_coefficient"))
    return advantages.rl_batch(
        written,
        reward_PG,
        valid_PG,
        batch_lib.Scores(reference_BT, value_BT),
        coefficient,
        **options,
    )


def gradients(
    params, batch, temperature, *, micro_batch_rows, row_responses, **changes
):
    loss = partial(
        losses.policy_loss,
        temperature=temperature,
        objective=partial(losses.policy_gradient, **changes),
        compute=COMPUTE,
    )
    walked = {"micro_batch_rows": micro_batch_rows, "row_responses": row_responses}
    return update.gradients(params, batch, loss=loss, **walked)


# One program for all tests that differ in arrays only: compiling is what takes time.
GRADIENTS = jax.jit(
    gradients,
    static_argnames=("micro_batch_rows", "row_responses", "loss", *CLIP, *BOTH),
    compiler_options=QUICK,
)


def compute(params, batch, micro_batch_rows=0, row_responses=1, **changes):
    """update.gradients of the clipped loss: (gradients, metrics)."""
    loss = CLIP | BOTH | changes
    walked = {"micro_batch_rows": micro_batch_rows, "row_responses": row_responses}
    return GRADIENTS(params, batch, jnp.float32(TEMPERATURE), **walked, **loss)


@pytest.fixture(scope="module")
def direct(written):
    """(params, c_BT, e_BT) → gradient of Σ c · log π + Σ e · H, a rollout at a time."""
    prompt_PL, position_PL = np.asarray(written.prompt_PL), written.position_PL
    response_BT, mask_BT = np.asarray(written.response_BT), np.asarray(written.mask_BT)
    # Rows without a gap: the prompt, the response, then nothing that is looked at.
    rows, starts = np.zeros((P * G, 8 + T), np.int32), []
    for b in range(P * G):
        prompt = prompt_PL[b // G][np.asarray(position_PL)[b // G] >= 0]
        text = np.concatenate([prompt, response_BT[b][mask_BT[b]]])
        rows[b, : len(text)] = text
        starts.append(len(prompt))
    where_BT = np.array(starts)[:, None] - 1 + np.arange(T)

    def terms(params, row, where_T, response_T):
        position = jnp.arange(len(row))[None]
        hidden = transformer.forward(params, row[None], position, **HOW)[0]
        logits = hidden @ params["embedder"]["embedding"].T / TEMPERATURE
        logprob = jax.nn.log_softmax(logits)[jnp.minimum(where_T, len(row) - 1)]
        entropy_T = -jnp.sum(jnp.exp(logprob) * logprob, axis=1)
        return logprob[jnp.arange(T), response_T], entropy_T

    def total(params, c_BT, e_BT):
        def one(row, where_T, response_T):
            return terms(params, row, where_T, response_T)

        logprob_BT, entropy_BT = jax.lax.map(
            lambda x: one(*x), (rows, where_BT, response_BT)
        )
        sums = jnp.where(mask_BT, c_BT * logprob_BT + e_BT * entropy_BT, 0)
        return jnp.sum(sums), (logprob_BT, entropy_BT)

    program = jax.jit(jax.grad(total, has_aux=True), compiler_options=QUICK)

    def gradient(params, c_BT, e_BT=0.0):
        c_BT, e_BT = (np.broadcast_to(np.float32(x), (P * G, T)) for x in (c_BT, e_BT))
        return program(params, c_BT, e_BT)

    return gradient


def assert_close(one, two, limit=1e-6):
    """Trees equal to within the limit, and not because both are nothing."""
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(two)) > 1e-3
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=limit)


def by_hand_grpo(reward_PG, valid_PG=ALL_VALID):
    """(r − mean) / (std + 1e-4) of each group's valid rewards, std with n − 1."""
    advantage_PG = np.zeros((P, G), np.float32)
    for p in range(P):
        valid = reward_PG[p][valid_PG[p]]
        if len(valid) > 1 and valid.min() < valid.max():
            scaled = (reward_PG[p] - valid.mean()) / (valid.std(ddof=1) + 1e-4)
            advantage_PG[p] = np.where(valid_PG[p], scaled, 0)
    return advantage_PG.reshape(-1, 1)


@pytest.mark.slow
def test_on_policy_the_gradient_is_reinforces(params, written, reward_PG, direct):
    mask_BT = np.asarray(written.mask_BT)
    grads, metrics = compute(params, make_batch(written, reward_PG))
    advantage_B1 = by_hand_grpo(reward_PG)
    expected, _ = direct(params, -advantage_B1 / mask_BT.sum())
    assert_close(grads, expected)
    assert metrics["drift_max"] < 1e-5
    assert metrics["clipped_share"] == 0
    loss = -np.sum(advantage_B1 * mask_BT) / mask_BT.sum()
    np.testing.assert_allclose(metrics["loss"], loss, atol=1e-6)


@pytest.mark.slow
def test_off_policy_the_clip_takes_gradients(params, written, reward_PG, direct):
    batch = make_batch(written, reward_PG, normaliser="sequence")
    old_BT = noise_like(np.asarray(batch.old_logprob_BT), seed=2, size=0.5)
    batch = dataclasses.replace(batch, old_logprob_BT=old_BT)
    grads, metrics = compute(params, batch)
    _, (logprob_BT, _) = direct(params, 0)
    ratio_BT = np.exp(logprob_BT - old_BT)
    mask_BT, advantage_B1 = np.asarray(written.mask_BT), by_hand_grpo(reward_PG)
    clipped_BT = (ratio_BT > 1.3) & (advantage_B1 > 0)
    clipped_BT |= (ratio_BT < 0.8) & (advantage_B1 < 0)
    weight_BT = mask_BT / mask_BT.sum(axis=1, keepdims=True) / (P * G)
    c_BT = np.where(clipped_BT, 0, -weight_BT * advantage_B1 * ratio_BT)
    expected, _ = direct(params, c_BT)
    assert_close(grads, expected)
    share = clipped_BT[mask_BT].mean()
    assert 0.05 < share < 0.5
    np.testing.assert_allclose(metrics["clipped_share"], share, atol=1e-6)


def by_hand_coefficients(name, log_ratio_BT, advantage_B1, mask_BT):
    """What each loss makes of ∇log π of each token, in NumPy; 0 where it is clipped.

    Bounds are those of CLIP.
    """
    ratio_BT = np.exp(log_ratio_BT)
    if name == "cispo":
        return -np.clip(ratio_BT, 0.8, 1.3) * advantage_B1
    if name == "gspo":
        sum_B1 = np.where(mask_BT, log_ratio_BT, 0).sum(axis=1, keepdims=True)
        mean_B1 = sum_B1 / mask_BT.sum(axis=1, keepdims=True)
        ratio_BT = np.exp(np.broadcast_to(mean_B1, mask_BT.shape))
    clipped_BT = (ratio_BT > 1.3) & (advantage_B1 > 0)
    clipped_BT |= ((ratio_BT < 0.8) | (ratio_BT > 3)) & (advantage_B1 < 0)
    return np.where(clipped_BT, 0, -ratio_BT * advantage_B1)


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_loss_however_rows_are_packed(params, written, reward_PG, direct, name):
    """Off the policy, and with ratios over 3. GSPO's mean is of the whole response."""
    batch = make_batch(written, reward_PG, normaliser="sequence")
    old_BT = noise_like(np.asarray(batch.old_logprob_BT), seed=2, size=1.2)
    batch = dataclasses.replace(batch, old_logprob_BT=old_BT)
    _, (logprob_BT, _) = direct(params, 0)
    mask_BT, advantage_B1 = np.asarray(written.mask_BT), by_hand_grpo(reward_PG)
    log_ratio_BT = np.asarray(logprob_BT) - old_BT
    assert (np.exp(log_ratio_BT) > 3)[mask_BT & (advantage_B1 < 0)].any()
    c_BT = by_hand_coefficients(name, log_ratio_BT, advantage_B1, mask_BT)
    weight_BT = mask_BT / mask_BT.sum(axis=1, keepdims=True) / (P * G)
    expected, _ = direct(params, weight_BT * c_BT)
    for rows, row_responses in ((0, 1), (4, 1), (4, 2)):
        grads, _ = compute(params, batch, rows, row_responses, loss=name)
        assert_close(grads, expected)


@pytest.mark.slow
def test_on_policy_all_losses_have_one_gradient(params, written, reward_PG):
    """At a ratio of 1, whatever the normaliser."""
    for normaliser in batch_lib.NORMALISERS:
        batch = make_batch(written, reward_PG, normaliser=normaliser)
        clip, metrics = compute(params, batch, 4)
        assert metrics["clipped_share"] == 0
        for name in ("gspo", "cispo"):
            grads, metrics = compute(params, batch, 4, loss=name)
            assert_close(grads, clip)
            assert metrics["clipped_share"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("packed", [{}, {"micro_batch_rows": 4, "row_responses": 2}])
def test_a_problems_weight_is_its_gradients(params, written, reward_PG, direct, packed):
    """sampler.unbiased: 1 / (N q) times each problem's own gradient, and no other's.

    However rows are packed, and with DASH's filter, which drops rows before that.
    """
    weight_P = np.random.default_rng(2).uniform(0.2, 4, P).astype(np.float32)
    weight_B = np.repeat(weight_P, G)
    batch, _ = rl_batch(written, reward_PG, filter_tau=0.0)
    batch = dataclasses.replace(batch, problem_weight_B=weight_B)
    got, _ = compute(params, batch_lib.weigh(batch, "sequence"), **packed)
    mask_BT = np.asarray(written.mask_BT)
    advantage_B1 = by_hand_grpo(reward_PG).reshape(-1, 1) * weight_B[:, None]
    share_BT = mask_BT / (mask_BT.sum(axis=1, keepdims=True) * P * G)
    assert_close(got, direct(params, -advantage_B1 * share_BT)[0])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss(params, written, direct, estimator):
    """Every group has equal rewards, so that KL is all there is."""
    kl = BOTH | {"kl_coefficient": 0.5, "kl_estimator": estimator}
    _, (logprob_BT, _) = direct(params, 0)
    reference_BT = noise_like(np.asarray(logprob_BT), seed=3)
    batch = make_batch(written, np.ones((P, G)), reference_BT=reference_BT, **kl)
    grads, metrics = compute(params, batch, **kl)
    mask_BT = np.asarray(written.mask_BT)
    apart_BT = logprob_BT - reference_BT
    value_BT = {
        "k2": apart_BT**2 / 2,
        "k3": np.exp(-apart_BT) + apart_BT - 1,
    }[estimator]
    expected, _ = direct(params, 0.5 * apart_BT / mask_BT.sum())
    assert_close(grads, expected)
    mean = value_BT[mask_BT].mean()
    np.testing.assert_allclose(metrics["loss"], 0.5 * mean, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", losses.KL_ESTIMATORS)
def test_a_token_that_is_not_learned_may_be_as_unlikely_as_it_likes(estimator):
    """exp(95) is inf in fp32: 0 · inf would be the whole gradient's nan."""
    mask_RY = jnp.array([[True, True, False]])
    batch = batch_lib.PackedBatch(
        tokens_RW=None,
        position_RW=None,
        mask_RY=mask_RY,
        weight_RY=mask_RY / 2.0,
        advantage_RY=jnp.array([[1.0, 1.0, 0.0]]),
        old_logprob_RY=jnp.array([[-1.0, -2.0, 0.0]]),
        reference_RY=jnp.array([[-1.5, -1.0, 0.0]]),
    )

    def loss(logprob_RY):
        changes = CLIP | BOTH | {"kl_coefficient": 0.5, "kl_estimator": estimator}
        loss_RY, _, _ = losses.policy_gradient(logprob_RY, 0.0, batch, **changes)
        return jnp.sum(jnp.where(mask_RY, batch.weight_RY * loss_RY, 0))

    grad_RY = jax.grad(loss)(jnp.array([[-1.0, -2.0, -95.0]]))
    apart = np.array([0.5, -1.0])
    expected_RY = [[*((-1 + 0.5 * apart) / 2), 0]]
    np.testing.assert_allclose(grad_RY, expected_RY, rtol=1e-5)


@pytest.mark.slow
def test_kl_in_the_reward(params, written, reward_PG, direct):
    kl = {"kl_coefficient": 0.1, "kl_estimator": "k1", "kl_placement": "reward"}
    old_BT, mask_BT = np.asarray(written.logprob_BT), np.asarray(written.mask_BT)
    reference_BT = noise_like(old_BT, seed=4)
    kl_B = np.where(mask_BT, old_BT - reference_BT, 0).sum(axis=1)
    batch = make_batch(written, reward_PG, reference_BT=reference_BT, **kl)
    # G is 2: the others of a group are the other one.
    apart_PG = kl_B.reshape(P, G) - kl_B.reshape(P, G)[:, ::-1]
    advantage_B1 = by_hand_grpo(reward_PG) - 0.1 * apart_PG.reshape(-1, 1)
    expected_BT = np.where(mask_BT, advantage_B1, 0)
    np.testing.assert_allclose(batch.advantage_BT, expected_BT, atol=1e-5)
    grads, _ = compute(params, batch, **kl)
    expected, _ = direct(params, -advantage_B1 / mask_BT.sum())
    # KL is far from 0 in this reward, and 1e-5 of it in the advantages.
    assert_close(grads, expected, limit=1e-5)


@pytest.mark.slow
def test_entropy_bonus(params, written, reward_PG, direct):
    batch = make_batch(written, reward_PG, entropy_coefficient=0.1)
    grads, metrics = compute(params, batch, entropy_coefficient=0.1)
    tokens = np.asarray(written.mask_BT).sum()
    advantage_B1 = by_hand_grpo(reward_PG)
    expected, (_, entropy_BT) = direct(params, -advantage_B1 / tokens, -0.1 / tokens)
    assert_close(grads, expected)
    mean = np.asarray(entropy_BT)[np.asarray(written.mask_BT)].mean()
    np.testing.assert_allclose(metrics["entropy"], mean, rtol=1e-5)


def test_truncated_and_invalid_rollouts_leave_no_gradient(
    params, written, reward_PG, direct
):
    valid_PG = np.random.default_rng(5).random((P, G)) > 0.2
    assert not valid_PG.all()
    batch = make_batch(written, reward_PG, valid_PG, mask_truncated=True)
    learned_B = valid_PG.reshape(-1) & ~np.asarray(written.truncated_B)
    mask_BT = np.asarray(written.mask_BT) & learned_B[:, None]
    # What the learner is told of the rows left out does not matter.
    old_BT = np.where(learned_B[:, None], batch.old_logprob_BT, -50.0)
    tokens_BS = np.where(learned_B[:, None], batch.tokens_BS, 5)
    batch = dataclasses.replace(batch, old_logprob_BT=old_BT, tokens_BS=tokens_BS)
    grads, metrics = compute(params, batch, entropy_coefficient=0.1)
    advantage_B1 = by_hand_grpo(reward_PG, valid_PG)
    tokens = mask_BT.sum()
    c_BT = np.where(mask_BT, -advantage_B1 / tokens, 0)
    expected, _ = direct(params, c_BT, np.where(mask_BT, -0.1 / tokens, 0))
    assert_close(grads, expected)
    assert metrics["drift_max"] < 1e-5


def test_nothing_valid_is_no_gradient(params, written, reward_PG):
    batch = make_batch(written, reward_PG, np.zeros((P, G), bool))
    grads, metrics = compute(params, batch, entropy_coefficient=0.1)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert metrics["loss"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("normaliser", batch_lib.NORMALISERS)
def test_micro_batches_are_the_full_batch(params, written, reward_PG, normaliser):
    """With every term of the loss on, off the policy, and rows left out."""
    changes = {"kl_coefficient": 0.3, "entropy_coefficient": 0.1}
    valid_PG = np.random.default_rng(5).random((P, G)) > 0.2
    old_BT = np.asarray(written.logprob_BT)
    batch = make_batch(
        written,
        reward_PG,
        valid_PG,
        reference_BT=noise_like(old_BT, seed=6),
        normaliser=normaliser,
        **changes,
    )
    batch = dataclasses.replace(batch, old_logprob_BT=noise_like(old_BT, seed=7))
    grads, metrics = compute(params, batch, **changes)
    padding = metrics.pop("padding_share")
    for row_responses in (1, 2):
        walked = {"micro_batch_rows": 4, "row_responses": row_responses}
        parts, part_metrics = compute(params, batch, **walked, **changes)
        assert_close(parts, grads)
        assert part_metrics.pop("padding_share") < padding
        assert part_metrics.keys() == metrics.keys()
        for name, value in metrics.items():
            np.testing.assert_allclose(part_metrics[name], value, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("normaliser", batch_lib.NORMALISERS)
def test_filtered_at_zero_is_unfiltered(params, written, reward_PG, normaliser):
    """Rollouts whose advantage is 0 have no gradient: leaving them out changes none."""
    full = make_batch(written, reward_PG, normaliser=normaliser)
    few = make_batch(written, reward_PG, normaliser=normaliser, filter_tau=0.0)
    assert 0 < few.keep_B.sum() < P * G
    assert_close(compute(params, few, 4)[0], compute(params, full)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip", "gspo"])
def test_sharded_is_unsharded(params, written, reward_PG, name):
    """In micro-batches on 4 x 2 devices, each with half of the heads and the like."""
    mesh = sharding.make_mesh(1, 4, 2)
    batch = make_batch(written, reward_PG)
    old_BT = noise_like(np.asarray(batch.old_logprob_BT), seed=2)
    batch = dataclasses.replace(batch, old_logprob_BT=old_BT)
    grads, metrics = compute(params, batch, loss=name)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(mesh, params))
        rows = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
        spread, spread_metrics = compute(placed, rows, micro_batch_rows=8, loss=name)
    kernel = spread["blocks"]["0"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    assert_close(jax.device_get(spread), grads)
    for name, value in metrics.items():
        np.testing.assert_allclose(spread_metrics[name], value, rtol=1e-5, atol=1e-6)


def test_the_state_lies_as_the_parameters_do():
    """Adam's moments on the mesh axes of their parameter, the rest everywhere."""
    mesh = sharding.make_mesh(1, 4, 2)
    shapes = jax.eval_shape(partial(transformer.init_params, QWEN), jax.random.key(0))
    optimizer = make_optimizer(**ADAM)
    state = jax.eval_shape(partial(update.init, optimizer=optimizer), shapes)
    seen = {}
    for path, place in jax.tree_util.tree_leaves_with_path(
        sharding.param_shardings(mesh, state)
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        seen.setdefault(name.rpartition("blocks/0/")[2], []).append(tuple(place.spec))
    assert seen["attention/q/kernel"] == [(None, "fsdp", "tensor", None)] * 3
    assert seen["mlp/down/kernel"] == [(None, "tensor", "fsdp")] * 3
    assert all(
        spec == () for name, specs in seen.items() if "count" in name for spec in specs
    )


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("token", 1 / 6, 1 / 6),
        ("sequence", 1 / 4, 1 / 8),
        ("constant", 1 / 8, 1 / 8),
        ("rollout", 1 / 2, 1 / 2),
    ],
)
def test_normalisers_by_hand(name, first, second):
    """Three rows, of one of which nothing is learned: it makes no weight smaller."""
    mask_BT = jnp.array([[True, True, False, False], [True] * 4, [False] * 4])
    weight_BT = batch_lib.NORMALISERS[name](mask_BT)
    expected = [[first, first, 0, 0], [second] * 4, [0] * 4]
    np.testing.assert_allclose(weight_BT, expected, rtol=1e-6)
    assert not np.any(batch_lib.NORMALISERS[name](jnp.zeros((2, 3), bool)))


@pytest.mark.slow
@pytest.mark.parametrize("normaliser", batch_lib.NORMALISERS)
def test_invalid_rows_do_not_scale_the_step(written, reward_PG, normaliser):
    """Dynamic sampling at its bound: of 8 groups 2 are there, as if there were 2."""
    valid_PG = np.repeat((np.arange(P) < 2)[:, None], G, axis=1)
    batch = make_batch(written, reward_PG, valid_PG, normaliser=normaliser)
    few = jax.tree.map(lambda x: x[: 2 * G], batch)
    weight_BT = batch_lib.weigh(few, normaliser).weight_BT
    np.testing.assert_array_equal(batch.weight_BT[: 2 * G], weight_BT)
    assert not np.any(batch.weight_BT[2 * G :])


@pytest.mark.parametrize("normaliser", batch_lib.NORMALISERS)
def test_kept_divides_by_the_kept_alone(written, reward_PG, normaliser):
    """DASH's denominator. All its tokens' weights, by hand."""
    batch = make_batch(
        *(written, reward_PG),
        normaliser=normaliser,
        filter_tau=0.0,
        filter_normaliser="kept",
    )
    keep_B, mask_BT = np.asarray(batch.keep_B), np.asarray(written.mask_BT)
    mask_XT = mask_BT[keep_B]
    rows, lengths_X1 = len(mask_XT), mask_XT.sum(axis=1, keepdims=True)
    assert 0 < rows < P * G
    one = {
        "token": 1 / mask_XT.sum(),
        "sequence": 1 / (rows * lengths_X1),
        "constant": 1 / (rows * T),
        "rollout": 1 / rows,
    }[normaliser]
    weight_BT = np.asarray(batch.weight_BT)
    np.testing.assert_allclose(weight_BT[keep_B], one * mask_XT, rtol=1e-6)
    assert not weight_BT[~keep_B].any()


@pytest.mark.slow
def test_micro_batch_log_probabilities_are_in_the_rows_order(params, written):
    find = partial(logprobs.response_logprobs, response_length=T, compute=COMPUTE)
    find = jax.jit(find, static_argnames="micro_batch_rows", compiler_options=QUICK)
    tokens_BS, position_BS = written.sequences()
    temperature = jnp.float32(TEMPERATURE)
    for rows in (4, 0):
        logprob_BT = find(
            params,
            *(tokens_BS, position_BS, temperature),
            problem_B=written.problem_B,
            micro_batch_rows=rows,
        )
        apart_BT = np.where(written.mask_BT, logprob_BT - written.logprob_BT, 0)
        assert np.max(np.abs(apart_BT)) < 1e-5


ADAM = {
    "learning_rate": 1.0,
    "warmup_steps": 0,
    "decay_steps": 0,
    "decay_to": 0.1,
    "b1": 0.9,
    "b2": 0.99,
    "epsilon": 1e-12,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
}


def updates(steps, grad=1.0, value=0.0, **changes):
    """What Adam adds, step by step, to a kernel and to a scale: [steps, 2]."""
    optimizer = make_optimizer(**(ADAM | changes))
    params = {
        "head": {"kernel": jnp.float32(value)},
        "final_norm": {"scale": jnp.float32(value)},
    }
    grads = jax.tree.map(lambda x: jnp.full_like(x, grad), params)

    def step(state, _):
        added, state = optimizer.update(grads, state, params)
        return state, jnp.stack([added["head"]["kernel"], added["final_norm"]["scale"]])

    run = jax.jit(
        lambda: jax.lax.scan(step, optimizer.init(params), length=steps)[1],
        compiler_options=QUICK,
    )
    return np.asarray(run())


@pytest.mark.slow
def test_the_schedule_by_hand():
    """Under a constant gradient of 1 Adam's step is the learning rate."""
    cosine = [0.1 + 0.9 * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(5)]
    for changes, rates in (
        ({}, [1, 1, 1]),
        ({"warmup_steps": 1}, [1, 1, 1]),
        ({"warmup_steps": 2}, [0.5, 1, 1, 1]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"decay_steps": 4}, [*cosine, 0.1]),
        ({"warmup_steps": 4, "decay_steps": 8}, [0.25, 0.5, 0.75, 1, *cosine, 0.1]),
        ({"learning_rate": 0.5, "decay_steps": 2, "decay_to": 0}, [0.5, 0.25, 0, 0]),
    ):
        added = updates(len(rates), **changes)
        np.testing.assert_allclose(added[:, 0], -np.array(rates), atol=1e-5)


def test_weight_decay_is_the_kernels_alone():
    added = updates(1, value=2.0, weight_decay=0.1)
    np.testing.assert_allclose(added[0], [-1.2, -1.0], rtol=1e-5)


def test_gradients_are_clipped_by_their_norm():
    """With an epsilon far above any gradient Adam's step is linear in it."""
    linear = {"epsilon": 1e6, "learning_rate": 1e6}
    free = updates(1, grad=3.0, **linear)
    clipped = updates(1, grad=3.0, clip_norm=1.0, **linear)
    np.testing.assert_allclose(free[0], [-3, -3], rtol=1e-4)
    np.testing.assert_allclose(clipped[0], [-(0.5**0.5)] * 2, rtol=1e-4)
    within = updates(1, grad=0.5, clip_norm=1.0, **linear)
    np.testing.assert_allclose(within[0], [-0.5, -0.5], rtol=1e-4)


@functools.cache
def learning_of(optimizer, **changes):
    """Two passes of four minibatches, jitted."""
    parts = {
        "batch": None,
        "objective": partial(losses.policy_gradient, **CLIP, **NO_KL),
        "kl_coefficient": 0.0,
        "adapt_kl": None,
        "optimizer": optimizer,
        "critic_optimizer": None,
        "value_clip": 0.2,
        "normaliser": "token",
        "group": G,
        "minibatches": 4,
        "passes": 2,
        "micro_batch_rows": 2,
        "compute": COMPUTE,
    }
    learning = update.Learning(**parts | changes)

    def learn(state, batch, told, key):
        given = (jnp.float32(0), jnp.float32(TEMPERATURE), batch, told)
        ((state, _), coefficient), metrics = learning.learn(
            (state, None), *given, key=key
        )
        return state, metrics | {"next_kl_coefficient": coefficient}

    return jax.jit(learn, compiler_options=QUICK)


# With this epsilon Adam makes no whole steps of rounding errors.
SMOOTH = make_optimizer(**ADAM | {"learning_rate": 0.1, "epsilon": 0.1})
KEY = prng.stream_key(0, "minibatch", 3)


@partial(jax.jit, compiler_options=QUICK)
def smooth_step(state, grads):
    added, opt_state = SMOOTH.update(grads, state.opt_state, state.params)
    return update.TrainState(optax.apply_updates(state.params, added), opt_state)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [pytest.param(-1.0, marks=pytest.mark.slow), 0.0])
def test_minibatches_are_updates_one_after_another(params, written, reward_PG, tau):
    """Eight steps of Adam, each on the rows that `minibatch_rows` says.

    Old log-probabilities and advantages are those of the step; each minibatch is
    divided by its own tokens.
    """
    batch, told = rl_batch(written, reward_PG, filter_tau=tau)
    state, advantage_B1 = update.init(params, SMOOTH), by_hand_grpo(reward_PG)
    learned, metrics = learning_of(SMOOTH)(state, batch, told, KEY)
    norms, skipped = [], []
    rows_UM = update.minibatch_rows(KEY, rows=P * G, group=G, minibatches=4, passes=2)
    for rows in np.asarray(rows_UM):
        mask_BT = np.asarray(written.mask_BT)[rows]
        part = jax.tree.map(operator.itemgetter(rows), batch)
        part = dataclasses.replace(
            part,
            weight_BT=np.float32(mask_BT / mask_BT.sum()),
            advantage_BT=np.float32(mask_BT * advantage_B1[rows]),
            keep_B=None,
        )
        grads, _ = compute(state.params, part)
        norms.append(optax.tree.norm(grads))
        skipped.append(not advantage_B1[rows].any())
        if skipped[-1]:
            continue
        state = smooth_step(state, grads)
    counts = optax.tree_utils.tree_get_all_with_path(learned.opt_state, "count")
    assert [int(count) for _, count in counts] == [8 - sum(skipped)] * 2
    assert metrics["skipped_share"] == np.mean(skipped)
    for one, two in zip(*map(jax.tree.leaves, (learned.params, state.params))):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], np.mean(norms), rtol=1e-3)
    assert metrics["drift_max"] > 0.01
    # Of the first of the eight nothing has moved yet.
    first = metrics["mismatch/log_weight_first"]
    assert first < 1e-5 < 1e-3 < metrics["mismatch/log_weight"]


@pytest.mark.slow
def test_minibatches_are_the_same_on_a_mesh(params, written, reward_PG):
    """4 x 2 devices: rows come from whichever has them."""
    batch, told = rl_batch(written, reward_PG, filter_tau=0.0)
    state, mesh = update.init(params, SMOOTH), sharding.make_mesh(1, 4, 2)
    learned, _ = learning_of(SMOOTH)(state, batch, told, KEY)
    with jax.set_mesh(mesh):
        placed = jax.device_put(state, sharding.param_shardings(mesh, state))
        spread = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
        learn = learning_of(SMOOTH, micro_batch_rows=4)
        sharded, _ = learn(placed, spread, told, KEY)
    for one, two in zip(*map(jax.tree.leaves, (sharded.params, learned.params))):
        np.testing.assert_allclose(jax.device_get(one), two, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "group", "minibatches"), [(64, 8, 4), (64, 8, 8), (24, 8, 2), (64, 8, 16)]
)
def test_a_pass_deals_the_rows_anew(rows, group, minibatches):
    """Every row once a pass; whole groups where a minibatch has room for one."""
    deal = partial(
        update.minibatch_rows,
        rows=rows,
        group=group,
        minibatches=minibatches,
        passes=3,
    )
    size = rows // minibatches
    row_UM = np.asarray(deal(KEY))
    assert row_UM.shape == (3 * minibatches, size) and row_UM.dtype == np.int32
    passes = row_UM.reshape(3, minibatches, size)
    for dealt in passes:
        np.testing.assert_array_equal(np.sort(dealt.reshape(-1)), np.arange(rows))
    assert not np.array_equal(passes[0], passes[1])
    assert not np.array_equal(passes[1], passes[2])
    # The same for the same seed and step, another for another.
    np.testing.assert_array_equal(row_UM, deal(KEY))
    for key in (
        prng.stream_key(1, "minibatch", 3),
        prng.stream_key(0, "minibatch", 4),
    ):
        assert not np.array_equal(row_UM, deal(key))
    # Of each group the minibatches that it has rollouts in.
    groups = np.arange(rows // group)
    parts_P = np.sum([np.isin(groups, dealt // group) for dealt in passes[0]], axis=0)
    whole = np.sum(parts_P == 1)
    if size % group == 0:
        assert whole == rows // group
    elif size > group:  # 12 rows: a group and half of the one that goes on
        assert whole == rows // group - minibatches + 1
    else:
        assert np.mean(parts_P) > group / size  # single rows, of many groups


PLAIN = make_optimizer(**ADAM)
DECAYED = make_optimizer(
    **ADAM | {"weight_decay": 0.1, "warmup_steps": 5, "decay_steps": 9}
)


def after_ones(params, optimizer):
    """The state after one gradient of 1 everywhere."""

    @partial(jax.jit, compiler_options=QUICK)
    def after(params):
        ones = jax.tree.map(jnp.ones_like, params)
        state = update.init(params, optimizer)
        added, opt_state = optimizer.update(ones, state.opt_state, params)
        return update.TrainState(optax.apply_updates(params, added), opt_state)

    return after(params)


def one_more(coefficient, mean_kl):
    return coefficient + 1


@pytest.mark.slow
@pytest.mark.parametrize("why", ["invalid", "no advantage", "filtered"])
def test_with_nothing_to_learn_nothing_moves(params, written, reward_PG, why):
    """Parameters, moments, counts and the KL's coefficient are those from before.

    A gradient of 0 after one of 1 would move Adam by (.09 / .19) / (.0099 / .0199)^½ =
    .672 of its rate, to say nothing of weight decay.
    """
    zeros, before = jax.tree.map(jnp.zeros_like, params), after_ones(params, PLAIN)
    added, _ = PLAIN.update(zeros, before.opt_state, before.params)
    np.testing.assert_allclose(
        jax.tree.leaves(added)[0].reshape(-1)[0], -0.6716, atol=1e-4
    )
    valid_PG = np.full((P, G), why != "invalid")
    changes = {"filter_tau": 0.0} if why == "filtered" else {}
    batch, told = rl_batch(written, np.ones((P, G)), valid_PG, **changes)
    state = after_ones(params, DECAYED)
    learn = learning_of(DECAYED, adapt_kl=one_more, minibatches=2, passes=1)
    after, metrics = learn(state, batch, told | {"kl": 0.0}, KEY)
    for one, two in zip(*map(jax.tree.leaves, (after, state)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert metrics["skipped_share"] == 1 and metrics["gradient_norm"] == 0
    assert metrics["next_kl_coefficient"] == (0 if why == "invalid" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_an_update_that_is_no_number_moves_nothing(params, written, reward_PG, wrong):
    """One advantage of many: all is as before, the KL's coefficient too.

    The gradient of 1e30 is finite; its norm, which it is clipped by, is not.
    """
    reward_PG = np.array(reward_PG)
    batch, told = rl_batch(written, reward_PG, np.full((P, G), True))
    spoilt = np.array(batch.advantage_BT)
    spoilt[0] = wrong
    batch = dataclasses.replace(batch, advantage_BT=jnp.asarray(spoilt))
    state = after_ones(params, DECAYED)
    learn = learning_of(DECAYED, adapt_kl=one_more, minibatches=2, passes=1)
    after, metrics = learn(state, batch, told | {"kl": np.nan}, KEY)
    assert metrics["nonfinite_share"] == 0.5 and metrics["skipped_share"] == 0
    assert metrics["next_kl_coefficient"] == 0
    # The other minibatch has moved it once.
    counts = optax.tree.get_all_with_path(after.opt_state, "count")
    assert {int(count) for _, count in counts} == {2}
    alone = learning_of(DECAYED, adapt_kl=one_more, minibatches=1, passes=1)
    after, metrics = alone(state, batch, told | {"kl": 0.0}, KEY)
    for one, two in zip(*map(jax.tree.leaves, (after, state)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert metrics["nonfinite_share"] == 1


def test_kl_is_told_of_all_rollouts_that_are_learned(written, reward_PG):
    """Whatever the filter drops: over its few rows the mean would mislead."""
    old_BT, mask_BT = np.asarray(written.logprob_BT), np.asarray(written.mask_BT)
    reference_BT = noise_like(old_BT, seed=8)
    kl = {"kl_estimator": "k2", "kl_coefficient": 0.5, "filter_keep_kl": False}
    batch, told = rl_batch(
        written, reward_PG, ALL_VALID, reference_BT, filter_tau=0.0, **kl
    )
    assert 0 < batch.keep_B.sum() < P * G
    expected = ((old_BT - reference_BT) ** 2 / 2)[mask_BT].mean()
    np.testing.assert_allclose(told["kl"], expected, rtol=1e-5)
    assert told["kl_coefficient"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("entropy", [pytest.param(0.0, marks=pytest.mark.soak), 0.1])
def test_what_the_filter_loses_is_the_kl_and_entropy_of_the_rows_dropped(
    params, written, reward_PG, direct, entropy
):
    terms = {
        "kl_coefficient": 0.5,
        "kl_estimator": "k2",
        "entropy_coefficient": entropy,
    }
    old_BT, mask_BT = np.asarray(written.logprob_BT), np.asarray(written.mask_BT)
    reference_BT = noise_like(old_BT, seed=9)
    given = (written, reward_PG, ALL_VALID, reference_BT)
    full = make_batch(*given, **terms)
    few = make_batch(*given, filter_tau=0.0, filter_keep_kl=False, **terms)
    dropped_B1 = ~np.asarray(few.keep_B)[:, None]
    assert 0 < dropped_B1.sum() < P * G
    lost_BT = np.where(dropped_B1 & mask_BT, 0.5 * (old_BT - reference_BT), 0)
    tokens = mask_BT.sum()
    expected, _ = direct(
        params, lost_BT / tokens, np.where(dropped_B1 & mask_BT, -entropy / tokens, 0)
    )
    lost = jax.tree.map(
        jnp.subtract,
        compute(params, full, 4, **terms)[0],
        compute(params, few, 4, **terms)[0],
    )
    assert_close(lost, expected, limit=2e-6)
    # And nothing is lost where the setting says so.
    kept = make_batch(*given, filter_tau=0.0, filter_keep_kl=True, **terms)
    assert kept.keep_B is None
