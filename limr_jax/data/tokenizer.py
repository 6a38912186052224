"""Text ↔ tokens: `tokenizer.json` and SentencePiece `.model` behind one interface.

Everything that a checkpoint says about its tokens is read from its own files:
tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json,
in this order; where they are silent, the tokenizer's own BOS, EOS and post-processor
speak. A template is in chat_template.jinja, in tokenizer_config.json, or in
chat_template.json; the first of them counts.
A file alone, or a directory with nothing but a tokenizer, works too.

Special tokens are read as such only where a chat template wrote them, never in the
text of a problem (chat_template.py says how); which they are says vocabulary.py. Added
tokens that a checkpoint does not call special (Qwen's ``<tool_call>``) are ordinary
vocabulary and always read.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Sequence

from limr_jax.data import chat_template, tokenizer_files
from limr_jax.data.chat_template import ChatTemplate, Refusal
from limr_jax.data.vocabulary import JsonVocabulary, PieceVocabulary
from limr_jax.errors import InputError, shown

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
    template: ChatTemplate | None  # renders messages; None: plain text

    @property
    def vocab_size(self) -> int:
        """The highest id + 1."""
        return self.vocabulary.size

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that are no text: of special tokens, and of what ends a response."""
        return frozenset([*self.vocabulary.specials.values(), *self.stop_ids])

    def encode(self, text: str, continued: bool = False) -> list[int]:
        """Ids of a plain text: nothing added, no special token read.

        `continued` says that the text goes on after other tokens; no blank is then put
        before it, whatever the tokenizer does at the start of a text.
        """
        return self.encode_batch([text], continued)[0]

    def encode_batch(
        self, texts: Sequence[str], continued: bool = False
    ) -> list[list[int]]:
        """`encode` of many texts, on all cores where the library can."""
        mark = chat_template.noncharacter(texts)
        marked = [self._protected(text, mark) for text in texts]
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
        InputError: no answer can follow (`answerable`), or the template refuses them.
        """
        return self._render([messages], add_generation_prompt)[0]

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        add_generation_prompt: bool = True,
    ) -> list[list[int]]:
        """Ids of each rendered conversation.

        Special tokens are read where the template wrote them, and are plain text where
        a message has them. Without a template: the plain text, after BOS where the
        checkpoint wants one. InputError as of `chat`.
        """
        # Roles as well as contents: a data set has both, and a special token in either
        # is text.
        contents = [text for chat in chats for m in chat for text in m.values()]
        mark = chat_template.noncharacter(contents)

        def protected(message):
            return {name: self._protected(x, mark) for name, x in message.items()}

        marked = [[protected(message) for message in chat] for chat in chats]
        texts = self._render(marked, add_generation_prompt)
        rows = self._encode_marked(texts, mark, continued=False)
        # A template writes the begin token itself.
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
        if self._knows_system:
            return [{"role": "system", "content": system}, user]
        return [{"role": "user", "content": f"{system}\n\n{problem}"}]

    @functools.cached_property
    def _knows_system(self) -> bool:
        # Some templates refuse a system message, others leave it out without a word.
        probe = [{"role": "system", "content": "limr"}, {"role": "user", "content": ""}]
        try:
            return "limr" in self.chat(probe)
        except Refusal:
            return False

    def _render(self, chats, add_generation_prompt: bool) -> list[str]:
        for messages in chats if add_generation_prompt else ():
            answerable(messages, "a chat")
        if self.template is None:
            return ["\n\n".join(m["content"] for m in messages) for messages in chats]
        return self.template.render(
            chats, add_generation_prompt=add_generation_prompt, names=self._names()
        )

    def _names(self) -> dict[str, str]:
        text_of = self.vocabulary.text_of
        bos = "" if self.bos_id is None else text_of(self.bos_id)
        pad = text_of(self.pad_id)
        return {"bos_token": bos, "eos_token": text_of(self.eos_id), "pad_token": pad}

    def _protected(self, text: str, mark: str) -> str:
        """The text with marks where it is to be cut, so that no special token is read.

        Its template, if it has one, is to come; what that writes is no part of it.
        """
        specials = [x for x in self.vocabulary.specials if len(x) > 1]
        marked = chat_template.protect(text, specials, mark)
        # A normaliser makes < of its full-width form, say, and of several a token. No
        # person writes so: such a text is cut at every character.
        for piece in marked.split(mark):
            normal = self.vocabulary.normalised(piece)
            if normal != piece and any(special in normal for special in specials):
                return mark.join(text)
        return marked

    def _encode_marked(self, marked, mark, continued) -> list[list[int]]:
        # Only a text's first piece is the start of a text: a tokenizer's blank before
        # any other would be in the middle of it. Two calls for all, for the library's
        # threads.
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
    file = tokenizer_files.find(path)
    directory = file.parent
    config = tokenizer_files.read(directory / "tokenizer_config.json")
    # From the most telling file to the least; a later one never overrules.
    token_files = [config, tokenizer_files.read(directory / "special_tokens_map.json")]
    models = ("generation_config.json", "config.json")
    numbers = [tokenizer_files.read(directory / name) for name in models]
    make = JsonVocabulary if file.suffix == ".json" else PieceVocabulary
    added = tokenizer_files.added_tokens(directory, config)
    vocabulary = make(
        file,
        added,
        special=tokenizer_files.special_texts(token_files),
        ends=tokenizer_files.end_ids(numbers),
    )

    specials = vocabulary.specials

    def find(kind, names, default):
        for source in token_files:
            text = tokenizer_files.content_of(source.get(f"{kind}_token"))
            # null and "" name no token; a later file still may.
            if text not in (None, ""):
                return _known(
                    vocabulary, text, what=f"{kind}_token", directory=directory
                )
        for source in numbers:
            ids = _ids(
                source.get(f"{kind}_token_id"),
                vocabulary,
                kind=kind,
                directory=directory,
            )
            if ids:
                # Of several end tokens the first; `stop_ids` gets all of them.
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
    # Without one the end token fills arrays: no mask ever rests on it.
    pad = find("pad", _PAD_NAMES, None)
    add_bos = tokenizer_files.flag(directory, config, "add_bos_token")
    tokenizer = Tokenizer(
        vocabulary=vocabulary,
        bos_id=bos,
        eos_id=eos,
        pad_id=eos if pad is None else pad,
        stop_ids=(),  # set below, by rendering with this very tokenizer
        # Where the configuration says nothing, the file's own begin token is meant.
        add_bos=vocabulary.bos_id is not None if add_bos is None else add_bos,
        template=tokenizer_files.read_template(directory, config, vocabulary.specials),
    )
    stops = [eos, *_end_of_turn(tokenizer)]
    for source in numbers:
        stops += _ids(
            source.get("eos_token_id"), vocabulary, kind="eos", directory=directory
        )
    # A tokenizer alone names no end: whatever is usually one ends a response.
    if not any(token_files) and not any(numbers):
        stops += [specials[name] for name in _END_NAMES if name in specials]
    return dataclasses.replace(tokenizer, stop_ids=tuple(dict.fromkeys(stops)))


def _known(vocabulary, text, what: str, directory) -> int:
    token = vocabulary.id_of(text) if isinstance(text, str) else None
    if token is None:
        raise InputError(
            f"{directory}: the {what} {shown(repr(text))} is not in the tokenizer's "
            "vocabulary; take tokenizer and configuration from the same checkpoint"
        )
    return token


def _ids(value, vocabulary, kind: str, directory) -> list[int]:
    """The ids that config.json gives: none (null or -1), one, or a list of them."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    ids = [token for token in ids if token != -1]
    for token in ids:
        # Not isinstance, to which True is an int.
        if type(token) is not int or not 0 <= token < vocabulary.size:
            raise InputError(
                f"{directory}: the {kind}_token_id {shown(repr(token))} is not below "
                f"the tokenizer's vocabulary size {vocabulary.size}; take tokenizer "
                "and configuration from the same checkpoint"
            )
        # Ids may have gaps, between a vocabulary and tokens added behind it.
        if vocabulary.text_of(token) is None:
            raise InputError(
                f"{directory}: the {kind}_token_id {token} is no token of the "
                "vocabulary; take tokenizer and configuration from the same checkpoint"
            )
    return ids


def answerable(messages: Sequence[Message], where: str) -> None:
    """InputError unless the messages end so that an assistant's answer follows.

    A template would close an assistant's last message and open a second one.
    """
    role = messages[-1]["role"].strip().lower() if messages else ""
    # "model" is what Gemma calls the assistant; "developer" is another system.
    if role in ("assistant", "model", "system", "developer"):
        raise InputError(
            f"{where} ends with the {role}'s message, which no answer follows; end it "
            "with the user's"
        )


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
    except Refusal:
        return []
    specials = tokenizer.vocabulary.specials
    names = [name for name in specials if tail.startswith(name)]
    # The longest: the text of one special token may begin another's.
    return [specials[max(names, key=len)]] if names else []
