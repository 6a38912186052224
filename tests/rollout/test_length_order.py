"""What takes longest begins first: same tokens, fewer empty slots."""

import jax
import numpy as np
import pytest
from rollout.test_generate import generate_on_mesh, same
from tiny_policy import GROUP, PROMPTS, generate

from limr_jax.rollout import length_order
from limr_jax.sharding import BATCH, make_mesh

pytestmark = pytest.mark.usefixtures("quick_compiler")


def test_remember_by_hand():
    """3 stands there twice, 0 and 4 not at all, 2 without a token."""
    length_BG = [[2, 4], [6, 0], [1, 3], [0, 0]]  # of problems 3, 1, 3, 2
    mask_BT = np.arange(6) < np.reshape(length_BG, (-1, 1))
    ids_P = np.array([3, 1, 3, 2])
    before_N = np.array([9, 9, 7.5, 0, 0], np.float32)
    after_N = jax.jit(length_order.remember)(before_N, ids_P, mask_BT)
    assert after_N.dtype == np.float32
    assert after_N.tolist() == [9, 6, 7.5, 2.5, 0]


def test_order_by_hand():
    """Unknown ones among the known as their mean (4); equals as they were given."""
    expected_P = np.array([2, 0, 6, 4, 0], np.float32)
    names_P = np.arange(5)
    (names_P, twice_P), back = length_order.longest_first(
        expected_P, (names_P, 2 * names_P)
    )
    assert names_P.tolist() == [2, 1, 3, 4, 0]
    assert twice_P.tolist() == [4, 2, 6, 8, 0]
    out = {"row_B": np.repeat(names_P, 2) * 10 + np.tile([0, 1], 5)}
    assert back(out)["row_B"].tolist() == [0, 1, 10, 11, 20, 21, 30, 31, 40, 41]


@pytest.mark.parametrize("expected_P", [None, np.zeros(3, np.float32)])
def test_where_nothing_is_known_nothing_moves(expected_P):
    names_P, back = length_order.longest_first(expected_P, np.arange(3))
    assert names_P.tolist() == back(np.arange(3)).tolist() == [0, 1, 2]


def test_each_device_sorts_its_own():
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    at = jax.NamedSharding(mesh, BATCH)
    expected_P = np.array([1, 2, 0, 3, 5, 4, 1, 7], np.float32)

    @jax.jit
    def there_and_back(expected_P, names_P):
        names_P, back = length_order.longest_first(expected_P, names_P)
        return names_P, back(names_P)

    with jax.set_mesh(mesh):
        given = jax.device_put((expected_P, np.arange(8)), at)
        names_P, again_P = there_and_back(*given)
    assert names_P.tolist() == [1, 0, 2, 3, 4, 5, 7, 6]
    assert again_P.tolist() == list(range(8))


def test_where_devices_do_not_divide_the_prompts():
    """Then each has them all."""
    with jax.set_mesh(make_mesh(2, 2, 1, devices=jax.devices()[:4])):
        order = jax.jit(lambda x, y: length_order.longest_first(x, y)[0])
        found = order(np.float32([1, 2, 6, 3, 5, 4]), np.arange(6))
    assert found.tolist() == [2, 4, 5, 3, 1, 0]


def lengths(written) -> np.ndarray:
    """Mean tokens of the answers to each problem, fp32."""
    length_PG = np.asarray(written.mask_BT).sum(axis=1).reshape(PROMPTS, GROUP)
    return length_PG.mean(axis=1, dtype=np.float32)


@pytest.mark.slow
def test_the_tokens_stay_and_the_steps_fall():
    """With four slots, what an oracle expects, its opposite, and what knows half."""
    written = generate(slots=4)
    long_P = lengths(written)
    ordered = generate(slots=4, expected_P=long_P)
    reverse = generate(slots=4, expected_P=1 + long_P.max() - long_P)
    half = generate(slots=4, expected_P=np.where(np.arange(PROMPTS) % 2, long_P, 0))
    for other in (ordered, reverse, half):
        same(written, other)
        np.testing.assert_array_equal(other.prompt_PL, written.prompt_PL)
        np.testing.assert_array_equal(other.position_PL, written.position_PL)
    held = [x.slot_steps_M.item() for x in (ordered, written, reverse)]
    assert held[0] < held[1] and held[0] < held[2], held


@pytest.mark.slow
def test_devices_change_nothing():
    written = generate()
    expected_P = lengths(written)
    for shape, slots in (((8, 1, 1), 8), ((2, 1, 4), 4)):
        same(written, generate_on_mesh(shape, slots=slots, expected_P=expected_P))
