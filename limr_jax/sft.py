"""Supervised fine-tuning: the learner's masked cross-entropy on packed texts."""

import dataclasses
import hashlib
import itertools
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

import limr_jax
from limr_jax import (
    checkpoint,
    data,
    files,
    jsonl,
    learner,
    metrics,
    model,
    objectives,
    text,
    weights,
)
from limr_jax.check import check_fine_tuning, check_rows
from limr_jax.compiling import jit
from limr_jax.errors import InputError
from limr_jax.policy import (
    compute_dtype,
    init_digest,
    load_params,
    read_model_config,
    resolve,
)
from limr_jax.sharding import BATCH, REPLICATED, make_mesh, param_shardings


@dataclasses.dataclass(frozen=True)
class Texts:
    """Packed rows: several texts a row, none cut. R rows, S columns."""

    tokens_RS: np.ndarray  # int32
    position_RS: np.ndarray  # int32, from 0 in each text; -1 = padding
    segment_RS: np.ndarray  # int32, which of the row's texts; -1 = padding
    learned_RS: np.ndarray  # bool: a token of a completion
    left_out: int  # texts longer than a row

    @property
    def digest(self) -> str:
        """sha256 over the arrays: two equal ones are learned alike."""
        sha = hashlib.sha256(repr(self.tokens_RS.shape).encode())
        for array in (self.tokens_RS, self.segment_RS, self.learned_RS):
            sha.update(np.ascontiguousarray(array))
        return sha.hexdigest()


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    columns: int,
    pad_id: int,
) -> Texts:
    """First fit, in order, into the last few rows that still have room.

    A completion ends with its end token already. The order of texts over rows is that
    in which they came, so that shuffling rows shuffles texts.
    """
    rows: list[list[int]] = []  # each the texts of one row
    open_rows: list[tuple[int, int]] = []  # (row, columns left)
    left_out = 0
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        need = len(prompt) + len(completion)
        if need > columns:
            left_out += 1
            continue
        fit = next((n for n, (_, left) in enumerate(open_rows) if left >= need), None)
        if fit is None:
            rows.append([])
            open_rows.append((len(rows) - 1, columns))
            fit = len(open_rows) - 1
        row, left = open_rows.pop(fit)
        rows[row].append(i)
        open_rows.append((row, left - need))
        # A row that nothing has fitted for a while is closed: packing stays linear.
        open_rows = open_rows[-16:]
    if not rows:
        raise InputError(
            f"all {left_out} texts are longer than {columns} columns; raise columns"
        )
    shape = (len(rows), columns)
    packed = Texts(
        tokens_RS=np.full(shape, pad_id, np.int32),
        position_RS=np.full(shape, -1, np.int32),
        segment_RS=np.full(shape, -1, np.int32),
        learned_RS=np.zeros(shape, bool),
        left_out=left_out,
    )
    for row, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members):
            text = [*prompts[i], *completions[i]]
            here = (row, slice(start, start + len(text)))
            packed.tokens_RS[here] = text
            packed.position_RS[here] = np.arange(len(text))
            packed.segment_RS[here] = segment
            packed.learned_RS[row, start + len(prompts[i]) : start + len(text)] = True
            start += len(text)
    return packed


def batches(texts: Texts, *, rows: int, seed: int) -> Iterator[objectives.Batch]:
    """Batches without end: every row once an epoch, in a new order each epoch.

    Raises:
      InputError: fewer packed rows than a batch has.
    """
    count = len(texts.tokens_RS)
    if count < rows:
        raise InputError(
            f"{count} packed rows do not fill a batch of {rows}; give more texts or "
            "a smaller batch"
        )
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(count) for _ in itertools.count())
    return (
        _batch(texts, order[i : i + rows])
        for order in orders
        for i in range(0, count - rows + 1, rows)
    )


def _batch(texts: Texts, chosen: np.ndarray) -> objectives.Batch:
    mask_BT = texts.learned_RS[chosen, 1:]
    return objectives.Batch(
        tokens_BS=texts.tokens_RS[chosen],
        position_BS=texts.position_RS[chosen],
        segment_BS=texts.segment_RS[chosen],
        mask_BT=mask_BT,
        weight_BT=np.asarray(mask_BT / max(mask_BT.sum(), 1), np.float32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What fine-tuning is at the end of a step; all of it is in the checkpoint."""

    step: jax.Array  # int32: updates done
    train: learner.TrainState


def build(mesh, params, *, optimizer, micro_batch_rows: int, model_options: dict):
    """(init, update, shapes): two jitted programs, and what the state is on `mesh`."""
    loss = partial(
        objectives.policy_loss,
        temperature=1.0,
        objective=objectives.cross_entropy,
        **model_options,
    )

    def init(params):
        return State(jnp.int32(0), learner.init(params, optimizer))

    def update(state, batch):
        train, metrics = learner.update(
            state.train,
            batch,
            optimizer=optimizer,
            loss=loss,
            micro_batch_rows=micro_batch_rows,
        )
        metrics["tokens"] = jnp.sum(batch.position_BS >= 0)
        return State(state.step + 1, train), metrics

    shapes = jax.eval_shape(init, params)
    whole = NamedSharding(mesh, REPLICATED)
    shardings = State(whole, param_shardings(mesh, shapes.train))
    shapes = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        shapes,
        shardings,
    )
    jitted = jit(mesh, update, out_shardings=(shardings, whole), donate_argnums=0)
    return jit(mesh, init, out_shardings=shardings), jitted, shapes


def checked_mesh(config, workdir):
    """The mesh of a config that can work, and the folder; else InputError."""
    check_fine_tuning(config)
    folder = files.local(workdir, "--workdir")  # the export writes no gs://
    mesh = make_mesh(**config.mesh)
    check_rows(config, mesh)
    return mesh, folder


def train(config, workdir: str) -> dict:
    """Fine-tune to `config.num_steps` and export the model to workdir/model.

    From the workdir's last checkpoint if it has one. Returns the result.
    """
    mesh, folder = checked_mesh(config, workdir)
    texts, tokenizer = _texts(config)
    feed = batches(texts, rows=config.rows, seed=config.seed)
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    init, update, shapes = build(
        mesh,
        jax.eval_shape(partial(model.init_params, model_config), jax.random.key(0)),
        optimizer=learner.make_optimizer(**config.optimizer),
        micro_batch_rows=config.micro_batch_rows,
        model_options={
            "config": model_config,
            "dtype": compute_dtype(config.model.dtype, mesh.devices.flat),
            "remat": config.model.remat,
        },
    )
    identity = {
        "config": config.to_dict(),
        "data": texts.digest,
        "init": init_digest(config.model.init),
        "version": limr_jax.__version__,
    }
    checkpoint.claim(workdir, identity)
    with checkpoint.Checkpointer(workdir, **config.checkpoint) as saver:
        start = saver.latest() or 0
        if start < config.num_steps:  # a run that has grown: its old export is stale
            shutil.rmtree(folder / "model", ignore_errors=True)
        if start:
            state, _ = saver.restore(start, shapes)
        else:
            state = init(load_params(config, model_config, mesh))
        feed = itertools.islice(feed, start, config.num_steps)
        with metrics.Metrics(workdir, step=start) as log, jax.set_mesh(mesh):
            began = time.perf_counter()
            for step, batch in enumerate(feed, start + 1):
                state, numbers = update(
                    state, jax.device_put(batch, NamedSharding(mesh, BATCH))
                )
                last = step == config.num_steps
                logs, saves = step % config.log_every == 0, saver.due(step)
                if logs or saves or last:
                    numbers = jax.device_get(numbers)
                if logs or last:
                    numbers["seconds"] = time.perf_counter() - began
                    shown = log.step(step, numbers)
                    metrics.say(metrics.line(step, shown, num_steps=config.num_steps))
                if saves or last:
                    learner.refuse_divergence(step, numbers, saver.latest)
                    saver.save(step, state, {})
    return {
        "steps": config.num_steps,
        "texts_left_out": texts.left_out,
        "params_digest": checkpoint.params_digest(state.train.params),
        "model": _export(config, folder, state.train.params, model_config, tokenizer),
    }


def _export(config, folder, params, model_config, tokenizer) -> str:
    """Write folder/model, unless a finished run is called again; its path."""
    out = folder / "model"
    if not out.exists():
        weights.save_params(
            out,
            params,
            model_config,
            source=None
            if config.model.init == "random"
            else resolve(config.model.init),
            tokenizer=resolve(config.tokenizer),
            token_ids={
                "eos_token_id": tokenizer.eos_id,
                "pad_token_id": tokenizer.pad_id,
            },
        )
    return str(out)


def _texts(config):
    """(packed texts, tokenizer): prompt and solution of each problem."""
    tokenizer = text.load_tokenizer(resolve(config.tokenizer))
    given = config.data
    places = {
        "data_dir": resolve(given.cache_dir),
        "manual_dir": resolve(given.manual_dir) if given.manual_dir else None,
    }
    problems = data.load_problems(given.train, **places)
    if not given.allow_overlap:
        data.refuse_held_out(problems, **places)
    solutions = problems.columns.get("solution")
    if solutions is None or None in solutions:
        raise InputError(f"{given.train}: not every row has a solution; add it")
    for problem, solution in zip(problems.ids, solutions, strict=True):
        jsonl.text_value(solution, f"{given.train}: the solution of {problem!r}")
    prompts = tokenizer.encode_chats(data.chats(problems, tokenizer))
    completions = tokenizer.encode_batch(solutions, continued=True)
    return (
        pack(
            prompts,
            [[*ids, tokenizer.eos_id] for ids in completions],
            columns=config.columns,
            pad_id=tokenizer.pad_id,
        ),
        tokenizer,
    )
