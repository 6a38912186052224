import numpy as np

from limr_jax.algorithms import hardest


def test_shares_of_wrong_responses_by_hand():
    correct_NE = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    seen_NE = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
    got_N = hardest.score(np.float32(correct_NE), seen_NE)
    np.testing.assert_allclose(got_N, [0.25, 1, -np.inf, 2 / 3], rtol=1e-6)
    # What an invalid response looks like makes no difference.
    other_N = hardest.score(np.where(seen_NE, correct_NE, 7.0), seen_NE)
    np.testing.assert_array_equal(other_N, got_N)
