"""The grader's rules: pairs a person can check, and a generator of wrong answers."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from limr_jax.data.boxed import boxed_answer, boxes
from limr_jax.rewards.math import compare, extract, normalise, notation
from limr_jax.rewards.math.forms import parse_form
from limr_jax.rewards.math.literals import numbers_agree, parse_number

SAME = [  # (reference, prediction)
    ("5", "x = 5"), ("x=5", "5"), ("17", "17.0"), ("5", "\\boxed{5}"), ("-3", "−3"),
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{1}{2}", "0.5"), ("0.5", r"\tfrac{1}{2}"),
    ("1{,}000", "1000"), ("12,345", "12345"), (r"11,\! 111,\! 100", "11111100"),
    (r"3\frac{1}{2}", r"\frac{7}{2}"), ("3 1/2", "3.5"), ("2½", "2.5"),
    ("1.5 \\times 10^{-3}", "0.0015"), ("6.02e23", r"6.02 \times 10^{23}"),
    (r"10\%", "0.1"), (r"10\%", "10"), ("62.5%", r"\frac{5}{8}"),
    (r"90^\circ", "90"), (r"\frac{\pi}{6}", r"30^\circ"), (r"\$12.50", "12.5"),
    (r"5\text{ cm}", "5"), (r"25\text{ cm}^2", r"25 \mathrm{cm}^2"),
    (r"0.\overline{3}", r"\frac{1}{3}"), (r"0.333\ldots", r"\frac13"),
    (r"\frac{1}{3}", "0.3333"), ("180.67", r"\frac{542}{3}"), ("2.653", "2.65"),
    ("41.494", r"17+10\sqrt{6}"), (r"\frac{1}{432}", r"2.3148 \times 10^{-3}"),
    ("5040", r"\frac{15840}{\pi}"),  # with π = 22/7
    (r"2\sqrt{3}", r"\sqrt{12}"), (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
    ("(x+1)^2", "x^2+2x+1"), (r"\frac{x+1}{x-1}", r"\frac{-x-1}{1-x}"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"), ("i(2-i)", "1+2i"), ("|x-1|", "|1-x|"),
    (r"\binom{10}{3}", "120"), (r"\frac{n(n+1)}{2}", r"1+2+\cdots+n"),
    (r"a_1 + a_2 + \dots + a_k", r"a_k + a_{k-1} + \cdots + a_1"),
    ("(1,2)", r"\left(1, 2\right)"), (r"\{1,2,3\}", r"\{3,2,1\}"),
    ("1,2,3", "3, 1, 2"), ("1, 2", r"1 \text{ and } 2"), ("3,-3", r"\pm 3"),
    (r"-1 \text{ or } 3", "3, -1"), (r"1 \pm 2i", "1 + 2i, 1 - 2i"),
    ("(3,-1), (2, 5)", "(2,5),(3,-1)"), ("(2,3)", "x=2, y=3"),
    ("a=1, b=2", "b=2, a=1"), ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
    ("[0,1)", r"0 \le x < 1"), (r"(-\infty, 3)", "x<3"), ("(1, 2)", "x>1 and x<2"),
    (r"(-\infty,1)\cup(1,\infty)", r"x \neq 1"), (r"\mathbb{R}", "all real numbers"),
    (r"(-\infty,-2] \cup \{1\}", r"a \leqslant -2 \text{ or } a = 1"),
    (r"\{x \mid x > 2\}", r"(2,\infty)"), (r"x \le 3", r"3 \ge x"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1,2)"),
    (r"\begin{cases} a=1 \\ b=\frac12 \end{cases}", r"a=1, b=0.5"),
    ("y = 2x+1", "f(x)=1+2x"), ("2x-y=3", "y = 2x-3"), ("xy = 6", r"\frac{6}{x}"),
    (r"\frac{x^2}{4}+\frac{y^2}{3}=1", "3x^2+4y^2=12"), ("f(n)=n^2", "f(x)=x^2"),
    (r"k\pi, k \in \mathbb{Z}", r"n\pi"), (r"f(2)<f(1)<f(4)", "f(4)>f(1)>f(2)"),
    (r"\text{(B)}", "B"), ("B", r"\textbf{(B)} 7"), (r"\text{No}", "no"),
    (r"\emptyset", r"\text{no solution}"), (r"\infty", "infinitely many"),
    ("3:4", r"\frac{3}{4}"), ("1:2:3", "2:4:6"), ("9:30", "09:30:00"),
    (r"\text{five}", "5"), ("2345_6", "2345"), (r"\text{3 hours}", "3"),
    (r"\frac{3}{4}", r"\frac{3}{4} \approx 0.75"), ("√2", r"\sqrt{2}"),
    ("The function is odd.", "odd"), ("The sum is less than zero.", "f(a)+f(b)<0"),
    (r"\{x|x>1\}", "{x|x>1}"), (r"\cos A = \frac12", "0.5"), ("(1) 5; (2) 7", "5, 7"),
    ("Option C", "C"), (r"a_n=2n-1, n \in N^*", "2n-1"), (r"f(x) \equiv 0", "f(x)=0"),
    (r"2\frac{3}{2}", "3"), ("(n-1)!", r"\frac{n!}{n}"),
    (r"98美元", "98"), ("15th", "15"), ("sqrt(17)", "math.sqrt(17)"),
]  # fmt: skip

DIFFERENT = [
    ("5", "6"), ("5", "-5"), ("1.25", "-1.25"), ("1.25", "1.3"), ("5.001", "5"),
    ("1000", "100"), ("10^{100}", "10^{100}+1"), ("0.123456789", "0.123456788"),
    ("123456789012345678901", "123456789012345678902"), (r"\pi", r"\frac{22}{7}"),
    (r"\pi", "3.14"), (r"\frac13", "0.33"), ("e", r"\pi"), (r"\frac{22}{7}", r"\pi"),
    ("(1,2)", "(2,1)"), ("(1,2)", r"\{1,2\}"), ("[0,1)", "(0,1)"), ("1,2", "1"),
    (r"\{1,2\}", r"\{1,2,3\}"), ("5", r"5 \text{ or } 6"), ("2,2,3", "2,3"),
    ("B", "C"), ("B, C", "B"), ("x<3", r"x\le 3"), ("x>3", "x<3"), ("k > -5", "k<-5"),
    ("x^2", "x^3"), ("2x", "2y"), ("x=1", "y=1"), ("x=1,y=2", "x=2,y=1"),
    (r"5\text{ cm}", r"5\text{ m}"), (r"5\text{ cm}^2", r"5\text{ cm}^3"),
    ("2", "2ab"), ("10", "10x"), ("even", "odd"), ("odd", r"\text{oddd}"),
    (r"10\%", "1"), ("90^\\circ", "80^\\circ"), (r"\pm 3", "3"), ("3+4i", "3-4i"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("x^2+y^2=4", "x^2+y^2=2"), ("a+3z=0", "0"), ("101_2", "101_3"), ("1:00", "12:00"),
    ("3:4", "4:3"), ("1:2:3", "1:3:2"), ("12", "1,2"), ("12", "1 2"), ("|x|", "x"),
    (r"\sin(x)=\frac12", r"\cos(x)=\frac12"), ("(3,331)", "3331"), ("no", "yes"),
    (r"k\pi", r"2k\pi"), ("f(x)=x", "f(x)=-x"), (r"\infty", r"-\infty"),
    ("Petya will win.", "Vasya"), ("A is not odd.", "odd"),
    ("The sum is less than zero.", "f(a)+f(b)>0"),
    (r"1+2+\cdots+n", r"1+2+\cdots+2n"), (r"\frac{0}{0}", "0"),
    (r"\frac{d x}{d t}=k x-a", r"\frac{d y}{d t}=k x-a"), ("Option C", "D"),
    (r"\pi(R^2-r^2)", "0"), ("2N", "2n"), (r"2\gamma+1", "3"), ("f'", "f"),
    ("5 6", "11"), (r"m_p c^2(\gamma^2-1)", r"m_p c^2(\gamma^2-5)"),
    (r"2\frac{3}{2}", r"\frac{7}{2}"), ("", "5"), ("5", ""), ("0", "none"),
]  # fmt: skip


_SQUARE = r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"
_ROW, _COLUMN = (
    r"\begin{pmatrix}1&2&3\end{pmatrix}",
    r"\begin{bmatrix}1\\2\\3\end{bmatrix}",
)
MATRICES = [  # (reference, prediction, same)
    (_SQUARE, "(1,2,3,4)", False), ("(1,2,3,4)", _SQUARE, False),
    (_SQUARE, "[1,2,3,4]", False), (_SQUARE, r"\langle 1,2,3,4 \rangle", False),
    ("[[1,2],[3,4]]", "(1,2,3,4)", False), (_SQUARE, "[[1,2],[3,4]]", True),
    (r"\begin{bmatrix}1&2&3\\4&5&6\end{bmatrix}", "(1,2,3,4,5,6)", False),
    (r"A = \left[\begin{array}{cc}1&2\\3&4\end{array}\right]", "(1,2,3,4)", False),
    ("(1,2,3)", _ROW, True), (f"2{_SQUARE}", "(2,4,6,8)", False),
    (_ROW, "(1,2,3)", True), (_COLUMN, "[1, 2, 3]", True),
    (_ROW, _COLUMN, False), (_COLUMN, "(1,3,2)", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", "[1,2)", False),
]  # fmt: skip


@pytest.mark.parametrize("reference, prediction, same", MATRICES)
def test_a_matrix_of_rows_and_columns_is_no_tuple(reference, prediction, same):
    assert bool(compare.same_answer(reference, prediction)) is same


@pytest.mark.parametrize("reference, prediction", SAME)
def test_same(reference, prediction):
    assert compare.same_answer(reference, prediction)


@pytest.mark.parametrize("reference, prediction", DIFFERENT)
def test_different(reference, prediction):
    assert compare.same_answer(reference, prediction) is None


@pytest.mark.parametrize(
    "reference, prediction, same",
    [
        (r"\text{even at all in any}", r"\text{even}", True),
        (r"5 \text{even at all in any}", r"\text{even}", False),
        (r"x + 1 \text{odd an the}", "odd", False),
        (r"7 \text{red balls at all in}", "red balls", False),
        (r"\text{Petya wins the game}", "Petya", True),
    ],
)
def test_idle_words_behind_the_words(reference, prediction, same):
    """They raised an IndexError, which makes a verdict invalid."""
    assert bool(compare.same_answer(reference, prediction)) is same


@pytest.mark.parametrize(
    "written, plain",
    [
        (r"\num{1.5e3}{x}", r"1.5\cdot 10^{3}{x}"), (r"\num{12}", "12"),
        (r"\qty{5}{\kilo\metre}", r"5 \text{ km}"),
        (r"\si{\metre}{x}", r"\text{ m}{x}"),
    ],
)  # fmt: skip
def test_siunitx_with_and_without_a_second_group(written, plain):
    assert notation.standard_notation(written) == plain


def test_last_balanced_box_of_a_response():
    last = boxed_answer(r"\boxed{3} no, \boxed{\frac{1}{2}}.")
    assert last == r"\frac{1}{2}"
    assert boxed_answer(r"\boxed{3} then \boxed{4") == "3"
    assert boxed_answer(r"\boxed{\{1,2\}}") == r"\{1,2\}"
    assert boxed_answer(r"\boxed{\boxed{7}}") == r"\boxed{7}"
    assert boxed_answer("the answer is $5$") is None
    assert boxed_answer(r"\boxed{5") is None
    assert len(boxes(r"\boxed{1} \fbox{2} \boxed{3}")) == 3


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"\boxed{3} … \boxed 7", "7"),
        (r"$\boxed 7$.", "7"),
        (r"\boxed -1,024.", "-1,024"),
        (r"\boxed \frac{1}{2}$", r"\frac{1}{2}"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed 2\sqrt{3}", r"2\sqrt{3}"),
        (r"\boxed B", "B"),
        (r"\boxed {7}", "7"),
        (r"\boxed{3}, so \fbox{7}", "7"),
        (r"\boxed Because", None),
        (r"boxed 7", None),
        (r"<think>\boxed{3}</think> No: \boxed{7}.", "7"),
        (r"<think>\boxed{3}</think> It is 7.", None),
        (r"\boxed{3}</think> and </think> \boxed{7}", "7"),
        (r"<think>\boxed{3}</think> ", "3"),
    ],
)
def test_boxes_with_and_without_braces_and_behind_thinking(text, answer):
    assert boxed_answer(text) == answer


@pytest.mark.parametrize(
    "text, answer",
    [
        (r"so \boxed{1} and \boxed{2}", "1 , 2"),
        (r"$\boxed{28}$ pct", r"28 \%"),
        ("We get $x=1$. The final answer is $7$. I hope it is correct.", "7"),
        ("After many steps the number of ways comes to 1,234.", "1,234"),
        ("the number is not 10 which is 1,000.99€", "1,000.99"),
        (r"\boxed{5", None),
        ("", None),
    ],
)
def test_bare_answers(text, answer):
    assert (extract.bare_answers(text) or [None])[0] == answer


@pytest.mark.parametrize(
    "gap",
    [
        " and ", ",", ", and ", ", or ", "; and ", "$, and $", r",\,", r"\text{, and }",
        r",\quad\text{and}\quad ", ",\nand ", ", and/or ", ", and, ", ", and $y=$ ",
        ", and the other root is ",
    ],
)  # fmt: skip
def test_boxes_with_one_join_between_them_are_a_list(gap):
    assert extract.joined_boxes(rf"\boxed{{1}}{gap}\boxed{{2}}") == "1 , 2"


@pytest.mark.parametrize(
    "gap", [", 5 and ", " and 5 and ", ", and we get ", ", so ", ", and therefore "]
)
def test_boxes_with_more_between_them_are_none(gap):
    assert extract.joined_boxes(rf"\boxed{{1}}{gap}\boxed{{2}}") == "2"


def test_formulas_with_a_semicolon_between_them_are_a_list():
    assert extract.bare_answers("the two roots are $1$; $2$")[0] == "1 , 2"


def test_chosen_letter():
    assert extract.chosen_letter("It's not A, therefore I think it's B") == "B"
    assert extract.chosen_letter("The answer is D, it can't be A or B") == "D"
    assert extract.chosen_letter("(C), for A is too small") == "C"


def test_forms():
    assert parse_form(r"(1, \infty)").kind == "tuple"
    assert parse_form("a=1; b=2").parts == ("a=1", "b=2")
    assert parse_form(r"1 < x \le 2").ops == ("<", r"\le")
    assert parse_form(r"\{1,2\}").kind == "set"


def test_rounding_needs_digits():
    three = parse_number("2.65")
    assert numbers_agree(parse_number("2.653"), three)
    assert not numbers_agree(parse_number("2.668"), three)
    assert not numbers_agree(parse_number("2.6"), three)
    assert numbers_agree(parse_number("299.94"), parse_number("300"))
    assert not numbers_agree(parse_number("300"), parse_number("299.94"))


def _changed(text: str, at: int, by: int) -> str:
    spots = [m.start() for m in re.finditer(r"\d", text)]
    k = spots[at % len(spots)]
    return text[:k] + str((int(text[k]) + by) % 10) + text[k + 1 :]


_FORMS = [
    "{a}", "{a}.{b}{c}", r"\frac{{{a}}}{{{b}}}", r"{a}\sqrt{{{b}}}", "({a}, {b})",
    "[{a}, {b})", r"{a}x^2+{b}x+{c}", r"\{{{a}, {b}, {c}\}}", r"{a} < x \le {b}",
    r"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", r"{a}\pi", "x = {a}",
]  # fmt: skip
_SMALL = st.integers(2, 97)


@pytest.mark.slow
@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    st.sampled_from(_FORMS),
    _SMALL,
    _SMALL,
    _SMALL,
    st.integers(0, 9),
    st.integers(1, 9),
)
def test_a_changed_digit_is_wrong(form, a, b, c, at, by):
    hypothesis.assume(len({a, b, c}) == 3 and a < b)
    answer = form.format(a=a, b=b, c=c)
    other = _changed(answer, at, by)
    numbers = [int(n) for n in re.findall(r"\d+", other)]
    hypothesis.assume(0 not in numbers and len(set(numbers)) == len(numbers))
    hypothesis.assume(not _equal_by_hand(form, answer, other))
    assert compare.same_answer(answer, answer)
    assert compare.same_answer(answer, other) is None


def _equal_by_hand(form: str, one: str, two: str) -> bool:
    """Fractions that reduce alike, roots that agree, sets in another order."""
    x, y = ([int(n) for n in re.findall(r"\d+", t)] for t in (one, two))
    if "frac" in form:
        return x[0] * y[1] == y[0] * x[1]
    if "sqrt" in form:
        return x[0] ** 2 * x[1] == y[0] ** 2 * y[1]
    if "\\{" in form:
        return sorted(x) == sorted(y)
    return "." in form and float(one) == float(two)


@pytest.mark.slow
@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    st.text(max_size=80) | st.text(r"\{}()[]$^_,;=<>|&!%0123abx. fracboxed")
)
def test_reading_never_raises(text):
    for answer in [
        *extract.bare_answers(text),
        boxed_answer(text) or "",
    ]:
        cleaned = normalise.clean(answer)
        parse_form(cleaned)
        parse_number(cleaned)
    extract.chosen_letter(text)
    boxes(text)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.text(r"\{}()[],=<>^_+-/0123456789abx ", max_size=30))
def test_noise_is_never_the_answer(text):
    hypothesis.assume("7919" not in text)
    assert compare.same_answer("7919", text) is None
