"""A placebo for an experiment's control arm: rewards that do not say who was right.

Some models get better by random rewards (arXiv:2506.10947), so what a run gains is to
be compared with what it gains by these.
"""

import random
from collections.abc import Sequence

_PHRASE = "#### "  # which introduces an answer of the built-in arithmetic task


def shuffled(
    prompts: Sequence[str], completions: Sequence[str], *, answer: Sequence[str], **_
) -> list[float]:
    """Rewards of 1 for as many of the batch's rollouts as are right, dealt by chance.

    For --config.reward=limr_jax.rewards.placebo.shuffled. Right is what has the
    reference behind its last "#### ". That is reward=token's rule, but for blanks about
    the answer, and for the end token, which a text does not show. As many are rewarded
    as were right, so a whole batch's accuracy is true; the others get 0. The seed is
    the batch's text, so that the same rollouts get the same rewards again.

    prompts, completions, answer: of length B. Returns a list of length B.
    """
    # (phrase, what follows the last one); the phrase is empty where there is none.
    answers = [text.rpartition(_PHRASE)[1:] for text in completions]
    right = [
        float(bool(phrase) and value.strip() == reference)
        for (phrase, value), reference in zip(answers, answer, strict=True)
    ]
    # Bytes seed by themselves, not by hash(), which differs between processes. A text
    # does too, but for one with half of a character, which UTF-8 cannot hold.
    seed = "\n".join([*prompts, *completions]).encode("utf-8", "surrogatepass")
    random.Random(seed).shuffle(right)
    return right
