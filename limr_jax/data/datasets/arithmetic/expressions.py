"""Integer expressions, how a careful writer solves them, and how a sloppy one does.

A *problem* is the text of an expression and an equals sign, ``12+7*8=``. A *solution*
rewrites the expression one operation a line and ends with the answer phrase:

    12+56
    68
    #### 68

Real corpora hold right solutions beside systematically wrong ones. So does the text
that the base model is trained on: each solution is written by somebody who has each
bad habit of `HABITS` with that habit's rate. The right way is in the text too, and it
is what reinforcement learning has to pick out. Habits differ in rate, and levels in
how many habits they meet, so pass rates of the base model go from 0 to 1.
"""

import hashlib
import random

LEVELS = (1, 2, 3, 4, 5)

ANSWER_PHRASE = "#### "

# Habit → share of the solutions in which it shows where it can. Above one half the
# base model's greedy answer has the habit; the nearer to 1, the rarer the right way
# among its samples, and the longer reinforcement learning takes to find it.
HABITS = {
    "carry": 0.55,  # 27 + 15 = 32: a carry is forgotten
    "borrow": 0.65,  # 42 - 17 = 35: the smaller digit is taken from the larger
    "product": 0.65,  # 27 * 4 = 88: the carry into the tens is forgotten
    "precedence": 0.70,  # 2 + 3 * 4 = 5 * 4: operators are taken left to right
    "parentheses": 0.75,  # (2 + 3) * 4 = 2 + 3 * 4: parentheses are dropped
    "sign": 0.85,  # 12 - 30 = 18: the difference is never negative
}

# Which share of all expressions (by their hash) may occur where. Sets can grow without
# ever sharing an expression.
SPLITS = {"eval": range(0, 10), "train": range(10, 20), "sft": range(20, 100)}


def split_of(text: str) -> str:
    """The one split ("train", "eval" or "sft") in which this expression may occur."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def draw(rng: random.Random, level: int) -> list:
    """A random expression of one level as a list of ints and operator characters."""
    two = lambda: rng.randint(10, 99)  # noqa: E731
    small = lambda: rng.randint(2, 9)  # noqa: E731
    sign = lambda: rng.choice("+-")  # noqa: E731
    if level == 1:
        return [two(), sign(), two()]
    if level == 2:
        return [two(), sign(), two(), sign(), two()]
    if level == 3:
        return rng.choice(
            (
                [two(), sign(), small(), "*", small()],
                [two(), "*", small(), sign(), two()],
            )
        )
    if level == 4:
        inner = ["(", small(), "+", small(), ")"]
        return rng.choice(
            (
                [*inner, "*", small(), sign(), two()],
                [two(), sign(), small(), "*", *inner],
            )
        )
    return rng.choice(
        (
            [two(), "*", small(), sign(), small(), "*", small(), sign(), two()],
            ["(", two(), sign(), two(), ")", "*", small(), sign(), two()],
            [two(), "*", two()],
        )
    )


def render(tokens: list) -> str:
    """The expression as text, without blanks."""
    return "".join(map(str, tokens))


def apply(left: int, operator: str, right: int, habits: frozenset[str]) -> int:
    """The result of one operation by somebody who has these habits of `HABITS`."""
    if operator == "+":
        if "carry" in habits and left >= 0 and right >= 0:
            return _add_without_carry(left, right)
        return left + right
    if operator == "-":
        if "sign" in habits and 0 <= left < right:
            left, right = right, left
        if "borrow" in habits and left >= right >= 0:
            return _subtract_without_borrow(left, right)
        return left - right
    if "product" in habits and left >= 10 and 0 <= right < 10:
        tens, ones = divmod(left, 10)
        return tens * right * 10 + ones * right % 10
    return left * right


def _add_without_carry(left: int, right: int) -> int:
    """Nothing is carried; the sum in the highest place is written out whole."""
    if left < 10 and right < 10:
        return left + right
    rest = _add_without_carry(left // 10, right // 10)
    return 10 * rest + (left + right) % 10


def _subtract_without_borrow(left: int, right: int) -> int:
    """In every place the smaller digit is taken from the larger; left >= right."""
    if left == 0:
        return 0
    rest = _subtract_without_borrow(left // 10, right // 10)
    return 10 * rest + abs(left % 10 - right % 10)


def _next_operation(tokens: list, habits: frozenset[str]) -> int:
    """The index of the operator that is done next."""
    start, stop = 0, len(tokens)
    if "(" in tokens:
        start, stop = tokens.index("("), tokens.index(")")
    operators = [i for i in range(start, stop) if tokens[i] in ("+", "-", "*")]
    if "precedence" in habits:
        return operators[0]
    return next((i for i in operators if tokens[i] == "*"), operators[0])


def solve(tokens: list, habits: frozenset[str] = frozenset()) -> tuple[str, int]:
    """(written solution, its final value) by somebody who has these habits."""
    lines = []
    if "parentheses" in habits and "(" in tokens:
        tokens = [t for t in tokens if t not in ("(", ")")]
        lines.append(render(tokens))
    while len(tokens) > 1:
        i = _next_operation(tokens, habits)
        left, sign, right = tokens[i - 1 : i + 2]
        value = apply(left, sign, right, habits=habits)
        # An operation that leaves one number within parentheses takes them along.
        low, high = i - 1, i + 2
        if low > 0 and tokens[low - 1] == "(" and tokens[high] == ")":
            low, high = low - 1, high + 1
        tokens = [*tokens[:low], value, *tokens[high:]]
        lines.append(render(tokens))
    return "\n".join(lines) + f"\n{ANSWER_PHRASE}{tokens[0]}", tokens[0]


def traps(tokens: list) -> list[str]:
    """The habits that, alone, make this expression's answer wrong."""
    right = solve(tokens)[1]
    return [h for h in HABITS if solve(tokens, frozenset((h,)))[1] != right]


def problems(split: str, count: int, seed: int):
    """`count` problems of one split, levels in turn, as dicts.

    Fields: id, problem, answer, level, traps, solution. In ``train`` and ``eval`` all
    problems differ and solutions are right. In ``sft`` each solution has its writer's
    habits (`answer` is the right one all the same), and a problem may come again from
    another writer. Fixed by (split, count, seed); a larger count only appends.
    """
    # A text seeds it alike in every process, which hash() would not.
    rng = random.Random(f"{split}/{seed}")
    seen, number = set(), 0
    while number < count:
        level = LEVELS[number % len(LEVELS)]
        tokens = draw(rng, level)
        text = render(tokens)
        if split_of(text) != split or (split != "sft" and text in seen):
            continue
        seen.add(text)
        drawn = (h for h, rate in HABITS.items() if rng.random() < rate)
        habits = frozenset(drawn) if split == "sft" else frozenset()
        name = f"arithmetic-{split}-{seed}-{number}"
        yield as_problem(name, level, tokens, habits=habits)
        number += 1


def as_problem(
    name: str, level: int, tokens: list, *, habits: frozenset[str] = frozenset()
) -> dict:
    """An expression as a row of a data set; habits: of who wrote its solution.

    `answer` is the right one whatever the habits.
    """
    return {
        "id": name,
        "problem": f"{render(tokens)}=",
        "answer": str(solve(tokens)[1]),
        "level": level,
        "traps": " ".join(traps(tokens)),
        "solution": solve(tokens, habits)[0],
    }
