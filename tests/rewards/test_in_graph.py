"""The in-graph verifier, by hand."""

import jax
import numpy as np
import pytest

from limr_jax.rewards import in_graph

PAD, END = 0, 9
PHRASE = (4, 5)  # two tokens introduce an answer
VERIFY = jax.jit(in_graph.verify, static_argnames="phrase")
T, A = 8, 3


def verify(response, answer, *, phrase=PHRASE, truncated=False, padding=PAD):
    """(right, well formed) of one response, given as its chosen tokens."""
    response_BT = np.full((1, T), padding, np.int32)
    response_BT[0, : len(response)] = response
    answer_BA = np.full((1, A), PAD, np.int32)
    answer_BA[0, : len(answer)] = answer
    right_B, well_formed_B = VERIFY(
        response_BT,
        np.arange(T)[None] < len(response),
        np.array([truncated]),
        answer_BA,
        np.array([len(answer)], np.int32),
        phrase=phrase,
    )
    assert right_B.dtype == well_formed_B.dtype == bool
    return bool(right_B[0]), bool(well_formed_B[0])


RIGHT, WRONG, MALFORMED = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    "response, answer, verdict",
    [
        ([1, 4, 5, 7, END], [7], RIGHT),
        ([4, 5, 7, END], [7], RIGHT),  # nothing before the phrase
        ([4, 5, 7, 8, 6, END], [7, 8, 6], RIGHT),  # as long as answers may be
        ([1, 2, 3, 4, 5, 7, 8, END], [7, 8], RIGHT),  # the whole response
        ([1, 4, 5, 6, END], [7], WRONG),
        # The answer must be all that stands between the phrase and the end token.
        ([1, 4, 5, 7, 8, END], [7], WRONG),
        ([1, 4, 5, 7, END], [7, 8], WRONG),
        ([1, 4, 5, 1, 7, END], [7], WRONG),
        ([1, 4, 5, END], [7], WRONG),  # an empty answer
        ([1, 4, 5, END], [9], WRONG),  # the end token is no answer
        ([1, 2, 3, 4, 5, 7, END], [7, END], WRONG),  # nor a part of one
        # The last phrase counts.
        ([4, 5, 6, 4, 5, 7, END], [7], RIGHT),
        ([4, 5, 7, 4, 5, 6, END], [7], WRONG),
        ([4, 5, 7, 1, 4, 5, END], [7], WRONG),
        ([4, 4, 5, 7, END], [7], RIGHT),
        # No phrase, half of one, its tokens apart or turned round.
        ([7, END], [7], MALFORMED),
        ([END], [7], MALFORMED),
        ([4, 7, END], [7], MALFORMED),
        ([4, 1, 5, 7, END], [7], MALFORMED),
        ([5, 4, 7, END], [7], MALFORMED),
    ],
)
def test_by_hand(response, answer, verdict):
    assert verify(response, answer) == verdict


def test_truncated_is_malformed():
    """Even where the answer stands in the last tokens: the policy did not stop."""
    assert verify([1, 2, 3, 4, 5, 7, 8, 6], [7, 8, 6], truncated=True) == MALFORMED
    assert verify([1, 2, 3, 4, 4, 5, 7, 8], [7], truncated=True) == MALFORMED
    # An answer longer than what is left.
    assert verify([1, 2, 3, 1, 2, 4, 5, 7], [7, 8, 6], truncated=True) == MALFORMED
    # The phrase cut at the end; it does not go on at the row's beginning.
    assert verify([5, 2, 3, 1, 2, 1, 1, 4], [2], truncated=True) == MALFORMED
    assert verify([5, 7, END, 1, 2, 1, 1, 4], [7], truncated=False) == MALFORMED


def test_padding_is_not_read():
    """Neither a phrase of padding tokens nor one that begins in the response."""
    assert verify([1, END], [7], phrase=(4,), padding=4) == MALFORMED
    assert verify([1, 4, END], [7], phrase=(END, 4), padding=4) == MALFORMED
    assert verify([4, 5, 7, END], [7], padding=4) == RIGHT
    # What a longer response left behind in the padding.
    response_BT = np.array([[1, 6, END, 4, 5, 7, END, 0]], np.int32)
    right_B, well_formed_B = VERIFY(
        response_BT,
        np.arange(T)[None] < 3,
        np.array([False]),
        np.array([[7]], np.int32),
        np.array([1], np.int32),
        phrase=PHRASE,
    )
    assert not right_B[0] and not well_formed_B[0]


def test_phrases_of_one_and_of_many_tokens():
    assert verify([1, 6, 7, END], [7], phrase=(6,)) == RIGHT
    assert verify([6, 6, 6, END], [6], phrase=(6,)) == WRONG  # the last 6 introduces
    assert verify([1, 2, 3, 4, 5, 7, END], [7], phrase=(1, 2, 3, 4, 5)) == RIGHT
    assert verify([1, 2, 3, 1, 5, 7, END], [7], phrase=(1, 2, 3, 4, 5)) == MALFORMED
    # Overlapping: 1 1 stands at 0 and at 1.
    assert verify([1, 1, 1, 7, END], [7], phrase=(1, 1)) == RIGHT
    # Longer than any response.
    assert verify([1] * 7 + [END], [7], phrase=(1,) * 9) == MALFORMED


def test_an_empty_reference_is_answered_by_nothing():
    """It grades nothing: `in_graph.grade` calls it invalid."""
    assert verify([4, 5, END], []) == (True, True)
    assert verify([4, 5, 7, END], []) == WRONG


def test_rows_are_graded_apart():
    rows = [
        ([1, 4, 5, 7, END], [7], RIGHT),
        ([1, 4, 5, 7, END], [8], WRONG),
        ([1, 2, END], [7], MALFORMED),
        ([4, 5, 7, 8, END], [7, 8], RIGHT),
    ]
    response_BT, answer_BA = np.zeros((4, T), np.int32), np.zeros((4, A), np.int32)
    for b, (response, answer, _) in enumerate(rows):
        response_BT[b, : len(response)] = response
        answer_BA[b, : len(answer)] = answer
    length_B = np.array([len(row[0]) for row in rows])
    got = VERIFY(
        response_BT,
        np.arange(T)[None] < length_B[:, None],
        np.zeros(4, bool),
        answer_BA,
        np.array([len(row[1]) for row in rows], np.int32),
        phrase=PHRASE,
    )
    np.testing.assert_array_equal(np.stack(got, axis=1), [row[2] for row in rows])
