"""The one table of what each field of a config may be, wherever its value comes from.

`LIMITS` has a row for every field of configs/base.py and configs/sft_base.py, but for
those that an algorithm or a sampler has of its own: theirs are beside it
(`advantages.ALGORITHMS`, `from_config.SAMPLERS`,
`allocation.ALLOCATIONS`). What several fields must be together
is in check.py. Nothing is loaded here: a wrong value is refused before JAX is imported,
so names of choices are written out, and tests hold them to the tables that use them.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from limr_jax.errors import InputError, choose


@dataclasses.dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `largest`, both of them allowed."""

    least: int
    largest: int
    kind = int
    description = "a whole number"


@dataclasses.dataclass(frozen=True)
class Real:
    """A number from `least` to `largest`, both of them allowed; never inf or nan."""

    least: float
    largest: float
    kind = float
    description = "a number"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some names; `optional`: or empty, which base.py says the meaning of."""

    names: tuple[str, ...]
    optional: bool = False
    kind = str
    description = "text"


@dataclasses.dataclass(frozen=True)
class Text:
    """Any text that UTF-8 and a path can hold; whether it names something shows later.

    It may be empty: which fields a program cannot do without, check.py says.
    """

    kind = str
    description = "text"


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    kind = bool
    description = "true or false"


Row = Whole | Real | Choice | Text | Flag

COUNT = 2**31 - 1  # the devices count in int32
# Beyond what any run has: more is a slip of the keyboard.
ROWS, TOKENS, SIZE = 2**20, 2**20, 2**20
# Weights are fp32, and are multiplied with one another; a smaller positive number than
# SMALL would be 0 there, or its inverse inf.
SMALL, LARGE = 1e-6, 1e6

LIMITS: dict[str, Row] = {
    "seed": Whole(0, 2**32 - 1),  # uint32 on the devices
    "num_steps": Whole(1, COUNT),
    "prompts_per_step": Whole(1, ROWS),
    "group_size": Whole(1, 2**16),
    "data.train": Text(),
    "data.eval": Text(),
    "data.too_long": Choice(("leave_out", "refuse")),
    "data.cache_dir": Text(),
    "data.manual_dir": Text(),
    "data.allow_overlap": Flag(),
    "tokenizer": Text(),
    "model.init": Text(),
    "model.architecture": Choice(("qwen2", "qwen3", "llama", "gemma2", "gemma3_text")),
    "model.preset": Choice(
        ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-7b")
        + ("qwen2.5-math-1.5b", "qwen2.5-math-7b")
        + ("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b")
        + ("llama-3.1-8b", "gemma-2-2b", "gemma-3-1b"),
        optional=True,
    ),
    # 0 is what the checkpoint has; base.py says what it means for a random model.
    "model.vocab_size": Whole(0, SIZE * 16),
    "model.width": Whole(0, SIZE),
    "model.layers": Whole(0, 2**12),
    "model.heads": Whole(0, 2**12),
    "model.kv_heads": Whole(0, 2**12),
    "model.head_dim": Whole(0, 2**12),
    "model.mlp_width": Whole(0, SIZE),
    "model.max_length": Whole(0, COUNT),
    "model.dtype": Choice(("auto", "bfloat16", "float32")),
    "model.remat": Flag(),
    "model.attention": Choice(("auto", "xla", "splash", "ragged")),
    "model.base_dtype": Choice(("float32", "bfloat16", "int8")),
    "model.lora.rank": Whole(0, SIZE),
    "model.lora.alpha": Real(SMALL, LARGE),
    "model.lora.scaling": Choice(("plain", "rs")),
    "model.lora.targets": Text(),  # some of models/config.py's TARGETS
    "model.lora.init": Text(),
    # -1: the devices that the other axes leave.
    "mesh.data": Whole(-1, SIZE),
    "mesh.fsdp": Whole(-1, SIZE),
    "mesh.tensor": Whole(-1, SIZE),
    "slice.type": Choice(
        ("v4-8", "v4-16", "v4-32", "v4-64")
        + ("v5litepod-1", "v5litepod-4", "v5litepod-8", "v5litepod-16")
        + ("v5p-8", "v5p-16", "v6e-1", "v6e-4", "v6e-8", "v6e-16"),
        optional=True,
    ),
    "slice.problems": Whole(0, COUNT),
    "slice.answer_length": Whole(0, TOKENS),
    "sampler.name": Text(),  # one of samplers/from_config.py's SAMPLERS
    "sampler.unbiased": Flag(),
    "allocation.name": Choice(("fixed", "knapsack", "ada")),
    "allocation.most": Whole(0, 2**16),  # 0: 4 x group_size
    "rollout.temperature": Real(1e-3, 1e3),
    "rollout.top_p": Real(SMALL, 1),
    "rollout.top_k": Whole(0, COUNT),
    "rollout.min_p": Real(0, 0.999999),
    "rollout.max_prompt_length": Whole(1, TOKENS),
    "rollout.max_response_length": Whole(1, TOKENS),
    "rollout.slots": Whole(0, COUNT),
    "rollout.compactions": Whole(0, 6),  # slots.LOOPS - 1
    "rollout.calls": Whole(1, ROWS),
    "rollout.drafts": Whole(0, 16),
    "rollout.drafts_kept": Whole(1, ROWS),
    "reward": Text(),
    "answer_phrase": Text(),
    "grader.workers": Whole(0, 2**12),
    "grader.wall_seconds": Real(1e-3, LARGE),
    "grader.cpu_seconds": Real(1e-3, LARGE),
    "grader.memory_mib": Whole(1, 2**24),
    "judge.init": Text(),
    "judge.max_length": Whole(1, TOKENS),
    "judge.rows": Whole(1, ROWS),
    "judge.dtype": Choice(("auto", "int8")),
    "overlong.buffer": Whole(0, TOKENS),
    "overlong.weight": Real(0, LARGE),
    "algorithm": Text(),  # one of learner/advantages.py's ALGORITHMS
    "loss": Choice(("clip", "gspo", "cispo")),
    "loss_normaliser": Choice(
        ("token", "sequence", "constant", "rollout"), optional=True
    ),
    "mask_truncated": Flag(),
    "clip.low": Real(0, 1),
    "clip.high": Real(0, LARGE),
    "clip.dual": Real(0, LARGE),  # above 1, or 0: check.py
    "mismatch.recompute": Flag(),
    "mismatch.correction": Choice(("none", "tis", "icepop", "ipo")),
    "mismatch.cap": Real(1, LARGE),
    # What rounding alone makes of w = 1 must be within, or every token is masked.
    "mismatch.low": Real(0, 0.999),
    "mismatch.high": Real(1.001, LARGE),
    "mismatch.limit": Real(1e-3, 1),
    "entropy_coefficient": Real(-LARGE, LARGE),
    "minibatches_per_step": Whole(1, ROWS),
    "updates_per_minibatch": Whole(1, ROWS),
    "micro_batch_rows": Whole(0, COUNT),
    "row_responses": Whole(1, 2**16),
    "filter.tau": Real(-1, 1e3),  # below 0: no filter
    "filter.normaliser": Choice(("all", "kept")),
    "filter.keep_kl": Flag(),
    "filter.groups": Choice(("none", "mixed")),
    "filter.max_rounds": Whole(1, ROWS),
    # A round adds a batch at most, and the next step takes what is over first.
    "filter.max_age": Whole(0, 1),
    "kl.coefficient": Real(0, LARGE),
    "kl.estimator": Choice(("k1", "k2", "k3"), optional=True),
    "kl.placement": Choice(("loss", "reward")),
    "kl.target": Real(0, LARGE),
    # A step changes the coefficient by at most 0.2 x gain of itself, and not below 0.
    "kl.gain": Real(SMALL, 4.99),
    "kl.reset_every": Whole(0, COUNT),
    "critic.learning_rate": Real(0, 1e38),
    "critic.value_clip": Real(SMALL, LARGE),
    "critic.pretrain_steps": Whole(0, COUNT),
    "optimizer.learning_rate": Real(0, 1e38),
    "optimizer.warmup_steps": Whole(0, COUNT),
    "optimizer.decay_steps": Whole(0, COUNT),
    "optimizer.decay_to": Real(0, 1),
    # Nearer to 1 they are 1 in fp32, and Adam divides by 0.
    "optimizer.b1": Real(0, 0.999999),
    "optimizer.b2": Real(0, 0.999999),
    "optimizer.epsilon": Real(1e-30, 1),
    "optimizer.weight_decay": Real(0, LARGE),
    "optimizer.clip_norm": Real(0, LARGE),
    "divergence.patience": Whole(1, COUNT),
    "alarms.drift": Real(0, LARGE),
    "alarms.drift_stop": Real(0, LARGE),
    "alarms.flat_steps": Whole(0, COUNT),
    "alarms.entropy_share": Real(0, 1),
    "alarms.invalid_share": Real(0, 1),
    "alarms.truncated_share": Real(0, 1),
    "evaluation.every": Whole(0, COUNT),
    "evaluation.samples": Whole(0, 2**16),
    "benchmarks.names": Text(),
    "benchmarks.k": Whole(1, 2**16),
    "benchmarks.temperature": Real(-1, 1e3),  # below 0: greedy, or 0.4
    "benchmarks.top_p": Real(SMALL, 1),
    "benchmarks.max_prompt_length": Whole(0, TOKENS),
    "benchmarks.max_response_length": Whole(0, TOKENS),
    "checkpoint.every": Whole(1, COUNT),
    "checkpoint.keep": Whole(1, COUNT),
    "wandb.project": Text(),
    "wandb.mode": Choice(("offline", "online")),
    "dump.max_bytes": Whole(0, 2**63 - 1),
    "dump.rows_per_step": Whole(0, COUNT),
    # Of configs/sft_base.py alone.
    "rows": Whole(1, ROWS),
    "columns": Whole(1, TOKENS),
    "log_every": Whole(1, COUNT),
}


def check(
    fields: Iterable[tuple[str, Any]],
    name: Callable[[str], str] = str,
    rows: Mapping[str, Row] = LIMITS,
) -> None:
    """Refuse values that their rows do not allow.

    fields: (dotted name, value) of each. name: what a field is called in the error. A
    field that `rows` does not have is not looked at.

    Raises:
      InputError: for the first such value.
    """
    for field, value in fields:
        if field in rows:
            check_value(rows[field], value, name(field))


def row(field: str, default: Any) -> Row:
    """The field's row of `LIMITS`, or what any field with such a default may be."""
    by_kind = {
        bool: Flag(),
        int: Whole(-COUNT, COUNT),
        float: Real(-LARGE, LARGE),
        str: Text(),
    }
    return LIMITS.get(field) or by_kind[type(default)]


def check_value(row: Row, value: Any, name: str) -> None:
    """Refuse a value that the row does not allow; True is no number.

    Raises:
      InputError: it begins with `name`, and says what the value must be.
    """
    kinds = (int, float) if row.kind is float else row.kind
    is_flag = isinstance(value, bool)  # an int to Python
    if not isinstance(value, kinds) or is_flag != (row.kind is bool):
        kind = type(value).__name__
        raise InputError(
            f"{name}={_shown(value)} must be {row.description}, not {kind}"
        )
    if isinstance(row, Choice) and (value or not row.optional):
        choose(dict.fromkeys(row.names), value, name)
    elif isinstance(row, Text):
        _check_text(value, name)
    elif isinstance(row, Whole | Real) and not row.least <= value <= row.largest:
        least, largest = (
            str(x) if isinstance(x, int) else f"{x:g}" for x in (row.least, row.largest)
        )
        raise InputError(f"{name}={_shown(value)} must be from {least} to {largest}")


def _check_text(value: str, name: str) -> None:
    """InputError for what no path can hold."""
    try:
        # b"" for an empty text, which is readable: hence `is False` below.
        readable = "\0" not in value and value.encode()
    except UnicodeEncodeError:  # bytes of a command line that are not UTF-8
        readable = False
    if readable is False:
        raise InputError(
            f"{name}={_shown(value)} must be UTF-8 text without a NUL character"
        )


def _shown(value: Any) -> str:
    """The value in one line, shortened."""
    # str() refuses an int of more than 4,300 digits.
    if type(value) is int and value.bit_length() > 128:
        return f"{'-' if value < 0 else ''}2**{value.bit_length() - 1} or more"
    if isinstance(value, int | float):
        return str(value)
    return " ".join(reprlib.repr(value).split())
