r"""Which part of a text is its answer.

Linear in the text, which a policy wrote: what looks back and forth is bounded. Only the
standard library, so that it runs where JAX runs.
"""

import re

from limr_jax.data.boxed import UNCLOSED, boxes

MAX_ANSWER = 2_000  # characters; a longer answer is not read any further
CHOICES = "ABCDEFGHIJ"


_PERCENT_AFTER = re.compile(r"[\s$]*(?:\\?%|(?:percent(?:age)?|pct)\b)", re.IGNORECASE)
# `\boxed{3}, so \boxed{7}`: the second stands for the first, not beside it.
_NEW_CLAIM = re.compile(
    r"\b(?:so|thus|hence|therefore|then|but|not|answer|final|wait)\b|\.\s|\n\n"
)
# `, and ` is one join; but `, and we get ` begins another sentence.
_JOIN = re.compile(
    r"[,;] *(?:and/or|and|or)\b(?: *,)?"
    r"(?! *(?:we|it|this|that|which|finally|get|find|obtain)\b)"
    r"|\b(?:and/or|and|or)\b(?: *,)?|[,;]"
)
# Between two boxes: fonts, dollars and spaces, `\,` and `\;` among them.
_BLANK = re.compile(
    r"[\s${}~]+|\\(?:(?:text(?:rm|bf|it)?|mathrm|mbox|q?quad)(?![A-Za-z])|[,;:! ])"
)


def joined_boxes(text: str) -> str | None:
    r"""The last run of boxes as one list: `\boxed{1}` and `\boxed{2}` is `1 , 2`.

    Linear in the text, so that it may run before the workers' clock does.
    """
    all_boxes = boxes(text)
    if not all_boxes:
        return None
    run = [all_boxes[-1]]
    for box in reversed(all_boxes[:-1]):
        gap = text[box[1] : run[-1][0]]
        # A box further off is an earlier result, not a part of the answer.
        if len(gap) > 40 or _NEW_CLAIM.search(gap):
            break
        if len(_JOIN.findall(_BLANK.sub(" ", gap))) > 1:
            break
        run.append(box)
    answer = " , ".join(content for _, _, content in reversed(run))
    # `$\boxed{28}$ pct`: the unit may stand behind the box.
    return answer + r" \%" if _PERCENT_AFTER.match(text, all_boxes[-1][1]) else answer


# Bounded: each of a million `\[` would look for its `\]` to the end of the text.
_MATH = re.compile(
    r"\$\$(.{1,4000}?)\$\$|\\\[(.{1,4000}?)\\\]|\\\((.{1,4000}?)\\\)"
    r"|(?<!\\)\$((?:[^$\\\n]|\\.){1,4000})\$",
    re.DOTALL,
)
# 'The answer to the last part is': words may lie between, but no number or formula.
_ANCHOR = re.compile(
    r"(?:final answer|answer|réponse|respuesta|antwort|答案)[^.\n\d$\\]{0,40}?"
    r"(?:\bis\b|\best\b|:|：|为|是)(?!\s*not\b)",
    re.IGNORECASE,
)
_FINAL = re.compile(r"final answer is:?(?!\s*not\b)", re.IGNORECASE)
# `-1,234.5`, `.5`, `3/4`, `28%`. No part must be there; `(?<=\d)` asks for a digit.
_NUMBER = re.compile(
    r"(?<![\w.,])[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+)?"
    r"(?:\s?/\s?\d+)?(?<=\d)(?:\s*(?:\\?%|percent\b))?",
    re.IGNORECASE,
)
_MARKS = "十百千万萬亿億"
# `3 million` and 3万 are not the number 3; the 千 of 3千克 is a part of the unit.
_SCALE = re.compile(
    r" ?(?:(?:hundred|thousand|million|billion|trillion|lakh|crore|dozen)s?\b"
    rf"|(?!千[克米瓦卡升])[{_MARKS}][\d{_MARKS}]*)"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|operatorname|begin|end)\s*\{[^{}]*\}")
_OTHER_LETTERS = re.compile(r"[\u0900-\u0dff\u0600-\u06ff\u3040-\u9fff\uac00-\ud7a3]")
_NEAR = 6_000  # characters at the end of a text that are searched for its answer


def prose_words(text: str) -> int:
    """Words around the mathematics: 0 to 2 for an answer alone, many for sentences."""
    # A formula is no prose, unless it is a sentence between dollars.
    outside = _MATH.sub(lambda m: " " if len(_words(_inside(m))) < 2 else m[0], text)
    outside = _TEXT.sub(" ", outside)
    return len(_words(outside)) + len(_OTHER_LETTERS.findall(outside)) // 2


def _words(text: str) -> list[str]:
    return _WORD.findall(_TEXT.sub(" ", text))


# Up to the number itself, whatever its font: `more than $\mathbf{30}$`.
_NOT = re.compile(
    r"(?:\b(?:can)?not\b|n't|n’t|\bnor\b|\bnever\b"
    r"|\b(?:more|less|fewer|greater) than\b)"
    r"(?:\s+(?:be|equal|to|just|exactly))*[\s*$(]*(?:\\[a-z]+\{)?$",
    re.IGNORECASE,
)


def _denied(text: str, at: int) -> bool:
    """Does the text say that it is not what stands there?"""
    return _NOT.search(text[max(0, at - 40) : at]) is not None


def _called(text: str, at: int) -> bool:
    """Is it what a function is called with, as in `alert(5)`?"""
    return re.fullmatch(r"\w\(", text[max(0, at - 2) : at]) is not None


def _last_number(text: str, start: int, first: bool) -> str | None:
    """The last (or first) literal number from `start` on."""
    # `共35个` holds the number 35, but `x3` is a name.
    plain = re.sub(
        rf"(?<=\d)(?=[^\W\d_{_MARKS}])|(?<=[^\x00-\x7f{_MARKS}])(?=\d)",
        " ",
        text[start:],
    )
    numbers = [m for m in _NUMBER.finditer(plain) if m.group()]
    claimed = [
        plain[m.start() : (_SCALE.match(plain, m.end()) or m).end()]
        for m in numbers
        if not _denied(plain, m.start()) and not _called(plain, m.start())
    ]
    return claimed[0 if first else -1] if claimed else None


def _from_prose(text: str) -> list[str]:
    """What follows 'the answer is', the last formula of the text, or a number."""
    text = text[-_NEAR:]
    # The last one: a text may say `the answer is` of a part before it has the whole.
    anchors = list(_FINAL.finditer(text)) or list(_ANCHOR.finditer(text))
    start = anchors[-1].end() if anchors else 0
    # The rest of the sentence, where it is short and plain: `the answer is (B).`
    rest = re.split(r"\.\s|\n", text[start:].strip(" *\n"), maxsplit=1)[0]
    short = [rest] if anchors and 0 < len(rest) <= 60 and "$" not in rest else []
    runs = _formula_runs(text, start)
    if not runs:
        number = _last_number(text, start, first=bool(anchors))
        return short + [number] * bool(number)
    run = runs[0 if anchors else -1]
    # Without an anchor a number in a later sentence is nearer to the conclusion.
    tail = re.split(r"\.\s|\n|^\s*(?=[A-Z])", text[run[-1].end() :], maxsplit=1)
    number = _last_number(tail[1], 0, first=False) if len(tail) > 1 else None
    if number and not anchors:
        return short + [number]
    answer = " , ".join(map(_inside, run))
    percent = _PERCENT_AFTER.match(text, run[-1].end())
    return short + [answer + r" \%" if percent else answer]


def _formula_runs(text: str, start: int) -> list[list[re.Match]]:
    """Formulas from `start` on; those joined by 'and', 'or' or a comma together."""
    runs: list[list[re.Match]] = []
    for span in _MATH.finditer(text, start):
        inside = _inside(span).strip()
        if len(_words(inside)) > 1 or (inside.isalpha() and len(inside) < 3):
            continue  # words, or a letter that the sentence is about
        if _denied(text, span.start()):
            continue
        gap = text[runs[-1][-1].end() : span.start()] if runs else "-"
        # The "-" of the first formula joins it to nothing.
        if re.fullmatch(r"\s*(?:[,;]|and|or|[,;]\s*(?:and|or))\s*", gap):
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


def _numbers_of_sentence(text: str) -> list[str]:
    """All the numbers of 'The rent is $240$ for A and $210$ for B.', as one list."""
    if len(text) > 300 or re.search(r"\.\s+\S", text) or prose_words(text) < 3:
        return []
    formulas = [_inside(m) for m in _MATH.finditer(text)]
    numbers = [f for f in formulas if _NUMBER.fullmatch(f.strip())]
    return [" , ".join(numbers)] if len(numbers) > 1 else []


def _inside(match: re.Match) -> str:
    return next(g for g in match.groups() if g)


_LETTER = re.compile(  # named, with nothing said of it but that it is right
    r"(?<![\w'’])\(?\**([A-J])\**\)?(?=[*\s]*(?:$|[.,;:!\n]|because\b|since\b"
    r"|is (?:the )?(?:right|correct|best|answer)\b))"
)
# With 'or', as 'A or B' chooses neither.
_DENIED = re.compile(
    r"(?:\b(?:can)?not\b|n't|n’t|\bnor\b|\bor\b)[^.,;]{0,12}$", re.IGNORECASE
)


def _affirmed(text: str) -> list[str]:
    """The options that a text names, without those that it denies."""
    return [
        m.group(1)
        for m in _LETTER.finditer(text)
        if not _DENIED.search(text[max(0, m.start() - 20) : m.start()])
    ]


def chosen_letter(text: str) -> str | None:
    """The option that a sentence chooses: 'it's not A, I think it's B' → 'B'."""
    anchor = re.search(
        r"\b(?:answer|choice|option|réponse|respuesta|resposta|risposta|antwort)\b"
        r"|答案|ответ",
        text,
        re.IGNORECASE,
    )
    after = text[anchor.end() :] if anchor else ""
    start = re.match(r"\s*\(?([A-J])(?:[.:,]|\)(?!\s*[a-z]))", text)
    # Behind the word the first one counts: 'the answer is D, it can't be A'.
    letters = _affirmed(after)[:1]
    if not letters and start:
        letters = [start.group(1)]
    if not letters:
        letters = _affirmed(text)[-1:]
    return letters[0] if letters else None


_DENIAL = re.compile(r"\bnot\b|n['’]t\b|\bnever\b", re.IGNORECASE)
# 'So it is 42.'
_STATEMENT = re.compile(
    rf"[A-Za-z]{{2,}} (?:is|are|equals|get|gives) \**({_NUMBER.pattern})\**\s*\.?\s*$"
)


def bare_answers(text: str, is_reference: bool = False) -> list[str]:
    """Readings of a bare answer, best first: no box is needed. For references too.

    A box that is never closed is no answer, except in a reference.
    """
    joined = joined_boxes(text)
    if joined is not None:
        return [joined]
    if UNCLOSED.search(text):
        if not is_reference:
            return []
        text = re.sub(r"(?<!\\)\\++boxed\s*+\{", "", text)
    whole = [text.strip()] if text.strip() and len(text) <= MAX_ANSWER else []
    if is_reference and len(whole) == 1:
        whole += _numbers_of_sentence(text)
    words = prose_words(text[-_NEAR:])
    stated = _STATEMENT.search(text[-_NEAR:])
    if words <= 2 and whole and stated and not _DENIAL.search(text):
        return whole + [stated[1]]
    if words <= 2 and whole:
        return whole + (_from_prose(text) if words and _MATH.search(text) else [])
    if words <= 2 and not _MATH.search(text[-_NEAR:]):
        return []  # too long for an answer, and nothing that would lead to one
    # The whole comes last, and may be the answer: 'there are no solutions'.
    return _from_prose(text) + whole


def readings(text: str, reference: str) -> list[str]:
    """What a bare prediction may be saying, best first; empty without an answer.

    Not linear in the text: for a few hundred characters, or behind a worker's clock.
    """
    # `A` in a sentence may be an article, but a choice where the reference is a letter.
    single = re.sub(r"\\text\w*\{([^{}]*)\}", r"\1", reference).strip(" ().$")
    is_choice = len(single) == 1 and single in CHOICES
    if is_choice and joined_boxes(text) is None and prose_words(text) > 2:
        letter = chosen_letter(text)
        return [letter] if letter else []
    return bare_answers(text)
