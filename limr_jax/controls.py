"""Rewards that tell nothing, for the arm that every other arm must beat.

Some models get better by rewards at random (arXiv:2506.10947), so what a run gains is
to be compared with what it gains by these.
"""

import random
from collections.abc import Sequence

_PHRASE = "#### "  # the embedded task's


def shuffled(
    prompts: Sequence[str], completions: Sequence[str], *, answer: Sequence[str], **_
) -> list[float]:
    """Right or wrong as reward=token says, then dealt anew among all rollouts at once.

    --config.reward=limr_jax.controls.shuffled. As many are rewarded as were right, so
    a whole batch's accuracy is true; who is rewarded follows from what all the rollouts
    say, and from nothing else.
    """
    said = [text.rpartition(_PHRASE)[1:] for text in completions]
    right = [
        float(bool(phrase) and value.strip() == reference)
        for (phrase, value), reference in zip(said, answer, strict=True)
    ]
    random.Random("\n".join([*prompts, *completions])).shuffle(right)
    return right
