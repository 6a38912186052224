r"""Answers in words: `\text{odd}`, `no solution`, `(C)`, `five`, a short sentence."""

import re

from limr_jax import math_value
from limr_jax.math_form import Form

_LETTER_CHOICE = re.compile(r"^\(?([A-J])(?:\)|\.|:|$|\s(?=\S))\s*(.*)$", re.DOTALL)
_NONE = {
    "no solution", "no solutions", "none", "does not exist", "dne", r"\emptyset",
    "empty set", "the empty set", "no real solutions", "no real solution", r"\{\}",
    "no such number", "no such numbers", "nonexistent", "impossible",
}  # fmt: skip
_ENDLESS = {
    r"\infty", "infinitely many", "infinite", "infinity", "infinitely many solutions",
    "infinite number",
}  # fmt: skip
_NUMERALS = [
    "zero", "one", "two", "three", "four", "five", "six",
    "seven", "eight", "nine", "ten", "eleven", "twelve",
]  # fmt: skip


def _plain_words(text: str) -> str | None:
    r"""`\text{No solution}.` → `no solution`; None where there is mathematics."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip(" .,;:!'\"()")
    text = re.sub(r"\s+", " ", re.sub(r"[`*_\"]", "", text)).strip().lower()
    if not re.fullmatch(r"(?:[^\W\d_]|[ ,.;:()'’-])+", text):
        return None
    return text if re.search(r"[^\W\d_]{2}", text) else None


def _kind_of_none(text: str) -> str | None:
    plain = _plain_words(text) or text.strip()
    plain = re.sub(r"^(?:there (?:is|are) )", "", plain)
    return "none" if plain in _NONE else "endless" if plain in _ENDLESS else None


def same(ref: Form, pred: Form) -> str | None:
    """Answers in words; multiple choice by letter."""
    kind = _kind_of_none(ref.text)
    if kind and kind == _kind_of_none(pred.text):
        return kind
    letter = _choice(ref.text, pred.text)
    if letter:
        return letter
    if _comparison(ref.text, pred):
        return "comparison in words"
    mine, yours = _plain_words(ref.text), _plain_words(pred.text)
    for words, other in ((mine, pred), (yours, ref)):
        if words in _NUMERALS and other.kind == "item":
            value = str(_NUMERALS.index(words))
            return "numeral" if math_value.same_value(value, other.text) else None
    if yours is None:
        return None
    if mine is not None and _core(mine) == _core(yours):
        return "words"
    return "words of the sentence" if _names(ref.text, yours) else None


_COMPARED = re.compile(
    r"\bis (?:(less|greater|more|larger|smaller) than|(at least|at most)"
    r"|(positive|negative))(?: (zero|-?\d+))?$"
)
_AS_SIGN = {
    "less": "<", "smaller": "<", "negative": "<", "at most": r"\le",
    "greater": ">", "more": ">", "larger": ">", "positive": ">", "at least": r"\ge",
}  # fmt: skip


def _comparison(sentence: str, pred: Form) -> bool:
    """'The sum is less than zero' says what `f(x) < 0` says."""
    found = _COMPARED.search(sentence.lower().strip(" ."))
    if not found or pred.kind != "relation" or len(pred.ops) != 1:
        return False
    word = found[1] or found[2] or found[3]
    bound = (found[4] or "zero").replace("zero", "0")
    return pred.ops[0] == _AS_SIGN[word] and pred.parts[1] == bound


def _core(words: str) -> list[str]:
    return [w for w in re.findall(r"[^\W\d_]+", words) if w not in ("a", "an", "the")]


_OPTION = re.compile(r"^\s*(?:option|choice|answer)\s*:?\s*", re.IGNORECASE)


def _choice(ref: str, pred: str) -> str | None:
    """'(C) Cecile', 'C.' and 'C' are one choice; so are '(C) 5' and '5'."""
    texts = [
        re.sub(_OPTION, "", re.sub(r"\\text\{([^{}]*)\}", r"\1", t)).strip(" .'")
        for t in (ref, pred)
    ]
    both = [_LETTER_CHOICE.match(t) for t in texts]
    bare = [re.fullmatch(r"\(?([A-J])\)?", t) for t in texts]
    for this, that in ((0, 1), (1, 0)):
        letter, full = bare[this], both[that]
        if letter and full and letter.group(1) == full.group(1):
            marked = re.match(r"\(?[A-J][).:]", texts[that])
            named = re.match(r"[B-HJ] [^\W\d_]{2,}", texts[that])
            if bare[that] or marked or named:
                return "choice"
    return None


_SENTENCE = re.compile(r"[^\W\d_]+")


_REVERSING = {
    "not", "no", "never", "neither", "nor", "without", "if", "than", "unless",
    "except", "but", "instead",
}  # fmt: skip


def _names(sentence: str, words: str) -> bool:
    """A sentence whose subject, or whose complement after 'is', is these words."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", sentence).lower().strip(" .")
    every, few = _SENTENCE.findall(plain), _core(words)
    if not few or len(few) > 3 or len(every) < len(few) + 3:
        return False
    if _REVERSING & set(every):
        return False
    every = [w for w in every if w not in ("a", "an", "the")]
    n = len(few)
    starts = every[:n] == few and every[n] not in ("and", "or", "of", "s")
    verbs = ("is", "are", "be", "was", "were")
    ends = every[-n:] == few and len(every) > n and every[-n - 1] in verbs
    within = n > 1 and any(every[k : k + n] == few for k in range(len(every)))
    return starts or ends or within
