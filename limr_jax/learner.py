"""The learner: a batch becomes one optimiser step, or several.

Every loss is a weighted sum over tokens, Σ weight_BT · loss_BT, whose weights hold the
normaliser of the *whole* batch (see objectives.py). So micro-batches, devices and hosts
only add up, and the one division is done before any of them begins.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from limr_jax import critic, objectives, packing
from limr_jax.chunks import split_rows
from limr_jax.errors import InputError
from limr_jax.objectives import Batch
from limr_jax.sharding import constrain_params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes."""

    params: Any  # fp32 master parameters
    opt_state: Any


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    decay_to: float,
    b1: float,
    b2: float,
    epsilon: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm (0: none).

    The learning rate rises over `warmup_steps`, then follows a cosine to
    `decay_to` × its peak at `decay_steps` (0: stays at its peak).
    """
    warmup = optax.linear_schedule(
        learning_rate / max(warmup_steps, 1), learning_rate, max(warmup_steps - 1, 1)
    )
    after = optax.constant_schedule(learning_rate)
    if decay_steps:
        span = max(decay_steps - warmup_steps, 1)
        after = optax.cosine_decay_schedule(learning_rate, span, alpha=decay_to)
    schedule = optax.join_schedules([warmup, after], [warmup_steps])
    adam = optax.adamw(
        schedule,
        b1=b1,
        b2=b2,
        eps=epsilon,
        weight_decay=weight_decay,
        # Norms and biases are not decayed.
        mask=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("kernel", "embedding"), params
        ),
    )
    if not clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam)


def init(params, optimizer) -> TrainState:
    """The state before the first update."""
    return TrainState(params, optimizer.init(params))


def _micro_batches(batch: Batch, micro_batch_rows: int, row_responses: int):
    """(micro-batch of number i, how many are walked, chosen tokens, padding's share).

    Rollouts are packed, but for those that the filter drops or that have nothing to be
    learned: the number of micro-batches is traced, their shape is not. Texts (without
    `problem_B`) are packed already.
    """
    rows = batch.tokens_BS.shape[0]
    size = micro_batch_rows or rows
    if batch.problem_B is None:
        parts = jax.tree.map(lambda x: split_rows(x, rows // size), batch)
        padding = jnp.mean(batch.position_BS < 0, dtype=jnp.float32)
        tokens = jnp.sum(batch.chosen_BT)
        return partial(_part, parts), rows // size, tokens, padding
    keep_B = jnp.any(batch.mask_BT, axis=1)
    if batch.keep_B is not None:
        keep_B &= batch.keep_B
    T = batch.mask_BT.shape[1]
    packed = packing.pack(
        *(batch.position_BS, batch.problem_B, keep_B),
        response_length=T,
        responses=row_responses,
    )
    count = -(-packed.rows // size)
    live = jnp.sum(packed.source_RW >= 0, dtype=jnp.float32)
    columns = count * size * packed.source_RW.shape[1]
    padding = 1 - live / jnp.maximum(columns, 1)
    tokens = jnp.sum(batch.chosen_BT & keep_B[:, None])
    return partial(_packed, batch, packed, size), count, tokens, padding


def _part(parts: Batch, i) -> Batch:
    return jax.tree.map(lambda x: x[i], parts)


def _packed(batch: Batch, packed: packing.Packing, size: int, i) -> Batch:
    """Packed rows i · size … as a micro-batch."""
    rows = packing.Rows(packed, i, size)
    by_token = dataclasses.replace(
        batch, tokens_BS=None, position_BS=None, problem_B=None, keep_B=None
    )
    return dataclasses.replace(
        jax.tree.map(lambda x: rows.targets(x, jnp.zeros((), x.dtype)), by_token),
        tokens_BS=rows.columns(batch.tokens_BS, 0),
        position_BS=rows.columns(batch.position_BS, -1),
        segment_BS=rows.segment_RW(),
        layout=rows.layout(batch.tokens_BS),
    )


def gradients(
    params,
    batch: Batch,
    *,
    loss: Callable,
    micro_batch_rows: int,
    row_responses: int = 1,
):
    """Gradient of Σ weight · loss, and the metrics, over micro-batches.

    `loss(params, micro) → loss_BT, means, maxima` gives arrays [B, T]; means are taken
    over `chosen_BT` of the whole batch, the largest too.
    """
    micro_batch, count, tokens, padding = _micro_batches(
        batch, micro_batch_rows, row_responses
    )

    def total(params, micro: Batch):
        loss_BT, means, maxima = loss(params, micro)
        value = jnp.sum(jnp.where(micro.mask_BT, micro.weight_BT * loss_BT, 0.0))
        told_BT = micro.chosen_BT
        sums = {k: jnp.sum(jnp.where(told_BT, v, 0)) for k, v in means.items()}
        highs = {k: jnp.max(jnp.where(told_BT, v, 0)) for k, v in maxima.items()}
        return value, ({"loss": value, **sums}, highs)

    def of(micro):
        (_, (sums, highs)), grads = jax.value_and_grad(total, has_aux=True)(
            params, micro
        )
        return constrain_params(grads), sums, highs

    def add(i, total):
        grads, sums, highs = of(micro_batch(i))
        return (
            constrain_params(jax.tree.map(jnp.add, total[0], grads)),
            jax.tree.map(jnp.add, total[1], sums),
            jax.tree.map(jnp.maximum, total[2], highs),
        )

    shapes = jax.eval_shape(lambda: of(micro_batch(0)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    grads, sums, highs = jax.lax.fori_loop(0, count, add, zeros)
    tokens = jnp.maximum(tokens, 1)
    means = {k: v if k == "loss" else v / tokens for k, v in sums.items()}
    return grads, {**means, **highs, "padding_share": padding}


def update(
    state: TrainState, batch: Batch, *, optimizer, **options
) -> tuple[TrainState, dict]:
    """One optimiser step; options as for `gradients`."""
    grads, metrics = gradients(state.params, batch, **options)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics["gradient_norm"] = optax.tree.norm(grads)
    return TrainState(params, opt_state), metrics


def refuse_divergence(
    step: int, metrics: Mapping[str, float], latest: Callable[[], int | None]
) -> None:
    """InputError where a loss or gradient is no finite number: never save that state.

    The numbers are replicated, so all processes end here. latest: the checkpoint's
    step that stands.
    """
    names = ("loss", "gradient_norm")
    broken = [
        f"{name}={float(x)}"
        for name, x in metrics.items()
        if name.rpartition("/")[2] in names and not math.isfinite(x)
    ]
    if broken:
        saved = latest()
        stands = "there is no checkpoint yet"
        if saved is not None:
            stands = f"the checkpoint of step {saved} stands"
        raise InputError(
            f"step {step} has {', '.join(broken)}, and is not saved; {stands}. The "
            "same command would come here again: give another --workdir a lower "
            "optimizer.learning_rate or an optimizer.clip_norm, and as model.init what "
            "launch/export.py makes of a checkpoint"
        )


def walk(descend: Callable, states, batch: Batch, *, minibatches: int, passes: int):
    """`descend(states, minibatch) → states, metrics`, over all minibatches, `passes` ×.

    Minibatch m is every so-many-th row, so that it mixes groups; each pass has the same
    ones. Metrics are means over the updates, those that end in "max" the largest.
    """
    if minibatches * passes == 1:
        return descend(states, batch)
    parts = jax.tree.map(lambda x: split_rows(x, minibatches), batch)

    def step(states, m):
        return descend(states, jax.tree.map(lambda x: x[m], parts))

    order = jnp.tile(jnp.arange(minibatches), passes)
    states, metrics = jax.lax.scan(step, states, order)
    return states, {
        name: jnp.max(x) if name.endswith("max") else jnp.mean(x, dtype=jnp.float32)
        for name, x in metrics.items()
    }


@dataclasses.dataclass(frozen=True)
class Learning:
    """How one step's rollouts are learned."""

    batch: Callable  # objectives.rl_batch or thoughts.jepo_batch, but for the arrays
    objective: Callable  # (logprob_BT, entropy_BT, micro, kl_coefficient=…)
    kl_coefficient: float  # of the first step
    adapt_kl: Callable | None  # (coefficient, mean KL) → the next step's; None: fixed
    optimizer: Any
    critic_optimizer: Any | None  # None: no critic
    value_clip: float  # of the critic's loss
    minibatches: int  # optimiser steps of one pass over the rollouts
    passes: int
    micro_batch_rows: int  # rows of one forward and backward pass; 0: a minibatch
    model_options: dict  # config, dtype, remat
    row_responses: int = 1  # full-length ones that a packed row has room for
    thoughts: Callable | None = None  # thoughts.make, but for the arrays; None: no JEPO
    semi_verifiable: bool = False  # JEPO only where no rollout of a prompt is right

    @property
    def packed(self) -> dict:
        """How rollouts are packed and walked, for whoever reads them."""
        names = ("micro_batch_rows", "row_responses")
        return {name: getattr(self, name) for name in names}

    def critic(self, policy_params) -> TrainState | None:
        """The critic before the first step."""
        if self.critic_optimizer is None:
            return None
        return init(critic.init_params(policy_params), self.critic_optimizer)

    def learn(self, states, kl_coefficient, temperature, batch: Batch, told: dict):
        """The step's updates: ((policy, critic), next KL coefficient), metrics.

        told: the metrics that came with the batch.
        """
        losses = (
            partial(
                objectives.policy_loss,
                temperature=temperature,
                objective=partial(self.objective, kl_coefficient=kl_coefficient),
                **self.model_options,
            ),
            partial(
                objectives.critic_loss, value_clip=self.value_clip, **self.model_options
            ),
        )

        def descend(states, minibatch):
            (policy, value), metrics = states, {}
            of = {"batch": minibatch} | self.packed
            if value is not None:
                value, told = update(
                    value, loss=losses[1], optimizer=self.critic_optimizer, **of
                )
                metrics = {f"critic/{name}": x for name, x in told.items()}
            policy, told = update(
                policy, loss=losses[0], optimizer=self.optimizer, **of
            )
            return (policy, value), metrics | told

        states, metrics = walk(
            descend, states, batch, minibatches=self.minibatches, passes=self.passes
        )
        if self.adapt_kl:
            kl_coefficient = self.adapt_kl(kl_coefficient, told["kl"])
        return (states, kl_coefficient), told | metrics
