import functools

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import dps

UPDATE = jax.jit(functools.partial(dps.update, decay=0.5, prior=1.0))
SHOWN = {"none": [0, 0], "between": [1, 0], "all": [1, 1]}


def visited(state, valid_PG=None, **seen):
    """The state after problems that showed these: p0="none", ..."""
    ids_P = jnp.array([int(name[1:]) for name in seen])
    correct_PG = jnp.array([SHOWN[x] for x in seen.values()], bool)
    valid_PG = jnp.ones_like(correct_PG) if valid_PG is None else jnp.array(valid_PG)
    return UPDATE(state, ids_P, correct_PG, valid_PG)


def test_two_visits_by_hand():
    """All right, then between: with counts of 1 at first and λ = 1/2."""
    state = visited(dps.init(2), p0="all")
    np.testing.assert_allclose(state.now_N3[0], [0, 0, 1])
    # μ was a third each and P too: ξ is a third in row 2, where it may have come from.
    third = 1 / 3
    counts = [[1, 1, 1], [1, 1, 1], [1 + third, 1 + third, 1 + third]]
    np.testing.assert_allclose(state.counts_N33[0], counts, rtol=1e-6)
    # π = P e_2: of column 2.
    np.testing.assert_allclose(state.next_N3[0], [0.3, 0.3, 0.4], rtol=1e-6)
    # A problem that was not visited knows no more than before.
    np.testing.assert_allclose(state.next_N3[1], [third] * 3, rtol=1e-6)
    state = visited(state, p0="between")
    # It came from «all right» for certain: (1, 2) is counted, and the rest fades.
    sixth = 1 / 6
    counts = [[1, 1, 1], [1, 1, 2], [1 + sixth, 1 + sixth, 1 + sixth]]
    np.testing.assert_allclose(state.counts_N33[0], counts, rtol=1e-6)
    next_3 = np.array([1, 1, 1 + sixth]) / (3 + sixth)
    np.testing.assert_allclose(state.next_N3[0], next_3, rtol=1e-6)


def test_without_a_visit_the_prediction_goes_on():
    state = visited(dps.init(2), p0="between", p1="between")
    after = visited(state, p1="none")
    counts = 0.5 * np.asarray(state.counts_N33[0]) + 0.5
    np.testing.assert_allclose(after.counts_N33[0], counts, rtol=1e-6)
    np.testing.assert_allclose(after.now_N3[0], state.next_N3[0])
    want_3 = counts / counts.sum(axis=0) @ np.asarray(state.next_N3[0])
    np.testing.assert_allclose(after.next_N3[0], want_3, rtol=1e-6)
    # One valid rollout shows no state, nor does none.
    for valid_PG in ([[True, False]], [[False, False]]):
        unseen = visited(state, valid_PG, p0="all")
        np.testing.assert_allclose(unseen.next_N3[0], want_3, rtol=1e-6)


def test_beliefs_stay_distributions_and_a_habit_is_learned():
    state = dps.init(3)
    for i in range(40):
        # Problem 0 goes from none to between and back, problem 1 is solved.
        state = visited(state, p0=["none", "between"][i % 2], p1="all")
        np.testing.assert_allclose(jnp.sum(state.next_N3, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(jnp.sum(state.now_N3, axis=1), 1, rtol=1e-5)
        assert float(state.counts_N33.min()) > 0
    # After «between» comes «none»; the solved one stays solved.
    assert state.next_N3[0].argmax() == 0 and state.next_N3[1].argmax() == 2
    np.testing.assert_allclose(state.next_N3[2], [1 / 3] * 3, rtol=1e-5)
    state = visited(state, p0="none")
    assert state.next_N3[0].argmax() == 1


def test_choose_takes_the_likeliest_and_ties_at_random():
    choose = jax.jit(dps.choose, static_argnames="prompts")
    state = dps.init(5)
    next_N3 = state.next_N3.at[jnp.array([1, 3])].set(jnp.array([0.1, 0.8, 0.1]))
    state = state._replace(next_N3=next_N3.at[4].set(jnp.array([0.5, 0.1, 0.4])))
    rest = set()
    for seed in range(20):
        ids_P = choose(state, jax.random.key(seed), prompts=3).tolist()
        assert set(ids_P[:2]) == {1, 3}
        rest.add(ids_P[2])
    assert rest == {0, 2}
    drawn_N = jnp.array([False, True, True, False, False])
    ids_P = choose(state, jax.random.key(0), prompts=3, drawn_N=drawn_N)
    assert ids_P.tolist() == [3, 0, 4]
