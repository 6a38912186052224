"""Text ↔ tokens: `tokenizer.json` and SentencePiece `.model` behind one interface.

Everything that a checkpoint says about its tokens is read from its own files:
tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json,
in this order; where they are silent, the tokenizer's own BOS, EOS and post-processor
speak.
A file alone, or a directory with nothing but a tokenizer, works too.

Special tokens are read as such only where a chat template wrote them, never in the
text of a problem (chat_template.py says how). Added tokens that a checkpoint does not
call special (Qwen's ``<tool_call>``) are ordinary vocabulary and always read.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence

import jinja2

from limr_jax import chat_template
from limr_jax.errors import InputError
from limr_jax.vocabulary import JsonVocabulary, PieceVocabulary, one_line, read_bytes

Message = dict[str, str]

# Names that mean end or begin of text wherever they occur, the more telling first.
_END_NAMES = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<eos>",
    "</s>",
)
_BEGIN_NAMES = ("<|begin_of_text|>", "<bos>", "<s>")
_PAD_NAMES = ("<|endoftext|>", "<pad>", "<|finetune_right_pad_id|>", "[PAD]")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text ↔ ids of one checkpoint. Made by `load_tokenizer`."""

    vocabulary: JsonVocabulary | PieceVocabulary
    bos_id: int | None  # the begin token, if there is one
    eos_id: int  # the end token: what a finished response ends with
    pad_id: int  # fills arrays; masks never rest on it
    stop_ids: tuple[int, ...]  # any of them ends a response; eos_id is the first
    add_bos: bool  # a plain prompt starts with bos_id
    template: jinja2.Template | None  # renders messages; None: plain text

    @property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        return self.vocabulary.size

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.vocabulary.specials.values())

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Ids of a plain text: nothing added, no special token read.

        `continued` says that the text goes on after other tokens; SentencePiece then
        puts no blank before it.
        """
        return self.encode_batch([text], continued)[0]

    def encode_batch(
        self, texts: Sequence[str], continued: bool = False
    ) -> list[list[int]]:
        """`encode` of many texts, on all cores where the library can."""
        mark = chat_template.noncharacter(texts)
        specials = self.vocabulary.specials
        marked = [chat_template.protect(text, specials, mark) for text in texts]
        return self._encode_marked(marked, mark, continued)

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of ids; special tokens are left out unless `special`.

        Ids that the tokenizer does not have (a model's vocabulary may be rounded up)
        are nothing. Bytes that are no UTF-8 come out as U+FFFD.
        """
        known = [int(i) for i in ids if 0 <= i < self.vocab_size]
        if not special:
            leave_out = self.special_ids
            known = [i for i in known if i not in leave_out]
        return self.vocabulary.decode(known)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True
    ) -> str:
        """The messages as the text that the model reads, special tokens written out.

        To encode it use `encode_chats`: in this text a special token that a user wrote
        looks like one that the template wrote.
        """
        if self.template is None:
            return "\n\n".join(message["content"] for message in messages)
        try:
            return chat_template.render(
                self.template, messages, add_generation_prompt, **self._names()
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"the chat template refuses the messages ({one_line(error)}); give "
                "roles in the order that it wants"
            ) from None

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        add_generation_prompt: bool = True,
    ) -> list[list[int]]:
        """Ids of each rendered conversation.

        Special tokens are read where the template wrote them, and are plain text where
        a message has them. Without a template: the plain text, after BOS where the
        checkpoint wants one.
        """
        contents = [m["content"] for messages in chats for m in messages]
        mark = chat_template.noncharacter(contents)
        specials = self.vocabulary.specials
        marked = [
            self.chat(
                [
                    m | {"content": chat_template.protect(m["content"], specials, mark)}
                    for m in c
                ],
                add_generation_prompt,
            )
            for c in chats
        ]
        rows = self._encode_marked(marked, mark, continued=False)
        if self.template is None and self.add_bos and self.bos_id is not None:
            rows = [[self.bos_id, *row] for row in rows]
        return rows

    def math_messages(self, problem: str):
        """A problem as messages: LIMR's system prompt, then the problem.

        Without a template the problem alone. A template that knows no system prompt
        (Gemma's) gets it at the head of the user's message.
        """
        user = {"role": "user", "content": problem}
        system = chat_template.LIMR_SYSTEM
        if self.template is None:
            return [user]
        if self._knows_system():
            return [{"role": "system", "content": system}, user]
        return [{"role": "user", "content": f"{system}\n\n{problem}"}]

    def _knows_system(self) -> bool:
        probe = [{"role": "system", "content": "limr"}, {"role": "user", "content": ""}]
        try:
            return "limr" in chat_template.render(
                self.template, probe, True, **self._names()
            )
        except jinja2.TemplateError:
            return False

    def _names(self) -> dict[str, str]:
        text_of = self.vocabulary.text_of
        bos = "" if self.bos_id is None else text_of(self.bos_id)
        pad = text_of(self.pad_id)
        return {"bos_token": bos, "eos_token": text_of(self.eos_id), "pad_token": pad}

    def _encode_marked(self, marked, mark, continued) -> list[list[int]]:
        pieces = [text.split(mark) for text in marked]
        heads = self.vocabulary.encode([p[0] for p in pieces], continued)
        tails = self.vocabulary.encode([t for p in pieces for t in p[1:]], True)
        rows, tail = [], iter(tails)
        for head, piece in zip(heads, pieces, strict=True):
            rows.append(sum((next(tail) for _ in piece[1:]), start=list(head)))
        return rows


def load_tokenizer(path) -> Tokenizer:
    """The tokenizer of a checkpoint directory, or of one file.

    InputError names the file, what is wrong with it, and the remedy.
    """
    path = pathlib.Path(path)
    file = _find(path)
    directory = file.parent
    config = _read_json(directory / "tokenizer_config.json")
    # From the most telling file to the least; a later one never overrules.
    said = [config, _read_json(directory / "special_tokens_map.json")]
    models = ("generation_config.json", "config.json")
    numbers = [_read_json(directory / name) for name in models]
    if file.suffix == ".json":
        vocabulary = JsonVocabulary(file)
    else:
        vocabulary = PieceVocabulary(file, _added_tokens(config))

    specials = vocabulary.specials

    def find(kind, names, default):
        for source in said:
            text = _content(source.get(f"{kind}_token"))
            if text is not None:
                return _known(vocabulary, text, f"{kind}_token", directory)
        for source in numbers:
            ids = _ids(source.get(f"{kind}_token_id"), vocabulary, kind, directory)
            if ids:
                return ids[0]
        if default is not None:
            return default
        return next((specials[name] for name in names if name in specials), None)

    bos = find("bos", _BEGIN_NAMES, vocabulary.bos_id)
    eos = find("eos", _END_NAMES, vocabulary.eos_id)
    if eos is None:
        raise InputError(
            f'{file}: no end token is known; put {{"eos_token": ...}} into a '
            "tokenizer_config.json beside it"
        )
    pad = find("pad", _PAD_NAMES, None)
    add_bos = config.get("add_bos_token")
    tokenizer = Tokenizer(
        vocabulary=vocabulary,
        bos_id=bos,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        stop_ids=(),
        add_bos=vocabulary.bos_id is not None if add_bos is None else bool(add_bos),
        template=_template(directory, config, vocabulary),
    )
    stops = [eos, *_end_of_turn(tokenizer)]
    for source in numbers:
        stops += _ids(source.get("eos_token_id"), vocabulary, "eos", directory)
    if not any(said) and not any(numbers):
        stops += [specials[name] for name in _END_NAMES if name in specials]
    return dataclasses.replace(tokenizer, stop_ids=tuple(dict.fromkeys(stops)))


def _find(path: pathlib.Path) -> pathlib.Path:
    """The tokenizer's file: the path itself, or the one in the directory."""
    if path.is_file():
        return path
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; give a tokenizer's path")
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    models = sorted(path.glob("*.model"))
    if len(models) == 1:
        return models[0]
    raise InputError(
        f"{path}: {len(models)} files *.model and no tokenizer.json; give the path of "
        "the tokenizer's file itself"
    )


def _read_json(path: pathlib.Path) -> dict:
    """What a JSON file says; an absent file says nothing."""
    if not path.exists():
        return {}
    try:
        said = json.loads(read_bytes(path))
    except ValueError as error:
        raise InputError(
            f"{path}: not JSON ({error}); fetch the file again or remove it"
        ) from None
    if not isinstance(said, dict):
        raise InputError(f"{path}: holds no JSON object; fetch the file again")
    return said


def _content(token) -> str | None:
    """A token is written as its text or as an object with its text."""
    return token.get("content") if isinstance(token, dict) else token


def _known(vocabulary, text, what: str, directory) -> int:
    token = vocabulary.id_of(text) if isinstance(text, str) else None
    if token is None:
        raise InputError(
            f"{directory}: the {what} {text!r} is not in the tokenizer's vocabulary; "
            "take tokenizer and configuration from the same checkpoint"
        )
    return token


def _ids(said, vocabulary, kind: str, directory) -> list[int]:
    """The ids that config.json gives: none, one, or a list."""
    ids = said if isinstance(said, list) else [] if said is None else [said]
    for token in ids:
        if not isinstance(token, int) or not 0 <= token < vocabulary.size:
            raise InputError(
                f"{directory}: the {kind}_token_id {token!r} is not below the "
                f"tokenizer's vocabulary size {vocabulary.size}; take tokenizer and "
                "configuration from the same checkpoint"
            )
    return ids


def _added_tokens(config: dict) -> dict[str, int]:
    """The special tokens that tokenizer_config.json adds, text → id."""
    added = config.get("added_tokens_decoder", {})
    return {t["content"]: int(i) for i, t in added.items() if t.get("special")}


def _template(directory, config: dict, vocabulary) -> jinja2.Template | None:
    file = directory / "chat_template.jinja"
    if file.exists():
        return chat_template.compile_template(
            read_bytes(file).decode("utf-8", "replace"), str(file)
        )
    source = config.get("chat_template")
    if isinstance(source, list):  # Several, by name.
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    if source is not None:
        where = str(directory / "tokenizer_config.json")
        return chat_template.compile_template(source, where)
    if {"<|im_start|>", "<|im_end|>"} <= vocabulary.specials.keys():
        return chat_template.compile_template(chat_template.CHATML, "Qwen's format")
    return None


def _end_of_turn(tokenizer: Tokenizer) -> list[int]:
    """The special token that the template writes right after an answer."""
    if tokenizer.template is None:
        return []
    turns = [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "answer"},
    ]
    try:
        tail = tokenizer.chat(turns, False).rpartition("answer")[2].lstrip()
    except InputError:
        return []
    specials = tokenizer.vocabulary.specials
    names = [name for name in specials if tail.startswith(name)]
    return [specials[max(names, key=len)]] if names else []
