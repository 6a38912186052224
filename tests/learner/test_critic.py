"""The critic: its values, its gradient, GAE over a step, and a run that learns one."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_policy
from jax.sharding import NamedSharding
from tiny_policy import QUICK, QWEN, fp32
from tiny_run import (
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax import sharding
from limr_jax.learner import advantages, critic, losses, update
from limr_jax.learner import batch as batch_lib
from limr_jax.models import lora, transformer
from limr_jax.models.config import Lora
from limr_jax.storage import checkpoint, metrics
from limr_jax.train import train

HOW = {"config": QWEN, "dtype": jnp.float32}
COMPUTE = fp32(QWEN)
P, G, T = tiny_policy.PROMPTS, 2, 12
GAE = {
    "gamma": 0.9,
    "lam": 0.8,
    "value_lam": -1.0,
    "bootstrap_truncated": False,
    "reward_clip": 0.0,
    "whiten": False,
}
ALL_VALID = np.ones((P, G), bool)


@pytest.fixture(scope="module")
def written():
    return tiny_policy.generate()


@pytest.fixture(scope="module")
def params():
    """A critic whose value head is no longer 0."""
    params = critic.init_params(
        jax.tree.map(jnp.asarray, tiny_policy.random_params(QWEN)), width=QWEN.width
    )
    kernel = np.random.default_rng(2).standard_normal(QWEN.width, np.float32)
    return params | {"value_head": {"kernel": jnp.asarray(kernel)}}


@pytest.fixture(scope="module")
def value_BT(params, written):
    find = partial(
        critic.values, response_length=T, micro_batch_rows=4, compute=COMPUTE
    )
    find = jax.jit(find, compiler_options=QUICK)
    return find(params, *written.sequences(), problem_B=written.problem_B)


def rl_batch(written, reward_PG, value_BT, valid_PG=ALL_VALID, **changes):
    options = {
        "advantage": partial(advantages.by_token, **GAE),
        "kl_estimator": "k1",
        "kl_placement": "reward",
        "entropy_coefficient": 0.0,
        "mask_truncated": False,
        "filter_tau": -1.0,
        "filter_normaliser": "all",
        "filter_keep_kl": True,
        "reference_BT": None,
        "kl_coefficient": 0.0,
    } | changes
    reference_BT = options.pop("reference_BT")
    coefficient = np.float32(options.pop("kl_coefficient"))
    batch, batch_metrics = advantages.rl_batch(
        written,
        reward_PG,
        valid_PG,
        batch_lib.Scores(reference_BT, value_BT),
        coefficient,
        **options,
    )
    return batch_lib.weigh(batch, "token"), batch_metrics


def by_hand_gae(reward_T, value_T, lam=0.8, after=0.0):
    """Advantages of one response, from its end; γ 0.9."""
    later, next_value, out = 0.0, after, []
    for reward, value in zip(reward_T[::-1], value_T[::-1]):
        later = reward + 0.9 * next_value - value + 0.9 * lam * later
        next_value = value
        out.insert(0, later)
    return np.array(out)


@pytest.mark.slow
def test_a_new_critic_is_the_policys_body_and_says_0(written):
    policy = tiny_policy.random_params(QWEN)
    params = critic.init_params(jax.tree.map(jnp.asarray, policy), width=QWEN.width)
    assert params["embedder"]["embedding"] is not policy["embedder"]["embedding"]
    assert params.keys() - policy.keys() == {"value_head"}
    values = partial(critic.response_values, response_length=T, compute=COMPUTE)
    values = jax.jit(values, compiler_options=QUICK)
    assert not np.any(values(params, *written.sequences()))
    head = {"kernel": jnp.ones((16, 40))}
    untied = critic.init_params({**params, "head": head}, width=QWEN.width)
    assert "head" not in untied


@pytest.mark.slow
def test_a_value_is_of_what_stands_before_the_token(written, params, value_BT):
    """Row by row and unpadded: V_t reads the prompt and the t tokens before."""
    prompt_PL, position_PL = written.prompt_PL, np.asarray(written.position_PL)
    forward = jax.jit(partial(transformer.forward, **HOW), compiler_options=QUICK)
    for b in (0, 5, 11):
        prompt = np.asarray(prompt_PL)[b // G][position_PL[b // G] >= 0]
        length = int(written.mask_BT[b].sum())
        text = np.concatenate([prompt, written.response_BT[b][:length]])
        where = np.arange(len(text))[None]
        hidden = np.asarray(forward(params, text[None], where)[0])
        expected = hidden @ params["value_head"]["kernel"]
        first = len(prompt) - 1
        np.testing.assert_allclose(
            value_BT[b, :length], expected[first : first + length], atol=1e-5
        )


@pytest.mark.slow
def test_the_reward_comes_last_and_a_penalty_with_its_token(written, value_BT):
    random = np.random.default_rng(3)
    reward_PG = random.standard_normal((P, G)).astype(np.float32)
    old_BT, mask_BT = np.asarray(written.logprob_BT), np.asarray(written.mask_BT)
    reference_BT = old_BT + random.standard_normal(old_BT.shape).astype(np.float32)
    batch, batch_metrics = rl_batch(
        written, reward_PG, value_BT, reference_BT=reference_BT, kl_coefficient=0.1
    )
    for b in range(P * G):
        n = mask_BT[b].sum()
        reward_T = -0.1 * (old_BT - reference_BT)[b, :n]
        reward_T[-1] += reward_PG[b // G, b % G]
        value_T = np.asarray(value_BT)[b, :n]
        expected = by_hand_gae(reward_T, value_T)
        np.testing.assert_allclose(batch.advantage_BT[b, :n], expected, atol=1e-5)
        np.testing.assert_allclose(
            batch.return_BT[b, :n], expected + value_T, atol=1e-5
        )
        assert not np.any(batch.advantage_BT[b, n:])
    kl = (old_BT - reference_BT)[mask_BT].mean()
    np.testing.assert_allclose(batch_metrics["kl"], kl, rtol=1e-5)
    returns, values = np.asarray(batch.return_BT)[mask_BT], value_BT[mask_BT]
    explained = 1 - np.var(returns - values) / np.var(returns)
    np.testing.assert_allclose(
        batch_metrics["critic/explained_variance"], explained, rtol=1e-4
    )


@pytest.mark.slow
def test_the_critic_s_own_lambda_is_of_the_returns_alone(written, value_BT):
    reward_PG = np.random.default_rng(3).standard_normal((P, G)).astype(np.float32)
    batch, _ = rl_batch(written, reward_PG, value_BT)
    own = partial(advantages.by_token, **GAE | {"value_lam": 1.0})
    apart, _ = rl_batch(written, reward_PG, value_BT, advantage=own)
    np.testing.assert_array_equal(apart.advantage_BT, batch.advantage_BT)
    for b in range(P * G):
        n = int(written.mask_BT[b].sum())
        # At λ 1 the return is the discounted reward, whatever the critic says.
        to_go_T = 0.9 ** np.arange(n)[::-1] * reward_PG[b // G, b % G]
        np.testing.assert_allclose(apart.return_BT[b, :n], to_go_T, atol=1e-5)
    assert not np.allclose(apart.return_BT, batch.return_BT, atol=1e-2)


@pytest.mark.slow
def test_a_response_that_is_cut_is_worth_what_the_critic_says(written, value_BT):
    """It ends a token earlier, and that token is not learned; others are as before."""
    reward_PG = np.random.default_rng(3).standard_normal((P, G)).astype(np.float32)
    batch, _ = rl_batch(written, reward_PG, value_BT)
    bootstrapped = partial(
        advantages.by_token, **GAE | {"bootstrap_truncated": True, "whiten": True}
    )
    white, _ = rl_batch(written, reward_PG, value_BT, advantage=bootstrapped)
    plain = partial(advantages.by_token, **GAE | {"bootstrap_truncated": True})
    found, _ = rl_batch(written, reward_PG, value_BT, advantage=plain)
    truncated_B = np.asarray(written.truncated_B)
    assert 0 < truncated_B.sum() < P * G
    for name in ("advantage_BT", "return_BT"):
        one, two = np.asarray(getattr(found, name)), np.asarray(getattr(batch, name))
        np.testing.assert_array_equal(one[~truncated_B], two[~truncated_B])
    for b in np.flatnonzero(truncated_B):
        value_T, reward_T = np.asarray(value_BT)[b], np.zeros(T - 1)
        reward_T[-1] = reward_PG[b // G, b % G]
        expected = by_hand_gae(reward_T, value_T[:-1], after=value_T[-1])
        np.testing.assert_allclose(found.advantage_BT[b], [*expected, 0], atol=1e-5)
        np.testing.assert_allclose(
            found.return_BT[b], [*expected, 0] + value_T, atol=1e-5
        )
        assert white.advantage_BT[b, -1] == 0
    # The cut tokens are in no mean of what is whitened.
    last_BT = np.arange(T)[None] == T - 1
    counted_BT = np.asarray(written.mask_BT) & ~(truncated_B[:, None] & last_BT)
    counted = np.asarray(white.advantage_BT)[counted_BT]
    np.testing.assert_allclose([counted.mean(), counted.var()], [0, 1], atol=1e-5)


def test_clipped_rewards_and_whitened_advantages(written, value_BT):
    reward_PG = np.full((P, G), 50, np.float32)
    valid_PG = np.random.default_rng(4).random((P, G)) > 0.3
    clipped = partial(advantages.by_token, **GAE | {"reward_clip": 10.0})
    ten, _ = rl_batch(written, reward_PG / 5, value_BT, valid_PG)
    fifty, _ = rl_batch(written, reward_PG, value_BT, valid_PG, advantage=clipped)
    np.testing.assert_array_equal(ten.advantage_BT, fifty.advantage_BT)
    white = partial(advantages.by_token, **GAE | {"whiten": True})
    batch, _ = rl_batch(written, reward_PG, value_BT, valid_PG, advantage=white)
    learned_BT = np.asarray(written.mask_BT) & valid_PG.reshape(-1, 1)
    assert 0 < learned_BT.sum() < written.mask_BT.sum()
    np.testing.assert_array_equal(batch.mask_BT, learned_BT)
    whitened = np.asarray(batch.advantage_BT)[learned_BT]
    np.testing.assert_allclose(whitened.mean(), 0, atol=1e-6)
    np.testing.assert_allclose(whitened.var(), 1, rtol=1e-5)


@pytest.mark.slow
def test_the_critics_gradient_is_that_of_the_squared_error(written, params, value_BT):
    """Unclipped at the old values; micro-batches of a mesh are the full batch."""
    reward_PG = np.random.default_rng(5).integers(0, 2, (P, G)).astype(np.float32)
    batch, _ = rl_batch(written, reward_PG, value_BT)
    mask_BT = np.asarray(written.mask_BT)

    def squared(params):
        value_BT = critic.response_values(
            params,
            batch.tokens_BS,
            batch.position_BS,
            response_length=T,
            compute=COMPUTE,
        )
        apart_BT = jnp.where(mask_BT, value_BT - batch.return_BT, 0)
        return 0.5 * jnp.sum(apart_BT**2) / mask_BT.sum()

    expected = jax.jit(jax.grad(squared), compiler_options=QUICK)(params)
    loss = partial(losses.critic_loss, value_clip=0.2, compute=COMPUTE)
    find = jax.jit(
        partial(update.gradients, loss=loss, micro_batch_rows=8),
        compiler_options=QUICK,
    )
    mesh = sharding.make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(params, sharding.param_shardings(mesh, params))
        rows = jax.device_put(batch, NamedSharding(mesh, sharding.BATCH))
        grads, _ = find(placed, rows)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_gradient_of_a_critic_s_adapters(written, value_BT):
    """It is that of the squared error through the merged kernels; the base has none."""
    config = dataclasses.replace(QWEN, lora=Lora(rank=3, alpha=6.0))
    params = jax.tree.map(jnp.asarray, tiny_policy.random_params(config))
    base, adapters = lora.split(params)
    learned = critic.init_params(adapters, width=config.width)
    assert learned.keys() == {"blocks", "value_head"}
    kernel = np.random.default_rng(2).standard_normal(config.width, np.float32)
    learned |= {"value_head": {"kernel": kernel}}
    reward_PG = np.random.default_rng(5).integers(0, 2, (P, G)).astype(np.float32)
    batch, _ = rl_batch(written, reward_PG, value_BT)
    mask_BT = np.asarray(written.mask_BT)

    def squared(learned):
        value_BT = critic.response_values(
            lora.merge(lora.join(base, learned), config.lora),
            batch.tokens_BS,
            batch.position_BS,
            response_length=T,
            compute=COMPUTE,
        )
        apart_BT = jnp.where(mask_BT, value_BT - batch.return_BT, 0)
        return 0.5 * jnp.sum(apart_BT**2) / mask_BT.sum()

    def loss(learned, micro):
        params = lora.join(base, learned)
        return losses.critic_loss(params, micro, value_clip=1e6, compute=fp32(config))

    find = partial(update.gradients, batch=batch, loss=loss, micro_batch_rows=8)
    grads, _ = jax.jit(find, compiler_options=QUICK)(learned)
    expected = jax.jit(jax.grad(squared), compiler_options=QUICK)(learned)
    for one, two in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        assert np.any(two)
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


FIELDS = {
    "algorithm": "ppo",
    "critic__learning_rate": 0.01,
    "kl__coefficient": 0.1,
    "kl__estimator": "k1",
    "kl__placement": "reward",
    "kl__target": 1e-3,
    "minibatches_per_step": 2,
    "updates_per_minibatch": 2,
    "micro_batch_rows": 2,
    "num_steps": 4,
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


@pytest.fixture(scope="module")
def whole(quick_compiler, problems, tmp_path_factory):
    """(workdir of an unbroken run, the run's parts, its config)."""
    config, workdir = configure(problems, **FIELDS), tmp_path_factory.mktemp("whole")
    made = with_parity(set_up(config))
    train(made, config, workdir)
    return workdir, made, config


@pytest.mark.slow
def test_a_run_with_a_critic(whole):
    rows = list(metrics.read_metrics(whole[0]))
    # The first update's body gradient is 0: the value head is.
    assert all(row["critic/gradient_norm"] > 0 for row in rows)
    assert rows[0]["critic/explained_variance"] == 0
    assert len({row["critic/loss"] for row in rows}) == len(rows)
    # Within a step the policy moves away from the one that wrote.
    assert all(row["drift_max"] > 1e-4 for row in rows)
    assert len({row["compile_count"] for row in rows}) == 1
    assert {"seconds_values", "seconds_reference"} <= rows[0].keys()
    coefficients = [row["kl_coefficient"] for row in rows]
    assert coefficients[0] == pytest.approx(0.1)
    # The first step's KL is 0, so the coefficient falls by 0.2 x gain.
    assert coefficients[1] == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert len(set(coefficients)) == len(coefficients)


@pytest.mark.slow
def test_a_stop_and_a_resume_change_nothing(whole, tmp_path):
    """The critic, its optimiser and the KL coefficient are in the checkpoint."""
    workdir, made, config = whole
    with pytest.raises(KeyboardInterrupt):
        train(stopping(made, 3), config, tmp_path)
    train(made, config, tmp_path)
    assert run_records(tmp_path) == run_records(workdir)


@pytest.mark.slow
def test_the_critic_is_learned_before_the_policy(quick_compiler, problems, tmp_path):
    """In the first two of four steps the policy and its optimiser do not move."""
    fields = {"critic__pretrain_steps": 2, "checkpoint__every": 1}
    config = configure(problems, **FIELDS | fields, checkpoint__keep=9)
    made = with_parity(set_up(config))
    train(made, config, tmp_path)
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        states = [saver.restore(k, made.programs.state)[0] for k in (1, 2, 3)]

    def same(one, two):
        pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
        return all(np.array_equal(x, y) for x, y in pairs)

    first, second, third = states
    assert same(first.train, second.train) and not same(second.train, third.train)
    assert not same(first.critic.params, second.critic.params)
    rows = list(metrics.read_metrics(tmp_path))
    for row in rows:
        frozen = row["step"] <= 2
        assert (row["gradient_norm"] == 0) == frozen
        assert row["skipped_share"] == frozen
        assert row["critic/gradient_norm"] > 0
        assert 0 <= row["padding_share"] < 1
    # A frozen policy has a KL of 0, which is no reason to lower the coefficient.
    coefficients = [row["kl_coefficient"] for row in rows]
    assert coefficients[:3] == [pytest.approx(0.1)] * 3
    assert coefficients[3] != coefficients[2]
    # The critic's work goes on to be seen: what it says explains something.
    assert rows[0]["critic/explained_variance"] == 0
    assert len({row["compile_count"] for row in rows}) == 1


def test_without_kl_and_without_a_critic_nothing_of_them_exists(problems):
    made = set_up(configure(problems))
    assert made.programs.reference is None and made.programs.values is None
    assert made.programs.state.critic is None
    shapes = jax.tree.leaves(made.programs.state)
    parameters = sum(x.size for x in jax.tree.leaves(made.programs.state.train.params))
    # The parameters and Adam's two moments of them are all that is large.
    assert sum(x.size for x in shapes) < 3 * parameters + 200
