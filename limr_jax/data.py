"""Problems: read in a fixed order, tokenized, and kept as device arrays.

A set is named as ``name:split``, a builder of limr_jax/datasets, or as a JSONL file,
each with a slice in Python's notation behind it if wanted: ``arithmetic:train[:64]``,
``path/to/problems.jsonl[-100:]``.

A JSONL row has ``problem`` (or ``prompt``: a text, or a list of role/content messages),
``answer`` (or ``reference``), and a stable unique ``id``; other columns are kept.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from limr_jax import jsonl
from limr_jax.datasets import facts, prepared
from limr_jax.errors import InputError
from limr_jax.text import Message, Tokenizer


@dataclasses.dataclass(frozen=True)
class Problems:
    """N problems on the host, in a fixed order."""

    source: str  # as the user named it
    ids: tuple[str, ...]  # unique and stable
    prompts: tuple[str, ...]  # the text; of messages, the contents one after another
    messages: tuple[tuple[Message, ...] | None, ...]  # where the prompt is a chat
    answers: tuple[str, ...]  # the reference answer
    columns: dict[str, tuple]  # all else; None where a row lacks it

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Iterable[int]) -> "Problems":
        """The problems at these indices, in this order."""
        indices = list(indices)

        def pick(values):
            return tuple(values[i] for i in indices)

        return Problems(
            source=self.source,
            ids=pick(self.ids),
            prompts=pick(self.prompts),
            messages=pick(self.messages),
            answers=pick(self.answers),
            columns={name: pick(values) for name, values in self.columns.items()},
        )

    def row(self, i: int) -> dict:
        """One problem as a row of a JSONL file, from which it is read back the same."""
        columns = {name: values[i] for name, values in self.columns.items()}
        prompt = self.messages[i] or self.prompts[i]
        return columns | {
            "id": self.ids[i],
            "prompt": prompt,
            "answer": self.answers[i],
        }

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over ids, prompts and answers: two equal ones are the same data."""
        sha = hashlib.sha256()
        rows = zip(self.ids, self.messages, self.prompts, self.answers, strict=True)
        for problem_id, messages, prompt, answer in rows:
            row = [problem_id, messages or prompt, answer]
            sha.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return sha.hexdigest()

    @functools.cached_property
    def digest_with_columns(self) -> str:
        """Likewise over all that a row has: what samplers and rewards may read."""
        columns = sorted(self.columns.items())
        return hashlib.sha256(json.dumps([self.digest, columns]).encode()).hexdigest()


def load_problems(spec: str, *, data_dir, manual_dir=None) -> Problems:
    """The problems that `spec` names.

    `data_dir` is where prepared sets are cached, `manual_dir` where local copies of
    the public sets' source files lie (None: in `data_dir`/manual).
    InputError, one line with the place and the remedy, for whatever is wrong.
    """
    name, rows_slice = _parse(spec)
    if name.endswith((".jsonl", ".json")) or "/" in name or pathlib.Path(name).exists():
        rows = list(jsonl.read_rows(name))
    else:
        rows = prepared.read(name, data_dir, manual_dir)
    if not rows:
        raise InputError(f"{spec}: holds no problem; give a set with at least one")
    chosen = rows[rows_slice]
    if not chosen:
        raise InputError(
            f"{spec}: the slice leaves none of {len(rows)} problems; widen it"
        )
    return _problems(spec, chosen)


def _parse(spec: str) -> tuple[str, slice]:
    """'name[a:b]' → name and slice; a file that has this very name comes first."""
    match = re.fullmatch(r"(.+?)\[([^\[\]]*)\]", spec)
    if not match or pathlib.Path(spec).exists():
        return spec, slice(None)
    numbers = match[2].split(":")
    try:
        if not 2 <= len(numbers) <= 3:
            raise ValueError
        rows_slice = slice(*(int(n) if n.strip() else None for n in numbers))
    except ValueError:
        rows_slice = None
    if rows_slice is None or rows_slice.step == 0:
        raise InputError(
            f"{spec}: [{match[2]}] is no slice; write [start:stop] with whole numbers"
        )
    return match[1], rows_slice


def _problems(spec: str, rows: Sequence[tuple[str, dict]]) -> Problems:
    place = {}  # id → where it was first
    prompts, messages, answers = [], [], []
    for where, row in rows:
        problem_id = jsonl.text_field(row, "id", where, numbers=True)
        if problem_id in place:
            raise InputError(
                f"{where}: the id {problem_id!r} is also that of {place[problem_id]}; "
                "give every problem its own"
            )
        place[problem_id] = where
        prompt, chat = _prompt(row, where)
        prompts.append(prompt)
        messages.append(chat)
        answer = "reference" if "answer" not in row and "reference" in row else "answer"
        answers.append(jsonl.text_field(row, answer, where, numbers=True))
    taken = {"id", "answer", "prompt" if "prompt" in rows[0][1] else "problem"}
    names = dict.fromkeys(name for _, row in rows for name in row if name not in taken)
    for where, row in rows:
        if isinstance(row.get("level"), (dict, list)):
            raise InputError(
                f"{where}: the level {json.dumps(row['level'])[:40]} is none that "
                "figures can be given by; write a number or a text"
            )
    return Problems(
        source=spec,
        ids=tuple(place),
        prompts=tuple(prompts),
        messages=tuple(messages),
        answers=tuple(answers),
        columns={name: tuple(row.get(name) for _, row in rows) for name in names},
    )


def _prompt(row: dict, where: str) -> tuple[str, tuple[Message, ...] | None]:
    """The prompt's text, and its messages if it is a chat; `problem` comes second."""
    field = "prompt" if "prompt" in row else "problem"
    chat = row.get(field)
    if not isinstance(chat, list):
        prompt = jsonl.text_field(row, field, where)
        if not prompt:
            raise InputError(
                f"{where}: the field {field!r} is empty; leave the row out"
            )
        return prompt, None
    for message in chat:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise InputError(
                f"{where}: a message of {field!r} is not an object of just role and "
                "content; write it so"
            )
        for part, value in message.items():
            jsonl.text_value(value, f"{where}: a message's {part}")
    if not chat:
        raise InputError(f"{where}: {field!r} has no messages; leave the row out")
    return "\n\n".join(message["content"] for message in chat), tuple(chat)


def overlap(train: Problems, evaluation: Problems) -> tuple[tuple[str, str], ...]:
    """(id in train, id in evaluation) of each problem that both sets have.

    Two texts are the same problem if they are equal without white space, in NFKC, case
    ignored.
    """
    places = {}
    for problem_id, prompt in zip(evaluation.ids, evaluation.prompts, strict=True):
        places.setdefault(same_text(prompt), problem_id)
    return tuple(
        (problem_id, places[text])
        for problem_id, prompt in zip(train.ids, train.prompts, strict=True)
        if (text := same_text(prompt)) in places
    )


def refuse_overlap(train: Problems, evaluation: Problems) -> None:
    """InputError if a training problem is one of the evaluation's."""
    both = overlap(train, evaluation)
    if both:
        raise InputError(
            f"{len(both)} of {len(train)} problems of {train.source} are in "
            f"{evaluation.source} (first {both[0][0]!r} = {both[0][1]!r}); leave them "
            "out, or allow it with data.allow_overlap=true"
        )


def refuse_held_out(train: Problems, *held_out: Problems, **places) -> None:
    """InputError if a training problem is in one of these, or in an evaluation set.

    places: data_dir and manual_dir, where the public evaluation sets are looked for.
    """
    public, _ = evaluation_sets(**places)
    for each in (*public, *held_out):
        refuse_overlap(train, each)


def evaluation_sets(*, data_dir, manual_dir=None) -> tuple[list[Problems], list[str]]:
    """The public evaluation sets that are on this machine, and the names of the rest.

    Nothing is downloaded for it.
    """
    at_hand, absent = [], []
    for spec in facts.EVALUATION_SETS:
        if prepared.at_hand(spec, data_dir, manual_dir):
            at_hand.append(
                load_problems(spec, data_dir=data_dir, manual_dir=manual_dir)
            )
        else:
            absent.append(spec)
    return at_hand, absent


def same_text(prompt: str) -> str:
    """What two writings of one problem have in common."""
    return "".join(unicodedata.normalize("NFKC", prompt).casefold().split())


@dataclasses.dataclass(frozen=True)
class TokenizedProblems:
    """The problems that fit, as right-padded host arrays; N of them."""

    problems: Problems  # those kept
    prompt_NL: np.ndarray  # int32; L is the longest, rounded up to 8, or the limit
    prompt_length_N: np.ndarray  # int32, at least 1
    answer_NA: np.ndarray  # int32
    answer_length_N: np.ndarray  # int32
    left_out: tuple[str, ...]  # ids of problems that were too long

    def __len__(self) -> int:
        return len(self.problems)


def chats(problems: Problems, tokenizer: Tokenizer) -> list[list[Message]]:
    """Each problem as messages; a prompt that is messages stays as it is."""
    return [
        tokenizer.math_messages(prompt) if chat is None else list(chat)
        for prompt, chat in zip(problems.prompts, problems.messages, strict=True)
    ]


def tokenize(
    problems: Problems,
    tokenizer: Tokenizer,
    *,
    max_prompt_length: int,
    too_long: str = "leave_out",
) -> TokenizedProblems:
    """Prompts as the model reads them, and reference answers; nothing is ever cut.

    A prompt that is a text goes into the chat template after LIMR's system prompt (a
    tokenizer without template: the text alone); messages go in as they are. Answers
    are encoded as text that goes on after other text, without BOS and end token.
    A prompt of more tokens than the limit is left out (``too_long="leave_out"``) or an
    InputError (``"refuse"``).
    """
    if too_long not in ("leave_out", "refuse"):
        raise InputError(f"data.too_long={too_long!r}: give 'leave_out' or 'refuse'")
    prompts = tokenizer.encode_chats(chats(problems, tokenizer))
    answers = tokenizer.encode_batch(problems.answers, continued=True)
    kept, left_out = [], []
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(
                f"{problems.source}: the prompt of {problems.ids[i]!r} has no token "
                "under this tokenizer; leave it out"
            )
        (kept if len(prompt) <= max_prompt_length else left_out).append(i)
    left_out_ids = tuple(problems.ids[i] for i in left_out)
    if left_out and (too_long == "refuse" or not kept):
        raise InputError(
            f"{problems.source}: {len(left_out)} of {len(problems)} problems exceed "
            f"prompts of {max_prompt_length} tokens, first "
            f"{', '.join(left_out_ids[:3])}; raise the limit"
            + (" or set data.too_long=leave_out" if kept else "")
        )
    prompts, answers = [prompts[i] for i in kept], [answers[i] for i in kept]
    width = -(-max(map(len, prompts)) // 8) * 8
    width = min(width, max_prompt_length)
    prompt_NL, prompt_length_N = _pad(prompts, width, tokenizer.pad_id)
    answer_NA, answer_length_N = _pad(
        answers, max(1, *map(len, answers)), tokenizer.pad_id
    )
    return TokenizedProblems(
        problems=problems.take(kept),
        prompt_NL=prompt_NL,
        prompt_length_N=prompt_length_N,
        answer_NA=answer_NA,
        answer_length_N=answer_length_N,
        left_out=left_out_ids,
    )


def _pad(rows, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((len(rows), width), pad_id, np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prompts:
    """Right-padded tokens on the devices: the whole set (N rows), or a step's (P)."""

    prompt_NL: jax.Array  # int32
    prompt_length_N: jax.Array  # int32; 0 in the rows that fill up the last device
    answer_NA: jax.Array  # int32
    answer_length_N: jax.Array  # int32


def put(tokenized: TokenizedProblems, mesh: Mesh) -> Prompts:
    """The set as device arrays, its rows spread over all axes of the mesh.

    N is filled up with empty rows to a multiple of the device count. Every process
    holds the whole set on its host and puts its own devices' rows.
    """
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    fill = -len(tokenized) % mesh.size

    def spread(host):
        host = np.pad(host, [(0, fill)] + [(0, 0)] * (host.ndim - 1))
        return jax.make_array_from_callback(
            host.shape, sharding, lambda index: host[index]
        )

    return jax.tree.map(spread, on_host(tokenized))


def on_host(tokenized: TokenizedProblems) -> Prompts:
    """The set's arrays before they are put on devices."""
    return Prompts(
        prompt_NL=tokenized.prompt_NL,
        prompt_length_N=tokenized.prompt_length_N,
        answer_NA=tokenized.answer_NA,
        answer_length_N=tokenized.answer_length_N,
    )


def gather(prompts: Prompts, id_P: jax.Array) -> Prompts:
    """The rows of these problems (indices below N), in this order; for use in a jit.

    Each device looks up the rows that it holds, and their sum over devices is the
    result: P × L moves, and no device ever holds all N rows.
    """
    return jax.tree.map(lambda leaf: leaf.at[id_P].get(mode="clip"), prompts)


def left_pad(prompt_PL: jax.Array, length_P: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Right-padded prompts, moved to end at column L − 1.

    Returns tokens [P, L] and positions [P, L], which count from 0 at a prompt's first
    token and are −1 in the padding before it.
    """

    def one(prompt_L, length):
        L = prompt_L.shape[0]
        position_L = jnp.arange(L, dtype=jnp.int32) - (L - length)
        return jnp.roll(prompt_L, L - length), jnp.maximum(position_L, -1)

    return jax.vmap(one)(prompt_PL, length_P)
