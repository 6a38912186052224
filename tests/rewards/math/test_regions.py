"""Regions of the line: what their bounds have in common, and where pieces meet."""

import fractions
import itertools
import random

import pytest

from limr_jax.rewards.math import compare, intervals
from limr_jax.rewards.math.forms import parse_form

REGIONS = [  # (reference, prediction, same)
    (r"(1,\infty)", r"x>1 \text{ and } x>2", False),
    (r"(2,\infty)", "x>1 and x>2", True),
    (r"(1,\infty)", "x>1, x>2", False),
    (r"(-\infty,1)", r"x \le 3 \text{ and } x<1", True),
    (r"(-\infty,3]", r"x \le 3 \text{ and } x<1", False),
    ("[2,5)", r"x>1, x\ge2, x<5", True),
    (r"(2,\infty)", r"x\ge2 \land x>2", True),
    ("(1,3)", r"|x|<3 \text{ and } x>1", True),
    (r"(-3,\infty)", r"|x|<3 \text{ and } x>1", False),
    ("(2,5)", "0<x<5 and 2<x<7", True),
    ("(0,7)", "0<x<5 and 2<x<7", False),
    (r"\mathbb{R}", "x>0, x \\ne 1, x \\ne 2", False),
    (r"(1,\infty)", "x=2 and x>1", False),
    (r"\mathbb{R}", "x<0 or x>1 and x\\ne 2", False),
    (r"(0,1)\cup(1,2)\cup(2,\infty)", "x>0, x \\ne 1, x \\ne 2", True),
    (r"\{x \mid x>1, x>2\}", r"(1,\infty)", False),
    ("(1,2)", "x>1 and y<2", False),
    (r"(2,\infty)", "x>1 and y>2", False),
    (r"(a,\infty)", "x>a and x>b", False),
    (r"(b,\infty)", "x>a and x>b", False),
    ("(a,b)", "x>a and x<b", True),
    ("x>1 or x<5", "x>1 and x<5", False),
    ("x>a and x>b", "x>b and x>a", True),
    ("(1,4) or (2,3)", "(1,3) and (2,4)", False),  # points
    (r"(1,2)\cup(3,4)", "1<x<2, 3<x<4", True),
    (r"(-\infty,1)\cup(2,3)\cup(5,\infty)", "x<1, 2<x<3, x>5", True),
    # A hole cuts only what it lies in, and opens an end.
    (r"(0,\infty)", r"x>0 \text{ and } x\ne -1", True),
    ("(1,2)", r"1<x<2, x\ne 2", True),
    (r"(0,\infty)", r"x\ge 0 \text{ and } x\ne 0", True),
    ("(1,3)", r"1<x<3, x\ne 5", True),
    (r"(0,\infty)", r"x>0 \text{ and } x\ne 1", False),
    (r"[0,\infty)", r"x\ge 0 \text{ and } x\ne 0", False),
    (r"(0,a)\cup(a,\infty)", r"x>0, x\ne a", True),
    # Of two pieces with a common end the closed one begins first.
    ("(1,3]", r"(1,2)\cup[1,3]", False),
    ("[1,3]", r"(1,2)\cup[1,3]", True),
    ("[1,2)", r"(1,2)\cup\{1\}", True),
    ("[0,5]", r"(0,5)\cup[0,1]\cup\{5\}", True),
    ("(0,5)", r"(0,5)\cup[0,1]\cup\{5\}", False),
    ("(0,2)", r"(0,1)\cup(1,2)", False),
    (r"(1,2)\cup[2,3]", r"(1,2]\cup(2,3]", True),
    (r"(1,2)\cup[1,3]", "(1,3]", False),
]


@pytest.mark.parametrize("reference, prediction, same", REGIONS)
def test_regions_are_what_their_bounds_have_in_common(reference, prediction, same):
    assert bool(compare.same_answer(reference, prediction)) is same


POINTS = [fractions.Fraction(k, 2) for k in range(-3, 12)]
BOUNDS = {
    "x < {}": lambda x, a: x < a,
    r"x \le {}": lambda x, a: x <= a,
    "x > {}": lambda x, a: x > a,
    r"x \ge {}": lambda x, a: x >= a,
    r"x \ne {}": lambda x, a: x != a,
    "1 < x < {}": lambda x, a: 1 < x < a,
}


def holds(region, x) -> bool:
    """Is the number in one of the region's pieces?"""

    def inside(low, high, low_in, high_in):
        low, high = (float(end.replace(r"\infty", "inf")) for end in (low, high))
        return low < x < high or (low_in and x == low) or (high_in and x == high)

    return any(inside(*piece) for piece in region)


@pytest.mark.parametrize("joint", [" and ", ", "])
def test_joined_bounds_hold_where_each_of_them_does(joint):
    """All pairs and threes of bounds; those that hold somewhere."""
    bounds = list(itertools.product(BOUNDS, (0, 2, 3)))
    rows = [*itertools.combinations(bounds, 2), *itertools.combinations(bounds, 3)]
    checked = 0
    for row in rows:
        inside = [all(BOUNDS[text](x, a) for text, a in row) for x in POINTS]
        if not any(inside):
            continue  # a list, or nothing
        text = joint.join(text.format(a) for text, a in row)
        region = intervals.parse_region(parse_form(text))
        assert [holds(region, x) for x in POINTS] == inside, text
        checked += 1
    assert checked > 200


def test_merged_pieces_hold_what_they_held_and_nowhere_meet():
    draw = random.Random(5)
    for _ in range(400):
        pieces = []
        for _ in range(draw.randint(2, 4)):
            low, high = sorted(draw.sample(range(6), 2))
            pieces.append((str(low), str(high), *draw.choices((True, False), k=2)))
        merged = intervals.merge(tuple(pieces))
        at = [holds(merged, x) for x in POINTS]
        assert at == [holds(pieces, x) for x in POINTS], pieces
        for one, two in zip(merged, merged[1:]):
            assert one[1] < two[0] or (one[1] == two[0] and not (one[3] or two[2]))
