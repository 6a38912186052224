"""Training sets of the embedded task with what real sets have: `train-2048-hard50`.

A split's name says all of it. Behind `train-` stands the number of problems, and behind
that, each if wanted and in this order, a share in percent:

    hard     problems of levels 6 to 8, far beyond the base model
    solved   problems of one or two operations in which no habit can show, which the
             base model solves nearly always
    skew     problems of one template of level 3, the same with other numbers
    wrong    problems whose reference is what somebody with a bad habit answers

The other problems are those of `train`, levels 1 to 5 in turn. Wrong ones are among all
kinds. `eval-shifted` is held out, of another distribution: levels 2, 4 and 5 alone, and
numbers of the upper half of their ranges, 60 to 99 and 6 to 9, where habits show most.
"""

import dataclasses
import hashlib
import random
import re
from collections.abc import Iterator

from limr_jax.data.datasets.arithmetic import expressions
from limr_jax.errors import InputError

SHIFTED = "eval-shifted"
SHIFTED_COUNT = 1000
LARGEST = 32_768  # problems of a mixture
_HARD_LEVELS = (6, 7, 8)
_SHIFTED_LEVELS = (2, 4, 5)
_KINDS = ("hard", "solved", "skew")  # which exclude one another; "wrong" is of any
_NAME = re.compile(
    r"train-([1-9]\d*)"
    + "".join(rf"(?:-{x}([1-9]\d?|100))?" for x in (*_KINDS, "wrong"))
)
# Draws in a row that give nothing new, after which a level counts as used up.
_PATIENCE = 3_000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How many problems a training set has, and what share of them is of each kind."""

    count: int
    hard: int = 0  # percent, as the others
    solved: int = 0
    skew: int = 0
    wrong: int = 0


def parse(split: str) -> Mixture | None:
    """The mixture that a split's name asks for; None where it is no mixture's name.

    Raises InputError for a name that begins as one and asks for what there is not.
    """
    if not re.match(r"train-", split):
        return None
    match = _NAME.fullmatch(split)
    if not match:
        raise InputError(
            f"arithmetic:{split}: write train-COUNT-hardA-solvedB-skewC-wrongD, in "
            "this order and with percents from 1 to 100, as in train-2048-hard50; "
            "leave out what is not wanted"
        )
    mixture = Mixture(*(int(number or 0) for number in match.groups()))
    if mixture.count > LARGEST:
        raise InputError(
            f"arithmetic:{split}: {mixture.count} problems, where {LARGEST} are the "
            "most; give fewer"
        )
    if (shares := mixture.hard + mixture.solved + mixture.skew) > 100:
        raise InputError(
            f"arithmetic:{split}: hard, solved and skew are {shares} % together; give "
            "100 at most"
        )
    return mixture


def problems(split: str, mixture: Mixture, *, seed: int) -> Iterator[dict]:
    """The problems of a mixture, as `expressions.problems` has them, with two fields.

    kind: hard, solved, skew or usual. wrong: whether the reference is. Fixed by
    (shares, count, seed); a larger count of the same shares only appends. Raises
    InputError where there are not so many different expressions of a kind.
    """
    # One stream a kind, so that a kind's first problems do not depend on the shares.
    draws = {
        kind: _different(kind, random.Random(f"{kind}/{seed}"))
        for kind in (*_KINDS, "usual")
    }
    shares = {kind: getattr(mixture, kind) for kind in _KINDS}
    shares["usual"] = 100 - sum(shares.values())
    counts = dict.fromkeys(shares, 0)
    seen: set[str] = set()
    while (number := sum(counts.values())) < mixture.count:
        # The kind that is furthest behind its share: evenly spread, and append-only.
        kind = max(shares, key=lambda x: shares[x] * (number + 1) - 100 * counts[x])
        level, tokens = next(
            (
                drawn
                for drawn in draws[kind]
                if expressions.render(drawn[1]) not in seen
            ),
            (None, None),
        )
        if tokens is None:
            raise InputError(
                f"arithmetic:{split}: there are not many more than {counts[kind]} "
                f"problems of the kind {kind!r}; give a smaller count or share"
            )
        counts[kind] += 1
        text = expressions.render(tokens)
        seen.add(text)
        wrong = _percentile(text) < mixture.wrong
        name = f"arithmetic-{split}-{seed}-{number}"
        row = expressions.as_problem(name, level, tokens)
        if wrong:
            row["answer"] = str(_sloppy(tokens))
        yield row | {"kind": kind, "wrong": wrong}


def shifted_problems(*, seed: int) -> Iterator[dict]:
    """The held-out problems of `eval-shifted`; fields as `problems` has them."""
    rng, seen = random.Random(f"{SHIFTED}/{seed}"), set()
    while len(seen) < SHIFTED_COUNT:
        level = _SHIFTED_LEVELS[len(seen) % len(_SHIFTED_LEVELS)]
        tokens = expressions.draw(rng, level)
        text = expressions.render(tokens)
        if (
            text in seen
            or any(x < 6 or 10 <= x < 60 for x in tokens if isinstance(x, int))
            or expressions.split_of(text) != "eval"
        ):
            continue
        seen.add(text)
        name = f"arithmetic-{SHIFTED}-{seed}-{len(seen) - 1}"
        row = expressions.as_problem(name, level, tokens)
        yield row | {"kind": "shifted", "wrong": False}


def _different(kind: str, rng: random.Random) -> Iterator[tuple[int, list]]:
    """(level, expression) of one kind, each once, until nearly all of `train` came."""
    seen: set[str] = set()
    levels = list(_levels(kind))
    turn = misses = 0
    while levels:
        level = levels[turn % len(levels)]
        tokens = _draw(kind, level, rng)
        text = expressions.render(tokens)
        # The cheapest first: most draws end at one of the first two.
        if (
            text not in seen
            and expressions.split_of(text) == "train"
            and not (kind == "solved" and expressions.traps(tokens))
        ):
            seen.add(text)
            yield level, tokens
            turn, misses = turn + 1, 0
        elif (misses := misses + 1) == _PATIENCE:
            # There are 1,620 of level 1, and millions of others.
            levels.remove(level)
            misses = 0


def _levels(kind: str) -> tuple[int, ...]:
    return {
        "hard": _HARD_LEVELS,
        "solved": (1, 2),
        "skew": (3,),
        "usual": expressions.LEVELS,
    }[kind]


def _draw(kind: str, level: int, rng: random.Random) -> list:
    two = lambda: rng.randint(10, 99)  # noqa: E731
    three = lambda: rng.randint(100, 999)  # noqa: E731
    sign = lambda: rng.choice("+-")  # noqa: E731
    if kind == "skew":
        return [two(), "*", rng.randint(2, 9), sign(), two()]
    if level == 6:
        return [two(), "*", two(), sign(), two(), "*", two()]
    if level == 7:
        return [three(), "*", three(), sign(), three()]
    if level == 8:
        return ["(", two(), sign(), two(), ")", "*", two(), "*", two(), sign(), two()]
    return expressions.draw(rng, level)


def _percentile(text: str) -> int:
    """0 to 99, fixed by the expression: what is wrong at 10 % is wrong at 20 % too."""
    digest = hashlib.sha256(f"wrong/{text}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100


def _sloppy(tokens: list) -> int:
    """What somebody with one habit answers, or 10 too many where none can show.

    Of the habits that show here it is the one that fewest writers have. That is still
    more than half of them, so the base model is paid for such answers from the start.
    """
    habits = expressions.traps(tokens)
    if not habits:
        return expressions.solve(tokens)[1] + 10
    rarest = min(habits, key=lambda habit: expressions.HABITS[habit])
    return expressions.solve(tokens, frozenset((rarest,)))[1]
