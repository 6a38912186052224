"""What the programs of a run need of its tokenizer."""

import dataclasses

from limr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Words:
    """What programs need of a tokenizer."""

    stop_ids: tuple[int, ...]
    pad_id: int
    eos_id: int
    phrase: tuple[int, ...]  # introduces an answer


def words_of(config, tokenizer) -> Words:
    """InputError where the answer's phrase has no token."""
    phrase = answer_phrase(config, tokenizer)
    return Words(tokenizer.stop_ids, tokenizer.pad_id, tokenizer.eos_id, phrase)


def answer_phrase(config, tokenizer) -> tuple[int, ...]:
    """The tokens that introduce an answer, as they stand within a text."""
    phrase = tuple(tokenizer.encode(config.answer_phrase, continued=True))
    if not phrase:
        raise InputError(
            f"answer_phrase={config.answer_phrase!r} has no token; give another"
        )
    return phrase
