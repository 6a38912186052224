r"""Answers in words: `\text{odd}`, `no solution`, `yes`, a short sentence."""

import re

from limr_jax.rewards.math import normalise
from limr_jax.rewards.math.forms import Form
from limr_jax.rewards.math.multiple_choice import same_choice
from limr_jax.rewards.math.phrases import REVERSING

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
    return text if re.search(r"[^\W\d_]{2}", text) else None  # x is no word


def _kind_of_none(text: str) -> str | None:
    plain = _plain_words(text) or text.strip()
    if _NONE.fullmatch(plain):
        return "none"
    return "endless" if _ENDLESS.fullmatch(plain) else None


def match_words(ref: Form, pred: Form) -> str | None:
    """Answers in words; multiple choice by letter."""
    kind = _kind_of_none(ref.text)
    if kind and kind == _kind_of_none(pred.text):
        return kind
    if _verdict(ref.text, pred.text):
        return "words"
    letter = same_choice(ref.text, pred.text)
    if letter:
        return letter
    if _comparison(ref.text, pred):
        return "comparison in words"
    mine, yours = _plain_words(ref.text), _plain_words(pred.text)
    if _unwrapped(ref.text) == _unwrapped(pred.text):
        return "same text"
    # Only a prediction of words alone can name what a reference's sentence says.
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
    return normalise.squeeze(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))


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
    compared = _COMPARED.search(sentence.lower().strip(" ."))
    if not compared or pred.kind != "relation" or len(pred.ops) != 1:
        return False
    word = compared[1] or compared[2] or compared[3]
    # 'is positive' compares with 0.
    bound = (compared[4] or "zero").replace("zero", "0")
    return pred.ops[0] == _AS_SIGN[word] and pred.parts[1] == bound


_IDLE = ("a", "an", "the", "on", "in", "at", "all", "any", "every")


def _core(words: str) -> list[str]:
    all_words = re.findall(r"[^\W\d_]+", words)
    # 'All' may be all that is said.
    return [w for w in all_words if w not in _IDLE] or all_words


def _listed(words: str) -> list[list[str]] | None:
    """The members of `Alice, Bob and Carol`, sorted; None for one or for sentences."""
    parts = [_core(p) for p in re.split(r"\s*,\s*(?:and\s)?|\band\b", words)]
    short = len(parts) > 1 and all(0 < len(part) <= 3 for part in parts)
    return sorted(parts) if short else None


_VERDICT = re.compile(r"(yes|no|true|false)(?:\s*[,.;:!]\s+(.*))?", re.DOTALL)


def _verdict(mine: str, yours: str) -> bool:
    """One says `yes` (or no, true, false), the other the same and a few words more."""
    verdicts = [
        _VERDICT.fullmatch(
            re.sub(r"\\text\{([^{}]*)\}", r" \1 ", t).strip(" .").lower()
        )
        for t in (mine, yours)
    ]
    # More words on both sides would have to be compared, too.
    if (
        not all(verdicts)
        or verdicts[0][1] != verdicts[1][1]
        or (verdicts[0][2] and verdicts[1][2])
    ):
        return False
    # In 'No, it is not possible' the denial says the same once more.
    denying = {"not", "no", "never"} if verdicts[0][1] in ("no", "false") else set()
    more = _SENTENCE.findall(verdicts[0][2] or verdicts[1][2] or "")
    return not (REVERSING - denying) & set(more)


_SENTENCE = re.compile(r"[^\W\d_]+")


def _names(sentence: str, words: str) -> bool:
    """A sentence whose subject, or whose complement after 'is', is these words."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", sentence).lower().strip(" .")
    every, few = _SENTENCE.findall(plain), _core(words)
    is_complement = (
        every[-len(few) - 1 :][:1] in (["is"], ["are"]) and every[-len(few) :] == few
    )
    if not few or len(few) > 3 or len(every) < len(few) + (2 if is_complement else 3):
        return False
    if REVERSING & set(every):
        return False
    every = [w for w in every if w not in _IDLE]
    n = len(few)
    # In '5 even at all' no word but these says anything; what does is the 5.
    if len(every) <= n:
        return False
    # 'Petya and Vasya', 'Petya's dog': the subject is more than these words.
    starts = every[:n] == few and every[n] not in ("and", "or", "of", "s")
    verbs = ("is", "are", "be", "was", "were")
    ends = every[-n:] == few and every[-n - 1] in verbs
    within = n > 1 and any(every[k : k + n] == few for k in range(len(every)))
    return starts or ends or within
