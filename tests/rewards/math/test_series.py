"""Sums and products with dots: every term that is shown has to fit."""

import pytest

from limr_jax.rewards.math import compare

SUM, SQUARES = r"\frac{n(n+1)}{2}", r"\frac{n(n+1)(2n+1)}{6}"
TERMS = r"a_1 + a_2 + \dots + a_k"
FACTORS = r"(x-1)(x-2)\cdots(x-n)"
HARMONIC = r"\frac{1}{1}+\frac{1}{2}+\cdots+\frac{1}{n}"

SERIES = [  # (reference, prediction, same)
    (SUM, r"1+\cdots+n", True),
    (SUM, r"1+2+3+\cdots+n", True),
    (SUM, r"n+(n-1)+\cdots+1", True),
    (SUM, r"1+3+\cdots+n", False),
    (SUM, r"1+4+9+\cdots+n", False),
    (SUM, r"1+2+4+\cdots+n", False),
    (SUM, r"1+2+3+5+\cdots+n", False),
    (SUM, r"n+(n-2)+\cdots+1", False),
    (SUM, r"2+4+\cdots+n", False),
    (rf"{SUM}-1", r"2+3+\cdots+n", True),
    (rf"{SUM}-1", r"2+4+\cdots+n", False),
    (rf"{SUM}+5", r"5+1+2+\cdots+n", False),
    (rf"{SUM}+3", r"3+(1+2+\cdots+n)", True),
    ("n(n+1)", r"2\cdot 1+2\cdot 2+\cdots+2\cdot n", True),
    ("n(n+1)", r"2\cdot 1+2\cdot 3+\cdots+2\cdot n", False),
    (SQUARES, r"1^2+2^2+\cdots+n^2", True),  # in which 2n is no 24
    (r"2\log_2 n + n!", r"2\log_2 n + (1)(2)\cdots(n)", True),
    (SQUARES, r"1^2+4+9+\cdots+n^2", True),
    (SQUARES, r"1^2+3^2+\cdots+n^2", False),
    (SQUARES, r"1^2+2^3+\cdots+n^2", False),
    (TERMS, r"a_k + a_{k-1} + \cdots + a_1", True),
    (TERMS, r"a_k + a_{k-2} + \cdots + a_1", False),
    (TERMS, r"a_1 + a_3 + \cdots + a_k", False),
    (TERMS, r"a_1 + b_2 + \cdots + a_k", False),
    (HARMONIC, r"\frac{1}{1}+\frac{1}{2}+\frac13+\cdots+\frac{1}{n}", True),
    (HARMONIC, r"\frac{1}{1}+\frac{1}{3}+\cdots+\frac{1}{n}", False),
    (FACTORS, r"(x-1)(x-2)(x-3)\cdots(x-n)", True),
    (FACTORS, r"(x-1)(x-3)\cdots(x-n)", False),
    (FACTORS, r"(x-1)(x-4)(x-9)\cdots(x-n)", False),
    ("n!", r"(n)(n-1)\cdots(1)", True),
    ("n!", r"(1)(3)\cdots(n)", False),
    ("(n+1)!", r"(1)(2)\cdots(n)(n+1)", True),
]


@pytest.mark.parametrize("reference, prediction, same", SERIES)
def test_every_term_before_the_dots_fits(reference, prediction, same):
    assert bool(compare.same_answer(reference, prediction)) is same
