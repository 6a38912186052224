import jax.numpy as jnp
import numpy as np
import pytest

from limr_jax.algorithms import dash, grpo


def test_keep_by_hand():
    advantage_B = jnp.array([0.0, 0.5, -0.5, 0.6, -0.6, 0.6])
    valid_B = jnp.array([1, 1, 1, 1, 1, 0], bool)
    got_B = dash.keep(advantage_B, valid_B, tau=0.5)
    np.testing.assert_array_equal(got_B, [0, 0, 0, 1, 1, 0])
    got_B = dash.keep(advantage_B, valid_B, tau=0.0)
    np.testing.assert_array_equal(got_B, [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("tau", [0.0, 0.01, 0.498])
def test_with_four_rollouts_and_0_1_rewards_it_drops_zero_variance(tau):
    every_PG = np.array([[row >> g & 1 for g in range(4)] for row in range(16)])
    reward_PG, valid_PG = jnp.asarray(every_PG, jnp.float32), jnp.ones((16, 4), bool)
    advantage_PG = grpo.advantage(reward_PG, valid_PG)
    got_B = dash.keep(advantage_PG.ravel(), valid_PG.ravel(), tau=tau)
    flat_P = grpo.zero_variance(reward_PG, valid_PG)
    np.testing.assert_array_equal(got_B, np.repeat(~flat_P, 4))
    assert int(got_B.sum()) == 14 * 4
