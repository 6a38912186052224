r"""LIMR's reward (arXiv:2502.11886): format first, then whether the answer is right.

    +1    right
    −0.5  wrong, but well formed
    −1    no end token; no box, or five and more; over 30 % odd characters; a passage of
          5 or more characters five times in a row; or the grader ran out of time

The rules are those of the released code (openrlhf/cli/serve_rm.py), in its order of
importance and with its characters. Departures: the released code has a clock of 2 s
for all of a response, which a search for repetition may use up, and gives −1 then; here
the search is exact and the clock is the grader's. The released pattern reads a box with
at most three braces within one another; `boxed.boxes` reads any.

All of it is linear in the response but for a factor of log n, since a policy wrote it:
no pattern with a repetition meets the text.
"""

import re
from collections.abc import Sequence

import numpy as np

from limr_jax.data.boxed import boxes
from limr_jax.rewards.math import grade

MAX_BOXES, MAX_ODD_SHARE = 4, 0.3
SHORTEST, TIMES = 5, 5  # of a repeated passage: its characters, and how often it stands
# !-/, :-@, [-` and {-~ are ASCII's punctuation. \s has the blanks of Unicode too.
_ODD = re.compile(r"[^a-zA-Z0-9\s\u2200-\u22FF!-/:-@\[-`{-~]")


def well_formed(response: str, ended: bool) -> bool:
    """Whether a response keeps LIMR's format; ended: its last token is an end token."""
    text = response.strip()
    return (
        ended
        # The released code counts the word, closed or not: "\boxed{2" is one. That one
        # of them is whole, `boxes` sees.
        and 1 <= text.count(r"\boxed") <= MAX_BOXES
        and odd_share(text) <= MAX_ODD_SHARE
        and not repeats(text)
        and bool(boxes(text))
    )


def odd_share(text: str) -> float:
    """Share of characters other than ASCII, blanks and U+2200 to U+22FF; 0 of none.

    Greek letters and Chinese are odd, ∑ and ≤ are not.
    """
    return len(_ODD.findall(text)) / max(len(text), 1)


def rewards(
    well_formed_B: Sequence[bool], verdicts: Sequence[grade.Verdict]
) -> np.ndarray:
    """LIMR's reward of each response, fp32 [B]: +1, −0.5 or −1.

    nan where a well-formed response could not be graded for another reason than time.
    """
    values = []
    for formed, verdict in zip(well_formed_B, verdicts, strict=True):
        # The format first: in a badly formed response no failure of the grader matters.
        if not formed or verdict.reason == "timeout":
            values.append(-1.0)
        elif verdict.correct is None:
            values.append(np.nan)
        else:
            values.append(1.0 if verdict.correct else -0.5)
    return np.array(values, np.float32)


# ---- repetition --------------------------------------------------------------------

_DIRECT = 16  # periods below are tried one by one


def repeats(text: str) -> bool:
    r"""Whether `(.{5,}?)\1{4,}` matches anywhere: the same verdict, in O(n log n).

    A passage of p characters that stands five times in a row is a stretch of 4p places
    at which the text equals itself p characters further on. Short periods are tried
    one by one. For those from L to 2L, L = 16, 32, …: every L-th window of L characters
    is compared, by a hash, with those that begin L to 2L − 1 characters after it. In
    such a stretch three of them in a row agree with the window p behind, and hardly
    any other place does: two periods at one place would make a shorter one, which was
    tried before. What three windows agree on is then compared character by character.
    """
    code_n = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    # A copy, for what `frombuffer` gives cannot be written to.
    n, code_n = len(code_n), code_n.copy()
    # A dot is no newline: each one becomes a character of its own.
    newlines = np.flatnonzero(code_n == ord("\n"))
    # Above U+10FFFF, the last of Unicode, so that none is a character of the text.
    code_n[newlines] = 0x110000 + np.arange(len(newlines))
    # A period above n / 5 cannot stand five times.
    for period in range(SHORTEST, min(_DIRECT, n // TIMES + 1)):
        if _repeats_with(code_n, period, 0, n):
            return True
    # hash_n[i]: of the window of `length` characters that begins at i.
    hash_n, length = code_n.astype(np.uint64), 1
    while TIMES * length <= n:
        if length >= _DIRECT:
            for at, period in _suspects(hash_n, length):
                # A stretch of 4p places that holds `at` lies within 4p of it.
                reach = (TIMES - 1) * period
                if _repeats_with(code_n, period, at - reach, at + reach):
                    return True
        hash_n = _joined(hash_n[:-length], hash_n[length:])
        length *= 2
    return False


def _repeats_with(code_n: np.ndarray, period: int, start: int, end: int) -> bool:
    """Whether a passage of `period` characters stands five times between the two."""
    start, end = max(start, 0), min(end, len(code_n) - period)
    # same[i]: character start + i is that one period further on.
    same = code_n[start:end] == code_n[start + period : end + period]
    breaks = np.flatnonzero(~same)
    # How many equal places lie between one break and the next.
    stretches = np.diff(breaks, prepend=-1, append=len(same)) - 1
    return stretches.max() >= (TIMES - 1) * period


def _suspects(hash_n: np.ndarray, length: int) -> np.ndarray:
    """(place, period) where three windows in a row agree; hash_n: of each window."""
    later_n = hash_n[length:]
    rows = -(-len(later_n) // length)
    padded = np.zeros(rows * length, np.uint64)
    padded[: len(later_n)] = later_n
    first = hash_n[: rows * length : length, None]
    # agree[r, c]: the windows at r·L and r·L + L + c are the same; the period is L + c.
    agree = padded.reshape(rows, length) == first
    agree = agree[:-2] & agree[1:-1] & agree[2:]
    agree[1:] &= ~agree[:-1]  # the first of those that go on one another
    at, more = np.nonzero(agree)
    return np.stack([at * length, more + length], axis=1)


def _joined(left_n: np.ndarray, right_n: np.ndarray) -> np.ndarray:
    """The hash of two windows side by side. A collision costs time, no verdict."""
    # Modulo 2^64. The two sides have different factors, so that ab is not ba.
    mixed_n = left_n * np.uint64(0x9E3779B97F4A7C15)
    mixed_n += right_n * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed_n ^= mixed_n >> np.uint64(29)
    return mixed_n
