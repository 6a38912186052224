r"""The boxes of a text, `\boxed{…}`, `\fbox{…}`, `\boxed 7`, and which is its answer.

Linear in the text, which a policy wrote. Only the standard library, so that it runs
where JAX does not.
"""

import re

# A run of backslashes is one token: read one at a time, a million of them would be
# half a billion starts of a box that never comes. `\boxed 7` is how MATH's own
# solutions have it: all up to a blank or a dollar, if it begins as mathematics does.
_GROUP = r"\{(?>(?:[^{}]++|\{[^{}]*+\})*)\}"
_BARE = (
    # "\boxed x" is a box; "\boxedx" and "\boxed answers" are none: behind a blank a
    # letter must stand alone.
    r"\s*+(?=[-+(\d\\]|(?<=\s)[A-Za-z](?![A-Za-z]))"
    # In "so \boxed 7." the full stop is the sentence's, not the answer's.
    rf"(?P<bare>(?>(?:(?![.,;:]{{0,3}}+(?:[\s$]|\Z))(?:[^\s${{}}]|{_GROUP})){{1,80}}))"
)
_BOX_TOKEN = re.compile(
    rf"(?P<slashes>\\*+)(?P<word>(?:boxed|fbox)(?:\s*+\{{|{_BARE})|[{{}}])|\\++"
)
UNCLOSED = re.compile(r"\\(?:boxed|fbox)\s*+\{")


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Every `\boxed{…}`, `\fbox{…}` and `\boxed 7` as (start, end, content), in order.

    Balanced ones only, and of two, one in the other, the outer.
    """
    # spans: a box and its content as (start, end, start, end). open_at: each brace that
    # is open, as (its start, where its content starts, whether it is a box).
    spans, open_at = [], []
    for token in _BOX_TOKEN.finditer(text):
        slashes, word = token["slashes"] or "", token["word"] or ""
        # "boxed{" without a backslash is no box, but its brace must be paired all the
        # same.
        is_box = len(word) > 1 and bool(slashes)
        if len(word) < 2 and len(slashes) % 2:
            continue  # an escaped brace
        if token["bare"]:
            if is_box:
                spans.append((token.start(), token.end(), *token.span("bare")))
        elif word.endswith("{"):
            open_at.append((token.start(), token.end(), is_box))
        elif word and open_at:
            start, inside, is_box = open_at.pop()
            if is_box:
                # Boxes within this one were closed before it, so they are the last of
                # `spans`.
                while spans and spans[-1][0] > start:
                    spans.pop()
                spans.append((start, token.end(), inside, token.start("word")))
    return [(start, end, text[inside:close]) for start, end, inside, close in spans]


def after_thinking(text: str) -> str:
    """What follows the last `</think>` of a text; the whole text where nothing does."""
    behind = text[text.rfind("</think>") + 8 :] if "</think>" in text else text
    return behind if behind.strip() else text


def boxed_answer(response: str) -> str | None:
    """The content of the last balanced box of a model's response; None without one.

    Where the response thinks first, `<think>…</think>`, only what it says then counts.
    """
    answers = boxes(after_thinking(response))
    return answers[-1][2].strip() if answers else None


def reference_answer(solution: str) -> str | None:
    """The content of a solution's last box; None without one, or if it is not closed.

    The same boxes as in a response: a reference is what a policy is measured by.
    """
    answers = boxes(solution)
    # Where the last box is cut off, the one before it may be a step on the way.
    if not answers or UNCLOSED.search(solution, answers[-1][1]):
        return None
    return answers[-1][2].strip() or None
