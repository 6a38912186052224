"""The tokenizer in a GGUF file's metadata, as a checkpoint's own files.

A byte-level BPE becomes tokenizer.json, a SentencePiece vocabulary tokenizer.model:
what each had been before llama.cpp's converter took it apart. How a text is cut before
byte pairs are merged is not in a GGUF file, only a name of it; names that are not known
here are refused, since another cut makes other tokens.
"""

import dataclasses
import json
import re

from sentencepiece import sentencepiece_model_pb2

from limr_jax.errors import InputError, shown

# llama.cpp's types of a token, which are SentencePiece's own.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_TYPES = range(_NORMAL, _BYTE + 1)
# llama.cpp fills a vocabulary up with these where the embedding has more rows.
_FILLER = re.compile(r"\[PAD\d+\]")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = (
    r"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> list[dict]:
    pattern = _CONTRACTIONS + _WORDS.format(digits=digits)
    return [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        },
        _byte_level(use_regex=False),
    ]


def _byte_level(use_regex: bool) -> dict:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


_GPT2 = [_byte_level(use_regex=True)]
_SINGLE_DIGITS = [{"type": "Digits", "individual_digits": True}, *_GPT2]
# llama.cpp's name of a cut → (pre-tokenisers, whether a text is put into NFC first,
# whether a word that is a token is taken whole before any merge).
_CUTS = {
    "gpt-2": (_GPT2, False, False),
    "smollm": (_SINGLE_DIGITS, False, False),
    "llama-bpe": (_split(r"\p{N}{1,3}"), False, True),
    "llama3": (_split(r"\p{N}{1,3}"), False, True),
    "qwen2": (_split(r"\p{N}"), True, False),
    "deepseek-r1-qwen": (_split(r"\p{N}"), True, False),
}
# The cuts of models whose texts begin with BOS unless the file says otherwise.
_BEGINS = ("llama-bpe", "llama3")


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """What a checkpoint's folder gets: file name → content, and ids for its configs."""

    files: dict[str, bytes]
    token_ids: dict  # bos_token_id, eos_token_id (one or several), pad_token_id


def convert(metadata: dict) -> TokenizerFiles:
    """The tokenizer's files from a GGUF file's metadata.

    metadata: as `models.gguf_files` has it, each value of its type.

    Raises:
      InputError: no vocabulary, one that contradicts itself, or a kind or a cut that is
        not known.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise InputError("the GGUF file has no tokenizer; take one that has")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if len(types) != len(tokens) or not set(types) <= set(_TYPES):
        raise InputError(
            f"the GGUF file's tokenizer has {len(tokens)} tokens and {len(types)} "
            "types, or a type that llama.cpp does not have; fetch it again"
        )
    while tokens and types[-1] == _UNUSED and _FILLER.fullmatch(tokens[-1]):
        tokens, types = tokens[:-1], types[:-1]
    if not tokens:
        raise InputError("the GGUF file's tokenizer holds filler only; fetch it again")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        cut = metadata.get("tokenizer.ggml.pre")
        name = "tokenizer.json"
        content = _byte_pairs(metadata, tokens=tokens, types=types, cut=cut)
        begins = cut in _BEGINS
    elif kind == "llama":
        name, content = "tokenizer.model", _pieces(metadata, tokens, types)
        begins = True
    else:
        raise InputError(
            f"the GGUF file's tokenizer {shown(repr(kind))} cannot be converted; gpt2 "
            "(byte-level BPE) and llama (SentencePiece) can"
        )
    ids = _token_ids(metadata, len(tokens))
    begins = metadata.get("tokenizer.ggml.add_bos_token", begins)
    config = {"add_bos_token": bool(begins and "bos_token_id" in ids)}
    config |= {"clean_up_tokenization_spaces": False}
    for each in ("bos", "eos", "pad"):
        if f"{each}_token_id" in ids:
            number = ids[f"{each}_token_id"]
            number = number[0] if isinstance(number, list) else number
            config[f"{each}_token"] = tokens[number]
    if kind == "gpt2":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if config["add_bos_token"]:
            content |= {"post_processor": _begin(config["bos_token"], ids)}
        content = _json(content)
    else:
        gemma = str(metadata.get("general.architecture")).startswith("gemma")
        config["tokenizer_class"] = "GemmaTokenizer" if gemma else "LlamaTokenizer"
    files = {name: content, "tokenizer_config.json": _json(config)}
    template = metadata.get("tokenizer.chat_template")
    if template:
        files["chat_template.jinja"] = template.encode("utf-8")
    return TokenizerFiles(files, ids)


def _token_ids(metadata: dict, count: int) -> dict:
    """The ids of config.json and generation_config.json."""
    ids = {}
    for ours, names in (
        ("bos_token_id", ("bos",)),
        # The end of a turn ends a response as the end of a text does.
        ("eos_token_id", ("eos", "eot")),
        ("pad_token_id", ("padding",)),
        ("unknown_token_id", ("unknown",)),
    ):
        keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
        numbers = [metadata[key] for key in keys if metadata.get(key) is not None]
        for number in numbers:
            if not 0 <= number < count:
                raise InputError(
                    f"the GGUF file's {ours}={number} is no token of its {count}; "
                    "fetch it again"
                )
        numbers = list(dict.fromkeys(numbers))
        # A config.json has no place for the last.
        if numbers and ours != "unknown_token_id":
            ids[ours] = numbers if len(numbers) > 1 else numbers[0]
    return ids


def _byte_pairs(metadata: dict, tokens: list, types: list, cut: str) -> dict:
    """A tokenizer.json's content."""
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise InputError("the GGUF file's tokenizer has no merges; fetch it again")
    # llama.cpp's "default", which it takes too where none is named, is no model's own.
    if cut in (None, "default"):
        raise InputError(
            f"tokenizer.ggml.pre is {cut or 'absent'}: how this tokenizer cuts a text "
            "is not in the GGUF file; take one that was converted after April 2024"
        )
    if cut not in _CUTS:
        raise InputError(
            f"tokenizer.ggml.pre={shown(repr(cut))}: how this tokenizer cuts a text is "
            f"not known; known are {', '.join(_CUTS)}"
        )
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise InputError("the GGUF file's tokenizer has a token twice; fetch it again")
    cuts, normalised, whole_words = _CUTS[cut]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": types[i] == _CONTROL,
            }
            for i, token in enumerate(tokens)
            if types[i] in (_CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if normalised else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
        "post_processor": None,
        "decoder": _byte_level(use_regex=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _begin(token: str, ids: dict) -> dict:
    """The post-processor that puts BOS before a text."""
    begin, text = (
        {"SpecialToken": {"id": token, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [begin, text],
        "pair": [begin, text, second],
        "special_tokens": {
            token: {"id": token, "ids": [ids["bos_token_id"]], "tokens": [token]}
        },
    }


def _pieces(metadata: dict, tokens: list, types: list) -> bytes:
    """A SentencePiece model's bytes."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) < len(tokens):
        raise InputError(
            "the GGUF file's tokenizer has no score for each token; fetch it again"
        )
    proto = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=False):
        proto.pieces.add(piece=token, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    trainer.byte_fallback = _BYTE in types
    trainer.vocab_size = len(tokens)
    for name, key in (
        ("bos", "bos"),
        ("eos", "eos"),
        ("unk", "unknown"),
        ("pad", "padding"),
    ):
        number = metadata.get(f"tokenizer.ggml.{key}_token_id")
        setattr(trainer, f"{name}_id", -1 if number is None else number)
        if number is not None:
            setattr(trainer, f"{name}_piece", tokens[number])
    normalizer.name = "identity"
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizer.add_dummy_prefix = prefix
    normalizer.remove_extra_whitespaces = bool(
        metadata.get("tokenizer.ggml.remove_extra_whitespaces", False)
    )
    normalizer.escape_whitespaces = True
    if charsmap := metadata.get("tokenizer.ggml.precompiled_charsmap"):
        if not set(charsmap) <= set(range(256)):
            raise InputError(
                "the GGUF file's precompiled_charsmap holds numbers that are no bytes; "
                "fetch it again"
            )
        normalizer.precompiled_charsmap = bytes(charsmap)
    return proto.SerializeToString()


def _json(value) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode("utf-8")
