"""The two kinds of vocabulary, `tokenizer.json` and SentencePiece, with one face.

Each has `specials` (text → id of the tokens that are never ordinary text), `size` (the
highest id + 1), its own `bos_id` and `eos_id` or None, `id_of`, `text_of`, `encode` of
many texts, special tokens read, `decode`, special tokens written, and `normalised`, a
text as its tokens are looked for in it.

A token is special if its entry, or a field of the configuration that is a token's name,
calls it so, or if it ends a response; be it a piece that the vocabulary has for texts.
Only a single character stays what it is to texts: nothing else could write it.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from limr_jax.data.jsonl import read_bytes
from limr_jax.errors import InputError, shown

_PIECE = sentencepiece_model_pb2.ModelProto.SentencePiece
# Kinds of pieces that a text may be read as, or that nothing reads.
_ORDINARY = (_PIECE.NORMAL, _PIECE.USER_DEFINED, _PIECE.UNUSED)
_LARGEST = 2**24  # a hundred times the largest vocabulary there is
_GROWTH = 10_000  # what a normaliser or a decoder may make of one character
_UNKNOWN = "\U000f1234"  # no vocabulary has it
# The process has one stderr: one thread at a time may put another in its place.
_STDERR = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Added:
    """A token that a checkpoint's configuration adds to its vocabulary."""

    id: int
    content: str
    special: bool = False  # never ordinary text
    lstrip: bool = False  # takes the blanks before it with it
    rstrip: bool = False
    single_word: bool = False  # never a part of a longer word


class JsonVocabulary:
    """A tokenizer.json, by the library `tokenizers`.

    added: tokens of the configuration; those that the file lacks come after its own, as
    in transformers. special: texts of tokens that are special whatever the file says of
    them, since the configuration has them as its end token, say; ends: ids of such.
    Raises InputError where the file cannot be read, or has another id for a token.
    """

    def __init__(
        self,
        path: pathlib.Path,
        added: Sequence[Added],
        special: set[str],
        ends: set[int],
    ):
        self.path = path
        try:
            text = read_bytes(path).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: not UTF-8 (byte {error.object[error.start]:#04x} at "
                f"{error.start}); fetch the file again"
            ) from None
        with self._named("not a tokenizer.json"):
            self.library = _library(text)
            written = json.loads(text)
            inner = _within(written)
            # What follows other tokens is not the start of a text: no blank there.
            self.inner = (
                # One object where the two would do the same.
                self.library if inner == written else _library(json.dumps(inner))
            )
        # By id: the library numbers them on from its own highest.
        with self._named("cannot take a token of the configuration"):
            for token in sorted(added, key=lambda token: token.id):
                self._add(token)
        self.size = self._checked_size(written)
        entries = {token.content: token for token in added}
        special = special | {text for text, token in entries.items() if token.special}
        with self._named("cannot take a special token of the configuration"):
            named = ends | {self.id_of(text) for text in special}
            for token in named - self.library.get_added_tokens_decoder().keys():
                self._set_apart(token, entries)
        tokens = self.library.get_added_tokens_decoder()
        special = special | {
            t.content for i, t in tokens.items() if t.special or i in ends
        }
        self.specials = {
            t.content: i for i, t in tokens.items() if t.content in special
        }
        with self._named("its post-processor fails"):
            self.bos_id = self._first()
        if self.bos_id is not None and self.text_of(self.bos_id) is None:
            raise InputError(
                f"{self.path}: its post-processor puts the id {self.bos_id} before a "
                "text, which is no token; fetch it again"
            )
        # A tokenizer.json does not say which token ends a text.
        self.eos_id = None

    def _add(self, token: Added) -> None:
        # Where the file has it, what the file says of it counts.
        if self.id_of(token.content) is None:
            self._add_to_library(token)
        _check_id(self.path, token, self.id_of(token.content))

    def _set_apart(self, token: int | None, entries: Mapping[str, Added]) -> None:
        """Make a special word of the vocabulary an added token, which `protect` finds.

        token: its id; None, or an id of nothing, is refused where it is used. entries:
        text → what the configuration says of it.
        """
        text = None if token is None else self.text_of(token)
        # A letter stays one, and so does what is written otherwise than it reads, such
        # as "Ġthe" for " the".
        if text is not None and len(text) > 1 and self.decode([token]) == text:
            entry = entries.get(text, Added(token, text))
            self._add_to_library(dataclasses.replace(entry, special=True))

    def _add_to_library(self, token: Added) -> None:
        library_token = tokenizers.AddedToken(
            token.content,
            single_word=token.single_word,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            normalized=False,  # read in the text as it was written
            special=token.special,
        )
        self.library.add_tokens([library_token])
        if self.inner is not self.library:
            self.inner.add_tokens([library_token])

    def _checked_size(self, written: dict) -> int:
        """The highest id + 1.

        InputError unless each token has its one id and any text can be encoded.
        """
        ids = self.library.get_vocab().values()
        if not ids:
            raise InputError(f"{self.path}: its vocabulary is empty; fetch it again")
        if max(ids) >= _LARGEST:
            raise InputError(
                f"{self.path}: the id {max(ids)} is beyond {_LARGEST}; fetch it again"
            )
        if len(set(ids)) < len(ids):
            raise InputError(f"{self.path}: two tokens have one id; fetch it again")
        for entry in written.get("added_tokens") or ():
            token = Added(entry["id"], entry["content"])
            # The library numbers added tokens on, whatever the file says.
            _check_id(self.path, token, self.id_of(token.content))
        with self._named("cannot encode every text"):
            # Where an unknown character has no token, it fails here and not at some
            # problem.
            self.library.encode(_UNKNOWN)
            self.inner.encode(_UNKNOWN)
        return 1 + max(ids)

    def _first(self) -> int | None:
        """The token that the file's own post-processor puts before a text."""
        # The first that has a token will do: a vocabulary may lack letters, or digits.
        for text in ("1", "a", "."):
            plain = self.library.encode(text, add_special_tokens=False).ids
            outer = self.library.encode(text, add_special_tokens=True).ids
            if plain:
                # T5 puts a token behind the text only: that one begins nothing.
                return outer[0] if outer[: len(plain)] != plain else None
        outer = self.library.encode("", add_special_tokens=True).ids
        return outer[0] if outer else None

    def id_of(self, text: str) -> int | None:
        """The id of a token by its text; None: there is no such token."""
        return self.library.token_to_id(text)

    def text_of(self, token: int) -> str | None:
        """The text of a token by its id; None: no token has it."""
        return self.library.id_to_token(token)

    def encode(self, texts: Sequence[str], continued: bool) -> list[list[int]]:
        """The ids of each text; `continued`: it goes on after other tokens."""
        library = self.inner if continued else self.library
        with self._named("cannot encode a text"):
            # "fast" keeps no offsets, which nobody reads here.
            rows = library.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]

    def normalised(self, text: str) -> str:
        """The text as the file's normaliser leaves it, before its words are found."""
        if self.library.normalizer is None:
            return text
        with self._named("cannot encode a text"):
            return self.library.normalizer.normalize_str(text)

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, special tokens written out."""
        return self.library.decode(ids, skip_special_tokens=False)

    @contextlib.contextmanager
    def _named(self, problem: str) -> Iterator[None]:
        """What the library raises as an InputError, and not a word of its own."""
        try:
            with _held_back():
                yield
        except (KeyboardInterrupt, SystemExit, InputError):
            raise
        except BaseException as error:  # Exception itself, or a panic, which is none
            raise InputError(
                f"{self.path}: {problem} ({shown(error, limit=200)}); give the file "
                "that came with the checkpoint"
            ) from None


def _library(text: str) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer.from_str(text)
    library.no_truncation()
    library.no_padding()
    if isinstance(library.model, tokenizers.models.BPE):
        library.model.dropout = None  # each reading of a text would be another
    return library


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Keeps what is written to stderr meanwhile, and drops it if anything is raised.

    A panic of the library writes a page there, past Python.
    """
    with _STDERR, tempfile.TemporaryFile() as kept, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # there is none
            stderr = os.dup(2)
            # Undone from the last to the first: stderr is put back, then its copy is
            # closed.
            stack.callback(os.close, stderr)
            stack.callback(os.dup2, stderr, 2)
            os.dup2(kept.fileno(), 2)
        yield
        # Before what was kept is written, or it would be written to the file again.
        stack.close()
        kept.seek(0)
        if written := kept.read():
            os.write(2, written)


def _within(written: dict) -> dict:
    """A tokenizer.json that does to a text what it does within one: nothing before it.

    ValueError: a normaliser or a decoder may blow a text up beyond all bounds.
    """
    for key in ("normalizer", "decoder"):
        if (growth := _growth(written.get(key))) > _GROWTH:
            raise ValueError(f"its {key} makes {growth:,.0f} characters of one")
    parts = ("normalizer", "pre_tokenizer")
    return written | {key: _not_at_start(written.get(key)) for key in parts}


def _growth(part: dict | None) -> float:
    """How many characters become of one at most."""
    kind = (part or {}).get("type")
    if kind == "Sequence":
        # Its list is "normalizers", "pretokenizers" or "decoders".
        parts = next(value for value in part.values() if isinstance(value, list))
        return math.prod(map(_growth, parts))
    if kind != "Replace":
        return 1
    replaced = part["pattern"].get("String", "")  # a regular expression may match none
    # An empty match puts the content beside each character, which stays.
    return max(1, (len(part["content"]) + (not replaced)) / max(1, len(replaced)))


def _not_at_start(part: dict | None) -> dict | None:
    """A normaliser or pre-tokeniser that leaves the start of a text alone, or None."""
    kind = (part or {}).get("type")
    if kind == "Sequence":
        key = next(key for key, value in part.items() if isinstance(value, list))
        parts = [kept for each in part[key] if (kept := _not_at_start(each))]
        return part | {key: parts}
    if kind == "Prepend":
        return None
    if kind == "Replace" and part["pattern"].get("Regex", "").startswith(("^", "\\A")):
        return None
    if kind == "Metaspace":
        # Older files have this flag in place of a scheme, which it would contradict.
        older = ("add_prefix_space",)
        part = {key: value for key, value in part.items() if key not in older}
        return part | {"prepend_scheme": "never"}
    if kind == "ByteLevel":
        return part | {"add_prefix_space": False}
    if kind == "Strip":
        return part | {"strip_left": False}
    return part


class PieceVocabulary:
    """A SentencePiece model, with the tokens that the configuration adds to it.

    added, special, ends: as of `JsonVocabulary`, and so what it raises.
    """

    def __init__(
        self,
        path: pathlib.Path,
        added: Sequence[Added],
        special: set[str],
        ends: set[int],
    ):
        self.path, data = path, read_bytes(path)
        special = special | {t.content for t in added if t.special}
        ends = ends | {t.id for t in added if t.special}
        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(data)
            if not proto.pieces:
                raise ValueError("it holds no pieces")
            # SentencePiece reads no control piece in a text, whatever its normaliser
            # makes of that, and any other piece wherever it stands.
            for i, piece in enumerate(proto.pieces):
                named = i in ends or piece.piece in special
                if named and len(piece.piece) > 1 and piece.type in _ORDINARY:
                    piece.type = _PIECE.CONTROL
            self.start = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )
            # What follows a special token is not the start of a text: no blank there.
            proto.normalizer_spec.add_dummy_prefix = False
            self.inner = sentencepiece.SentencePieceProcessor(
                model_proto=proto.SerializeToString()
            )
            pieces = range(len(self.start))
            own = {self.start.id_to_piece(i): i for i in pieces}
        except Exception as error:  # protobuf's and SentencePiece's share no base.
            raise InputError(
                f"{path}: not a SentencePiece model ({shown(error, limit=200)}); give "
                "the file that came with the checkpoint"
            ) from None
        for token in added:
            _check_id(path, token, own.get(token.content, token.id))
        # Control pieces (<s>) are not read in a problem, which is right, but a template
        # writes them: they are cut out before SentencePiece has the text.
        control = [i for i in pieces if self.start.is_control(i)]
        tokens = [Added(i, self.start.id_to_piece(i), special=True) for i in control]
        # SentencePiece itself keeps user-defined pieces whole; others it would take
        # apart.
        whole = {i for i in pieces if proto.pieces[i].type == _PIECE.USER_DEFINED}
        tokens += [t for t in added if t.special or t.id not in whole]
        # Of two entries the later one, from the configuration, as it has the flags.
        tokens = list({t.content: t for t in tokens}.values())
        self.ids = own | {t.content: t.id for t in tokens}
        self.texts = {t.id: t.content for t in tokens}
        special = special | {t.content for t in tokens if t.special or t.id in ends}
        self.specials = {t.content: t.id for t in tokens if t.content in special}
        self.size = 1 + max(self.ids.values())
        self.bos_id = _or_none(self.start.bos_id())
        self.eos_id = _or_none(self.start.eos_id())
        # Longest first, for a regular expression takes the first alternative that fits;
        # each is a group, whose number says which token it was.
        self.tokens = sorted(tokens, key=lambda token: -len(token.content))
        self.split = re.compile("|".join(map(_pattern, self.tokens)))

    def id_of(self, text: str) -> int | None:
        """The id of a token by its text; None: there is no such token."""
        return self.ids.get(text)

    def text_of(self, token: int) -> str | None:
        """The text of a token by its id; None: no token has it."""
        if token in self.texts or token >= len(self.start):
            return self.texts.get(token)
        return self.start.id_to_piece(token)

    def encode(self, texts: Sequence[str], continued: bool) -> list[list[int]]:
        """The ids of each text; `continued`: it goes on after other tokens."""
        try:
            return [self._encode_one(text, continued) for text in texts]
        except UnicodeEncodeError as error:
            raise InputError(
                f"{self.path}: cannot encode a text ({error}); take that out"
            ) from None

    def _encode_one(self, text: str, continued: bool) -> list[int]:
        ids, place = [], 0
        for match in self.split.finditer(text) if self.tokens else ():
            ids += self._plain(text[place : match.start()], continued or place > 0)
            ids.append(self.tokens[match.lastindex - 1].id)
            place = match.end()
        return ids + self._plain(text[place:], continued or place > 0)

    def _plain(self, text: str, continued: bool) -> list[int]:
        return (self.inner if continued else self.start).encode(text) if text else []

    def normalised(self, text: str) -> str:
        """The text itself: special tokens are cut out before SentencePiece has it."""
        return text

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, special tokens written out."""
        # Runs of pieces between special tokens, which SentencePiece would leave out.
        out, run, library = [], [], self.start
        for token in ids:
            if token in self.texts:
                out += [library.decode(run), self.texts[token]]
                # Behind a token the text goes on: its first blank is its own, where
                # `start` would take it for the one that it puts there.
                run, library = [], self.inner
            elif token < len(self.start):  # an id between added tokens is nobody's
                run.append(token)
        return "".join([*out, library.decode(run)])


def _check_id(path, token: Added, actual: int) -> None:
    """InputError unless the vocabulary has the token at the id that a file says."""
    if actual != token.id:
        raise InputError(
            f"{path}: the token {shown(token.content)!r} is to have the id {token.id}, "
            f"but the vocabulary has it at {actual}; take tokenizer and configuration "
            "from the same checkpoint"
        )


def _pattern(token: Added) -> str:
    """A group that matches the token where it stands in a text."""
    left, right = (r"\s*" * strips for strips in (token.lstrip, token.rstrip))
    edges = (r"(?<!\w)", r"(?!\w)") if token.single_word else ("", "")
    return f"({left}{edges[0]}{re.escape(token.content)}{edges[1]}{right})"


def _or_none(token: int) -> int | None:
    return None if token < 0 else token
