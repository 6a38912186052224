"""Times of day: `9 a.m.` is 9:00, and 3:45 pm is 15:45."""

import re

Clock = tuple[tuple[int, int, int], str | None]  # hour, minute, second; `a`, `p`, None
_CLOCK = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d))?(?::(?P<second>[0-5]\d))?"
    r"\s*(?:\\text\{\s*)?(?:(?P<half>[AaPp])\.?\s?[Mm]\.?)?\s*\}?"
)


def parse(text: str) -> Clock | None:
    """A time of day, and `a` or `p` where it says which half; None for a number."""
    for word, time in (("noon", "12:00 pm"), ("midnight", "12:00 am")):
        # `12 noon`, `12:00 noon`, `\text{noon}`.
        text = re.sub(rf"(?:12(?::00)?)?\s*(?:\\text\{{\s*)?{word}\s*\}}?", time, text)
    match = _CLOCK.fullmatch(text.strip())
    if not match or not (match["minute"] or match["half"]):
        return None
    time = tuple(int(match[name] or 0) for name in ("hour", "minute", "second"))
    return time, match["half"] and match["half"].lower()


def same_time(one: Clock, two: Clock) -> bool:
    """`3:45 pm` is 15:45, and 3:45 where nobody says which half of the day."""
    if one[0] == two[0]:
        return one[1] == two[1] or None in (one[1], two[1])
    day = [
        # 12 am is hour 0, 12 pm is hour 12.
        (hour % 12 + 12 * (half == "p") if half else hour, *rest)
        for (hour, *rest), half in (one, two)
    ]
    return day[0] == day[1]
