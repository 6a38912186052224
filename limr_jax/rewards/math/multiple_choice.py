r"""Multiple choice: `(C)`, `(C) Cecile`, `C.` and `A, C and D`.

An option is its letter and, perhaps, the text that stands beside it. What a prediction
says of an option may deny it in more ways than anybody can list, so that only texts of
closed lists are taken for an option's.
"""

import re

from limr_jax.rewards.math import normalise, phrases, scalars, sympy_parse, units

_OPTION = re.compile(
    r"^\s*(?:the )?(?:correct )?(?:option|choice|answer)(?:\s+is\b(?!\s+not\b))?"
    r"\s*:?\s*",
    re.IGNORECASE,
)


_LETTERS = re.compile(r"\(?([A-J])\)?(?:\s*(?:,|;|/|&|\\&|and|or)?\s*\(?([A-J])\)?)*")
# 'B', '(B)', 'B.', '(B) 12', 'B: five', 'C Cecile'; the letter, and what stands there
_OPTION_WITH_TEXT = re.compile(
    r"\(?([A-J])(?:(?:\)|\.|:|\)\s*[.:])\s*(?P<text>\S.*)?|\s+(?P<name>[^\W\d_]{2,}.*))?",
    re.DOTALL,
)
# `(B) 3 (C) 4` names two options.
_NEXT_OPTION = re.compile(r"(?<![A-Za-z])(?:\([A-J]\)|[A-J][).:](?=\s|$))")
# What may be said of an option, and the texts that options have: closed lists, as a
# thing can be denied in more ways than anybody can list.
_AFFIRMED = re.compile(
    r"\b(?:(?:(?:it|this|that|which) )?is\b)?\s*(?:\bthe )?"
    r"\b(?:(?:correct|right|best|final)(?: (?:answer|choice|option|one))?"
    r"|answer|choice|option)$",
    re.IGNORECASE,
)
_USUAL = re.compile(
    r"(?:all|none) of (?:these|those|them|the above)|no (?:real )?solutions?"
    r"|(?:it )?cannot be determined(?: from the (?:given )?information(?: given)?)?"
    r"|not enough information(?: given)?|infinitely many(?: solutions)?",
    re.IGNORECASE,
)
_CONTENT = """
    and the an of to than at exactly about yes odd even prime positive negative infinity
    increase increases increasing decrease decreases decreasing change constant small
    large equal less more greater least most times plus minus percent acute obtuse
    isosceles equilateral scalene
    monday tuesday wednesday thursday friday saturday sunday"""
_CONTENT = frozenset([*_CONTENT.split(), *phrases.ONES, *phrases.TENS])
_NOT_ANOTHER = re.compile(
    r"it (?:can(?:['’]t|not) be|isn['’]t|is not) [A-J](?: n?or [A-J])*"
)
# 'A rise in temperature': a thing, of which nothing is said.
_THING = re.compile(r"(?:An?|The) [a-z]+(?: [a-z]+)+")
_SAYING = """
    is are was were be been can cannot could may might must will would should do does or
    wrong incorrect false impossible unlikely bad poor invalid answer choice option
    distractor decoy guess trap mistake error"""
_SAYING = phrases.REVERSING | {*_SAYING.split()}
_SIGNS = "pm circ le ge ne cup cap emptyset overline mathbb vec dots approx in"
_SIGNS = sympy_parse.KNOWN | {*_SIGNS.split()}
_COMMAND = re.compile(r"\\([A-Za-z]+)")
# `7, C 8`, `and (D)`, `9?`: another option, or a doubt.
_OTHER_OPTION = re.compile(r"(?:^|[\s,;/:])[A-J](?![A-Za-z]| [a-z])|^\W*and\b|\?")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\}")


def _content(text: str) -> bool:
    """Is it what an option says, a value or a few usual words, and no other option?"""
    plain = _ENVIRONMENT.sub(" ", units.without_unit(normalise.clean(text)))
    known = {*_COMMAND.findall(plain)} <= _SIGNS
    plain = _COMMAND.sub(" ", re.sub(r"\\text\{([^{}]*)\}", r"\1", plain))
    words = {word.lower() for word in re.findall(r"[^\W\d_]{2,}", plain)}
    value = known and words <= _CONTENT and re.search(r"\w", plain) is not None
    if _USUAL.fullmatch(text) or (_THING.fullmatch(text) and not words & _SAYING):
        return True
    return value and not _OTHER_OPTION.search(text)


def read_option(text: str, reference: bool = False) -> tuple[str, str] | None:
    r"""(letters, text) of a multiple choice; None for anything else, or a denied one.

    `(B) 12` is ("B", "12"), `A, C and D` is ("ACD", ""). A reference denies nothing: it
    may have any text behind its letter.
    """
    text = re.sub(r"\\text\{([^{}]*)\}", r"\1", text)
    text = re.sub(_OPTION, "", text).strip(" .'")
    if _LETTERS.fullmatch(text):
        letters = re.findall(r"[A-J]", text)
        # 'B or C' and 'B/C' choose neither.
        either = re.search(r"\bor\b|/", text) is not None
        once = len({*letters}) == len(letters)
        return ("".join(sorted(letters)), "") if once and not either else None
    match = _OPTION_WITH_TEXT.fullmatch(text)
    if not match or _NEXT_OPTION.search(text, match.end(1) + 1):
        return None
    words = (match["text"] or match["name"] or "").strip()
    if reference and (match["text"] or words[:1].isupper()):
        return match[1], words
    # 'B. it can't be C or D' denies the others.
    if _NOT_ANOTHER.fullmatch(words) and match[1] not in words:
        return match[1], ""
    affirmed = _AFFIRMED.search(words)
    if affirmed:
        words = words[: affirmed.start()].strip(" ,;:")
        stated = "is" in affirmed[0].split()
        # '(E) 14 is correct' says so of a value; words before 'is' may take it back.
        if words and (not stated or re.search(r"(?<![\\A-Za-z])[A-Za-z]{2}", words)):
            return None
    # 'A triangle', 'I think': a word, and no option.
    article = match["name"] and match[1] in "AI" and not affirmed
    return None if article or (words and not _content(words)) else (match[1], words)


def same_choice(ref: str, pred: str) -> str | None:
    """'(C) Cecile', 'C.' and 'C' are one choice; so are '(C) 5' and '5'."""
    mine, yours = read_option(ref, reference=True), read_option(pred)
    if mine and yours and mine[0] == yours[0]:
        if mine[1] and yours[1]:
            return None  # their texts are compared as any other
        # `AC` without a comma may be a segment, or a product.
        several = len(mine[0]) > 1
        return ("choices" if "," in ref + pred else None) if several else "choice"
    for option, other, text in ((mine, yours, pred), (yours, mine, ref)):
        if option and option[1] and not other and len(option[0]) == 1:
            value = normalise.clean(option[1])
            if scalars.same_value(value, text):
                return "choice by value"
    return None
