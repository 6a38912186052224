"""`Judge`: a language model as verifier, any causal checkpoint that `models` can load.

It is asked in one forward pass, without generating: which is likelier as the next
token, the first one of "True" or the first one of "False"? So an opinion depends on
nothing but the question, and has one static shape.

As second verifier (TinyV's cascade, arXiv:2505.14625) it sees only answers that the
rules call wrong. As `reward=judge` it grades what no rule can check, such as proofs.
What it reads a policy wrote, and may have written to please it: it is an opinion.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax.data import chat_template
from limr_jax.data.tokenizer import Tokenizer, load_tokenizer
from limr_jax.errors import InputError
from limr_jax.jit import jit
from limr_jax.models import hf_config, hf_weights, transformer
from limr_jax.models.from_config import frozen_shapes
from limr_jax.sharding import BATCH, make_mesh, param_shardings

QUESTION = """\
A teacher compares a student's answer with the reference. Notation, order of the members
of a set, simplification and units that go without saying may differ; the mathematics
may not.

Problem:
{prompt}

Reference:
{reference}

Student's answer:
{answer}

Does the student's answer say what the reference says? Reply with one word, True or \
False."""

_CHARACTERS = 32  # of a token, at most, on the average of a question that is read
# A tokenizer marks places with them; a policy may have written all of them.
_UNREADABLE = str.maketrans(dict.fromkeys(chat_template.NONCHARACTERS, "\ufffd"))


@dataclasses.dataclass(frozen=True)
class SharedParams:
    """Parameters that the run has anyway, LoRA's frozen base, as a judge's."""

    mesh: jax.sharding.Mesh  # of this process's devices alone
    # Called at the judge's first question; for a report it gives their shapes.
    load: Callable[[], Any]


class Judge:
    """(prompts, answers, references) → True, False, or None where it cannot read them.

    directory: the checkpoint, with its tokenizer. max_length: tokens of a question; on
    a longer one (or one of more than 32 characters to each of them, which is not even
    split into tokens) it has no opinion. rows: questions in one forward pass, rounded
    up to a multiple of the devices that hold different rows. devices: this process's
    own by default. Every process has its own copy on its own devices, so that each may
    ask as often as it needs. int8: its kernels are quantised, and the rest is bf16.
    shared: these parameters, in the place of a copy. They are loaded at the first call.

    Raises InputError where the checkpoint is too small for the tokenizer, max_length
    or the words True and False.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        max_length: int,
        rows: int,
        dtype,
        int8: bool = False,
        devices: Sequence[jax.Device] | None = None,
        shared: SharedParams | None = None,
    ):
        self._tokenizer = load_tokenizer(directory)
        yes, no = _verdict_tokens(self._tokenizer)
        self._config = hf_config.read_config(directory)
        hf_weights.check_fits(directory, self._config)
        if max_length > self._config.max_length:
            raise InputError(
                f"judge.max_length={max_length} is more than the "
                f"{self._config.max_length} tokens (max_position_embeddings) that "
                f"{directory} was trained for; lower it"
            )
        if self._config.vocab_size < self._tokenizer.vocab_size:
            raise InputError(
                f"{directory}: the model's vocabulary of {self._config.vocab_size} is "
                f"smaller than its tokenizer's {self._tokenizer.vocab_size}; give "
                "another checkpoint as judge.init"
            )
        devices = devices or jax.local_devices()
        # Alone: all devices along `data`, each with all parameters.
        self._mesh = (
            shared.mesh if shared else make_mesh(len(devices), 1, 1, devices=devices)
        )
        # Loaded later, wherever a reward function has gone meanwhile.
        self._directory = directory.absolute()
        # As LoRA's base lies (models/from_config.py), so that both say the same.
        self._dtype = jnp.bfloat16 if int8 else dtype
        self._int8, self._shared = int8, shared
        self._max_length = max_length
        parts = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        self._rows = -(-rows // parts) * parts
        self._prefers = jit(
            self._mesh,
            functools.partial(
                prefers, yes=yes, no=no, config=self._config, dtype=dtype
            ),
        )

    @functools.cached_property
    def _params(self):
        if self._shared:
            return self._shared.load()
        return hf_weights.load_params(
            self._directory,
            self._config,
            self._mesh,
            self._dtype,
            keep_fp32=True,
            int8=self._int8,
        )

    def close(self) -> None:
        """Let the parameters go; the next question loads them again."""
        self.__dict__.pop("_params", None)

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        """An opinion on each of the answers, in their order."""
        questions = [
            QUESTION.format(prompt=p, answer=a, reference=r)
            for p, a, r in zip(prompts, answers, references, strict=True)
        ]
        longest = _CHARACTERS * self._max_length
        brief = [k for k, q in enumerate(questions) if len(q) <= longest]
        texts = [questions[k].translate(_UNREADABLE) for k in brief]
        # A lone surrogate is no UTF-8; it becomes a question mark.
        texts = [q.encode("utf-8", "replace").decode() for q in texts]
        chats = [[{"role": "user", "content": question}] for question in texts]
        rows = zip(brief, self._tokenizer.encode_chats(chats), strict=True)
        short = [(k, row) for k, row in rows if len(row) <= self._max_length]
        opinions: list[bool | None] = [None] * len(questions)
        for start in range(0, len(short), self._rows):
            places, ids = zip(*short[start : start + self._rows], strict=True)
            # Not strict: after a short batch's questions come rows that only fill up.
            for k, opinion in zip(places, self._opinions(ids)):
                opinions[k] = bool(opinion)
        return opinions

    def _opinions(self, ids: Sequence[list[int]]) -> np.ndarray:
        """bool [rows], of which the first len(ids) count; ids: a question's tokens."""
        tokens_BS = np.full((self._rows, self._max_length), self._tokenizer.pad_id)
        # 1 in the rows that fill up, for `prefers` reads column length − 1.
        length_B = np.ones(self._rows, np.int32)
        for b, row in enumerate(ids):
            tokens_BS[b, : len(row)], length_B[b] = row, len(row)
        questions = tokens_BS.astype(np.int32), length_B
        with jax.set_mesh(self._mesh):
            tokens_BS, length_B = jax.device_put(
                questions, NamedSharding(self._mesh, BATCH)
            )
            return jax.device_get(self._prefers(self._params, tokens_BS, length_B))

    def program(self):
        """(mesh, jitted program, shapes of the arguments), for the compile report."""
        placed = self._params if self._shared else self._param_shapes()
        rows = NamedSharding(self._mesh, BATCH)
        tokens_BS, length_B = (
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
            for shape in ((self._rows, self._max_length), (self._rows,))
        )
        return self._mesh, self._prefers, (placed, tokens_BS, length_B)

    def _param_shapes(self):
        shapes = hf_weights.param_shapes(self._config)
        shapes = frozen_shapes(shapes, self._dtype, self._int8)
        return jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
            shapes,
            param_shardings(self._mesh, shapes),
        )


def prefers(params, tokens_BS, length_B, *, yes, no, config, dtype) -> jax.Array:
    """Whether, after each row, the tokens `yes` are likelier than `no`: bool [B].

    tokens_BS: right-padded to S, length_B tokens each; yes, no: token ids, whose
    probabilities are added up.
    """
    position_S = jnp.arange(tokens_BS.shape[1])[None]
    position_BS = jnp.where(position_S < length_B[:, None], position_S, -1)
    hidden_BSD = transformer.forward(
        params, tokens_BS, position_BS, config=config, dtype=dtype
    )
    # Only B rows are unembedded, not B · S: the last token's state predicts the reply.
    last_BD = jnp.take_along_axis(hidden_BSD, length_B[:, None, None] - 1, axis=1)[:, 0]
    logits_BV = transformer.unembed(params, last_BD, config=config, dtype=dtype)
    # log Σ exp of the logits: the softmax's normaliser is the same on both sides.
    yes_B, no_B = (
        jax.nn.logsumexp(logits_BV[:, jnp.array(ids)], axis=1) for ids in (yes, no)
    )
    return yes_B > no_B


def _verdict_tokens(tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The first tokens of "True" and of "False", with and without a blank before."""
    yes, no = (
        {
            first
            for written in (word, " " + word, word.lower(), " " + word.lower())
            for first in tokenizer.encode(written, continued=True)[:1]
        }
        for word in ("True", "False")
    )
    # What both may begin with, such as a blank's own token, counts for neither.
    if not yes - no or not no - yes:
        raise InputError(
            "the judge's tokenizer begins True and False with the same token, or with "
            "none; give another checkpoint as judge.init"
        )
    return tuple(sorted(yes - no)), tuple(sorted(no - yes))
