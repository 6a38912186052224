"""Problems: read in a fixed order, and tokenized.

A set is named as ``name:split``, a builder of data/datasets, or as a JSONL file,
each with a slice in Python's notation behind it if wanted: ``arithmetic:train[:64]``,
``path/to/problems.jsonl[-100:]``.

A row of it, or of a ``.json`` array, has ``problem`` (or ``prompt``: a text, or a list
of role/content messages), ``answer`` (or ``reference``), and a stable unique ``id``;
other columns are kept.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np

from limr_jax import platform
from limr_jax.data import jsonl, problem_rows
from limr_jax.data.datasets import tfds
from limr_jax.data.tokenizer import Message, Tokenizer
from limr_jax.errors import InputError


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
        # A chat by its messages: the same text as one message is another prompt.
        for problem_id, messages, prompt, answer in rows:
            row = [problem_id, messages or prompt, answer]
            sha.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        return sha.hexdigest()

    @functools.cached_property
    def digest_with_columns(self) -> str:
        """sha256 over `digest` and all columns, which samplers and rewards may read."""
        columns = sorted(self.columns.items())
        return hashlib.sha256(json.dumps([self.digest, columns]).encode()).hexdigest()


def load_problems(spec: str, *, data_dir, manual_dir=None) -> Problems:
    """The problems that `spec` names, at least one.

    spec: `name:split` or a file, with a slice behind it or not, as the config's
    `data.train` has it. data_dir: where prepared sets are cached. manual_dir: where
    local copies of the public sets' source files lie (None: in `data_dir`/manual).

    Raises:
      InputError: one line with the place and the remedy, for whatever is wrong.
    """
    name, rows_slice = _parse(spec)
    if _is_file(name):
        if not os.path.lexists(name):  # a link to nothing has an error of its own
            command = platform.as_launched("python launch/data.py list")
            raise InputError(
                f"{name}: no such file; check the path, or name a public set "
                f"({command})"
            )
        rows = list(jsonl.read_rows(name))
    else:
        rows = tfds.read(name, data_dir, manual_dir)
    if not rows:
        raise InputError(f"{spec}: holds no problem; give a set with at least one")
    chosen = rows[rows_slice]
    if not chosen:
        raise InputError(
            f"{spec}: the slice leaves none of {len(rows)} problems; widen it"
        )
    return Problems(source=spec, **problem_rows.read_fields(chosen))


def named_file(spec: str) -> pathlib.Path | None:
    """The file that `spec` names, without its slice; None: it names a prepared set.

    The file need not be there. InputError: what stands in the brackets is no slice.
    """
    name, _ = _parse(spec)
    return pathlib.Path(name) if _is_file(name) else None


def files_read(spec: str, *, data_dir, manual_dir=None) -> list[pathlib.Path]:
    """The user's files that the problems of `spec` come from, for none to be replaced.

    Nothing is read. Of a prepared set they are the local copies of its source in
    `manual_dir`, as `load_problems` has it; none where there are none.
    InputError: what stands in the brackets is no slice.
    """
    name, _ = _parse(spec)
    if _is_file(name):
        return [pathlib.Path(name)]
    return tfds.local_files(name, data_dir, manual_dir)


def _is_file(name: str) -> bool:
    """Whether a name without its slice is a file's, and not a prepared set's."""
    # With a slash it is a path, so that a misspelt one is a file that is not there, and
    # not a data set that nobody knows.
    return name.endswith((".jsonl", ".json")) or "/" in name or os.path.exists(name)


def _parse(spec: str) -> tuple[str, slice]:
    """'name[a:b]' → name and slice; a file that has this very name comes first."""
    # Only what stands in the last brackets: "a[1].jsonl[:2]" is two rows of a[1].jsonl.
    match = re.fullmatch(r"(.+?)\[([^\[\]]*)\]", spec)
    # Not pathlib's `exists`, which raises for a name that is too long for a file.
    if not match or os.path.exists(spec):
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
    """Each problem as a chat's messages; a prompt that is messages stays as it is."""
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
    A prompt of more than `max_prompt_length` tokens is left out
    (``too_long="leave_out"``) or refused (``"refuse"``).

    Raises:
      InputError: such a prompt, or nothing but such; a prompt without a token.
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
    # At least one column, though all answers may be empty: programs index this axis.
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


def refuse_unanswered(tokenized: TokenizedProblems) -> None:
    """Refuse problems without a reference answer, or with one that has no token.

    Raises:
      InputError: there are such; their number and the first id.
    """
    problems, lengths = tokenized.problems, tokenized.answer_length_N
    empty = [
        problem_id
        for problem_id, answer, length in zip(problems.ids, problems.answers, lengths)
        # Against an empty reference an empty response would be right.
        if not answer.strip() or not length
    ]
    if empty:
        raise InputError(
            f"{len(empty)} of {len(problems)} problems of {problems.source} have no "
            f"reference answer, first {empty[0]!r}; add them or leave those out"
        )


def _pad(rows, width: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    padded = np.full((len(rows), width), pad_id, np.int32)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return padded, np.array([len(row) for row in rows], np.int32)
