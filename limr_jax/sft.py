"""Supervised fine-tuning: the learner's masked cross-entropy on packed texts."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from limr_jax import alarms, console, identity
from limr_jax.check import check_fine_tuning, check_rows
from limr_jax.data import jsonl
from limr_jax.data.overlap import refuse_held_out
from limr_jax.data.problems import chats, load_problems
from limr_jax.data.tokenizer import load_tokenizer
from limr_jax.errors import InputError
from limr_jax.jit import jit
from limr_jax.learner import losses
from limr_jax.learner import update as update_lib
from limr_jax.learner.batch import PackedBatch
from limr_jax.learner.optimizer import make_optimizer
from limr_jax.models import hf_weights, lora, transformer
from limr_jax.models.attention import kernel_check
from limr_jax.models.config import ComputeConfig
from limr_jax.models.from_config import (
    check_adapters,
    check_length,
    compute_config,
    compute_dtype,
    load_base,
    load_learned,
    param_shapes,
    read_model_config,
)
from limr_jax.platform import resolve
from limr_jax.sharding import BATCH, REPLICATED, make_mesh, param_shardings
from limr_jax.storage import (
    array_digest,
    batch_file,
    checkpoint,
    files,
    metrics,
    wandb_sink,
)
from limr_jax.storage.array_digest import params_digest
from limr_jax.storage.workdir import claim


@dataclasses.dataclass(frozen=True)
class Texts:
    """Packed rows: several texts a row, none cut. R rows, W columns."""

    tokens_RW: np.ndarray  # int32
    position_RW: np.ndarray  # int32, from 0 in each text; -1 = padding
    segment_RW: np.ndarray  # int32, which of the row's texts; -1 = padding
    learned_RW: np.ndarray  # bool: a token of a completion
    left_out: int  # texts longer than a row

    @property
    def digest(self) -> str:
        """sha256 over the arrays: two equal ones are learned alike."""
        sha = hashlib.sha256(repr(self.tokens_RW.shape).encode())
        # Positions are left out: they follow from the segments.
        for array in (self.tokens_RW, self.segment_RW, self.learned_RW):
            sha.update(np.ascontiguousarray(array))
        return sha.hexdigest()


def pack(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    columns: int,
    pad_id: int,
) -> Texts:
    """Pack each prompt and its completion, token ids, into rows of `columns` tokens.

    First fit, in order, into the last few rows that still have room. A completion ends
    with its end token already. The order of texts over rows is that in which they came,
    so that shuffling rows shuffles texts.

    Raises:
      InputError: every text is longer than a row.
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
        tokens_RW=np.full(shape, pad_id, np.int32),
        position_RW=np.full(shape, -1, np.int32),
        segment_RW=np.full(shape, -1, np.int32),
        learned_RW=np.zeros(shape, bool),
        left_out=left_out,
    )
    for row, members in enumerate(rows):
        start = 0
        for segment, i in enumerate(members):
            text = [*prompts[i], *completions[i]]
            here = (row, slice(start, start + len(text)))
            packed.tokens_RW[here] = text
            packed.position_RW[here] = np.arange(len(text))
            packed.segment_RW[here] = segment
            # The prompt is read, the completion is learned.
            packed.learned_RW[row, start + len(prompts[i]) : start + len(text)] = True
            start += len(text)
    return packed


def batches(texts: Texts, *, rows: int, seed: int) -> Iterator[PackedBatch]:
    """Batches without end, of packed rows in a new random order each epoch.

    rows: R, of a batch. A row comes once an epoch at most: where R does not divide the
    packed rows, those that an order has over are not in its epoch.

    Raises:
      InputError: fewer packed rows than a batch has.
    """
    count = len(texts.tokens_RW)
    if count < rows:
        raise InputError(
            f"{count} packed rows do not fill a batch of {rows}; give more texts or "
            "a smaller batch"
        )
    # By the seed alone: a run that goes on finds the same batches.
    rng = np.random.default_rng(seed)
    orders = (rng.permutation(count) for _ in itertools.count())
    return (
        _batch(texts, order[i : i + rows])
        for order in orders
        for i in range(0, count - rows + 1, rows)
    )


def _batch(texts: Texts, chosen: np.ndarray) -> PackedBatch:
    # Column w predicts column w + 1, so that Y = W − 1.
    mask_RY = texts.learned_RW[chosen, 1:]
    return PackedBatch(
        tokens_RW=texts.tokens_RW[chosen],
        position_RW=texts.position_RW[chosen],
        segment_RW=texts.segment_RW[chosen],
        mask_RY=mask_RY,
        # A mean over the batch's tokens, divided before micro-batches cut it up.
        weight_RY=np.asarray(mask_RY / max(mask_RY.sum(), 1), np.float32),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SftState:
    """What fine-tuning is at the end of a step; all of it is in the checkpoint."""

    step: jax.Array  # int32: updates done
    train: update_lib.TrainState  # with LoRA of the adapters alone


def build(mesh, params, *, optimizer, micro_batch_rows: int, compute: ComputeConfig):
    """(init, update, shapes): two jitted programs, and what the state is on `mesh`.

    params: the model's parameters, or their shapes; adapters among them are learned,
    and nothing else then. init: the learned ones → SftState. update: (SftState,
    PackedBatch, LoRA's base or None) → (SftState, metrics by name); it takes the old
    state's memory. shapes: of an SftState, with its shardings.
    """

    def init(params):
        return SftState(jnp.int32(0), update_lib.init(params, optimizer))

    def update(state, batch, base=None):
        def loss(learned, micro):
            # Differentiated with respect to what is learned alone.
            return losses.policy_loss(
                lora.join(base, learned),
                micro,
                temperature=1.0,
                objective=losses.cross_entropy,
                compute=compute,
            )

        train, metrics = update_lib.update(
            state.train,
            batch,
            optimizer=optimizer,
            loss=loss,
            micro_batch_rows=micro_batch_rows,
        )
        metrics["tokens"] = jnp.sum(batch.position_RW >= 0)
        return SftState(state.step + 1, train), metrics

    shapes = jax.eval_shape(init, lora.split(params)[1])
    whole = NamedSharding(mesh, REPLICATED)
    shardings = SftState(whole, param_shardings(mesh, shapes.train))
    shapes = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        shapes,
        shardings,
    )
    jitted = jit(mesh, update, out_shardings=(shardings, whole), donate_argnums=0)
    return jit(mesh, init, out_shardings=shardings), jitted, shapes


def checked_mesh(config, workdir):
    """(mesh, the workdir as a path) of a config that can work.

    Raises:
      InputError: the config cannot work, or the workdir cannot be written.
    """
    check_fine_tuning(config)
    folder = files.local(workdir, "--workdir")  # the export writes no gs://
    # Only a look: the config may still be refused, and then nothing was written.
    files.check_writable(folder / "run.json")
    mesh = make_mesh(**config.mesh)
    check_rows(config, mesh)
    return mesh, folder


def _fit(state, update, feed, *, start: int, config, place, saver, about_base, kernels):
    """The state after an update of each batch of `feed`, logged and saved on the way.

    start: steps that were done before. place: how a batch lies on the mesh. about_base:
    what a checkpoint says of LoRA's base. Raises InputError where updates were no
    finite numbers (alarms.py).
    """
    workdir, steps = saver.workdir, config.num_steps
    with (
        metrics.Metrics(workdir, step=start) as log,
        wandb_sink.following(log.folder, config, name=workdir.name, **config.wandb),
        console.progress("train", steps, done=start, every=None) as tick,
    ):
        before = alarms.kept(log.written(), config.divergence.patience)
        divergence = alarms.Divergence(config.divergence.patience, before)
        time_left = console.TimeLeft(steps)
        began, waiting, due = time.perf_counter(), [], False

        def show(step: int, numbers: dict) -> None:
            numbers |= {"seconds": time.perf_counter() - began}
            shown = log.step(step, numbers | kernel_check.numbers(kernels))
            left = time_left.after(step)
            tick(0, left=left)
            console.say_step(step, shown, num_steps=steps, left=left)

        def look(step: int, batch, numbers: dict, logs: bool) -> None:
            """Log the step, and warn; InputError where the run cannot go on."""
            alarm = divergence.judge(step, numbers)
            if alarm or logs:
                show(step, numbers)
            if alarm:
                kept = batch_file.save(workdir, step, batch)
                log.warning(alarm.step, alarm.name, alarm.text)
                divergence.refuse(step, numbers, latest=saver.latest, batch=kept)

        for step, batch in enumerate(feed, start + 1):
            state, numbers = update(state, jax.device_put(batch, place))
            tick()
            waiting.append((step, batch, numbers))
            last, due = step == steps, due or saver.due(step)
            logs = step % config.log_every == 0 or last
            # To fetch numbers is to wait for the devices: only where they are used.
            if not (logs or due):
                continue
            for each, its_batch, numbers in waiting:
                look(each, its_batch, jax.device_get(numbers), logs and each == step)
            waiting = []
            # Until updates are finite again the checkpoints before stay.
            if (due and not divergence.in_a_row) or last:
                with console.phase("saving"):
                    saver.save(step, state, about_base)
                due = False
    return state


def train(config, workdir: str) -> dict:
    """Fine-tune to `config.num_steps` and export the model to workdir/model.

    With LoRA that is the base with the adapters added, and checkpoints have the
    adapters alone, with a digest of the base.

    It begins at the workdir's last checkpoint if it has one. Returns the result, which
    JSON can hold: steps, texts left out, digest of the parameters, the model's path.
    """
    mesh, folder = checked_mesh(config, workdir)
    wandb_sink.check(**config.wandb)
    with console.phase("reading texts"):
        texts, tokenizer = _texts(config)
    feed = batches(texts, rows=config.rows, seed=config.seed)
    model_config = _model_config(config, texts, tokenizer)
    check_adapters(config.model, model_config)
    model_config, kernels = _settle_kernels(config, model_config, mesh)
    init, update, shapes = build(
        mesh,
        param_shapes(config.model, model_config),
        optimizer=make_optimizer(**config.optimizer),
        micro_batch_rows=config.micro_batch_rows,
        compute=compute_config(config.model, model_config, mesh),
    )
    # Not earlier: what was refused above has written nothing.
    claim(workdir, identity.of_fine_tuning(config, texts.digest))
    with checkpoint.Checkpointer(workdir, **config.checkpoint) as saver:
        _refuse_foreign(folder / "model")
        with console.phase("reading weights"):
            base, about_base = load_base(config, model_config, mesh), {}
            if base is not None:
                about_base["base"] = array_digest.of_tree(base)
            start, state = _first_state(
                saver,
                shapes,
                lambda: init(load_learned(config, model_config, mesh)),
                about_base=about_base,
            )
        if start < config.num_steps:  # a run that has grown: its old export is stale
            shutil.rmtree(folder / "model", ignore_errors=True)
        with jax.set_mesh(mesh):
            state = _fit(
                state,
                partial(update, base=base),
                # Batches of steps that are done are made once more, and dropped.
                itertools.islice(feed, start, config.num_steps),
                start=start,
                config=config,
                place=NamedSharding(mesh, BATCH),
                saver=saver,
                about_base=about_base,
                kernels=kernels,
            )
    # The checkpoint is whole by now: a kill in the export costs no training.
    params = lora.join(base, state.train.params)
    digest = params_digest(params)
    with console.phase("writing the model"):
        model = _export(
            config,
            folder / "model",
            params=params,
            mesh=mesh,
            model_config=model_config,
            tokenizer=tokenizer,
            about={"steps": config.num_steps, "params_digest": digest},
        )
    return {
        "steps": config.num_steps,
        "texts_left_out": texts.left_out,
        "params_digest": digest,
        "model": model,
    }


def _model_config(config, texts: Texts, tokenizer) -> transformer.ModelConfig:
    """The model's, which must be able to read the longest text."""
    model_config = read_model_config(config.model, tokenizer.vocab_size)
    check_length(
        config.model,
        model_config,
        tokens=int(texts.position_RW.max()) + 1,
        what=f"the longest text of {config.data.train}",
    )
    return model_config


def _settle_kernels(config, model_config, mesh):
    """The model with the kernels that hold, and what was found of each."""
    return kernel_check.settle(
        model_config,
        mesh,
        compute_dtype(config.model.dtype, mesh.devices.flat),
        rows=[kernel_check.TextRows(config.columns, "texts", learned=True)],
        attention=config.model.attention,
    )


def _first_state(
    saver, shapes: SftState, make, about_base: dict
) -> tuple[int, SftState]:
    """(updates done, state): of the newest whole checkpoint, or what `make()` makes.

    about_base: what a checkpoint says of LoRA's base. Raises InputError where the
    checkpoint is of another one.
    """
    old = saver.restore_newest(shapes, say=console.say)
    if old is not None:
        checkpoint.refuse_other_base(saver.workdir, old.meta, about_base.get("base"))
        return old.step, old.state
    metrics.refuse_lost(saver.workdir, saver.every)
    return 0, make()


def _refuse_foreign(out: pathlib.Path) -> None:
    """InputError where the export's folder is there and no run has written it."""
    ours = (out / hf_weights.ABOUT).exists() and not out.is_symlink()
    # lexists: a link that leads nowhere is no export of ours either.
    if os.path.lexists(out) and not ours:
        raise InputError(
            f"{out} was not written by this run, whose export would take its place; "
            "move it away, or give another --workdir"
        )


def _export(config, out, params, mesh, model_config, tokenizer, *, about: dict) -> str:
    """Write the model to `out`, unless a finished run is called again; its path."""
    if not out.exists():
        params, model_config = lora.merge_on(mesh, params, model_config)
        hf_weights.save_params(
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
            about=about,
        )
    return str(out)


def _texts(config):
    """(packed texts, tokenizer): prompt and solution of each problem."""
    tokenizer = load_tokenizer(resolve(config.tokenizer))
    section = config.data
    data_dir = resolve(section.cache_dir)
    manual_dir = resolve(section.manual_dir) if section.manual_dir else None
    problems = load_problems(section.train, data_dir=data_dir, manual_dir=manual_dir)
    if not section.allow_overlap:
        refuse_held_out(problems, data_dir=data_dir, manual_dir=manual_dir)
    solutions = problems.columns.get("solution")
    if solutions is None or None in solutions:
        raise InputError(f"{section.train}: not every row has a solution; add it")
    for problem, solution in zip(problems.ids, solutions, strict=True):
        jsonl.text_value(solution, f"{section.train}: the solution of {problem!r}")
    prompts = tokenizer.encode_chats(chats(problems, tokenizer))
    # It goes on after the prompt: no blank comes before it as at a text's start.
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
