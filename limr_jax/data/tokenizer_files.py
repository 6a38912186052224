"""The files of a checkpoint that describe its tokens, read.

A file that is there and cannot be read is an error; an absent one says nothing.
"""

import pathlib
from collections.abc import Mapping, Sequence

from limr_jax.data import chat_template, jsonl
from limr_jax.data.chat_template import ChatTemplate
from limr_jax.data.vocabulary import Added
from limr_jax.errors import InputError, shown

_FLAGS = ("special", "lstrip", "rstrip", "single_word")


def find(path: pathlib.Path) -> pathlib.Path:
    """The tokenizer's file: the path itself, or the one in the directory.

    Raises:
      InputError: there is none, or several and none of them is tokenizer.json.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; give a tokenizer's path")
    for name in ("tokenizer.json", "tokenizer.model"):
        # A link to nothing is taken, too: reading it says what is wrong.
        if (path / name).is_file() or (path / name).is_symlink():
            return path / name
    models = sorted(path.glob("*.model"))
    if len(models) == 1:
        return models[0]
    raise InputError(
        f"{path}: {len(models)} files *.model and no tokenizer.json; give the path of "
        "the tokenizer's file itself"
    )


def read(path: pathlib.Path) -> dict:
    """The object that a JSON file holds; empty for an absent file."""
    return jsonl.read_object(path) if path.exists() or path.is_symlink() else {}


def flag(directory, config: Mapping, name: str) -> bool | None:
    """A flag of tokenizer_config.json; None where it is absent or null.

    Raises:
      InputError: it is something else than true or false.
    """
    value = config.get(name)
    if not isinstance(value, bool | None):
        raise InputError(
            f"{directory}: {name}={shown(repr(value))} is neither true nor false; mend "
            "tokenizer_config.json"
        )
    return value


def content_of(token):
    """The text of a token, which is written as itself or as an object's `content`."""
    return token.get("content") if isinstance(token, dict) else token


def added_tokens(directory, config: Mapping) -> list[Added]:
    """The tokens that tokenizer_config.json adds, then those of added_tokens.json.

    Raises:
      InputError: an entry is no token, or has another's id or text.
    """
    written = config.get("added_tokens_decoder") or {}
    older = read(directory / "added_tokens.json")
    if not isinstance(written, dict):
        raise InputError(f"{directory}: added_tokens_decoder is no object; mend it")
    entries = [(i, t if isinstance(t, dict) else {}) for i, t in written.items()]
    named = {str(entry.get("content")) for _, entry in entries}
    # tokenizer_config.json goes before the older file, as in transformers.
    entries += [(i, {"content": t}) for t, i in older.items() if t not in named]
    added, texts = {}, set()
    for i, entry in entries:
        content = entry.get("content")
        # int() reads no text of thousands of digits; ids have at most eight.
        number = int(i) if str(i).isdecimal() and len(str(i)) < 9 else -1
        if number < 0 or not isinstance(content, str) or not content:
            raise InputError(
                f"{directory}: the added token {shown(repr(i))}: "
                f"{shown(repr(content))} is none; give an id and a text"
            )
        if number in added or content in texts:
            raise InputError(
                f"{directory}: the added token {number}: {shown(repr(content))} has "
                "the id or the text of another; take all files from one checkpoint"
            )
        texts.add(content)
        added[number] = Added(
            number, content, **{name: entry.get(name) is True for name in _FLAGS}
        )
    return list(added.values())


def special_texts(sources: Sequence[Mapping]) -> set[str]:
    """The texts of all tokens that the files' fields `…_token` name as special.

    sources: the objects of tokenizer_config.json and special_tokens_map.json.
    """
    names = set()
    for source in sources:
        for key, value in source.items():
            several = key in ("additional_special_tokens", "extra_special_tokens")
            if key.endswith("_token") or several:
                tokens = value if isinstance(value, list) else [value]
                # `add_bos_token` ends like a token as well, but holds no text.
                names |= {t for t in map(content_of, tokens) if isinstance(t, str)}
    return names


def end_ids(sources: Sequence[Mapping]) -> set[int]:
    """The ids that end a response, of the files that give numbers; only what is an id.

    sources: the objects of generation_config.json and config.json.
    """
    values = (source.get("eos_token_id") for source in sources)
    several = (x if isinstance(x, list) else [x] for x in values)
    # `load_tokenizer` refuses what is no id, and one that no token has.
    return {i for ids in several for i in ids if type(i) is int and 0 <= i < 2**32}


def read_template(directory, config: dict, specials: Mapping) -> ChatTemplate | None:
    """The checkpoint's chat template, from where transformers looks for it first.

    config: of tokenizer_config.json. specials: text → id. None: there is no template,
    and no tokens of Qwen's format, which is taken then.
    """
    file = directory / "chat_template.jinja"
    if file.exists() or file.is_symlink():
        try:
            return ChatTemplate(jsonl.read_bytes(file).decode("utf-8"), str(file))
        except UnicodeDecodeError as error:
            raise InputError(
                f"{file}: not UTF-8 (byte at {error.start}); fetch the file again"
            ) from None
    older = directory / "chat_template.json"
    for where, content in (
        (directory / "tokenizer_config.json", config),
        (older, read(older)),
    ):
        source = content.get("chat_template")
        if source is not None:
            return ChatTemplate(_default(source, where), str(where))
    if {"<|im_start|>", "<|im_end|>"} <= specials.keys():
        return ChatTemplate(chat_template.CHATML, "Qwen's format")
    return None


def _default(source, where) -> str:
    """The template's text; of several, by name, the one called default."""
    # Several are a list of {name, template} in some files, an object in others.
    if isinstance(source, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in source]
        source = {str(e.get("name")): e.get("template") for e in entries}
    if isinstance(source, dict):
        if "default" not in source:
            raise InputError(
                f"{where}: of the chat templates ({shown(', '.join(source))}) none is "
                "called default; call one so"
            )
        source = source["default"]
    if not isinstance(source, str):
        raise InputError(f"{where}: the chat template is not a text; fetch it again")
    return jsonl.text_value(source, f"{where}: the chat template")
