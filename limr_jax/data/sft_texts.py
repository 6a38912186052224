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


def sums(count: int, *, each: int, seed: int) -> Iterator[dict]:
    """Rows of practice: `each` sums to compute, and their solutions a line.

    The four operations on numbers of one to three digits, as word problems have them:
    of 20 sums 8 add, 7 take away and leave nothing negative, 3 multiply by one digit,
    2 divide what such a product is by its digit, without a remainder.
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
            "solution": "\n".join(solved),
        }


def right(rows: Iterable[Mapping]) -> Iterator[dict]:
    """Rows of the dumped responses that are right, whole and valid; each once."""
    seen = set()
    for row in rows:
        # As text, since a set cannot hold a chat's messages.
        text = json.dumps([row["prompt"], row["response"]])
        good = row["valid"] and row["correct"] >= 1 and not row["truncated"]
        if good and text not in seen:
            seen.add(text)
            yield {
                # A problem may have several right responses, and every row needs an id.
                "id": f"{row['id']}/{len(seen)}",
                "prompt": row["prompt"],  # a text, or a chat's messages
                "answer": "",
                "solution": row["response"],
            }
