r"""Answers in words: `\text{odd}`, `no solution`, `(C)`, `five`, a short sentence."""

import re

from limr_jax import math_text, math_value
from limr_jax.math_form import Form

_LETTER_CHOICE = re.compile(r"^\(?([A-J])(?:\)|\.|:|$|\s(?=\S))\s*(.*)$", re.DOTALL)
_WHAT = (
    r"(?:(?:(?:real|integer|valid) )*(?:solutions?|roots?|numbers?|values?|integers?)"
    r"|such [a-z]+)"
)
_NONE = re.compile(
    rf"(?:there (?:is|are|exists?) )?no {_WHAT}(?: exists?)?|none|dne|impossible"
    r"|(?:(?:such )?(?:the |an? )?[a-z]+ |it |they )?(?:does|do)(?: not|n't) exist"
    r"|nonexistent|(?:is )?undefined|not defined|(?:the )?empty set|\\emptyset"
    r"|\\\{\s*\\\}"
)
_ENDLESS = re.compile(
    rf"(?:there are )?infinite(?:ly many)?(?: number)?(?: of)?(?: {_WHAT})?|infinity"
    r"|\\infty"
)
_NUMERALS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen",
    "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = [
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
_ORDINALS = [
    "zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh",
    "eighth", "ninth", "tenth", "eleventh", "twelfth",
]  # fmt: skip
_PARTS = {"half": r"\frac{1}{2}", "third": r"\frac{1}{3}", "quarter": r"\frac{1}{4}"}


def _numeral(words: str | None) -> str | None:
    """`fifteen`, `twenty-one`, `third`, `one half` as a number, else None."""
    if words is None:
        return None
    if words in _NUMERALS:
        return str(_NUMERALS.index(words))
    if words in _ORDINALS:
        return str(_ORDINALS.index(words))
    first, _, rest = words.replace("-", " ").partition(" ")
    if first in _TENS and (not rest or rest in _NUMERALS[1:10]):
        units = _NUMERALS.index(rest) if rest else 0
        return str(10 * _TENS.index(first) + 20 + units)
    return _PARTS.get(rest) if first in ("one", "a") else None


# 'It is even', 'the series diverges'
_SUBJECT = re.compile(
    r"^(?:(?:it|this|that|they|(?:the|this) [a-z]+) (?:is|are) (?!not\b)"
    r"|the [a-z]+ (?=(?:con|di)verges?$))"
)


def _plain_words(text: str) -> str | None:
    r"""`\text{No solution}.` → `no solution`; None where there is mathematics."""
    text = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip(" .,;:!'\"()")
    text = re.sub(r"\s+", " ", re.sub(r"[`*_\"]", "", text)).strip().lower()
    if not re.fullmatch(r"(?:[^\W\d_]|[ ,.;:()'’-])+", text):
        return None
    text = _SUBJECT.sub("", text)
    return text if re.search(r"[^\W\d_]{2}", text) else None


def _kind_of_none(text: str) -> str | None:
    plain = _plain_words(text) or text.strip()
    if _NONE.fullmatch(plain):
        return "none"
    return "endless" if _ENDLESS.fullmatch(plain) else None


def same(ref: Form, pred: Form) -> str | None:
    """Answers in words; multiple choice by letter."""
    kind = _kind_of_none(ref.text)
    if kind and kind == _kind_of_none(pred.text):
        return kind
    if _verdict(ref.text, pred.text):
        return "words"
    letter = _choice(ref.text, pred.text)
    if letter:
        return letter
    if _comparison(ref.text, pred):
        return "comparison in words"
    mine, yours = _plain_words(ref.text), _plain_words(pred.text)
    if _unwrapped(ref.text) == _unwrapped(pred.text):
        return "same text"
    for words, other in ((mine, pred), (yours, ref)):
        value = _numeral(words) if other.kind == "item" else None
        if value is not None:
            other = Form("item", re.sub(r"(?<=\d)\s*(?:st|nd|rd|th)$", "", other.text))
            return "numeral" if math_value.same_value(value, other.text) else None
    if yours is None:
        return None
    if mine is not None:
        if _core(mine) == _core(yours):
            return "words"
        if _listed(mine) and _listed(mine) == _listed(yours):
            return "words in another order"
    return "words of the sentence" if _names(ref.text, yours) else None


def _unwrapped(text: str) -> str:
    r"""Words and mathematics alike, `\text{July 4}` as `july4`."""
    return math_text.squeeze(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))


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


_IDLE = ("a", "an", "the", "on", "in", "at", "all", "any", "every")


def _core(words: str) -> list[str]:
    found = re.findall(r"[^\W\d_]+", words)
    return [w for w in found if w not in _IDLE] or found


def _listed(words: str) -> list[list[str]] | None:
    """The members of `Alice, Bob and Carol`, sorted; None for one or for sentences."""
    parts = [_core(p) for p in re.split(r"\s*,\s*(?:and\s)?|\band\b", words)]
    short = len(parts) > 1 and all(0 < len(part) <= 3 for part in parts)
    return sorted(parts) if short else None


_VERDICT = re.compile(r"(yes|no|true|false)(?:\s*[,.;:!]\s+(.*))?", re.DOTALL)


def _verdict(mine: str, yours: str) -> bool:
    """One says `yes` (or no, true, false), the other the same and a few words more."""
    said = [
        _VERDICT.fullmatch(
            re.sub(r"\\text\{([^{}]*)\}", r" \1 ", t).strip(" .").lower()
        )
        for t in (mine, yours)
    ]
    if not all(said) or said[0][1] != said[1][1] or (said[0][2] and said[1][2]):
        return False
    denying = {"not", "no", "never"} if said[0][1] in ("no", "false") else set()
    more = _SENTENCE.findall(said[0][2] or said[1][2] or "")
    return not (_REVERSING - denying) & set(more)


_OPTION = re.compile(
    r"^\s*(?:the )?(?:correct )?(?:option|choice|answer)(?:\s+is\b(?!\s+not\b))?"
    r"\s*:?\s*",
    re.IGNORECASE,
)


def _several(text: str) -> list[str] | None:
    """The options of `ABD` or `A, B and D`, sorted; None for anything else."""
    letters = re.sub(r",|\band\b|\s", "", text)
    several = len(letters) > 1 and re.fullmatch("[A-J]+", letters)
    return sorted(letters) if several and len({*letters}) == len(letters) else None


def _choice(ref: str, pred: str) -> str | None:
    """'(C) Cecile', 'C.' and 'C' are one choice; so are '(C) 5' and '5'."""
    texts = [
        re.sub(_OPTION, "", re.sub(r"\\text\{([^{}]*)\}", r"\1", t)).strip(" .'")
        for t in (ref, pred)
    ]
    both = [_LETTER_CHOICE.match(t) for t in texts]
    bare = [re.fullmatch(r"\(?([A-J])\)?", t) for t in texts]
    if _several(texts[0]) and _several(texts[0]) == _several(texts[1]):
        return "choices" if any("," in t for t in texts) else None
    for this, that in ((0, 1), (1, 0)):
        letter, full = bare[this], both[that]
        listed = re.fullmatch(r"\(?([A-J])[).]\)?\s*(\S.*)", texts[that], re.DOTALL)
        value = len(texts[this]) > 1 or texts[this].isdigit()
        if listed and not both[this] and value:
            values = math_text.clean(listed[2]), math_text.clean(texts[this])
            if math_value.same_value(*values):
                return "choice by value"
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
    told = every[-len(few) - 1 :][:1] in (["is"], ["are"]) and every[-len(few) :] == few
    if not few or len(few) > 3 or len(every) < len(few) + (2 if told else 3):
        return False
    if _REVERSING & set(every):
        return False
    every = [w for w in every if w not in _IDLE]
    n = len(few)
    starts = every[:n] == few and every[n] not in ("and", "or", "of", "s")
    verbs = ("is", "are", "be", "was", "were")
    ends = every[-n:] == few and len(every) > n and every[-n - 1] in verbs
    within = n > 1 and any(every[k : k + n] == few for k in range(len(every)))
    return starts or ends or within
