"""A language model as verifier: any causal checkpoint that model.py can load.

It is asked in one forward pass, without generating: which is likelier as the next
token, the first one of "True" or the first one of "False"? So an opinion depends on
nothing but the question, and has one static shape.

As second verifier (TinyV's cascade, arXiv:2505.14625) it sees only answers that the
rules call wrong. As `reward=judge` it grades what no rule can check, such as proofs.
What it reads a policy wrote, and may have written to please it: it is an opinion.
"""

import functools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import architectures, model, text, weights
from limr_jax.compiling import jit
from limr_jax.errors import InputError
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


class Judge:
    """(prompts, answers, references) → True, False, or None where it cannot read them.

    directory: the checkpoint, with its tokenizer; max_length: tokens of a question, a
    longer one has no opinion; rows: questions at once, rounded up to this process's
    devices. Every process has its own copy on its own devices, so that each may ask as
    often as it needs. The parameters are loaded when it is first asked. devices: of
    another process, in the place of its own.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        max_length: int,
        rows: int,
        dtype,
        devices: Sequence[jax.Device] | None = None,
    ):
        self._tokenizer = text.load_tokenizer(directory)
        yes, no = _verdict_tokens(self._tokenizer)
        self._config = architectures.read_config(directory)
        weights.check_fits(directory, self._config)
        if self._config.vocab_size < self._tokenizer.vocab_size:
            raise InputError(
                f"{directory}: the model's vocabulary of {self._config.vocab_size} is "
                f"smaller than its tokenizer's {self._tokenizer.vocab_size}; give "
                "another checkpoint as judge.init"
            )
        devices = devices or jax.local_devices()
        self._mesh = make_mesh(len(devices), 1, 1, devices=devices)
        self._directory, self._dtype = directory, dtype
        self._max_length = max_length
        self._rows = -(-rows // len(devices)) * len(devices)
        asked = {"yes": yes, "no": no, "config": self._config, "dtype": dtype}
        self._ask = jit(self._mesh, functools.partial(prefers, **asked))

    @functools.cached_property
    def _params(self):
        return weights.load_params(
            self._directory, self._config, self._mesh, self._dtype
        )

    def __call__(
        self, prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[bool | None]:
        questions = [
            QUESTION.format(prompt=p, answer=a, reference=r)
            for p, a, r in zip(prompts, answers, references, strict=True)
        ]
        readable = [q.encode("utf-8", "replace").decode() for q in questions]
        ids = self._tokenizer.encode_chats(
            [[{"role": "user", "content": question}] for question in readable]
        )
        short = [k for k, row in enumerate(ids) if len(row) <= self._max_length]
        opinions: list[bool | None] = [None] * len(ids)
        for start in range(0, len(short), self._rows):
            some = short[start : start + self._rows]
            for k, opinion in zip(some, self._opinions([ids[k] for k in some])):
                opinions[k] = bool(opinion)
        return opinions

    def _opinions(self, ids: list[list[int]]) -> np.ndarray:
        tokens_BS = np.full((self._rows, self._max_length), self._tokenizer.pad_id)
        length_B = np.ones(self._rows, np.int32)
        for b, row in enumerate(ids):
            tokens_BS[b, : len(row)], length_B[b] = row, len(row)
        asked = tokens_BS.astype(np.int32), length_B
        with jax.set_mesh(self._mesh):
            rows = jax.device_put(asked, NamedSharding(self._mesh, BATCH))
            return jax.device_get(self._ask(self._params, *rows))

    def program(self):
        """(mesh, jitted program, shapes of the arguments), for the compile report."""
        params = weights.param_shapes(self._config)
        placed = jax.tree.map(
            lambda x, at: jax.ShapeDtypeStruct(x.shape, self._dtype, sharding=at),
            params,
            param_shardings(self._mesh, params),
        )
        rows = NamedSharding(self._mesh, BATCH)
        asked = (
            jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
            for shape in ((self._rows, self._max_length), (self._rows,))
        )
        return self._mesh, self._ask, (placed, *asked)


def prefers(params, tokens_BS, length_B, *, yes, no, config, dtype) -> jax.Array:
    """Is one of the tokens `yes` likelier than one of `no` after each row? bool [B].

    tokens_BS: right-padded; yes, no: token ids.
    """
    position_S = jnp.arange(tokens_BS.shape[1])[None]
    position_BS = jnp.where(position_S < length_B[:, None], position_S, -1)
    hidden_BSD = model.forward(
        params, tokens_BS, position_BS, config=config, dtype=dtype
    )
    last_BD = jnp.take_along_axis(hidden_BSD, length_B[:, None, None] - 1, axis=1)[:, 0]
    logits_BV = model.unembed(params, last_BD, config=config, dtype=dtype)
    yes_B, no_B = (
        jax.nn.logsumexp(logits_BV[:, jnp.array(ids)], axis=1) for ids in (yes, no)
    )
    return yes_B > no_B


def _verdict_tokens(tokenizer: text.Tokenizer) -> tuple[tuple[int, ...], ...]:
    """The first tokens of "True" and of "False", with and without a blank before."""
    yes, no = (
        {
            tokenizer.encode(written, continued=True)[0]
            for written in (word, " " + word, word.lower(), " " + word.lower())
        }
        for word in ("True", "False")
    )
    if not yes - no or not no - yes:
        raise InputError(
            "the judge's tokenizer begins True and False with the same token; give "
            "another checkpoint as judge.init"
        )
    return tuple(sorted(yes - no)), tuple(sorted(no - yes))
