r"""Chinese numerals: 三十五, 三分之二, 百分之二十, 三点五万, `3万5千`.

Read strictly: what makes no one number by the rules of the language, and what two
people would read as two numbers, stays as it was.
"""

import re

_DIGITS = {c: k for k, c in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
# The exponent of ten that each stands for.
_TEN_TO = {"十": 1, "百": 2, "千": 3, "万": 4, "萬": 4, "亿": 8, "億": 8}
_MARKS, _COUNT = "".join(_TEN_TO), "一二三四五六七八九"
_HAN = f"{''.join(_DIGITS)}{_MARKS}"
_LONGEST = 40  # marks of one number
_NUMERAL = rf"[{_HAN}]++"
_CHINESE = re.compile(
    rf"(?P<sign>负?)(?:(?P<whole>{_NUMERAL})又)?(?P<first>{_NUMERAL})"
    rf"(?>(?:分之(?P<top>{_NUMERAL}|\d++(?>(?:\.\d++)?))(?>(?:点(?P<rest>{_NUMERAL}))?)"
    rf"|点(?P<places>[零〇{_COUNT}]++)(?P<tail>[{_MARKS}]*+))?)"
    # What goes on, as 十二点三十分 does, is no number that was read to its end.
    rf"(?!\.?\d|[{_HAN}点又]|分之)"
)
# 3百万, 1.5亿: a number and one power of ten; `3万5千` has two of them.
_SCALE = r"[十百千]?(?:[万萬]?[亿億]|[万萬])?"
_SCALED = re.compile(rf"(\d+(?:\.\d+)?)({_SCALE})")
_AFTER_DIGITS = re.compile(rf"(?<![\d.{_HAN}])\d[\d.]*+\s*[{_MARKS}][\d.{_HAN}]*+")
_AS_HAN = str.maketrans("0123456789", "零一二三四五六七八九")
# 千, if it has a digit before it, 百 and so on; 零 where a place is left out.
_SECTION = re.compile(
    rf"(零?)(?:([两{_COUNT}]?)千(?:零(?!.?百))?)?(?:([两{_COUNT}]?)百(?:零(?!.?十))?)?"
    rf"(?:([{_COUNT}]?)十)?([{_COUNT}])?"
)


def as_formula(text: str) -> str:
    """三十五 as 35, 三分之二 as 2/3, 百分之二十 as 20 %, `3万` as 30,000."""
    text = _AFTER_DIGITS.sub(_scaled, text)
    numeral = _CHINESE.match(text)
    if not numeral:
        return text
    rest = text[numeral.end() :]
    number = _formula(numeral)
    # 千克 is a unit of its own; 三点五分 may be a time of day.
    if (
        number is None
        or (numeral[0] == "千" and rest[:1] in _OF_THOUSAND)
        or (numeral["places"] and rest[:1] in ("分", "秒"))
    ):
        return text
    return f"{numeral['sign'].replace('负', '-')}{number}{rest}"


_OF_THOUSAND = tuple("克米瓦卡升")


def _scaled(match: re.Match) -> str:
    """`3万` as 3 times ten to the fourth, `3万5千` as 35000."""
    written = "".join(match[0].split())
    after, kept = match.string[match.end() :][:1], ""
    # `3千克` is 3 kg: there 千 is a part of the unit.
    if written[-1] == "千" and after in _OF_THOUSAND:
        written, kept = written[:-1], "千"
    scaled = _SCALED.fullmatch(written)
    if scaled and scaled[2] and after != "分":
        exponent = sum(_TEN_TO[mark] for mark in scaled[2])
        return rf"{scaled[1]}\cdot 10^{{{exponent}}}{kept}"
    # `3万5` may be 35000 or 30005.
    value = None if re.search(rf"[{_MARKS}]\d$", written) else number_of(written)
    return match[0] if scaled or value is None else f"{value}{kept}"


def _formula(numeral: re.Match) -> str | None:
    """A numeral with its fraction or its decimals; None for what is none."""
    first = number_of(numeral["first"])
    if first is None or (numeral["whole"] and not numeral["top"]):
        return None
    if numeral["places"]:
        places = "".join(str(_DIGITS[c]) for c in numeral["places"])
        tail = numeral["tail"]
        # 三点五万 is 35,000, and 三点五十 nothing.
        if not re.fullmatch(_SCALE, tail) or tail in ("十", "百"):
            return None
        exponent = sum(_TEN_TO[mark] for mark in tail)
        return f"{first}.{places}" + rf"\cdot 10^{{{exponent}}}" * bool(tail)
    if not numeral["top"]:
        return str(first)
    # 三分之二: the denominator stands first.
    top = numeral["top"]
    top = top if top[0].isascii() else number_of(top)
    if top is None:
        return None
    if numeral["rest"]:
        if not {*numeral["rest"]} <= {*"零〇", *_COUNT}:
            return None
        top = f"{top}." + "".join(str(_DIGITS[c]) for c in numeral["rest"])
    if numeral["first"] == "百" and not numeral["whole"]:
        return rf"{top}\%"
    whole = number_of(numeral["whole"]) if numeral["whole"] else ""
    # 二又二分之三 is no mixed number.
    if whole is None or (numeral["whole"] and not 0 < float(top) < first):
        return None
    return rf"{whole}\frac{{{top}}}{{{first}}}"


def number_of(marks: str) -> int | None:
    """一亿三千万 as 130,000,000; None for what makes no one number.

    二〇二四 is read digit by digit; 三四 is not, as it says three or four.
    """
    marks = marks.replace("〇", "零")
    if len(marks) > _LONGEST:
        return None
    if len(marks) > 1 and {*marks} <= {"零", *_COUNT}:
        digits = "".join(str(_DIGITS[c]) for c in marks)
        return int(digits) if len(digits) > 2 and digits[0] != "0" else None
    return 0 if marks == "零" else _closed(marks, 0, True)


def _closed(marks: str, behind: int, last: bool) -> int | None:
    """What 亿 and 万 close is less than they are, and so is what follows them.

    behind: the exponent of what stands before, 0 at the start. last: do these end the
    number? Then a digit may lack its place: 一万五 is 15,000.
    """
    for names, exponent in (("亿億", 8), ("万萬", 4)):
        split = max(map(marks.rfind, names))
        if split < 0:
            continue
        above, below = marks[:split], marks[split + 1 :]
        # 一亿五千 may be meant as 1.5 亿: what leaves out 万 has its 零.
        begins = below[:1] == "零" or re.search("[万萬]", below)
        if exponent == 8 and len(below) > 1 and not begins:
            return None
        # 万 alone is ten thousand, but not behind 亿.
        high = _closed(above, behind, False) if above else None if behind else 1
        low = _closed(below, exponent, last) if below else 0
        size = 10**exponent
        fits = high is not None and low is not None and high < size and low < size
        return high * size + low if fits else None
    return _section(marks, behind, last)


def _section(marks: str, behind: int, last: bool) -> int | None:
    """A number below ten thousand."""
    if marks.isdigit() and marks.isascii():
        # `3万50` may be meant as 3.5万, or as 30,050.
        short = behind and len(marks) < 3 or marks[0] == "0"
        return None if short else int(marks)
    if marks == "两":
        return None if behind and last else 2  # 一百两 is a weight
    match = _SECTION.fullmatch(marks.translate(_AS_HAN))
    if match is None or marks[-1] == "零" or (match[1] and not behind):
        return None
    # 百 alone is one hundred, where the numeral begins with it.
    bare = match[2] == "" or match[3] == ""
    if bare and (behind or marks[0] not in "千百" or {*"千百"} <= {*marks}):
        return None
    places = zip((1000, 100, 10), match.group(2, 3, 4))
    value = sum(
        size * _DIGITS.get(count, 1) for size, count in places if count is not None
    )
    ones = _DIGITS[match[5]] if match[5] else 0
    # 三百五 is 350, and 一万五 15,000; 三百五万 is anybody's guess.
    before = _TEN_TO.get(marks[-2], 1) if len(marks) > 1 else behind if last else 1
    if ones and before > 1:
        return None if bare or not last else value + ones * 10 ** (before - 1)
    return value + ones
