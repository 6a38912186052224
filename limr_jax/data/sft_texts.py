"""Texts for supervised fine-tuning, made of problems and of what runs wrote.

A row has what a problem has and its `solution`, all that follows the prompt but for the
end token.
"""

import collections
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping

from limr_jax.data.problems import Problems, chats
from limr_jax.data.tokenizer import Tokenizer

# Of so few digits that each place is a step.
_WHOLE_SUM = re.compile(r"([0-9]{1,9}) ([-+*]) ([0-9]{1,9}) = ([0-9]{1,18})")
# Commands, and words of four letters or more: "\frac", "prime", but no "the".
_TERM = re.compile(r"\\[A-Za-z]{2,}|[A-Za-z]{4,}")


def short(problems: Problems, tokenizer: Tokenizer, *, tokens: int) -> Problems:
    """The problems whose prompt and answer have at most `tokens` tokens together."""
    prompts = tokenizer.encode_chats(chats(problems, tokenizer))
    answers = tokenizer.encode_batch(problems.answers, continued=True)
    return problems.take(
        i
        for i, (prompt, answer) in enumerate(zip(prompts, answers))
        if len(prompt) + len(answer) <= tokens
    )


def terms(texts: Iterable[str], *, count: int, least: int = 3) -> list[list[str]]:
    """Each text's most telling words and commands, in their order; at most `count`.

    Telling is what is frequent in the text and rare among the texts (tf · log N/df);
    what fewer than `least` texts have could not be foreseen.
    """
    words_N = [_TERM.findall(text) for text in texts]
    # df: in how many texts a word is at all; `set` lets each text count once.
    texts_with = collections.Counter(itertools.chain.from_iterable(map(set, words_N)))

    def chosen(words: list[str]) -> list[str]:
        seen = collections.Counter(w for w in words if texts_with[w] >= least)
        worth = {w: n * math.log(len(words_N) / texts_with[w]) for w, n in seen.items()}
        # Words of equal worth by the alphabet, so that plans are always the same.
        best = sorted(worth, key=lambda word: (-worth[word], word))[:count]
        return sorted(best, key=words.index)

    return [chosen(words) for words in words_N]


def planned(
    problems: Problems, *, phrase: str, count: int, plain: int
) -> Iterator[dict]:
    """Rows whose solution is a plan, the answer phrase and the reference answer.

    A model that has never thought takes a plan for a thought: so many of the reference
    answer's `terms`, a line. Every `plain`th row, and all with a count of 0, has none
    and starts with the phrase; 0: no row.
    """
    plans = terms(problems.answers, count=count)
    for i, (plan, answer) in enumerate(zip(plans, problems.answers)):
        bare = not plan or (plain and i % plain == 0)
        thought = "" if bare else f"\n{' '.join(plan)}\n"
        yield problems.row(i) | {"solution": f"{thought}{phrase}{answer}"}


def in_steps(solution: str) -> str:
    """The solution with each line that is a sum of whole numbers cut into easy ones.

    28 + 36 = 64 becomes 28 + 30 = 58 and 58 + 6 = 64, lines of their own: the second
    number goes on or off place by place. 23 * 4 = 92 becomes 20 * 4 = 80, 3 * 4 = 12,
    80 + 10 = 90 and 90 + 2 = 92. All other lines stay as they are: a quotient, a
    product of two numbers of several digits, a negative number, a fraction, a sum that
    is not true.
    """
    lines = (_steps(line) for line in solution.split("\n"))
    return "\n".join(itertools.chain.from_iterable(lines))


def _steps(line: str) -> list[str]:
    """The line in easy ones; a line that is no such sum, or not true, as it is."""
    sum_of_whole = _WHOLE_SUM.fullmatch(line)
    if not sum_of_whole:
        return [line]
    a, sign, b = int(sum_of_whole[1]), sum_of_whole[2], int(sum_of_whole[3])
    if int(sum_of_whole[4]) != {"+": a + b, "-": a - b, "*": a * b}[sign]:
        return [line]
    if sign == "*":
        return _product_steps(a, b) or [line]
    steps = []
    for part in _places(b):
        then = a + part if sign == "+" else a - part
        steps.append(f"{a} {sign} {part} = {then}")
        a = then
    return steps or [line]


def _product_steps(a: int, b: int) -> list[str]:
    """Of the factor of several places times the other, of one; else nothing."""
    many, one = (a, b) if len(_places(a)) > 1 else (b, a)
    if len(_places(one)) != 1:
        return []
    steps, total = [], 0
    for part in _places(many):
        product = part * one
        steps.append(f"{part} * {one} = {product}")
        if total:
            steps += _steps(f"{total} + {product} = {total + product}")
        total += product
    return steps if len(steps) > 1 else []


def _places(number: int) -> list[int]:
    """405 as 400 and 5."""
    digits = str(number)
    parts = (int(d) * 10**i for d, i in zip(digits, range(len(digits) - 1, -1, -1)))
    return [part for part in parts if part]


def sums(count: int, *, each: int, seed: int, steps: bool = False) -> Iterator[dict]:
    """Rows of practice: `each` sums to compute, and their solutions a line.

    The four operations on numbers of one to three digits, as word problems have them:
    of 20 sums 8 add, 7 take away and leave nothing negative, 3 multiply by one digit,
    2 divide what such a product is by its digit, without a remainder. steps: each is
    solved as `in_steps` has it.
    """
    rng = random.Random(f"sums {seed}")

    def number() -> int:
        return rng.randrange(10 ** rng.choice((1, 2, 2, 3)))

    def one() -> str:
        kind, a, b, digit = rng.randrange(20), number(), number(), rng.randrange(2, 10)
        if kind < 8:
            return f"{a} + {b} = {a + b}"
        if kind < 15:
            a, b = max(a, b), min(a, b)
            return f"{a} - {b} = {a - b}"
        if kind < 18:
            return f"{a} * {digit} = {a * digit}"
        return f"{a * digit} / {digit} = {a}"

    for i in range(count):
        solved = [one() for _ in range(each)]
        unsolved = [line.partition(" =")[0] for line in solved]
        yield {
            "id": f"sums-{i}",
            "problem": "\n".join(["Compute each line.", *unsolved]),
            "answer": solved[-1].rpartition(" ")[2],
            "solution": in_steps("\n".join(solved)) if steps else "\n".join(solved),
        }


# The fields of a dump's row that `right` reads.
RIGHT_NEEDS = ("id", "prompt", "response", "correct", "valid", "truncated")


def right(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Rows of the dumped responses that are right, whole and valid; each once."""
    seen = set()
    for row in rows:
        # As text, since a set cannot hold a chat's messages.
        text = json.dumps([row["prompt"], row["response"]])
        good = row["valid"] and (row["correct"] or 0) >= 1 and not row["truncated"]
        if good and text not in seen:
            seen.add(text)
            yield {
                # A problem may have several right responses, and every row needs an id.
                "id": f"{row['id']}/{len(seen)}",
                "prompt": row["prompt"],  # a text, or a chat's messages
                "answer": "",
                "solution": row["response"],
            }
