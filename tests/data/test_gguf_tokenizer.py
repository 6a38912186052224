"""Tokenizers that went through a GGUF file's metadata and came back."""

import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from limr_jax.data import gguf_tokenizer
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError

TEXTS = [
    "Tom has 12 apples, and 345 pears.",
    "  two blanks, a\ttab\n\n and lines",
    "3\u00bd \u00e4\u00f6\u00fc \u4f60\u597d \U0001f600",
    "don't WE'LL x=1,000.5",
    "",
]


def written(folder, metadata):
    folder.mkdir()
    converted = gguf_tokenizer.convert(metadata)
    for name, content in converted.files.items():
        (folder / name).write_bytes(content)
    ids = json.dumps(converted.token_ids)
    (folder / "generation_config.json").write_text(ids)
    return load_tokenizer(folder), converted


def byte_pairs(file) -> dict:
    """The metadata that llama.cpp's converter makes of a tokenizer.json."""
    source = json.loads(file.read_text(encoding="utf-8"))
    tokens = dict(source["model"]["vocab"])
    special = {t["content"]: t for t in source["added_tokens"]}
    tokens |= {content: t["id"] for content, t in special.items()}
    ordered = sorted(tokens, key=tokens.get)
    merges = source["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ordered,
        "tokenizer.ggml.token_type": [
            1 if t not in special else 3 if special[t]["special"] else 4
            for t in ordered
        ],
        "tokenizer.ggml.merges": [
            m if isinstance(m, str) else " ".join(m) for m in merges
        ],
    }


@pytest.fixture(scope="module")
def qwen(shared):
    return byte_pairs(shared / "tokenizers/qwen2/tokenizer.json") | {
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.eos_token_id": 151645,
        "tokenizer.ggml.padding_token_id": 151643,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}<|im_end|>",
    }


def test_qwens_vectors(shared, qwen, tmp_path):
    tokenizer, converted = written(tmp_path / "out", qwen)
    rows = (shared / "tokenizers/qwen2/vectors.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(row) for row in rows.splitlines()]
    assert len(rows) > 20
    for row in rows:
        assert tokenizer.encode(row["text"]) == row["ids"], row["id"]
    before = load_tokenizer(shared / "tokenizers/qwen2")
    assert tokenizer.vocabulary.specials == before.vocabulary.specials
    assert tokenizer.vocab_size == before.vocab_size
    assert (tokenizer.eos_id, tokenizer.pad_id) == (151645, 151643)
    assert not tokenizer.add_bos
    assert tokenizer.template is not None
    assert converted.token_ids == {"eos_token_id": 151645, "pad_token_id": 151643}


def test_what_fills_a_vocabulary_up_is_no_token(qwen, tmp_path):
    fillers = [f"[PAD{i}]" for i in range(151646, 151936)]
    longer = qwen | {
        "tokenizer.ggml.tokens": qwen["tokenizer.ggml.tokens"] + fillers,
        "tokenizer.ggml.token_type": qwen["tokenizer.ggml.token_type"]
        + [5] * len(fillers),
    }
    assert gguf_tokenizer.convert(longer).files == gguf_tokenizer.convert(qwen).files


def test_digits_by_the_name_of_the_cut(qwen, tmp_path):
    """Llama 3 takes up to three digits at once, SmolLM and Qwen2 one at a time."""
    cut = {}
    for name in ("llama-bpe", "smollm", "qwen2", "gpt-2"):
        tokenizer, _ = written(tmp_path / name, qwen | {"tokenizer.ggml.pre": name})
        library = tokenizer.vocabulary.library
        pieces = library.pre_tokenizer.pre_tokenize_str("12345 don't")
        cut[name] = [piece for piece, _ in pieces]
    assert cut["llama-bpe"][:2] == ["123", "45"]
    assert cut["qwen2"][:5] == cut["smollm"][:5] == list("12345")
    assert cut["gpt-2"][0] == "12345"
    assert all(pieces[-2:] == ["\u0120don", "'t"] for pieces in cut.values())


def test_a_begin_token_of_its_own(qwen, tmp_path):
    begins = {"tokenizer.ggml.bos_token_id": 151643}
    begins |= {
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.eot_token_id": 151643,
    }
    tokenizer, _ = written(tmp_path / "out", qwen | begins)
    assert tokenizer.add_bos and tokenizer.bos_id == 151643
    assert tokenizer.vocabulary.library.encode("a").ids[0] == 151643
    assert tokenizer.stop_ids == (151645, 151643)


def test_a_sentencepiece_model_comes_back(shared, tmp_path):
    file = shared / "models/babyllama/tokenizer.model"
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(file.read_bytes())
    tokenizer, converted = written(
        tmp_path / "out",
        {
            "general.architecture": "llama",
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [piece.piece for piece in proto.pieces],
            "tokenizer.ggml.scores": [piece.score for piece in proto.pieces],
            "tokenizer.ggml.token_type": [piece.type for piece in proto.pieces],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.remove_extra_whitespaces": (
                proto.normalizer_spec.remove_extra_whitespaces
            ),
        },
    )
    before = load_tokenizer(file)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.vocab_size == before.vocab_size
    for text in TEXTS:
        assert tokenizer.encode(text) == before.encode(text)
        assert tokenizer.encode(text, True) == before.encode(text, True)
        # How an unknown piece is shown is not in a GGUF file.
        ids = [i for i in before.encode(text) if i]
        assert tokenizer.decode(ids) == before.decode(ids)
    assert set(converted.files) == {"tokenizer.model", "tokenizer_config.json"}


@pytest.mark.parametrize("kind", [0, 7, -1])
def test_a_type_that_llama_cpp_does_not_have(qwen, kind):
    types = [kind, *qwen["tokenizer.ggml.token_type"][1:]]
    with pytest.raises(InputError, match="a type that llama.cpp does not have"):
        gguf_tokenizer.convert(qwen | {"tokenizer.ggml.token_type": types})
