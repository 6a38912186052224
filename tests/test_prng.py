"""The noise is Gumbel noise, and depends on what it is for and on nothing else."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from limr_jax import prng

GUMBEL = jax.jit(prng.gumbel, static_argnums=2)
UNLIKELY = 1e-3  # of a p-value; keys are fixed, so a test passes always or never


def keys_of(problems: int, samples: int, step=0):
    """Keys of problems × samples rollouts, problem by problem."""
    problem_B, sample_B = np.divmod(np.arange(problems * samples), samples)
    key = prng.stream_key(0, "rollout", step)
    return prng.rollout_keys(key, problem_B, sample_B)


def test_the_machines_own_generator_does_not_matter():
    """TPU images have JAX_DEFAULT_PRNG_IMPL=rbg."""
    usual = keys_of(2, 2)
    with jax.default_prng_impl("rbg"):
        key = prng.stream_key(0, "rollout")
        assert str(jax.random.key_impl(key)) == "threefry2x32"
        other = keys_of(2, 2)
    np.testing.assert_array_equal(*map(jax.random.key_data, (usual, other)))


@pytest.fixture(scope="module")
def noise_PGTV():
    """64 problems × 4 samples × 8 positions × 1024 token ids: 2^21 draws."""
    key_B = keys_of(64, 4)
    noise_TBV = np.stack([GUMBEL(key_B, t, 1024) for t in range(8)])
    return noise_TBV.reshape(8, 64, 4, 1024).transpose(1, 2, 0, 3)


def test_moments(noise_PGTV):
    """Mean γ, variance π²/6, skewness 1.13955: each within 4 standard errors."""
    noise = noise_PGTV.ravel().astype(np.float64)
    apart = noise - np.euler_gamma
    for got, want in (
        (apart, 0.0),
        (apart**2, np.pi**2 / 6),
        (apart**3, 1.1395470994 * (np.pi**2 / 6) ** 1.5),
    ):
        assert abs(got.mean() - want) < 4 * got.std() / np.sqrt(noise.size)


def test_uniform_on_every_scale(noise_PGTV):
    """The CDF of a draw is uniform: 4096 bins, and Kolmogorov and Smirnov's distance.

    Also for each token id and each rollout alone, of which none may stand out.
    """
    u_PGTV = scipy.stats.gumbel_r.cdf(noise_PGTV.astype(np.float64))
    counts, _ = np.histogram(u_PGTV, bins=4096, range=(0, 1))
    assert UNLIKELY < scipy.stats.chisquare(counts).pvalue < 1 - UNLIKELY
    assert scipy.stats.kstest(u_PGTV.ravel()[::16], "uniform").pvalue > UNLIKELY
    bin_PGTV = (u_PGTV * 16).astype(int)
    for axes in ((0, 1, 2), (2, 3)):  # by token id, by rollout
        expected = np.prod([u_PGTV.shape[axis] for axis in axes]) / 16
        count = np.stack([(bin_PGTV == i).sum(axis=axes) for i in range(16)])
        chi_square = ((count - expected) ** 2 / expected).sum(axis=0)
        p_values = scipy.stats.chi2.sf(chi_square, 15).ravel()
        assert scipy.stats.kstest(p_values, "uniform").pvalue > UNLIKELY


def test_neighbours_are_independent(noise_PGTV):
    """Next problem, next sample, next position, next token id: 16 × 16 joint bins."""
    u_PGTV = scipy.stats.gumbel_r.cdf(noise_PGTV.astype(np.float64))
    bin_PGTV = (u_PGTV * 16).astype(int)
    for axis, lag in itertools.product(range(4), (1, 2)):
        size = bin_PGTV.shape[axis] - lag
        here = bin_PGTV.take(np.arange(size), axis).ravel()
        there = bin_PGTV.take(np.arange(lag, size + lag), axis).ravel()
        joint = np.bincount(16 * here + there, minlength=256)
        p_value = scipy.stats.chisquare(joint).pvalue
        assert UNLIKELY < p_value < 1 - UNLIKELY, (axis, lag)
        r = np.corrcoef(here, there)[0, 1]
        assert abs(r) < 4 / np.sqrt(here.size), (axis, lag)


def test_argmax_of_logits_and_noise_is_a_softmax_draw():
    logits_V = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, -4.0], np.float32)
    key_B = keys_of(1000, 8)
    draw = jax.jit(
        lambda t: jnp.argmax(prng.gumbel(key_B, t, 8) + logits_V[None], axis=1)
    )
    token = np.concatenate([draw(t) for t in range(25)])  # 200,000 draws
    want = np.exp(logits_V.astype(np.float64))
    want *= token.size / want.sum()
    counts = np.bincount(token, minlength=8)
    assert scipy.stats.chisquare(counts, want).pvalue > UNLIKELY


@pytest.mark.slow
def test_tail():
    """Rare draws are as rare as they should be, beyond the 15.9 of 23 random bits."""
    key_B = keys_of(16, 4)

    @jax.jit
    def tail(t):
        noise_BV = prng.gumbel(key_B, t, 2**15)
        above = jnp.stack([jnp.sum(noise_BV > x) for x in (6, 8, 10, 12)])
        return above, jnp.max(noise_BV), jnp.min(noise_BV)

    above, high, low = map(np.stack, zip(*(tail(t) for t in range(16))))
    draws = 16 * 64 * 2**15
    for got, x in zip(above.sum(axis=0), (6, 8, 10, 12)):
        want = draws * -np.expm1(-np.exp(-x))
        assert abs(got - want) < 4 * np.sqrt(want), (x, got, want)
    # The largest of n is Gumbel around log n; the smallest is near −log log n.
    assert -2 < high.max() - np.log(draws) < 7
    assert -3.0 < low.min() < -2.6
    # Of the bits' 2^32 values the first gives the largest noise, the last the least.
    bits = jnp.array([0, 2**32 - 1], jnp.uint32)
    np.testing.assert_allclose(
        prng.gumbel_of_bits(bits),
        [33 * np.log(2), -np.log(24 * np.log(2))],
        rtol=1e-6,
    )


def test_keys_that_differ_in_one_bit_share_nothing():
    """Any of the 64 bits turns each of the 32 for half of the token ids."""
    bit = np.uint32(1) << np.arange(32, dtype=np.uint32)
    flips = np.zeros((64, 2), np.uint32)
    flips[:32, 0], flips[32:, 1] = bit, bit
    key = np.array([[0x9E3779B9, 0x7F4A7C15]], np.uint32)
    random_bits = jax.jit(prng.random_bits, static_argnums=1)
    bits_1V, flipped_BV = random_bits(key, 4096), random_bits(key ^ flips, 4096)
    turned_BV = np.asarray(flipped_BV) ^ np.asarray(bits_1V)
    for out in bit:
        share_B = np.mean((turned_BV & out) > 0, axis=1)
        assert share_B.min() > 0.45 and share_B.max() < 0.55


@pytest.mark.slow
def test_depends_on_its_own_rollout_alone():
    """Not on the batch, nor on how far the vocabulary is rounded up."""
    key_B = keys_of(8, 4)
    whole = np.asarray(GUMBEL(key_B, 5, 64))
    some = np.array([30, 3, 17])
    np.testing.assert_array_equal(GUMBEL(key_B[some], 5, 64), whole[some])
    np.testing.assert_array_equal(GUMBEL(key_B, 5, 40), whole[:, :40])
    np.testing.assert_array_equal(prng.gumbel(key_B, 5, 64), whole)


def test_keys_never_meet():
    """Seeds, streams, steps, problems and samples: a key of its own for each."""
    step_keys = [
        prng.stream_key(seed, stream, step)
        for seed in range(3)
        for stream in prng.STREAMS
        for step in range(4)
    ]
    problem_B, sample_B = np.divmod(np.arange(40), 5)
    rollouts = [prng.rollout_keys(key, problem_B, sample_B) for key in step_keys[:20]]
    words = [np.asarray(jax.random.key_data(key)) for key in (*step_keys, *rollouts)]
    words = np.concatenate([x.reshape(-1, 2) for x in words])
    assert len(np.unique(words, axis=0)) == len(words) == 60 + 20 * 40


def test_traced_seeds_and_steps():
    key = jax.jit(prng.stream_key, static_argnums=1)(3, "eval", 7)
    want = prng.stream_key(3, "eval", 7)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(want).tolist()


def test_streams_keep_their_numbers():
    """They are part of every run's identity."""
    assert prng.STREAMS == {
        "init": 0,
        "sampler": 1,
        "rollout": 2,
        "eval": 3,
        "minibatch": 5,
    }
