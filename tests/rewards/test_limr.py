"""LIMR's format and reward, as its released code has them."""

import random
import re
import time

import numpy as np
import pytest

from limr_jax.rewards import limr
from limr_jax.rewards.math import grade

RELEASED = re.compile(r"(.{5,}?)\1{4,}")  # openrlhf/cli/serve_rm.py
VALID = re.compile(  # likewise
    r'[a-zA-Z0-9\s\.,!?"\'\(\)\{\}\[\]_\-+=<>/@#$%^&*\\|:;~`\u2200-\u22FF]'
)
SENTENCE = "".join(random.Random(0).choices("abcdefgh ,.", k=199)) + "."
BOX = r"\boxed{2}"


@pytest.mark.parametrize(
    ("response", "formed"),
    [
        (BOX, True),
        ("so 2", False),
        (BOX * 4, True),
        (BOX * 5, False),
        # The word counts, whole or not; but one box must be whole.
        (r"\boxed " * 3 + BOX, True),
        (r"\boxed " * 4 + BOX, False),
        (r"\boxed{2", False),
        # Odd characters: over three in ten.
        ("的" * 3 + "1234567" + BOX, True),
        ("的" * 4 + BOX, False),  # 4 of 13
        ("的" * 3 + BOX, True),  # 3 of 12
        ("αβγδ" + BOX, False),  # Greek is odd there,
        ("∑∫≤√" * 4 + BOX, True),  # mathematical operators are not
        ("\u2003\n\t " * 20 + "的" * 3 + BOX, True),  # blanks at the end do not count,
        ("1\u20032\n3\t" + "的" * 6 + BOX, True),  # and others are not odd: 6 of 21
        ("1\u20032\n3\t" + "的" * 7 + BOX, False),  # 7 of 22
        # Repetition: five times in a row, five characters or more.
        (SENTENCE * 4 + BOX, True),
        (SENTENCE * 6 + BOX, False),
        ("a phrase of 20 chars" * 8 + BOX, False),
        ("a phrase of 20 chars" * 4 + BOX, True),
        ("1 2 3" * 5 + BOX, False),
        ("1 23" * 6 + BOX, True),  # eight characters, three times
        ("1 23" * 10 + BOX, False),
        ("-" * 24 + BOX, True),
        ("-" * 25 + BOX, False),
        ("1 2 3\n" * 5 + BOX, True),  # a dot is no newline
        (BOX + " " * 25, True),  # the ends are stripped
    ],
)
def test_format_by_hand(response, formed):
    assert limr.well_formed(response, True) is formed
    assert limr.well_formed(response, False) is False


def test_the_reward_of_each_verdict():
    verdict = grade.Verdict
    verdicts = [
        verdict(True, "number", "2"),
        verdict(False, "another number", "3"),
        verdict(True, "number", "2"),
        verdict(None, "timeout", "x"),
        verdict(None, "died", "x"),
    ]
    formed = [True, True, False, True, True]
    values = limr.rewards(formed, verdicts)
    np.testing.assert_array_equal(values, [1, -0.5, -1, -1, np.nan])


def strange(choose: random.Random) -> str:
    """A text that repeats itself, nearly; periods of 1 to 70 characters."""
    letters = choose.choice(["a", "ab", "ab\n", "abcdefgh é\U0001f600\ud800"])

    def some(most):
        return "".join(choose.choices(letters, k=choose.randrange(most)))

    passage = some(70) or "a"
    period = len(passage)
    lengths = [5 * period - 1, 5 * period, 4 * period, choose.randrange(9 * period)]
    middle = (passage * 9)[: choose.choice(lengths)]
    if choose.random() < 0.3:
        at = choose.randrange(len(middle) + 1)
        middle = middle[:at] + choose.choice("a\nb") + middle[at + 1 :]
    return some(50) + middle + some(50)


@pytest.mark.slow
def test_repetition_is_the_released_expressions_to_the_letter():
    choose = random.Random(1)
    texts = [strange(choose) for _ in range(3000)]
    verdicts = [limr.repeats(text) for text in texts]
    assert verdicts == [RELEASED.search(text) is not None for text in texts]
    assert 500 < sum(verdicts) < 2500


def test_odd_characters_are_the_released_ones():
    text = "".join(map(chr, range(0x3000))) + "\ud800\U0001f600"
    odd = [c for c in text if not VALID.match(c)]
    assert limr._ODD.findall(text) == odd
    assert limr.odd_share(text) == len(odd) / len(text)
    assert limr.odd_share("") == 0


def megabytes() -> dict[str, str]:
    """A million characters each, of which none repeats itself five times."""
    choose, size = random.Random(2), 1_000_000

    def powers(passage, times):
        """What stands nearly five times, nearly five times, and so on."""
        while len(passage) < size:
            passage = (passage * 5)[: int(times * len(passage))] + chr(len(passage))
        return passage[:size]

    one, two = "a", "ab"
    while len(two) < size:
        one, two = two, two + one
    blocks = ["".join(choose.choices("abcdefgh", k=17)) for _ in range(size // 79)]
    letters = [chr(0x4E00 + k % 9000) for k in range(size // 25)]
    return {
        "letters at random": "".join(choose.choices("abcd", k=size)),
        "Fibonacci's word": two[:size],
        "cubes and more of 17": "".join((block * 5)[:79] for block in blocks),
        "powers of powers": powers("abcdefghijklmnopq", 4.9),
        "one letter 24 times": "".join("a" * 24 + letter for letter in letters),
        "newlines": "\n" * size,
        "four copies": "".join(choose.choices("abcd", k=size // 4)) * 4,
    }


def test_no_text_of_2000_characters_takes_long():
    choose, worst = random.Random(3), 0.0
    for _ in range(1000):
        letters = choose.choices(" +-{}0123456789\\,", k=choose.randrange(1, 4))
        text = "".join(choose.choices(letters, k=2000)) + BOX
        start = time.process_time()
        limr.well_formed(text, True)
        worst = max(worst, time.process_time() - start)
    assert worst < 0.2


@pytest.mark.slow
def test_a_megabyte_of_a_policys_text_takes_no_time():
    """Half a second of one processor at most, as measured; 5 s here for slow ones."""
    for name, text in megabytes().items():
        start = time.process_time()
        assert not limr.repeats(text), name
        assert time.process_time() - start < 5, name
    for text in ("\\" * 10**6, r"\boxed{" * 150_000, "{}" * 500_000, "的" * 10**6):
        start = time.process_time()
        assert not limr.well_formed(text + BOX + text, True)
        assert time.process_time() - start < 5
