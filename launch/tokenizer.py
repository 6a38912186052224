"""Train a SentencePiece tokenizer: of the embedded task, or of any texts.

    python launch/tokenizer.py limr_jax/assets/arithmetic/tokenizer.model
    python launch/tokenizer.py DIR/tokenizer.model --texts proofs:valid --pieces 1024

Without --texts: one piece a printable ASCII character, one for the answer phrase, bytes
for all else, so that any text encodes and no digit ever merges with another. With them:
byte-pair pieces of the problems and reference answers of a set, digits alone, the same
answer phrase, newline and bytes.
"""

import io

import sentencepiece

from limr_jax import platform
from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

with platform.importing_jax():
    from limr_jax.data.datasets.arithmetic import expressions
    from limr_jax.data.problems import files_read, load_problems
    from limr_jax.storage import files

SPECIAL = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
BYTES = 256


def main(argv: list[str]) -> None:
    """Write the tokenizer's model file."""
    parser = Parser("launch/tokenizer.py", __doc__)
    parser.add_argument("path", help="of the model file")
    parser.add_argument(
        "--texts", metavar="SPEC", help="name:split or FILE.jsonl; default: none"
    )
    parser.add_argument("--pieces", type=int, help="default 1024; with --texts")
    parser.add_argument("--data_dir", default="~/.cache/limr_jax", help="prepared sets")
    parser.add_argument(
        "--manual_dir", help="local copies of source files; default: none"
    )
    options = parser.parse_args(argv)
    if options.pieces is not None and not options.texts:
        raise InputError(f"--pieces={options.pieces} does nothing without --texts")
    data_dir, manual_dir = options.data_dir, options.manual_dir
    read = []
    if options.texts:
        read = files_read(options.texts, data_dir=data_dir, manual_dir=manual_dir)
    out = files.output(options.path, *read, flag="path")
    # SentencePiece writes a blank as U+2581 inside its pieces.
    symbols = ["\n", expressions.ANSWER_PHRASE.replace(" ", "\u2581")]
    limits = {}
    if options.texts:
        problems = load_problems(
            options.texts, data_dir=data_dir, manual_dir=manual_dir
        )
        texts = [*problems.prompts, *problems.answers]
        pieces = 1024 if options.pieces is None else options.pieces
        # SentencePiece takes no limit below 10.
        limits["max_sentence_length"] = max(10, *(len(x.encode()) for x in texts))
    else:
        # Its blank is the one character that is no symbol: the + 1 below.
        sums = expressions.problems("sft", count=1000, seed=0)
        texts = [p["problem"] for p in sums] + ["one blank"]
        symbols += [chr(c) for c in range(33, 127)]
        pieces = len(SPECIAL) + len(symbols) + BYTES + 1
    model = train(texts, symbols, pieces, **limits)
    with files.replacing(out) as temporary:
        temporary.write_bytes(model)


def train(texts: list[str], symbols: list[str], pieces: int, **limits) -> bytes:
    """The model file of so many pieces, `symbols` among them."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            user_defined_symbols=symbols,
            byte_fallback=True,
            character_coverage=1.0,
            split_digits=True,
            # A text is read back as it was written, blanks and all.
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            minloglevel=2,
            **SPECIAL,
            **limits,
        )
    except RuntimeError as error:
        raise InputError(
            f"--pieces={pieces} cannot be trained ({str(error).splitlines()[-1]}); "
            "give another number"
        ) from None
    return model.getvalue()


if __name__ == "__main__":
    run_main(main)
