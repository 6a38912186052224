"""Functions over chunks of columns: which chunks, and that they change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax import sharding
from limr_jax.chunking import by_chunks, chunk_size, row_parts


@pytest.mark.parametrize(
    "columns, elements, expected",
    [
        (40, 32 * 512, 40),  # the embedded task's logits: all at once
        (1, 2**30, 1),  # decode's scores: never less than a column
        (7, 2**30, 1),
        (64, 2**26 // 13, 8),  # 13 fit: 8 chunks of 8
        (64, 2**26 // 7, 7),  # 7 fit: 10 chunks, as even as they can be
        (65, 2**20, 40),  # 64 fit: not 64 and 1, but 2 x 40 for 65
        (1752, 32 * 4 * 1752, 296),  # 299 fit: 6 chunks
    ],
)
def test_the_size_rule(columns, elements, expected):
    assert chunk_size(columns, elements) == expected
    assert expected == columns or expected * elements <= 2**26 or expected == 1


@pytest.mark.parametrize(
    "rows, elements, expected",
    [
        (64, 2**20, 1),  # all at once
        (65, 2**20, 1),  # one too many, but 65 is odd
        (66, 2**20, 2),
        (256, 1024 * 4736, 32),  # 7B's prompts on a chip of a v4-32: 8 at a time
        (12, 2**30, 4),  # as far as it can be divided
    ],
)
def test_the_rule_of_parts(rows, elements, expected):
    assert row_parts(rows, elements) == expected


def test_devices_share_the_elements():
    assert chunk_size(640, 2**26 // 80) == 80
    with jax.set_mesh(sharding.make_mesh(2, 2, 2)):
        assert chunk_size(640, 2**26 // 80) == 640


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_chunks_change_nothing(size):
    """10 columns: values of two shapes, and gradients also of what is closed over."""
    random = np.random.default_rng(0)
    x, weight = (np.float32(random.standard_normal(n)) for n in ((2, 10, 3), (3, 5)))
    mask = random.integers(0, 2, (2, 10)).astype(bool)

    def both(x, mask, weight):
        def function(x, mask):
            y = jnp.where(mask[..., None], jnp.tanh(x @ weight), 0.0)
            return y, y.sum(axis=-1)

        return by_chunks(function, x, mask, size=size)

    def loss(x, weight):
        y, total = both(x, mask, weight)
        return jnp.sum(y**2) + jnp.sum(jnp.sin(total))

    expected = np.where(mask[..., None], np.tanh(x @ weight), 0.0)
    y, total = both(x, mask, weight)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    np.testing.assert_allclose(total, expected.sum(axis=-1), atol=1e-6)
    slope = expected * 2 + np.cos(expected.sum(axis=-1))[..., None]
    slope *= np.where(mask[..., None], 1 - expected**2, 0.0)
    d_x, d_weight = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, weight)
    np.testing.assert_allclose(d_x, slope @ weight.T, atol=1e-5)
    np.testing.assert_allclose(d_weight, np.einsum("btd,btf->df", x, slope), atol=1e-5)
