"""A policy from a checkpoint: loaded, asked, and written back, without a config."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax import sharding
from limr_jax.config import limits
from limr_jax.data.prompts import Prompts
from limr_jax.data.tokenizer import Tokenizer, load_tokenizer
from limr_jax.errors import InputError
from limr_jax.evaluation import evaluator, trained_policy
from limr_jax.models import hf_weights, lora
from limr_jax.models.config import ComputeConfig, ModelConfig
from limr_jax.models.from_config import (
    compute_dtype,
    load_base,
    read_model_config,
)
from limr_jax.multihost.arrays import on_host
from limr_jax.platform import resolve, spare_libtpu
from limr_jax.prng import stream_key
from limr_jax.rollout.sampling import put_sampling
from limr_jax.rollout.types import GenerateConfig
from limr_jax.storage import files

Chat = Sequence[Mapping[str, str]]  # messages, each with a role and a content

_ROWS = 256  # rollouts decoded at once, at most
_COLUMNS = 32  # prompts are padded to a multiple of it: a few programs for all lengths
_LIMITS: dict[str, limits.Row] = {
    "samples": limits.Whole(1, 2**16),
    "temperature": limits.Real(0, 1e3),
    "top_p": limits.LIMITS["rollout.top_p"],
    "max_tokens": limits.Whole(1, limits.TOKENS),
    "seed": limits.LIMITS["seed"],
}


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A model with its tokenizer, on devices. Made by `load_policy`."""

    params: Any  # a nested dict of arrays with readable paths
    config: ModelConfig  # its dimensions
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh  # the devices that the parameters lie on
    dtype: str  # of compute: "float32" or "bfloat16"
    checkpoint: pathlib.Path | None  # what it was read from; None: a run
    tokenizer_path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Completion:
    """One response of a policy."""

    text: str  # without the end token
    token_ids: tuple[int, ...]  # with the end token, unless it is truncated
    # Of each token, in nats, at the temperature that it was drawn at and before top_p;
    # at temperature 0 of the model's own distribution.
    logprobs: tuple[float, ...]
    truncated: bool  # max_tokens came before an end token


def load_policy(
    path: str | os.PathLike[str],
    *,
    dtype: str = "auto",
    devices: Sequence[jax.Device] | None = None,
) -> Policy:
    """The policy of a checkpoint in the Hugging Face layout, or of a run.

    path: a directory with config.json, safetensors and the tokenizer's files; or a
    run's workdir, finished or not, of which the newest checkpoint is read, with
    adapters added to their base. A path that is not there is looked for below the
    folder that limr_jax is imported from. dtype: of compute, "float32", "bfloat16" or
    "auto", which is float32 on a CPU and bfloat16 elsewhere; parameters are kept in
    float32. devices: that hold a part of each parameter; None: JAX's first device.

    Raises:
      InputError: neither is there, a file is damaged, or the architecture is not one of
        limr_jax/models/README.md.

    >>> policy = load_policy("limr_jax/assets/arithmetic")
    >>> policy.config.layers, policy.config.width, policy.dtype
    (3, 96, 'float32')
    """
    if devices is None:
        # As the launchers: a compiler for TPUs is no device.
        spare_libtpu()
        devices = jax.devices()[:1]
    devices = list(devices)
    mesh = sharding.make_mesh(data=1, fsdp=-1, tensor=1, devices=devices)
    name = jnp.dtype(compute_dtype(dtype, devices)).name
    if (pathlib.Path(path) / "run.json").is_file():
        return _of_run(str(path), mesh, name)
    checkpoint = resolve(os.fspath(path))
    config = hf_weights.read_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    _check_vocabulary(config, tokenizer, checkpoint)
    return Policy(
        params=hf_weights.load_params(checkpoint, config, mesh),
        config=config,
        tokenizer=tokenizer,
        mesh=mesh,
        dtype=name,
        checkpoint=checkpoint,
        tokenizer_path=checkpoint,
    )


def _of_run(workdir: str, mesh: jax.sharding.Mesh, dtype: str) -> Policy:
    run = trained_policy.read_config(workdir)
    tokenizer_path = resolve(run.tokenizer)
    tokenizer = load_tokenizer(tokenizer_path)
    config = read_model_config(run.model, tokenizer.vocab_size)
    params = trained_policy.load_params(
        workdir,
        trained_policy.latest_step(workdir),
        model_config=config,
        mesh=mesh,
        load_base=partial(load_base, run, config, mesh),
    )
    params, config = lora.merge_on(mesh, params, config)
    random = run.model.init == "random"
    return Policy(
        params=params,
        config=config,
        tokenizer=tokenizer,
        mesh=mesh,
        dtype=dtype,
        checkpoint=None if random else resolve(run.model.init),
        tokenizer_path=tokenizer_path,
    )


def _check_vocabulary(config: ModelConfig, tokenizer: Tokenizer, path: object) -> None:
    if config.vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"{path}: the model's vocabulary of {config.vocab_size} is smaller than "
            f"the tokenizer's {tokenizer.vocab_size}; take both from one checkpoint"
        )


def save_policy(
    policy: Policy, directory: str | os.PathLike[str], *, dtype: str | None = None
) -> None:
    """Write a policy as a checkpoint that vLLM, transformers and `load_policy` open.

    directory: must not be there yet; it is there whole or not at all. Tokenizer,
    generation config and chat template are those that the policy came with. dtype: of
    the files, "float32", "bfloat16" or "float16"; None: that of the checkpoint that the
    policy, or its run, started from, so that what was loaded is written again bit for
    bit (float32 after a random start).

    Raises:
      InputError: the directory is there already or cannot be written, or the dtype is
        none of these.

    >>> import pathlib, tempfile
    >>> copy = pathlib.Path(tempfile.mkdtemp()) / "copy"
    >>> save_policy(load_policy("limr_jax/assets/arithmetic"), copy)
    >>> load_policy(copy).config.layers
    3
    """
    known = ("float32", "bfloat16", "float16")
    if dtype is not None:
        limits.check_value(limits.Choice(known), dtype, "dtype")
    out = files.local(os.fspath(directory), "directory")
    files.refuse_existing(out, "directory")
    ids = {
        "bos_token_id": policy.tokenizer.bos_id,
        "eos_token_id": policy.tokenizer.eos_id,
        "pad_token_id": policy.tokenizer.pad_id,
    }
    hf_weights.save_params(
        out,
        policy.params,
        policy.config,
        source=policy.checkpoint,
        tokenizer=policy.tokenizer_path,
        dtype=dtype,
        token_ids={name: token for name, token in ids.items() if token is not None},
    )


def generate(
    policy: Policy,
    prompts: Sequence[str | Chat],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> list[list[Completion]]:
    """Responses of a policy: `samples` to each prompt, by the rollout of a run.

    prompts: texts, each asked as a run asks a problem (the model's chat template with
    LIMR's system prompt; the plain text where there is no template), or chats, lists of
    messages {"role": …, "content": …}, which are rendered as they are. temperature: 0
    takes the likeliest token. top_p: the mass that is kept. max_tokens: of a response,
    the end token included.

    What sample j of prompt i says depends on the parameters, the prompt, i, j and the
    seed, not on the other prompts. The first call with a new number of prompts or
    samples, another max_tokens or a longer prompt compiles, which takes seconds.

    Raises:
      InputError: a prompt is empty, too long for the model with its response, or no
        text or chat; or a number is out of its range.

    >>> policy = load_policy("limr_jax/assets/arithmetic")
    >>> [[answer]] = generate(policy, ["42+17="], temperature=0.0, max_tokens=16)
    >>> answer.text, answer.truncated
    ('59\\n#### 59', False)
    """
    numbers = {
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "seed": seed,
    }
    for name, value in numbers.items():
        limits.check_value(_LIMITS[name], value, name)
    rows = _encoded(policy.tokenizer, prompts)
    if not rows:
        return []
    longest = max(map(len, rows))
    if longest + max_tokens > policy.config.max_length:
        raise InputError(
            f"the longest prompt of {longest} tokens and max_tokens={max_tokens} are "
            f"more than the {policy.config.max_length} that the model was trained for "
            "(max_position_embeddings); lower max_tokens, or shorten the prompt"
        )
    write, chunk = _program(
        policy.mesh,
        count=len(rows),
        k=samples,
        generation=GenerateConfig(
            group=samples,
            response_length=max_tokens,
            slots=_ROWS,
            stop_ids=policy.tokenizer.stop_ids,
            pad_id=policy.tokenizer.pad_id,
        ),
        compute=ComputeConfig(policy.config, jnp.dtype(policy.dtype)),
    )
    sampling = put_sampling(policy.mesh, temperature=temperature, top_p=top_p)
    written: list[Completion] = []
    with jax.set_mesh(policy.mesh):
        key = jax.jit(stream_key, static_argnums=1)(np.uint32(seed), "eval", 0)
        columns = -(-longest // _COLUMNS) * _COLUMNS
        on_devices = _put(rows, columns, policy)
        for start in range(0, len(rows), chunk):
            # The last call is filled up with the last prompt.
            places = np.minimum(np.arange(start, start + chunk), len(rows) - 1)
            _, rollout = write(
                policy.params, on_devices, places.astype(np.int32), sampling, key
            )
            real = min(chunk, len(rows) - start) * samples
            written += _completions(policy.tokenizer, rollout, real)
    return [written[i : i + samples] for i in range(0, len(written), samples)]


# The jitted program of these sizes, so that a second call compiles nothing.
_program: Callable[..., tuple[Callable[..., Any], int]] = functools.lru_cache(8)(
    evaluator.program
)


def _encoded(tokenizer: Tokenizer, prompts: Sequence[str | Chat]) -> list[list[int]]:
    """The tokens of each prompt."""
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        raise InputError(
            f"prompts is {type(prompts).__name__}; give a list of texts or chats"
        )
    chats = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            if not prompt.strip():
                raise InputError(f"prompts[{i}] is empty; give a text")
            chats.append(tokenizer.math_messages(prompt))
            continue
        messages = list(prompt) if hasattr(prompt, "__len__") else []
        if not messages or not all(map(_is_message, messages)):
            raise InputError(
                f"prompts[{i}] is neither text nor a chat; give messages such as "
                '{"role": "user", "content": "3+4="}'
            )
        chats.append([dict(message) for message in messages])
    return tokenizer.encode_chats(chats)


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )


def _put(rows: list[list[int]], columns: int, policy: Policy) -> Prompts:
    """The prompts on the devices, right-padded, with no reference answers."""
    prompt_NL = np.full((len(rows), columns), policy.tokenizer.pad_id, np.int32)
    for row, tokens in zip(prompt_NL, rows):
        row[: len(tokens)] = tokens
    count = len(rows)
    return Prompts(
        prompt_NL=jnp.asarray(prompt_NL),
        prompt_length_N=jnp.asarray([len(tokens) for tokens in rows], jnp.int32),
        answer_NA=jnp.zeros((count, 1), jnp.int32),
        answer_length_N=jnp.zeros(count, jnp.int32),
    )


def _completions(tokenizer: Tokenizer, rollout: Any, count: int) -> list[Completion]:
    """The first `count` responses of a Rollout."""
    arrays = on_host(
        {
            "token_BT": rollout.response_BT,
            "logprob_BT": rollout.logprob_BT,
            "length_B": rollout.mask_BT.sum(axis=1),
            "truncated_B": rollout.truncated_B,
        }
    )
    completions = []
    for b in range(count):
        length = int(arrays["length_B"][b])
        tokens = tuple(map(int, arrays["token_BT"][b, :length]))
        completions.append(
            Completion(
                text=tokenizer.decode(tokens),
                token_ids=tokens,
                logprobs=tuple(map(float, arrays["logprob_BT"][b, :length])),
                truncated=bool(arrays["truncated_B"][b]),
            )
        )
    return completions
