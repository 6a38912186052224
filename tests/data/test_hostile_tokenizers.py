r"""Tokenizer files made to hurt: each is one line, or is read aright.

Made by mutation of a small checkpoint, sorted by what is wrong with them.
"""

import io
import json
import os

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors

from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError

WORDS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
CHAT = [{"role": "user", "content": "one + two </s> é 漢"}]


def base() -> dict:
    """A byte-level BPE with six special tokens, as its tokenizer.json."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*WORDS, *letters])}
    library = tokenizers.Tokenizer(models.BPE(vocab, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(WORDS)
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return json.loads(library.to_str())


BASE = base()
CONFIG = {"eos_token": "</s>", "pad_token": "<pad>"}


def write(folder, tokenizer=BASE, **files):
    """tokenizer.json and what is beside it; bytes and texts as they are."""
    for name, content in {"tokenizer.json": tokenizer, **files}.items():
        if isinstance(content, str):
            content = content.encode()
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        (folder / name).write_bytes(content)


def changed(**changes):
    return lambda folder: write(folder, BASE | changes)


def model(**changes):
    return changed(model=BASE["model"] | changes)


def other_model(kind, vocab, **more):
    """The same tokens by another algorithm."""
    made = {"type": kind, "vocab": vocab} | more
    return changed(model=made, pre_tokenizer=None, decoder=None, added_tokens=[])


def raw(change):
    """The bytes of tokenizer.json, changed."""
    return lambda folder: write(folder, change(json.dumps(BASE).encode()))


def added(**changes):
    """The last special token's entry, changed."""
    tokens = BASE["added_tokens"]
    return changed(added_tokens=[*tokens[:-1], tokens[-1] | changes])


def beside(name, content):
    return lambda folder: write(folder, **{name: content})


def config(**changes):
    return beside("tokenizer_config.json", CONFIG | changes)


def generation(**said):
    return beside("generation_config.json", said)


def decoder(entries):
    return config(added_tokens_decoder=entries)


def instead(make):
    """A tokenizer.json that is no file."""
    return lambda folder: make(folder / "tokenizer.json")


def growing(times):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    return {"type": "Sequence", "normalizers": [step] * times}


def template(source):
    return config(chat_template=source)


VOCAB = {token: i for i, token in enumerate([*WORDS, *"on+ te"])}
SCORES = [[token, -1.0] for token in VOCAB]
SPLIT = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}}
SPLIT |= {"behavior": "Isolated", "invert": False}

# What is wrong → (what makes it so, a part of the line).
REFUSED = {
    # The bytes of tokenizer.json.
    "empty": (raw(lambda b: b""), "not a tokenizer.json"),
    "half": (raw(lambda b: b[: len(b) // 2]), "not a tokenizer.json"),
    "zeros": (raw(lambda b: b"\0" * len(b)), "not a tokenizer.json"),
    "a page of the web": (raw(lambda b: b"<html>404</html>"), "not a tokenizer.json"),
    "a list": (raw(lambda b: b"[]"), "not a tokenizer.json"),
    "an object of nothing": (raw(lambda b: b"{}"), "not a tokenizer.json"),
    "deep": (raw(lambda b: b'{"model":' + b"[" * 10**5), "not a tokenizer.json"),
    "a byte that is no UTF-8": (
        raw(lambda b: b.replace(b'"+"', b'"\xe9"')),
        "not UTF-8 (byte 0xe9 at ",
    ),
    "half a surrogate pair": (
        raw(lambda b: b.replace(b'"+"', b'"\\ud800"')),
        "not a tokenizer.json",
    ),
    "a byte order mark": (raw(lambda b: b"\xef\xbb\xbf" + b), "not a tokenizer.json"),
    "UTF-16": (raw(lambda b: b.decode().encode("utf-16")), "not UTF-8 (byte 0xff at 0"),
    "no such file": (instead(lambda p: None), "0 files *.model and no tokenizer.json"),
    "a link to nothing": (
        instead(lambda p: p.symlink_to("x")),
        "a link to x",
    ),
    "a folder": (instead(lambda p: p.mkdir()), "0 files *.model and no tokenizer.json"),
    "a pipe": (instead(os.mkfifo), "0 files *.model and no tokenizer.json"),
    # Its vocabulary and its algorithm.
    "no vocabulary": (
        changed(model=BASE["model"] | {"vocab": {}}, added_tokens=[]),
        "its vocabulary is empty",
    ),
    "an unknown token that is none": (
        other_model("BPE", VOCAB, merges=[], unk_token="<nope>"),
        "cannot encode every text (Unk token `<nope>` not found in the vocabulary)",
    ),
    "WordLevel without its unknown": (
        other_model("WordLevel", VOCAB, unk_token="[UNK]"),
        "cannot encode every text (WordLevel error: Missing [UNK] token",
    ),
    "WordPiece without its unknown": (
        other_model(
            "WordPiece",
            VOCAB,
            unk_token="[UNK]",
            continuing_subword_prefix="##",
            max_input_chars_per_word=9,
        ),
        "cannot encode every text (WordPiece error: Missing [UNK] token",
    ),
    "Unigram without its unknown": (
        other_model("Unigram", SCORES, unk_id=None),
        "cannot encode every text (Encountered an unknown token but `unk_id`",
    ),
    "Unigram's unknown beyond": (
        other_model("Unigram", SCORES, unk_id=99),
        "not a tokenizer.json (Unable to load vocab UnkIdNotInVocabulary",
    ),
    "Unigram of nothing": (other_model("Unigram", [], unk_id=None), "is empty"),
    "an algorithm of no name": (model(type="Trigram"), "not a tokenizer.json"),
    "a merge of unknown parts": (model(merges=["q~ ~q"]), "out of vocabulary"),
    "merges that are numbers": (model(merges=[3]), "not a tokenizer.json"),
    "one id for two tokens": (
        model(vocab=BASE["model"]["vocab"] | {"zz": 7}),
        "two tokens have one id",
    ),
    "an id below 0": (model(vocab={"a": -1}), "not a tokenizer.json"),
    "an id of four milliards": (
        model(vocab=BASE["model"]["vocab"] | {"zz": 2**32 - 1}),
        "the id 4294967295 is beyond 16777216",
    ),
    "an id that is a text": (model(vocab={"a": "0"}), "not a tokenizer.json"),
    "dropout above 1": (model(dropout=2.0), "Dropout should be between 0 and 1"),
    # Its other parts.
    "an added token elsewhere": (
        added(id=4000),
        "the token '<pad>' is to have the id 4000, but the vocabulary has it at 5",
    ),
    "an added token of no text": (added(content=""), "'' is to have the id 5, but the"),
    "an added token that is a number": (added(content=3), "not a tokenizer.json"),
    "a panic in the normaliser": (
        changed(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "not a tokenizer.json (Precompiled: Error",
    ),
    "a panic in the post-processor": (
        changed(post_processor=BASE["post_processor"] | {"special_tokens": {}}),
        "cannot encode every text (no entry found for key)",
    ),
    "a first token that is none": (
        changed(
            post_processor={
                "type": "BertProcessing",
                "sep": ["</s>", 2],
                "cls": ["[CLS]", 999],
            }
        ),
        "its post-processor puts the id 999 before a text, which is no token",
    ),
    "a normaliser that grows": (
        changed(normalizer=growing(12)),
        "its normalizer makes 1,000,000,000,000 characters of one",
    ),
    "a decoder that grows": (
        changed(
            decoder={"type": "Sequence", "decoders": growing(9)["normalizers"]},
        ),
        "its decoder makes 1,000,000,000 characters of one",
    ),
    "a regular expression of no end": (
        changed(pre_tokenizer=SPLIT | {"pattern": {"Regex": "("}}),
        "not a tokenizer.json (Oniguruma error",
    ),
    # The files beside it.
    "a configuration cut short": (
        beside("tokenizer_config.json", '{"eos'),
        "tokenizer_config.json: not JSON",
    ),
    "a deep configuration": (
        beside("tokenizer_config.json", '{"a":' * 10**5),
        "tokenizer_config.json: not JSON",
    ),
    "a configuration that is a list": (
        beside("tokenizer_config.json", []),
        "tokenizer_config.json: holds no JSON object",
    ),
    "a deep map of special tokens": (
        beside("special_tokens_map.json", '{"a":' * 10**5),
        "special_tokens_map.json: not JSON",
    ),
    "a generation's configuration that is a number": (
        beside("generation_config.json", 3),
        "generation_config.json: holds no JSON object",
    ),
    "no end token at all": (
        changed(
            model={"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
            added_tokens=[],
            post_processor=None,
        ),
        "no end token is known",
    ),
    "an end token that is none": (config(eos_token="<nope>"), "'<nope>' is not in the"),
    "an end token that is a number": (config(eos_token=2), "the eos_token 2 is not in"),
    "an end token that is a list": (config(eos_token=["</s>"]), "is not in the"),
    "an end token of two lines": (config(eos_token="a\nb"), r"'a\nb' is not in the"),
    "a pad token that is none": (
        config(pad_token="<nope>"),
        "pad_token '<nope>' is",
    ),
    "add_bos_token as a text": (
        config(add_bos_token="false"),
        "neither true nor",
    ),
    "an end id beyond": (
        generation(eos_token_id=10**30),
        "is not below the",
    ),
    "an end id below": (generation(eos_token_id=[-2]), "-2 is not below"),
    "an end id that is true": (generation(eos_token_id=True), "True is not below"),
    "an end id that is a text": (generation(eos_token_id="2"), "'2' is not below"),
    "a list in a list of end ids": (generation(eos_token_id=[[2]]), "[2] is not below"),
    # Tokens that the configuration adds.
    "added tokens as a list": (decoder(["<x>"]), "added_tokens_decoder is no object"),
    "an added token without a text": (decoder({"262": {}}), "'262': None is none"),
    "an added token that is a text": (decoder({"262": "<x>"}), "'262': None is none"),
    "an added id that is none": (
        decoder({"x": {"content": "<x>"}}),
        "'x': '<x>' is",
    ),
    "an added id below 0": (decoder({"-1": {"content": "<x>"}}), "'-1': '<x>' is none"),
    "an added id beyond": (decoder({"9" * 99: {"content": "<x>"}}), "'<x>' is none"),
    "an added id with a gap": (
        decoder({"300": {"content": "<x>"}}),
        "the token '<x>' is to have the id 300, but the vocabulary has it at 262",
    ),
    "another id for a token": (
        decoder({"7": {"content": "</s>"}}),
        "the token '</s>' is to have the id 7, but the vocabulary has it at 2",
    ),
    "half a surrogate pair for a token": (
        config(mask_token="\ud800x"),
        "cannot take a special token of the configuration",
    ),
    "an added text twice": (
        decoder({"262": {"content": "<x>"}, "263": {"content": "<x>"}}),
        "has the id or the text of another",
    ),
    "older added tokens as a list": (
        lambda f: write(
            f, **{"tokenizer_config.json": CONFIG, "added_tokens.json": ["<x>"]}
        ),
        "added_tokens.json: holds no JSON object",
    ),
    "older added tokens with texts for ids": (
        lambda f: write(
            f, **{"tokenizer_config.json": CONFIG, "added_tokens.json": {"<x>": "y"}}
        ),
        "the added token 'y': '<x>' is none",
    ),
    # Templates.
    "a template that is a number": (template(3), "the chat template is not a text"),
    "a template that is true": (template(True), "the chat template is not a text"),
    "a default that is null": (template({"default": None}), "is not a text"),
    "templates without a default": (
        template([{"name": "rag", "template": "a"}, {"name": "tool", "template": "b"}]),
        "of the chat templates (rag, tool) none is called default; call one so",
    ),
    "templates without names": (template(["a", "b"]), "none is called default"),
    "no templates": (template([]), "none is called default"),
    "an object without a default": (template({"rag": "a"}), "(rag) none is called"),
    "a break in no loop": (
        template("{% break %}"),
        "has a syntax error (SyntaxError: 'break' outside loop",
    ),
    "an end of nothing": (template("{% endfor %}"), "a syntax error (line 1: "),
    "a filter of no name": (template("{{ 'a' | nope }}"), "No filter named 'nope'"),
    "a template of brackets": (template("{{" + "(" * 10**4), "a syntax error ("),
    "a template of half a surrogate pair": (
        template("{% if 1 %}\ud800{% endif %}"),
        "the chat template holds a lone surrogate at character 10; remove it",
    ),
    "a template that is no UTF-8": (
        beside("chat_template.jinja", b"\xff{{ 1 }}"),
        "chat_template.jinja: not UTF-8",
    ),
    "a template that leads nowhere": (
        lambda f: (f / "chat_template.jinja").symlink_to("x") or config()(f),
        "chat_template.jinja: a link to x, which is not there",
    ),
    "a folder for a template": (
        lambda f: (f / "chat_template.jinja").mkdir() or config()(f),
        "chat_template.jinja: a directory",
    ),
    "a pipe for a template": (
        lambda f: os.mkfifo(f / "chat_template.jinja") or config()(f),
        "chat_template.jinja: not a regular file",
    ),
    "a pipe for a configuration": (
        lambda f: os.mkfifo(f / "tokenizer_config.json") or write(f),
        "tokenizer_config.json: not a regular file",
    ),
    "a configuration that leads nowhere": (
        lambda f: (f / "config.json").symlink_to("x") or config()(f),
        "config.json: a link to x, which is not there",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(tmp_path, capfd, name):
    make, said = REFUSED[name]
    make(tmp_path)
    if not (tmp_path / "tokenizer_config.json").exists() and name != (
        "no end token at all"
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    line = str(caught.value)
    assert line.startswith(str(tmp_path)) and said in line
    assert line.isprintable() and len(line) < 600
    assert capfd.readouterr() == ("", "")


# What is odd → what makes it so; the small checkpoint all the same.
READ = {
    "nothing": config(),
    "a padding of a milliard": lambda f: write(
        f,
        BASE
        | {
            "padding": {
                "strategy": {"Fixed": 10**9},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "x",
            }
        },
    ),
    "a truncation to one": changed(
        truncation={
            "direction": "Right",
            "max_length": 1,
            "strategy": "LongestFirst",
            "stride": 0,
        }
    ),
    "dropout": model(dropout=0.9),
    "null everywhere": config(bos_token=None, unk_token=None, add_bos_token=None),
    "a pad id of -1": generation(pad_token_id=-1, bos_token_id=-1),
    "no end id": generation(eos_token_id=[]),
    "an end id of -1 in a list": generation(eos_token_id=[-1, 2]),
    "a begin token of no text": config(bos_token="", cls_token=""),
    "an object for a token": config(eos_token={"content": "</s>", "lstrip": False}),
    "added tokens that it has": decoder({"2": {"content": "</s>", "special": True}}),
    "the right id of an added token": decoder({"262": {"content": "<x>"}}),
    "a template of nothing": template("{# #}{{ messages[0].content }}"),
    "a template by name": template({"default": "{{ messages[0].content }}", "b": "{{"}),
    "keys of no meaning": config(model_max_length=1e30, tokenizer_class=7),
}


@pytest.mark.parametrize("name", READ)
def test_read_all_the_same(tmp_path, capfd, name):
    READ[name](tmp_path)
    if not (tmp_path / "tokenizer_config.json").exists():
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    tokenizer = load_tokenizer(tmp_path)
    said = CHAT[0]["content"]
    (ids,) = tokenizer.encode_chats([CHAT])
    plain = tokenizer.encode(said)
    assert len(plain) == len(said.encode()) and "".join(tokenizer.decode(plain)) == said
    assert "".join(map(str, plain)) in "".join(map(str, ids))
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.bos_id) == (2, 5, 1)
    assert tokenizer.decode(range(-3, tokenizer.vocab_size + 3)) is not None
    assert capfd.readouterr() == ("", "")


def test_a_regular_expression_that_gives_up(tmp_path, capfd):
    """Found when a text is encoded: one line then, and none of the library's."""
    write(
        tmp_path,
        BASE | {"pre_tokenizer": SPLIT},
        **{"tokenizer_config.json": CONFIG},
    )
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(InputError) as caught:
        tokenizer.encode("a" * 60 + "b")
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.json: cannot encode a text (Onig: Regex search error: "
        "retry-limit-in-match over); give the file that came with the checkpoint"
    )
    assert capfd.readouterr() == ("", "")


# --- SentencePiece ----------------------------------------------------------------


def pieces(*names, **settings) -> bytes:
    """A SentencePiece model of these pieces; turn: the kind of a piece <turn>."""
    proto = sentencepiece_model_pb2.ModelProto()
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "<turn>": settings.pop("turn", 1)}
    for name in names:
        proto.pieces.add(piece=name, score=-1.0, type=kinds.get(name, 1))
    for name, value in settings.items():
        setattr(proto.normalizer_spec, name, value)
    return proto.SerializeToString()


GOOD = pieces("<unk>", "<s>", "</s>", "▁", "1", "2", "3")
MODELS = {
    "empty": b"",
    "text": b"no model\n",
    "half": GOOD[: len(GOOD) // 2 + 1],
    "zeros": b"\0" * 64,
    "a JSON": json.dumps(BASE).encode(),
    "no unknown": pieces("<s>", "</s>", "1"),
    "two unknown": pieces("<unk>", "<unk>", "1"),
    "a piece twice": pieces("<unk>", "1", "1"),
    "a piece of no text": pieces("<unk>", "", "1"),
    "rules of the normaliser": pieces("<unk>", "1", precompiled_charsmap=b"\xff" * 40),
    "a piece not UTF-8": GOOD.replace(b"\xe2\x96\x81", b"\xe2\x96\xff"),
    "few rules of it": pieces("<unk>", "1", precompiled_charsmap=b"\1"),
}


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_models(tmp_path, name):
    (tmp_path / "tokenizer.model").write_bytes(MODELS[name])
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "1"}')
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path}/tokenizer.model: not a SentencePiece model (")
    assert line.isprintable() and len(line) < 600


def test_ids_that_are_nobodys(tmp_path):
    """Between the pieces and a token that is added far behind them."""
    (tmp_path / "tokenizer.model").write_bytes(GOOD)
    entry = {"content": "<x>", "special": False}
    said = {"added_tokens_decoder": {"20": entry}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 21
    assert tokenizer.decode([4, 9, 19, 20, 5, 21, -1]) == "1<x>2"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 9}')
    with pytest.raises(InputError, match="the eos_token_id 9 is no token of the voc"):
        load_tokenizer(tmp_path)


def test_another_id_for_a_piece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(GOOD)
    said = {"added_tokens_decoder": {"9": {"content": "</s>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/tokenizer.model: the token '</s>' is to have the id 9, but the "
        "vocabulary has it at 2; take tokenizer and configuration from the same "
        "checkpoint"
    )


# --- tokens of the vocabulary itself that a configuration calls special ------------

LETTERS = ["▁", "1", *"<turn>"]
TURN = len(WORDS) + len(LETTERS)  # the id of <turn>


def vocabulary(kind):
    """(name of the file, its bytes) with a token <turn> that texts are read as."""
    if kind != "BPE":
        names = ["<unk>", "<s>", "</s>", "a", "b", "c", *LETTERS, "<turn>"]
        types = sentencepiece_model_pb2.ModelProto.SentencePiece
        turn = getattr(types, kind)
        return "tokenizer.model", pieces(*names, turn=turn, add_dummy_prefix=False)
    # Its merges make <turn> of its letters.
    steps = ["tu", "tur", "turn", "<turn", "<turn>"]
    words = [*WORDS, *LETTERS, steps[-1], *steps[:-1]]
    merges = [["t", "u"], ["tu", "r"], ["tur", "n"], ["<", "turn"], ["<turn", ">"]]
    vocab = {word: i for i, word in enumerate(words)}
    made = BASE | {"pre_tokenizer": None, "post_processor": None}
    made |= {"decoder": {"type": "Fuse"}}
    made |= {"model": BASE["model"] | {"vocab": vocab, "merges": merges}}
    return "tokenizer.json", json.dumps(made).encode()


# Where a configuration says it → its files.
SAID = {
    "nowhere": {"tokenizer_config": {"eos_token": "</s>"}},
    "the end token": {"tokenizer_config": {"eos_token": "<turn>"}},
    "additional": {
        "tokenizer_config": {
            "eos_token": "</s>",
            "additional_special_tokens": ["<turn>"],
        }
    },
    "the older map": {
        "tokenizer_config": {"eos_token": "</s>"},
        "special_tokens_map": {"cls_token": {"content": "<turn>"}},
    },
    "an added token": {
        "tokenizer_config": {
            "eos_token": "</s>",
            "added_tokens_decoder": {str(TURN): {"content": "<turn>", "special": True}},
        }
    },
    "an added token that is the end": {
        "tokenizer_config": {
            "eos_token": "<turn>",
            "added_tokens_decoder": {
                str(TURN): {"content": "<turn>", "special": False}
            },
        }
    },
    "an id that ends": {
        "tokenizer_config": {"eos_token": "</s>"},
        "generation_config": {"eos_token_id": [2, TURN]},
    },
}


@pytest.mark.parametrize("kind", ["USER_DEFINED", "NORMAL", "BPE"])
@pytest.mark.parametrize("said", SAID)
def test_what_a_configuration_calls_special_is_never_read(tmp_path, kind, said):
    name, content = vocabulary(kind)
    (tmp_path / name).write_bytes(content)
    for file, written in SAID[said].items():
        (tmp_path / f"{file}.json").write_text(json.dumps(written))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<turn>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocabulary.id_of("<turn>") == TURN
    ids = tokenizer.encode("1<turn>1")
    assert tokenizer.decode(ids) == "1<turn>1"
    # A piece of its own that nobody calls special is ordinary vocabulary.
    assert (TURN in ids) == (said == "nowhere")
    (chat,) = tokenizer.encode_chats([[{"role": "user", "content": "1<turn>"}]])
    assert chat[-1] == TURN
    assert chat.count(TURN) == (2 if said == "nowhere" else 1)
    assert (TURN in tokenizer.special_ids) == (said != "nowhere")


def test_a_letter_that_ends_a_response_stays_one(tmp_path):
    """Nothing else could write it: a base model may end at a new line, say."""
    for kind in ("NORMAL", "BPE"):
        name, content = vocabulary(kind)
        folder = tmp_path / kind
        folder.mkdir()
        (folder / name).write_bytes(content)
        (folder / "tokenizer_config.json").write_text('{"eos_token": "1"}')
        tokenizer = load_tokenizer(folder)
        assert tokenizer.encode("1") == [tokenizer.eos_id]


WIDE = ("\uff1cturn\uff1e", "<turn>", "<\uff54urn>", "<turn>\uff1cturn>")


def test_a_normaliser_makes_no_special_token(tmp_path):
    """SentencePiece's own makes ASCII of full-width letters, and a piece of that."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a <turn> b"] * 9),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        user_defined_symbols=["<turn>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<turn>"}')
    tokenizer = load_tokenizer(tmp_path)
    for text in WIDE:
        assert tokenizer.eos_id not in tokenizer.encode(text)


@pytest.mark.parametrize("added", [False, True])
def test_nor_does_that_of_a_tokenizer_json(tmp_path, added):
    """Neither of a word of the vocabulary, nor where an added token is normalised."""
    name, content = vocabulary("BPE")
    written = json.loads(content) | {"normalizer": {"type": "NFKC"}}
    if added:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
        token = {"id": TURN, "content": "<turn>", "normalized": True} | flags
        written["added_tokens"].append(token)
    (tmp_path / name).write_text(json.dumps(written))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<turn>"}')
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}<turn>")
    tokenizer = load_tokenizer(tmp_path)
    for text in WIDE:
        assert TURN not in tokenizer.encode(text)
        (chat,) = tokenizer.encode_chats([[{"role": "user", "content": text}]])
        assert chat.count(TURN) == 1 and chat[-1] == TURN
