"""The token ids that the programs of a run need of its tokenizer."""

import dataclasses

from limr_jax.data.tokenizer import Tokenizer
from limr_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Token ids that the jitted programs are made with; hashable, so static to them."""

    stop_ids: tuple[int, ...]  # any of them ends a response
    pad_id: int  # fills arrays
    eos_id: int  # ends a reference answer
    answer_phrase: tuple[int, ...]  # introduces an answer; at least one token


def make_special_tokens(config, tokenizer: Tokenizer) -> SpecialTokens:
    """The ids of the tokenizer's special tokens and of `config.answer_phrase`.

    Raises:
      InputError: the answer phrase has no token.
    """
    return SpecialTokens(
        stop_ids=tokenizer.stop_ids,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        answer_phrase=encode_answer_phrase(config, tokenizer),
    )


def encode_answer_phrase(config, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of `config.answer_phrase`, as they stand within a text.

    Raises:
      InputError: there is none.
    """
    phrase = tuple(tokenizer.encode(config.answer_phrase, continued=True))
    if not phrase:
        raise InputError(
            f"answer_phrase={config.answer_phrase!r} has no token; give another"
        )
    return phrase
