"""The devices' digest: by hand, the same on any mesh, and blind to no single word."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from limr_jax.storage import array_digest


def digest(array) -> str:
    return array_digest.collect(array_digest.queue({"x": array}))["x"]


def by_hand(words) -> str:
    """Of a nested list of words, in plain integers."""
    axes = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
    sums, whole = [0, 0], 2**32
    for place, word in np.ndenumerate(np.array(words, dtype=object)):
        at = 0x27D4EB2F + sum(i * axis for i, axis in zip(place, axes))
        at %= whole
        mixed = int(word) ^ at
        mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % whole
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 % whole
        mixed ^= mixed >> 16
        sums = [(sums[0] + mixed) % whole, (sums[1] + mixed * (at | 1)) % whole]
    return "{:08x}{:08x}".format(*sums)


def test_by_hand():
    assert digest(jnp.int32(7)) == by_hand(7) == "59fe01ce91e26ed2"
    words = np.random.default_rng(0).integers(0, 2**32, (2, 3, 4), np.uint32)
    assert digest(jnp.asarray(words)) == by_hand(words)
    for array, bits in (
        (jnp.float32([1.0, -0.0]), [0x3F800000, 0x80000000]),
        (jnp.bfloat16([1.0, 2.0]), [0x3F80, 0x4000]),
        (jnp.int8([-1, 2]), [0xFF, 2]),
        (jnp.array([True, False]), [1, 0]),
        (jnp.float32([jnp.nan]), [0x7FC00000]),
    ):
        assert digest(array) == by_hand(bits)


def test_only_arrays_with_a_number_have_one():
    queued = array_digest.queue({"a": jnp.zeros((0, 3)), "b": {"c": jnp.zeros(3)}})
    assert [*queued] == ["b/c"]


def test_it_is_the_same_on_any_mesh():
    array = jax.random.normal(jax.random.key(0), (8, 16, 4))
    alone = digest(array)
    for axes in (("x",), (None, "x"), (None, "x", None), ()):
        for count in (2, 4, 8):
            mesh = jax.make_mesh((count,), ("x",), devices=jax.devices()[:count])
            sharding = NamedSharding(mesh, PartitionSpec(*axes))
            assert digest(jax.device_put(array, sharding)) == alone


def test_each_bit_each_swap_and_each_wiped_piece_changes_it():
    array = np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32)
    whole = digest(jnp.asarray(array))
    seen = {whole}
    for bit in range(8 * array.nbytes):
        damaged = array.copy()
        damaged.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        seen.add(digest(jnp.asarray(damaged)))
    # Two signs: the highest bits are what a mere sum would lose.
    signs = array.copy()
    signs[0, 0], signs[3, 5] = -signs[0, 0], -signs[3, 5]
    swapped, moved, wiped = array[::-1], np.roll(array, 1, axis=1), array.copy()
    wiped[1:3] = 0
    seen |= {digest(jnp.asarray(x)) for x in (signs, swapped, moved, wiped)}
    assert len(seen) == 8 * array.nbytes + 5


def test_numbers_of_64_bits():
    with jax.enable_x64(True):
        array = jnp.float64([1.0, 2.0])
        # The lower half first, as XLA gives it.
        assert digest(array) == by_hand([[0, 0x3FF00000], [0, 0x40000000]])


def test_it_may_be_queued_before_the_array_is_given_away():
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    state = jnp.arange(12.0)
    want = digest(jnp.arange(12.0))
    with jax.transfer_guard("disallow"):
        queued = array_digest.queue({"x": state})
        advance(state)
    assert array_digest.collect(queued) == {"x": want}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pair:
    first: jax.Array
    rest: dict


def test_names():
    tree = Pair(jnp.ones(2), {"a.b": [jnp.ones(3), None]})
    assert [*array_digest.queue(tree)] == ["first", "rest/a.b/0"]
