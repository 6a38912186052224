"""Compare a checkpoint's outputs with another implementation's, kept beside it.

    python launch/check_weights.py DIR

DIR has config.json and the weights (safetensors), and one of

    golden.npz   input_ids [B, T] right-padded, lengths [B], logits [B, T, V] fp32, and
                 greedy [B, n], each row's greedy continuation with end tokens ignored
    golden.json  greedy_token_ids, which start with prompt_ids (default: BOS alone)

The last line is one JSON object: max_abs_logit_error over all valid positions (null
without logits), greedy_agree (the share of greedy tokens that are the same), parameters
and seconds. Exits 0 when the logits are within 1e-4 and every greedy token agrees, 1
when not, 2 when DIR cannot be checked. All in fp32, on all devices of this host.
"""

import functools
import json
import pathlib
import sys
import time
import zipfile
import zlib

from limr_jax import platform
from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

with platform.importing_jax():
    import jax
    import jax.numpy as jnp
    import numpy as np

    from limr_jax.data import jsonl
    from limr_jax.models import hf_config, hf_weights, transformer
    from limr_jax.sharding import make_mesh

TOLERANCE = 1e-4
_DAMAGED = (zipfile.BadZipFile, zlib.error)  # an .npz is a zip file


def main(argv: list[str]) -> int:
    """Load the checkpoint, compare, print the result; returns the exit code."""
    parser = Parser("launch/check_weights.py", __doc__)
    parser.add_argument("directory", metavar="DIR", help="a checkpoint and its outputs")
    start = time.perf_counter()
    directory = pathlib.Path(parser.parse_args(argv).directory)
    # Accelerators multiply fp32 in fewer bits unless told otherwise.
    jax.config.update("jax_default_matmul_precision", "highest")
    config = hf_config.read_config(directory)
    golden = read_golden(directory, config)
    devices = jax.local_devices()
    mesh = make_mesh(data=1, fsdp=len(devices), tensor=1, devices=devices)
    with jax.set_mesh(mesh):
        params = hf_weights.load_params(directory, config, mesh)
        error = logit_error(params, golden, config) if "logits" in golden else None
        agree = greedy_agreement(params, golden, config)
    result = {
        "max_abs_logit_error": error,
        "greedy_agree": agree,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seconds": round(time.perf_counter() - start, 2),
    }
    # Where both go to one file, the result is to be its last line.
    sys.stderr.flush()
    print(json.dumps(result), flush=True)
    return 0 if agree == 1.0 and (error is None or error <= TOLERANCE) else 1


def read_golden(directory: pathlib.Path, config) -> dict[str, np.ndarray]:
    """What DIR holds to compare with: input_ids, lengths, greedy, and logits if known.

    The shapes are those at the top of this file, of a golden.json with B = 1.
    InputError: a file is none of these, or not of a model with this config.
    """
    arrays, listed = directory / "golden.npz", directory / "golden.json"
    if arrays.is_file():
        try:
            with np.load(arrays, allow_pickle=False) as file:
                golden = dict(file)
        except (OSError, ValueError, EOFError, *_DAMAGED) as error:
            raise InputError(f"{arrays} cannot be read: {error}") from None
        missing = {"input_ids", "lengths", "logits", "greedy"} - set(golden)
        if missing:
            raise InputError(f"{arrays} lacks {', '.join(sorted(missing))}")
    elif listed.is_file():
        arrays, golden = listed, _read_greedy(listed, directory)
    else:
        raise InputError(
            f"{directory} holds nothing to compare with; put a golden.npz or a "
            "golden.json with greedy_token_ids there"
        )
    _check_shapes(golden, arrays, config)
    for name in ("input_ids", "greedy"):
        ids = golden[name]
        if ids.min() < 0 or ids.max() >= config.vocab_size:
            raise InputError(
                f"{directory}: golden token ids are not all below the vocabulary's "
                f"{config.vocab_size}; they are of another model"
            )
    return golden


def _check_shapes(golden, path: pathlib.Path, config) -> None:
    """InputError unless the arrays fit one another and the model's vocabulary."""
    rows, tokens = (*golden["input_ids"].shape, -1, -1)[:2]
    for name, kinds, shape in (
        ("input_ids", "iu", (rows, tokens)),
        ("lengths", "iu", (rows,)),
        # As long as they are: no other array says.
        ("greedy", "iu", (rows, *golden["greedy"].shape[-1:])),
        ("logits", "f", (rows, tokens, config.vocab_size)),
    ):
        array = golden.get(name)
        if array is None:  # of a golden.json
            continue
        if array.shape != shape or array.dtype.kind not in kinds or not array.size:
            raise InputError(
                f"{path}: {name} is {array.dtype} {list(array.shape)}, not what fits "
                f"input_ids {list(golden['input_ids'].shape)} and this model's "
                f"vocabulary of {config.vocab_size}; take the files of one model"
            )
    lengths = golden["lengths"]
    if lengths.min() < 1 or lengths.max() > tokens:
        raise InputError(
            f"{path}: lengths from {lengths.min()} to {lengths.max()} are not from 1 "
            f"to {tokens}, the tokens of a row; mend them"
        )


def _read_greedy(listed: pathlib.Path, directory) -> dict[str, np.ndarray]:
    written = jsonl.read_object(listed)
    greedy = written.get("greedy_token_ids")
    prompt = written.get("prompt_ids") or [_bos(directory)]
    for name, ids in (("greedy_token_ids", greedy), ("prompt_ids", prompt)):
        # Not isinstance, to which True is an int.
        if not isinstance(ids, list) or any(type(x) is not int for x in ids):
            raise InputError(f"{listed}: {name} is no list of token ids; give one")
    if greedy[: len(prompt)] != prompt or len(greedy) == len(prompt):
        raise InputError(
            f"{listed}: greedy_token_ids must start with the prompt {prompt} and go on"
        )
    return {
        "input_ids": np.array([prompt]),
        "lengths": np.array([len(prompt)]),
        "greedy": np.array([greedy[len(prompt) :]]),
    }


def _bos(directory: pathlib.Path) -> int:
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        bos = jsonl.read_object(path).get("bos_token_id") if path.is_file() else None
        if type(bos) is int:
            return bos
    raise InputError(
        f"{directory}: golden.json has no prompt_ids and config.json no bos_token_id; "
        "add one"
    )


def logit_error(params, golden, config) -> float:
    """The largest absolute difference between this model's logits and golden's, fp32.

    Of one forward pass over golden's rows, at all tokens but the padding. params: the
    model's, in the layout of `transformer`. golden: with `logits`, as `read_golden`
    returns it.
    """

    @jax.jit
    def logits(params, tokens_BT, position_BT):
        hidden_BTD = transformer.forward(
            params, tokens_BT, position_BT, config=config, dtype=jnp.float32
        )
        return transformer.unembed(params, hidden_BTD, config=config, dtype=jnp.float32)

    tokens_BT, position_BT = _rows(golden)
    logits_BTV = np.asarray(logits(params, tokens_BT, position_BT))
    # Where there is only padding, any logits are as good.
    error_BTV = np.abs(logits_BTV - golden["logits"])[position_BT >= 0]
    return float(error_BTV.max())


def greedy_agreement(params, golden, config) -> float:
    """The share of golden's greedy tokens that this model chooses too, 0 to 1.

    Each row of golden's input_ids is continued by prefill and decode, every token the
    likeliest after those before it; a token agrees with the one in its place. params:
    as of `logit_error`. golden: as `read_golden` returns it.
    """
    tokens_BT, position_BT = _rows(golden)
    # Right-padded to left-padded: column j takes column j − shift, round the end.
    shift_B = (tokens_BT.shape[1] - golden["lengths"])[:, None]
    column = (np.arange(tokens_BT.shape[1])[None] - shift_B) % tokens_BT.shape[1]
    chosen = continue_greedily(
        params,
        np.take_along_axis(tokens_BT, column, axis=1),  # left-padded
        np.take_along_axis(position_BT, column, axis=1),
        config=config,
        steps=golden["greedy"].shape[1],
    )
    return float(np.mean(np.asarray(chosen) == golden["greedy"]))


def _rows(golden):
    """(token ids, positions), both [B, T]; the position of padding is −1."""
    tokens_BT = golden["input_ids"].astype(np.int32)
    column = np.arange(tokens_BT.shape[1], dtype=np.int32)[None]
    return tokens_BT, np.where(column < golden["lengths"][:, None], column, -1)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def continue_greedily(params, tokens_BL, position_BL, *, config, steps):
    """The greedy continuation [B, steps] of left-padded prompts; ends are ignored."""
    L, dtype = tokens_BL.shape[1], jnp.float32

    def choose(hidden_BD):
        logits_BV = transformer.unembed(params, hidden_BD, config=config, dtype=dtype)
        return jnp.argmax(logits_BV, axis=-1)

    # Gives the token that it reads, so that the first is the one after the prompt.
    def step(carry, i):
        token_B, cache = carry
        position_B = position_BL[:, -1] + 1 + i
        hidden_BJD, cache = transformer.decode(
            params,
            token_B[:, None],
            position_B[:, None],
            cache=cache,
            column_B=jnp.full_like(position_B, L + i),
            config=config,
            dtype=dtype,
        )
        return (choose(hidden_BJD[:, 0]), cache), token_B

    hidden_BLD, cache = transformer.prefill(
        params,
        tokens_BL,
        position_BL,
        columns=L + steps,
        config=config,
        dtype=dtype,
    )
    first_B = choose(hidden_BLD[:, -1])
    _, chosen = jax.lax.scan(step, (first_B, cache), jnp.arange(steps))
    return chosen.T


if __name__ == "__main__":
    run_main(main)
