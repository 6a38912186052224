"""A part of launch/gpu_check.py: each line of JSON on stdout is a row of what it gives.

    python launch/gpu_parts.py PART --scratch DIR --limit SECONDS [--dry_run]
        [--config.field=value …]

The parts are those of launch/gpu_check.py, which starts this. DIR is a folder that goes
with the call. At SECONDS after its start the part is killed.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
import types
from functools import partial

from limr_jax import platform
from limr_jax.config import load as config_lib
from limr_jax.errors import InputError, choose

LAUNCH, ROOT = pathlib.Path(__file__).parent, platform.launch_root()
# One device has no mesh. "compiles" and "cost_analysis" are of a TPU's compiler.
ATTENTION_TESTS = ("test_ragged_decode.py", "test_splash.py", "test_transformer.py")
LEFT_OUT = "mesh or sharded or compiles or cost_analysis or kernel_is_taken"


@dataclasses.dataclass(frozen=True)
class Size:
    """A model and a step of it."""

    fields: dict  # of the config, beside what the workload says
    prompts: int = 64
    group: int = 8
    prompt_length: int = 256
    response_length: int = 1024
    ends: int = 297  # tokens of 151,936 that end a ragged response: one in 512


# So many packed rows of 1,280 columns a backward pass: XLA lays the updates out in 48
# and 65 GiB of an H200 (launch/GPU.md).
SIZES = {
    "0.5b": Size({"model.preset": "qwen2.5-0.5b", "micro_batch_rows": 8}),
    "1.5b": Size({"model.preset": "qwen2.5-1.5b", "micro_batch_rows": 4}),
}
# Nine layers: from there on decode scans over them, as it does over 24.
TINY = Size(
    {
        "model.vocab_size": 512, "model.width": 32, "model.layers": 9,
        "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 8,
        "model.mlp_width": 64, "micro_batch_rows": 4,
    },
    prompts=4, group=4, prompt_length=16, response_length=24, ends=32,
)  # fmt: skip


def main(argv: list[str]) -> None:
    """Run one part in this process."""
    parser = config_lib.Parser("launch/gpu_parts.py", __doc__)
    parser.add_argument("part", help="one of those of launch/gpu_check.py")
    parser.add_argument(
        "--scratch", required=True, help="a folder that goes with the call"
    )
    parser.add_argument(
        "--limit", type=float, required=True, help="seconds after which it is killed"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="with tiny sizes, on whatever JAX finds"
    )
    options, fields = parser.parse_known_args(argv)
    choose(PARTS, options.part, "the part")(options, fields)


def _emit(row: dict) -> None:
    print(json.dumps(row), flush=True)


# ---- peaks -------------------------------------------------------------------------


def peaks(options, _) -> None:
    """One row: the device, the bytes a second and the bf16 FLOP/s that it reaches."""
    import jax

    from limr_jax.compilation.peaks import rates

    device = jax.devices()[0]
    # 4 GiB, far more than any cache holds; products of 8,192 are large for any GPU.
    size, numbers = (256, 2**20) if options.dry_run else (8192, 2**30)
    _emit(
        {
            "platform": device.platform,
            "device": device.device_kind,
            "python": sys.version.split()[0],
            "jax": jax.__version__,
            "flax": importlib.metadata.version("flax"),
            **rates(device, numbers=numbers, size=size),
        }
    )


# ---- a step ------------------------------------------------------------------------


def step(name: str, options, fields: list[str]) -> None:
    """A row for each variant: `bench.measure`'s figures, and what they are held to."""
    size = TINY if options.dry_run else SIZES[name]
    begun = time.monotonic()
    bench, load, config = _configured(name, size, options=options, fields=fields)
    from limr_jax.setup import set_up

    run = bench._with_even_tokens(set_up(config))
    endless = dataclasses.replace(run, load_params=_endless(run))
    # What compiles comes with the first, whose rollouts are longer besides.
    for variant, measured, share in (("fixed", endless, 0.6), ("ragged", run, 1.0)):
        bl = _benchlib(begun + share * options.limit)
        figures = bench.measure(
            bl,
            measured,
            config=config,
            warmup=load["warmup"],
            repeats=load["repeats"],
        )
        least = needs(run, size, figures=figures, variant=variant)
        _emit({"variant": variant} | least | figures)


def _configured(name: str, size: Size, *, options, fields: list[str]):
    """launch/bench.py's functions, the workload and the config of this size's steps."""
    bench = types.SimpleNamespace(**runpy.run_path(str(LAUNCH / "bench.py")))
    # The problems and the tokenizer go with the call.
    os.environ["BENCH_CACHE"] = options.scratch
    own = {"model.init": "random", "rollout.compactions": 2} | size.fields
    fields = [f"--config.{field}={x}" for field, x in own.items()] + fields
    load = workload(name, size, _dimensions(size).vocab_size)
    argv = ["--workload", name, "--variant", "fixed", *fields]
    bench_options, fields = bench._parse(argv)
    steps = 2 * (1 + 2 * load["repeats"])
    config = bench._config(
        _benchlib(time.monotonic()),
        load,
        options=bench_options,
        steps=steps,
        fields=fields,
    )
    return bench, load, config


def workload(name: str, size: Size, vocabulary: int) -> dict:
    """What `bench._config` takes: of ../shared/bench/workload.json the form alone.

    The last words of the vocabulary end a response, and no prompt has one of them.
    """
    return {
        "name": f"gpu-check-{name}",
        "dtype": "bfloat16",
        "model": {
            "arch": "qwen2",
            "vocab_size": vocabulary,
            "eos_token_id": list(range(vocabulary - size.ends, vocabulary)),
            # The preset has the dimensions; nobody reads these.
            **dict.fromkeys(("num_layers", "num_heads", "num_kv_heads"), 1),
        },
        "tokens": {"pad": 0, "bos": 1, "eos": 2, "first_normal": 3},
        "words": vocabulary - size.ends,
        "prompt_len": size.prompt_length,
        "prompts_per_batch": size.prompts,
        "group_size": size.group,
        "max_new_tokens": size.response_length,
        "sampling": {"temperature": 1.0},
        "variants": ("fixed", "ragged"),
        "train": {
            "lr": 1e-6,
            "adam": [0.9, 0.999, 1e-8],
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "epsilon": 0.2,
        },
        "warmup": 1,
        "repeats": 2,
    }


def _benchlib(end: float):
    """What launch/bench.py asks of ../shared/bench/benchlib.py, which may not be here.

    end: on time.monotonic(); a step that would not end by then is not begun, but one.
    """
    import numpy as np

    def prompts(load, step):
        shape = load["prompts_per_batch"], load["prompt_len"]
        random = np.random.default_rng([0, step])
        return random.integers(load["tokens"]["first_normal"], load["words"], shape)

    def repeat(once, count):
        rows = []
        for i in range(count):
            begun = time.monotonic()
            rows.append(once(i))
            if 2 * time.monotonic() - begun > end:
                break
        return rows, {"runs_made": len(rows)}

    def stats(numbers, digits):
        return {
            "median": round(float(np.median(numbers)), digits),
            "min": round(float(min(numbers)), digits),
            "max": round(float(max(numbers)), digits),
            "n": len(numbers),
        }

    return types.SimpleNamespace(
        prompts=prompts,
        weights=lambda load, variant: {},  # model.init=random: the devices make them
        repeat_quiet=repeat,
        stats=stats,
        reset_peak=lambda: None,
        peak_rss_mib=lambda: None,
    )


def _endless(run):
    """`run.load_params`, but of weights with which no response ends before its limit.

    The first channel is large in every word, so that it is in what the last layer gives
    as well; end words have it with the other sign. All programs stay the same.
    """
    import jax

    stop_ids = list(run.generation.stop_ids)

    def change(embedding_VD):
        embedding_VD = embedding_VD.at[:, 0].set(20.0)
        return embedding_VD.at[jax.numpy.array(stop_ids), 0].set(-20.0)

    def load():
        params = run.load_params()
        embedding_VD = params["embedder"]["embedding"]
        changed = jax.jit(change, donate_argnums=0, out_shardings=embedding_VD.sharding)
        return params | {"embedder": {"embedding": changed(embedding_VD)}}

    return load


def needs(run, size: Size, figures: dict, variant: str) -> dict:
    """Bytes that generation, and FLOPs that an update, of these figures cannot spare.

    The module says what is counted. Models whose head is their embedding.
    """
    import jax

    model = run.compute.model
    params = sum(x.size for x in jax.tree.leaves(run.programs.state.train.params))
    rows, tokens = size.prompts * size.group, figures["tokens"]["median"]
    prompt, mean = size.prompt_length, tokens / rows
    # Decode reads the weights once a step, however many rows; a row's first token comes
    # from its prompt. Two bytes a number.
    cache = 2 * 2 * model.layers * model.kv_heads * model.head_dim
    read = (tokens - rows) * (prompt + mean / 2)
    decode_bytes = 2 * params * (size.response_length - 1) + cache * read
    prompts = rows if variant == "fixed" else size.prompts
    head = model.vocab_size * model.width
    # Two FLOPs for each parameter of a layer and column; the head where a token is
    # predicted; by keys and by values two for each column that a query sees.
    seen = prompts * prompt**2 / 2 + tokens * (prompt + mean / 2)
    forward = 2 * (params - head) * (prompts * prompt + tokens) + 2 * head * tokens
    forward += 4 * model.layers * model.heads * model.head_dim * seen
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "parameters": params,
        "decode_bytes": decode_bytes,
        "update_flops": 3 * forward,
        # Of all that the process has done so far.
        "peak_device_gib": memory.get("peak_bytes_in_use", 0) / 2**30,
    }


def _dimensions(size: Size):
    """The size's ModelConfig."""
    import ml_collections

    from limr_jax.models import from_config

    section = ml_collections.ConfigDict(
        {"init": "random", "architecture": "qwen2", "preset": "", "vocab_size": 0}
        | {"max_length": 0, "attention": "auto"}
    )
    for field, value in size.fields.items():
        if field.startswith("model."):
            section[field.removeprefix("model.")] = value
    return from_config.read_model_config(section, 4)


# ---- drafts ------------------------------------------------------------------------


def drafted(options, fields: list[str]) -> None:
    """A row for each number of rollouts: a generation without drafts, and with.

    Right drafts are the rollouts themselves, wrong ones tokens at random; neither may
    change a token. Seconds are the least of two generations after one that compiles.
    """
    whole = TINY if options.dry_run else SIZES["0.5b"]
    for prompts in (1, 8):
        size = dataclasses.replace(
            whole, prompts=prompts, response_length=min(256, whole.response_length)
        )
        few = ["--config.micro_batch_rows=4", *fields]
        runs = {}
        for kind, most in (("without", 0), ("with", 4)):
            more = [*few, f"--config.rollout.drafts={most}"]
            _, _, config = _configured("drafts", size, options=options, fields=more)
            from limr_jax.setup import set_up

            runs[kind] = set_up(config)
        _emit({"rollouts": prompts * size.group} | _generations(runs, prompts))


def _generations(runs: dict, prompts: int) -> dict:
    """Seconds and decode steps of the step's generation, and responses that differ."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from limr_jax.data.prompts import prompt_batch, put_prompts
    from limr_jax.rollout import drafts

    drafting = runs["with"]
    shape = drafting.programs.state.drafts
    row, spread, first = {}, jax.random.key(0), None
    with jax.set_mesh(drafting.mesh):
        params = drafting.load_params()
        ids_P = jnp.arange(prompts, dtype=jnp.int32)
        drawn = jax.jit(prompt_batch)(
            put_prompts(drafting.train_set, drafting.mesh), ids_P
        )
        words = drafting.compute.model.vocab_size
        wrong = jax.random.randint(spread, shape.shape, 0, words).astype(shape.dtype)
        tables = {"without": None, "right": None, "wrong": wrong}
        for kind, table in tables.items():
            run = runs["without"] if kind == "without" else drafting
            if kind == "right":
                empty = jnp.full(shape.shape, drafts.NONE, shape.dtype)
                table = jax.jit(drafts.remember)(
                    empty, ids_P, first.response_BT, first.mask_BT
                )
            seconds = []
            for _ in range(3):
                begun = time.monotonic()
                written = run.programs.generate(
                    params, jnp.int32(0), drawn, run.sampling, run.seed, table
                )
                jax.block_until_ready(written)
                seconds.append(time.monotonic() - begun)
            first = first or written
            either = first.mask_BT | written.mask_BT
            differ = (first.response_BT != written.response_BT) & either
            row[kind] = {
                "seconds": min(seconds[1:]),
                "decode_steps": int(np.max(written.steps_M)),
                "differing_responses": int(jnp.sum(jnp.any(differ, axis=1))),
                "tokens": int(jnp.sum(written.mask_BT)),
            }
    return row


# ---- the other parts ---------------------------------------------------------------


def main_job(options, _) -> None:
    """configs/tiny.py, whose last line on stdout is this part's row."""
    fields = {"data.cache_dir": f"{options.scratch}/data"}
    if options.dry_run:
        fields |= {"num_steps": 2, "evaluation.samples": 0}
        fields |= {"data.eval": "arithmetic:eval[:32]"}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    config = ["--config", str(ROOT / "configs/tiny.py")]
    sys.argv = ["tpu.py", *config, *flags, "--workdir", f"{options.scratch}/tiny"]
    runpy.run_path(str(LAUNCH / "tpu.py"), run_name="__main__")


class _Counts:
    """A pytest plugin: after each test a row of how many passed, failed, skipped."""

    def __init__(self):
        self.counts = dict.fromkeys(("passed", "failed", "skipped"), 0)
        self.failures = []

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            self.failures.append(report.nodeid)
        # stdout is pytest's own, and a line of it may be half written.
        print()
        _emit(self.counts | {"failures": self.failures})


def attention(options, _) -> None:
    """The tests of attention on this device: a row of how many passed, so far."""
    import pytest

    # Of a dry run the quick tests of one file.
    names = ATTENTION_TESTS[:1] if options.dry_run else ATTENTION_TESTS
    tests = [str(ROOT / "tests/models" / name) for name in names]
    if missing := [name for name in tests if not os.path.exists(name)]:
        raise InputError(f"{missing[0]} is not there: a wheel has no tests")
    # Another JAX may warn of other things than ours does.
    words = [*tests, "-k", f"not ({LEFT_OUT})", "-W", "default", "--color=no"]
    words += ["-p", "no:cacheprovider", "--rootdir", str(ROOT), "--tb=short"]
    workers = min(8, (os.cpu_count() or 1) // 2)
    if workers > 1 and importlib.util.find_spec("xdist"):
        words += ["-n", str(workers)]
    if not options.dry_run:
        words += ["-m", "not soak"]  # the slow ones too
    code = pytest.main(words, plugins=[_Counts()])
    if code not in (0, 1):  # 1: tests failed, which the row says
        raise InputError(f"pytest ended with {code}")


def transformers(options, _) -> None:
    """Rows of tests/launch/transformers_generate.py, or what it needs and is absent."""
    needed = ("torch", "transformers")
    if absent := [x for x in needed if importlib.util.find_spec(x) is None]:
        _emit({"absent": f"no {' and no '.join(absent)} here"})
        return
    sizes = {"tiny": TINY} if options.dry_run else SIZES
    one = next(iter(sizes.values()))
    models = {name: _dimensions(size) for name, size in sizes.items()}
    ends = {
        name: [*range(model.vocab_size - sizes[name].ends, model.vocab_size)]
        for name, model in models.items()
    }
    request = {
        "sizes": {name: _qwen2(model) for name, model in models.items()},
        "ends": ends,
        "prompts": one.prompts,
        "group": one.group,
        "prompt_length": one.prompt_length,
        "response_length": one.response_length,
        "device": "cpu" if options.dry_run else "cuda",
        # What starting takes is left over.
        "seconds": max(1.0, (options.limit - 30) / (2 * len(sizes))),
    }
    script = ROOT / "tests/launch/transformers_generate.py"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(script), json.dumps(request)]
    ended = subprocess.run(command, env=environment)
    if ended.returncode:
        raise SystemExit(ended.returncode)


def _qwen2(model) -> dict:
    """A ModelConfig as fields of transformers' Qwen2Config."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.mlp_width,
        "max_position_embeddings": model.max_length,
        "tie_word_embeddings": model.tied,
    }


PARTS = {
    "peaks": peaks,
    "0.5b": partial(step, "0.5b"),
    "1.5b": partial(step, "1.5b"),
    "drafts": drafted,
    "main_job": main_job,
    "attention": attention,
    "transformers": transformers,
}


if __name__ == "__main__":
    config_lib.run_main(main)
