"""Weights 1 / (N q_i): the mean over draws is the mean over all problems."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_policy import QUICK
from tiny_run import configure, run_records, set_up, with_parity, write_problems

from limr_jax.learner.batch import Batch, weigh
from limr_jax.samplers import importance
from limr_jax.samplers.weighted import draw_by_weight, log_weight
from limr_jax.train import train

jit = functools.partial(jax.jit, compiler_options=QUICK)
WEIGHT_3 = jnp.array([1.0, 0.3, 0.05])


def gumbel(share):
    """Quantiles of the Gumbel distribution: the noise of jax.random.gumbel."""
    return -np.log(-np.log(share))


def noises(places: int):
    """Noises of three problems, each at `places` quantiles, and their probabilities.

    Quantiles 1 − t² are close together where the noise is large: there a problem that
    weighs little is drawn, and counts much.
    """
    t_X = (np.arange(places) + 0.5) / places
    one_X, share_X = -np.log(-np.log1p(-(t_X**2))), 2 * t_X / places
    every = [
        np.stack(np.meshgrid(x, x, x), -1).reshape(-1, 3) for x in (one_X, share_X)
    ]
    return jnp.float32(every[0]), np.prod(every[1], axis=1)


@pytest.mark.parametrize("prompts", [1, 2])
def test_each_problem_counts_once_whatever_the_others_noise(prompts):
    """Its own noise enumerated at 20,000 quantiles, that of the others fixed."""
    own_X = jnp.float32(gumbel((np.arange(20_000) + 0.5) / 20_000))
    for problem, seed in np.ndindex(3, 4):
        fixed_3 = jax.random.gumbel(jax.random.key(seed), (3,))

        def counted(own, problem=problem, fixed_3=fixed_3):
            noise_3 = fixed_3.at[problem].set(own)
            value_3 = log_weight(WEIGHT_3) + noise_3
            _, ids_P = jax.lax.top_k(value_3, prompts)
            weight_P = importance.of_noise(WEIGHT_3, noise_3, prompts)
            return jnp.sum(jnp.where(ids_P == problem, weight_P, 0.0))

        # Of the mean over P places, of N problems; where it is not drawn it counts 0.
        counted_X = np.float64(jax.vmap(counted)(own_X)) * 3 / prompts
        # A chance of π is πX quantiles but for one: that is all that it may be off by.
        error = counted_X.max() / len(own_X)
        assert counted_X.max() > 0 and error < 0.1
        np.testing.assert_allclose(counted_X.mean(), 1, atol=error + 1e-5)


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("normaliser", ["sequence", "rollout", "constant"])
def test_the_mean_gradient_is_that_of_all_problems(prompts, normaliser):
    """By enumeration of the noise; of losses linear in two parameters."""
    gradient_N2 = jnp.array([[1.0, 0.0], [0.0, 2.0], [-3.0, 5.0]])
    mask_N2 = jnp.array([[1, 1], [1, 0], [1, 1]], bool)  # two tokens a row, or one

    def gradient(ids_P, weight_P):
        batch = Batch(
            tokens_BS=jnp.zeros((len(ids_P), 2), jnp.int32),
            position_BS=jnp.zeros((len(ids_P), 2), jnp.int32),
            problem_B=ids_P,
            mask_BT=mask_N2[ids_P],
            problem_weight_B=weight_P,
        )
        weight_BT = weigh(batch, normaliser).weight_BT
        return jnp.sum(weight_BT[:, :, None] * gradient_N2[ids_P][:, None], (0, 1))

    def drawn(noise_3, weighed):
        _, ids_P = jax.lax.top_k(log_weight(WEIGHT_3) + noise_3, prompts)
        weight_P = importance.of_noise(WEIGHT_3, noise_3, prompts)
        return gradient(ids_P, weight_P if weighed else None)

    noise_X3, chance_X = noises(80)
    means = [
        chance_X @ jit(jax.vmap(functools.partial(drawn, weighed=x)))(noise_X3)
        for x in (True, False)
    ]
    whole_2 = gradient(jnp.arange(3), None)
    np.testing.assert_allclose(means[0], whole_2, rtol=0.01)
    assert np.abs(means[1] - whole_2).max() > 0.2  # without weights it is another


def test_the_weights_are_of_what_is_drawn():
    """The same noise in both, for all keys; where all are drawn each weighs 1."""
    weight_N = jnp.linspace(0.05, 1, 9)
    for seed in range(5):
        key = jax.random.key(seed)
        ids_P = draw_by_weight(weight_N, key, 4)
        weight_P = importance.of_draw_by_weight(weight_N, key, 4)
        # Of one draw the threshold is the same for all: what weighs less counts more.
        order_P = np.argsort(weight_N[ids_P])
        assert np.all(np.diff(np.asarray(weight_P)[order_P]) < 0)
        assert weight_P.min() >= 4 / 9
    all_P = importance.of_draw_by_weight(weight_N, key, 9)
    np.testing.assert_array_equal(all_P, np.ones(9))


def test_equal_problems_have_one_weight_and_its_noise():
    """P over a gamma variable of shape P + 1: mean 1, variance 1 / (P − 1)."""
    for prompts in (4, 32):

        def draw(key, prompts=prompts):
            weight_P = importance.of_draw_by_weight(jnp.ones(1000), key, prompts)
            return jnp.mean(weight_P), jnp.ptp(weight_P)

        keys = jax.random.split(jax.random.key(1), 3000)
        mean_X, spread_X = jit(functools.partial(jax.lax.map, draw))(keys)
        assert jnp.max(spread_X) < 1e-5 * jnp.max(mean_X)
        np.testing.assert_allclose(mean_X.mean(), 1, atol=0.03)
        np.testing.assert_allclose(mean_X.std(), (prompts - 1) ** -0.5, rtol=0.15)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 10)


@pytest.fixture(scope="module")
def set_up_alike(problems, quick_compiler):
    """(fields) → config and parts of a run; what writes rollouts is one program."""
    shared = {}

    def make(**fields):
        config = configure(problems, model__layers=1, **fields)
        made = with_parity(set_up(config))
        generate = shared.setdefault("generate", made.programs.generate)
        programs = made.programs._replace(generate=generate)
        return config, dataclasses.replace(made, programs=programs)

    return make


@pytest.mark.slow
def test_a_run_with_weights_and_a_stop(set_up_alike, tmp_path):
    fields = {"num_steps": 4, "checkpoint__every": 1}
    fields |= {"sampler__name": "informative", "loss_normaliser": "sequence"}
    runs = {}
    for unbiased in (False, True):
        config, made = set_up_alike(sampler__unbiased=unbiased, **fields)
        train(made, config, tmp_path / str(unbiased))
        runs[unbiased] = run_records(tmp_path / str(unbiased))
    first, weighed = (run["metrics"][0] for run in runs.values())
    assert "importance/weight_max" not in first
    assert weighed["importance/weight_max"] >= weighed["importance/weight_mean"] > 0
    assert weighed["importance/effective_share"] <= 1
    # The first draws are the same; what is learned of them is not.
    assert first["epoch"] == weighed["epoch"] and first["reward"] == weighed["reward"]
    assert first["gradient_norm"] != weighed["gradient_norm"]
    calls = []

    def grade(written, drawn):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return made.grade(written, drawn)

    stopped = made.__class__(**vars(made) | {"grade": grade})
    with pytest.raises(KeyboardInterrupt):
        train(stopped, config, tmp_path / "stopped")
    train(made, config, tmp_path / "stopped")
    assert run_records(tmp_path / "stopped") == runs[True]


@pytest.mark.slow
def test_uniform_draws_weigh_one(set_up_alike, tmp_path):
    digests = []
    for unbiased in (False, True):
        config, made = set_up_alike(sampler__unbiased=unbiased, num_steps=3)
        digests.append(train(made, config, tmp_path / str(unbiased))["params_digest"])
    assert digests[0] == digests[1]
