"""Seconds of a GRPO step on a workload that other frameworks run too; one JSON line.

    python launch/bench.py --workload ../shared/bench/workload.json \\
        --variant fixed|ragged --kl 0|0.04 --repeats 5 [--config.field=value …]

The workload's folder holds benchlib.py, from which weights, prompts and statistics
come; nothing is written there, but into $BENCH_CACHE (default
~/.cache/limr_jax/bench). The programs are those of a training run, through setup.py and
train.py; the one thing of its own is the reward, the share of even tokens.

--problems N      problems in the set (default: as many as the steps draw)
--model DIR       a checkpoint in place of the workload's random one: real lengths
--data FILE       with --model: JSONL of problems, asked by the checkpoint's template
--against FILES   results of peers, comma-separated: the ratios to them are added
--config.…        any field of configs/base.py, instead of what the workload says

A step is draw + generate + grade + reference (with KL) + update; tokens are those up to
and with the end token. first_step_s is the first step with what comes before it:
compiling, the weights. start_to_first_step_s is from the process's start to that step's
end. The peak of memory is that of the timed steps. ref_s is reference + grade: with
several devices the wait for the former is counted in the latter.

On a CPU JAX_NUM_CPU_DEVICES=2 makes two devices of it, a core each.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import sys
import tempfile
import time

from limr_jax import platform
from limr_jax.config import limits
from limr_jax.config import load as config_lib
from limr_jax.config.limits import LIMITS, Real, Text, Whole
from limr_jax.errors import InputError, shown
from limr_jax.storage import files

BASE = platform.launch_root() / "configs/base.py"
CACHE = "~/.cache/limr_jax/bench"
# Flag → what it may be.
_FLAGS = {
    "repeats": Whole(0, 10_000),
    "problems": Whole(0, 1_000_000),
    "kl": LIMITS["kl.coefficient"],
}
# What this and benchlib read of a workload, and what it may be; beside them `variants`.
_NEEDED = {
    "name": Text(),
    "seed": LIMITS["seed"],
    "dtype": LIMITS["model.dtype"],
    "model.arch": LIMITS["model.architecture"],
    "model.hidden_size": Whole(1, limits.SIZE),
    "model.num_layers": Whole(1, 2**12),
    "model.num_heads": Whole(1, 2**12),
    "model.num_kv_heads": Whole(1, 2**12),
    "model.head_dim": Whole(1, 2**12),
    "model.intermediate_size": Whole(1, limits.SIZE),
    "model.vocab_size": Whole(1, limits.SIZE * 16),
    "model.rope_theta": Real(1, 1e12),
    "model.rms_norm_eps": Real(0, 1),
    "model.init_std": Real(0, limits.LARGE),
    "tokens.pad": Whole(0, limits.SIZE * 16),
    "tokens.bos": Whole(0, limits.SIZE * 16),
    "tokens.eos": Whole(0, limits.SIZE * 16),
    "tokens.first_normal": Whole(0, limits.SIZE * 16),
    "prompts_per_batch": LIMITS["prompts_per_step"],
    "prompt_len": LIMITS["rollout.max_prompt_length"],
    "group_size": LIMITS["group_size"],
    "max_new_tokens": LIMITS["rollout.max_response_length"],
    "sampling.temperature": LIMITS["rollout.temperature"],
    "train.lr": LIMITS["optimizer.learning_rate"],
    "train.adam.0": LIMITS["optimizer.b1"],
    "train.adam.1": LIMITS["optimizer.b2"],
    "train.adam.2": LIMITS["optimizer.epsilon"],
    "train.weight_decay": LIMITS["optimizer.weight_decay"],
    "train.max_grad_norm": LIMITS["optimizer.clip_norm"],
    "train.epsilon": LIMITS["clip.low"],
    "warmup": Whole(1, 10_000),  # the step that compiles is none of the timed ones
    "repeats": Whole(1, 10_000),
}
_MEAN_LENGTH = Real(1, limits.TOKENS)  # of the responses of a variant that has one
# Figures that `ratios` has, where the peer has them.
_COMPARED = ("step_s", "generate_s", "peak_rss_mib", "first_step_s")


def main(argv: list[str]) -> None:
    """Parse, write the workload out as files of a run, measure, print."""
    options, fields = _parse(argv)
    bl = _benchlib(options.workload)
    workload = read_workload(bl, options.workload)
    if options.model and options.variant:
        raise InputError(
            f"--variant={options.variant} with --model={options.model}: variants are "
            "of the workload's own model, and a checkpoint ends its responses itself; "
            "leave it out"
        )
    options.variant = options.variant or "fixed"
    if options.variant not in workload["variants"]:
        known = " or ".join(workload["variants"])
        raise InputError(f"--variant={options.variant}: the workload has {known}")
    peers = _read_peers(options.against)
    repeats = options.repeats or workload["repeats"]
    steps = workload["warmup"] + 2 * repeats  # a disturbed one is made again
    make = _real_config if options.model else _config
    config = make(bl, workload, options=options, steps=steps, fields=fields)
    # Imported late: a misspelt field is answered at once.
    from limr_jax.setup import set_up

    run = _with_even_tokens(set_up(config))
    figures = measure(
        bl, run, config=config, warmup=workload["warmup"], repeats=repeats
    )
    result = {
        "bench": "limr_jax",
        **(
            {"model": options.model, "data": options.data}
            if options.model
            else {"variant": options.variant}
        ),
        "beta": options.kl,
        "overrides": fields,
        "devices": run.mesh.size,
        "problems": len(run.train_set),
        "rollouts": config.prompts_per_step * config.group_size,
        "response_length": config.rollout.max_response_length,
        "versions": bl.versions("jax", "jaxlib", "flax", "optax"),
        **figures,
    }
    bl.emit(result | {"ratios": ratios(result, peers)} if peers else result)


def _parse(argv):
    parser = config_lib.Parser("launch/bench.py", __doc__)
    parser.add_argument(
        "--workload", required=True, help="JSON of the workload, beside benchlib.py"
    )
    parser.add_argument(
        "--variant", default="", help="fixed or ragged; default: fixed, without --model"
    )
    parser.add_argument(
        "--kl", type=float, default=0.0, help="kl.coefficient; 0: no reference"
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=0,
        help="timed steps; default 0: as the workload says",
    )
    parser.add_argument(
        "--problems",
        type=int,
        default=0,
        help="in the set; default 0: as many as the steps draw",
    )
    parser.add_argument(
        "--model", default="", help="a checkpoint's directory; default: random weights"
    )
    parser.add_argument(
        "--data", default="", help="with --model: JSONL of problems; default: none"
    )
    parser.add_argument(
        "--against", default="", help="peers' results, comma-separated; default: none"
    )
    options, fields = parser.parse_known_args(argv)
    limits.check(
        ((name, getattr(options, name)) for name in _FLAGS), "--{}".format, _FLAGS
    )
    if bool(options.model) != bool(options.data):
        raise InputError("--model DIR and --data FILE belong together; give both")
    wrong = [field for field in fields if not field.startswith("--config.")]
    if wrong:
        raise InputError(f"unknown argument {wrong[0]!r}; see --help")
    return options, fields


def _benchlib(workload: str):
    """The module beside the workload, told to keep its files elsewhere."""
    folder = files.real(workload).parent
    if not os.path.isfile(workload) or not os.path.isfile(folder / "benchlib.py"):
        raise InputError(f"--workload={workload}: no such file with benchlib.py beside")
    cache = pathlib.Path(os.environ.setdefault("BENCH_CACHE", CACHE)).expanduser()
    os.environ["BENCH_CACHE"] = str(cache)
    with files.writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    # No __pycache__ in the workload's folder, which may not be written to.
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("benchlib")
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = before


def read_workload(bl, path: str) -> dict:
    """The workload, under a name that nothing else in the cache has.

    What is kept there, here and by benchlib, is found by name. InputError: it is none.
    """
    try:
        workload = bl.workload(path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--workload={path} is no workload ({shown(error)})") from None
    except OSError as error:
        raise InputError(f"--workload={path}: {error.strerror or error}") from None
    if not _is_object(workload):
        raise InputError(f"--workload={path} is no workload (it is no JSON object)")
    try:
        _check_workload(workload)
    except InputError as error:
        raise InputError(
            f"--workload={path}: {error}; take one of ../shared/bench as a pattern"
        ) from None
    content = json.dumps(workload, sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()[:8]
    return workload | {"name": f"{workload['name']}-{digest}"}


def _check_workload(workload: dict) -> None:
    """InputError where something that is read of it is missing or cannot be."""
    values, missing = {}, set()
    for name in [*_NEEDED, "variants"]:
        try:
            values[name] = _at(workload, name)
        except KeyError:
            section = name.partition(".")[0]
            missing.add(name if section in workload else section)
    if missing:
        raise InputError(f"it lacks {', '.join(sorted(missing))}")
    limits.check(values.items(), rows=_NEEDED)
    variants = values["variants"]
    if not (_is_object(variants) and variants):
        raise InputError(f"variants={shown(variants)} must be an object, and not empty")
    for name, variant in variants.items():
        if not _is_object(variant):
            raise InputError(
                f"variants.{shown(name)}={shown(variant)} must be an object"
            )
        mean = variant.get("mean_len", 1)
        limits.check_value(_MEAN_LENGTH, mean, f"variants.{shown(name)}.mean_len")
    if not re.fullmatch(r"\w[\w.-]{0,99}", values["name"]):  # names folders
        raise InputError(
            f"name={shown(values['name'])} must be at most 100 letters, digits, dots, "
            "dashes and underscores"
        )
    special = [values[f"tokens.{name}"] for name in ("pad", "bos", "eos")]
    if len({*special}) < 3 or max(special) >= values["tokens.first_normal"]:
        raise InputError(
            f"tokens={shown(workload['tokens'])}: pad, bos and eos must differ, and be "
            "below first_normal"
        )
    least = 1 + max(values[name] for name in values if name.startswith("tokens."))
    if (size := values["model.vocab_size"]) < least:
        raise InputError(
            f"model.vocab_size={size} must be at least {least}, for all of its tokens"
        )
    heads, kv_heads = values["model.num_heads"], values["model.num_kv_heads"]
    if heads % kv_heads:
        raise InputError(
            f"model.num_heads={heads} must be a multiple of num_kv_heads={kv_heads}"
        )
    if (size := values["model.head_dim"]) % 2:
        raise InputError(f"model.head_dim={size} must be even")


def _at(value, name: str):
    """What a dotted name means in nested objects and lists; KeyError: nothing."""
    for part in name.split("."):
        if isinstance(value, list):
            value = dict(enumerate(value))
        if not _is_object(value):
            raise KeyError(name)
        value = value[int(part) if part.isdigit() else part]
    return value


def _config(bl, workload, options, steps: int, fields: list[str]):
    """The workload as a run's config, which `fields` override."""
    model_dir = _write_model(bl, workload, options.variant)
    values = _values(workload, options) | {
        "tokenizer": model_dir,
        "model.init": model_dir,
        "answer_phrase": "t3",  # a word that there is; nobody reads it
        "rollout.max_prompt_length": workload["prompt_len"],
    }
    config = _load(values, fields)
    # `fields` may have changed these: prompts are made for the run as it is.
    workload = workload | {
        "prompts_per_batch": config.prompts_per_step,
        "prompt_len": config.rollout.max_prompt_length,
    }
    # Loaded again: how many problems are written depends on what `fields` set.
    problems = _problem_count(options, config, steps)
    train = _write_problems(bl, workload, problems)
    return _load(values | {"data.train": train}, fields)


def _real_config(_, workload, options, steps: int, fields: list[str]):
    """The workload's config, but for the checkpoint and the problems that are given."""
    values = _values(workload, options) | {
        "tokenizer": options.model,
        "model.init": options.model,
        "data.too_long": "refuse",  # the peers leave none out
    }
    config = _load(values, fields)
    problems = _problem_count(options, config, steps)
    train = _write_asked(options.data, problems)
    return _load(values | {"data.train": train}, fields)


def _write_asked(path: str, count: int) -> pathlib.Path:
    """The first problems of a JSONL file, each asked as a user's message alone."""
    from limr_jax.data.problems import load_problems

    problems = load_problems(path, data_dir=CACHE)
    if len(problems) < count:
        raise InputError(
            f"--data={path} has {len(problems)} problems, and the steps draw {count}; "
            "give fewer --repeats or a longer set"
        )

    def write(path):
        with path.open("w", encoding="utf-8") as file:
            rows = zip(problems.ids, problems.prompts, strict=True)
            for name, problem in itertools.islice(rows, count):
                prompt = [{"role": "user", "content": problem}]
                row = {"id": name, "prompt": prompt, "answer": "1"}
                file.write(json.dumps(row) + "\n")

    return _kept(f"asked-{problems.digest[:12]}-{count}.jsonl", write)


def _problem_count(options, config, steps: int) -> int:
    """Problems of the set: by default as many as the steps draw, none comes twice."""
    problems = options.problems or steps * config.prompts_per_step
    if problems < config.prompts_per_step:
        raise InputError(
            f"--problems={problems} must be at least {config.prompts_per_step}, as "
            "many as a step draws"
        )
    return problems


def _values(workload, options) -> dict:
    """Field → what the workload says of it, whatever model there is."""
    adam, training = workload["train"]["adam"], workload["train"]
    return {
        "num_steps": workload["warmup"] + 2 * (options.repeats or workload["repeats"]),
        "prompts_per_step": workload["prompts_per_batch"],
        "group_size": workload["group_size"],
        "model.dtype": workload["dtype"],
        "data.allow_overlap": True,
        "rollout.temperature": workload["sampling"]["temperature"],
        "rollout.max_response_length": workload["max_new_tokens"],
        "loss_normaliser": "sequence",
        "clip.low": training["epsilon"],
        "clip.high": training["epsilon"],
        "kl.coefficient": options.kl,
        "optimizer.learning_rate": training["lr"],
        "optimizer.b1": adam[0],
        "optimizer.b2": adam[1],
        "optimizer.epsilon": adam[2],
        "optimizer.weight_decay": training["weight_decay"],
        "optimizer.clip_norm": training["max_grad_norm"],
    }


def _load(values: dict, fields: list[str]):
    """The config of these values, which `fields` override."""
    arguments = [f"--config.{name}={value}" for name, value in values.items()]
    arguments = ["--config", str(BASE), *arguments, *fields]
    return config_lib.load(arguments, kind="base")[0]


def _write_model(bl, workload, variant: str) -> pathlib.Path:
    """The seeded weights as a checkpoint, with a tokenizer of words t3, t4, …"""
    from safetensors.numpy import save_file

    dimensions, special = workload["model"], workload["tokens"]
    words = {"<pad>": special["pad"], "<bos>": special["bos"], "<eos>": special["eos"]}
    words |= {
        f"t{i}": i for i in range(special["first_normal"], dimensions["vocab_size"])
    }
    config = {
        "model_type": dimensions["arch"],
        "num_hidden_layers": dimensions["num_layers"],
        "num_attention_heads": dimensions["num_heads"],
        "num_key_value_heads": dimensions["num_kv_heads"],
        "eos_token_id": special["eos"],
        **dimensions,
    }
    # A word is a token, so that texts are the workload's own token ids.
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"},
    }
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "add_bos_token": False}

    def write(folder):
        folder.mkdir()
        save_file(bl.weights(workload, variant), folder / "model.safetensors")
        for name, value in (
            ("config", config),
            ("tokenizer", tokenizer),
            ("tokenizer_config", tokens),
        ):
            (folder / f"{name}.json").write_text(json.dumps(value))

    return _kept(f"{workload['name']}-{variant}", write)


def _write_problems(bl, workload, count: int) -> pathlib.Path:
    """The workload's prompts, step after step, as a data set."""
    prompts, length = workload["prompts_per_batch"], workload["prompt_len"]

    def write(path):
        with path.open("w", encoding="utf-8") as file:
            for i in range(count):
                if i % prompts == 0:
                    step_PL = bl.prompts(workload, i // prompts)
                text = " ".join(f"t{token}" for token in step_PL[i % prompts])
                row = {"id": str(i), "problem": text, "answer": "t3"}
                file.write(json.dumps(row) + "\n")

    return _kept(f"{workload['name']}-{prompts}x{length}-{count}.jsonl", write)


def _kept(name: str, write) -> pathlib.Path:
    """The file or folder of the cache, written whole if it is not there.

    write: called with the path of what it is to make. InputError: there is no room.
    """
    cache = pathlib.Path(os.environ["BENCH_CACHE"])
    path = cache / f"limr_jax-{name}"
    if path.exists():
        return path
    with files.writing(path):
        # Beside it, then renamed: no other process finds half of it.
        beside = pathlib.Path(tempfile.mkdtemp(dir=cache))
        try:
            write(beside / name)
            try:
                (beside / name).rename(path)
            except OSError:
                # A folder that holds something is not replaced: another process was
                # quicker, and what it made is the same.
                if not path.exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return path


def _with_even_tokens(run):
    """The run with the peers' reward: the share of even tokens in a response."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding

    from limr_jax.rewards.types import Graded
    from limr_jax.sharding import BATCH

    def grade(written, drawn):
        even_B = jnp.sum(written.mask_BT & (written.response_BT % 2 == 0), axis=1)
        share_B = even_B / jnp.maximum(jnp.sum(written.mask_BT, axis=1), 1)
        share_PG = share_B.reshape(-1, written.group)
        good_PG = jnp.ones_like(share_PG, bool)
        return Graded(
            reward_PG=share_PG,
            correct_PG=share_PG,
            valid_PG=good_PG,
            well_formed_PG=good_PG,
        )

    grade = jax.jit(grade, out_shardings=NamedSharding(run.mesh, BATCH))
    return dataclasses.replace(run, grade=grade)


def measure(bl, run, config, warmup: int, repeats: int) -> dict:
    """Train the run for some steps, and measure them; figures under the peers' names.

    bl: the workload's module benchlib, which says which steps were disturbed, to be
    made again. warmup: untimed steps, at least the one that compiles. repeats: timed
    steps. In the result `…_s` are seconds and `…_mib` MiB; what differs by step is an
    object of median, min, max and n over the timed steps; ref_s is None for a run
    without a reference policy; drift and drift_max are nats between the rollout's and
    the learner's log-probability of a token. Each step's own numbers go to stderr.
    """
    import jax

    from limr_jax import step, train
    from limr_jax.compilation import warm_up
    from limr_jax.data.prompts import put_prompts
    from limr_jax.first_state import frozen_of

    begun, compiling = time.perf_counter(), _Compiling()
    # As in a run: a transfer that nobody wrote down is an error, not a delay.
    with jax.set_mesh(run.mesh), jax.transfer_guard("disallow"):
        with contextlib.ExitStack() as stack:
            stack.enter_context(jax.transfer_guard("allow"))
            prompts = put_prompts(run.train_set, run.mesh)
            ready = stack.enter_context(warm_up.compiling(run, prompts))
            params = run.load_params()
            # Before `init`, which the parameters are donated to.
            frozen = frozen_of(run, params)
            state = run.programs.init(params)
            del params  # donated
            ready()

        def once(_):
            nonlocal state
            phases = step.Phases()
            state, *_, numbers = train.one_step(run, phases, state, frozen, prompts)
            numbers, of_rounds = jax.device_get(numbers)
            row = phases.finish(numbers, of_rounds)
            print({k: round(float(v), 4) for k, v in row.items()}, file=sys.stderr)
            return row["seconds"], row

        # The first step compiles: its seconds are not among the others.
        first = once(0)[1]
        first_step_s = time.perf_counter() - begun
        since_start = train.process_seconds()
        compile_s, compile_count = compiling.seconds, first["compile_count"]
        for i in range(1, warmup):
            once(i)
        bl.reset_peak()
        rows, noise = bl.repeat_quiet(once, repeats)
    rows = [row for _, row in rows]
    ref_s = None

    def stats(*names, digits=4):
        return bl.stats([sum(row[name] for name in names) for row in rows], digits)

    if run.programs.reference:
        # With several devices the wait for the one is counted in the other.
        ref_s = stats("seconds_reference", "seconds_grade")

    return {
        "step_s": stats("seconds"),
        "draw_s": stats("seconds_draw"),
        "generate_s": stats("seconds_generate"),
        "ref_s": ref_s,
        "update_s": stats("seconds_update"),
        "tokens": stats("tokens", digits=1),
        "gen_tok_per_s": stats("generate_tokens_per_second", digits=1),
        "update_tok_per_s": stats("update_tokens_per_second", digits=1),
        "drift": stats("drift", digits=8),
        "drift_max": stats("drift_max", digits=8),
        "peak_rss_mib": bl.peak_rss_mib(),
        "compile_s": round(compile_s, 3),
        "compile_count": compile_count,
        "compiles_while_timed": rows[-1]["compile_count"] - compile_count,
        "first_step_s": round(first_step_s, 3),
        "start_to_first_step_s": round(since_start, 3),
        "noise": noise,
    }


class _Compiling:
    """Seconds that JAX traced, lowered and compiled, from now on."""

    def __init__(self):
        import jax

        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, seconds: float, **_) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += seconds


def _read_peers(paths: str) -> dict[str, dict]:
    """The results in the files that a comma separates; name → a peer's figures.

    A figure is a number above 0, or an object with such a number as its `median`.
    InputError: a file cannot be read, its last line is no result, or two have one name.
    """
    peers = {}
    for file in filter(None, paths.split(",")):
        try:
            text = pathlib.Path(file).read_text(encoding="utf-8")
            # What it printed before is no result.
            result = json.loads(text.strip().splitlines()[-1])
        except (OSError, ValueError, IndexError, RecursionError) as error:
            raise InputError(f"--against={file}: no result ({error})") from error
        stem = pathlib.Path(file).stem
        modes = result.get("results", {"": result}) if _is_object(result) else None
        # Here, and not when all has been measured.
        if not _is_object(modes) or not all(map(_is_result, modes.values())):
            raise InputError(
                f"--against={file}: no result (its last line is no object of figures "
                "above 0); give a peer's output, or leave it out"
            )
        named = {f"{stem} {mode}".strip(): figures for mode, figures in modes.items()}
        if twice := peers.keys() & named:
            raise InputError(
                f"--against={paths}: two results are called {min(twice)!r}, as their "
                "files are; call one otherwise"
            )
        peers |= named
    return peers


def _is_object(value) -> bool:
    return isinstance(value, dict)


def _is_result(figures) -> bool:
    """Whether `ratios` can compare with all that it looks for in a peer's figures."""
    if not _is_object(figures):
        return False
    compared = [figures.get(what) for what in (*_COMPARED, "seconds")]
    medians = [_median(x) for x in compared if x is not None]
    # type: True is an int. nan is not above 0.
    return all(type(x) in (int, float) and 0 < x < math.inf for x in medians)


def ratios(ours: dict, peers: dict[str, dict]) -> dict:
    """Our medians over each peer's, for every figure that the peer has."""
    ratio_to = {}
    for name, peer in peers.items():
        # It only generates, so that its memory is not a step's.
        if peer.get("seconds") is not None:
            peer = {"generate_s": peer["seconds"]}
        ratio_to[name] = {
            what: round(_median(ours[what]) / _median(peer[what]), 3)
            for what in _COMPARED
            if peer.get(what) is not None
        }
    return ratio_to


def _median(figure) -> float:
    return figure.get("median") if isinstance(figure, dict) else figure


if __name__ == "__main__":
    config_lib.run_main(main)
