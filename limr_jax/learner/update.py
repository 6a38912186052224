"""The learner: a batch becomes one optimiser step, or several.

Every loss is a weighted sum over tokens, Σ weight_RY · loss_RY, whose weights hold the
normaliser of *all* rows of an update (see batch.py). So micro-batches, devices and
hosts only add up, and the one division is done before any of them begins.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from limr_jax.chunking import split_rows
from limr_jax.learner import critic, losses, packing
from limr_jax.learner.batch import Batch, PackedBatch, weigh
from limr_jax.models import lora
from limr_jax.models.config import ComputeConfig
from limr_jax.models.summed import add_gradient
from limr_jax.sharding import ROWS, constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What an update changes."""

    params: Any  # fp32 master parameters; with LoRA the adapters alone
    opt_state: Any


def init(params, optimizer) -> TrainState:
    """The state before the first update."""
    return TrainState(params, optimizer.init(params))


class _MicroBatches(NamedTuple):
    """The micro-batches of one update."""

    take: Callable[[Any], PackedBatch]  # (number of a micro-batch) → its rows
    count: Any  # int, or int32 where the number of packed rows is traced
    chosen_tokens: jax.Array  # learned tokens that the policy wrote, in all of them
    padding_share: jax.Array  # fp32: columns that hold no token, 0 to 1


def _micro_batches(
    batch: Batch | PackedBatch, *, rows: int, row_responses: int
) -> _MicroBatches:
    """An update's rows as micro-batches of `rows` packed rows (0: one of all rows).

    Rollouts are packed, but for those that the filter drops or that have nothing to be
    learned: the number of micro-batches is traced, their shape is not. Texts are packed
    already.
    """
    if isinstance(batch, PackedBatch):
        size = rows or len(batch.tokens_RW)
        count = len(batch.tokens_RW) // size
        parts = jax.tree.map(lambda x: split_rows(x, count), batch)
        return _MicroBatches(
            take=lambda i: jax.tree.map(lambda x: x[i], parts),
            count=count,
            chosen_tokens=jnp.sum(batch.chosen_RY),
            padding_share=jnp.mean(batch.position_RW < 0, dtype=jnp.float32),
        )
    size = rows or len(batch.tokens_BS)
    # A row without a learned token would cost its columns and give no gradient.
    keep_B = jnp.any(batch.mask_BT, axis=1)
    if batch.keep_B is not None:
        keep_B &= batch.keep_B
    packed = packing.pack(
        batch.position_BS,
        batch.problem_B,
        keep_B,
        response_length=batch.mask_BT.shape[1],
        responses=row_responses,
    )
    count = -(-packed.rows // size)
    live = jnp.sum(packed.source_RW >= 0, dtype=jnp.float32)
    columns = count * size * packed.source_RW.shape[1]
    return _MicroBatches(
        take=partial(_packed_rows, batch, packed, size),
        count=count,
        chosen_tokens=jnp.sum(batch.chosen_BT & keep_B[:, None]),
        padding_share=1 - live / jnp.maximum(columns, 1),
    )


def _packed_rows(batch: Batch, packed: packing.Packing, size: int, i) -> PackedBatch:
    """Packed rows i · size to (i + 1) · size − 1 of the batch."""
    rows = packing.Rows(packed, i, size)

    def targets(x_BT):
        return None if x_BT is None else rows.targets(x_BT, jnp.zeros((), x_BT.dtype))

    return PackedBatch(
        tokens_RW=rows.columns(batch.tokens_BS, 0),
        position_RW=rows.columns(batch.position_BS, -1),
        segment_RW=rows.segment_RW(),
        layout=rows.layout(batch.tokens_BS, batch.target_BT),
        mask_RY=targets(batch.mask_BT),
        weight_RY=targets(batch.weight_BT),
        advantage_RY=targets(batch.advantage_BT),
        old_logprob_RY=targets(batch.old_logprob_BT),
        sampler_logprob_RY=targets(batch.sampler_logprob_BT),
        reference_RY=targets(batch.reference_BT),
        old_value_RY=targets(batch.old_value_BT),
        return_RY=targets(batch.return_BT),
        answer_RY=targets(batch.answer_BT),
        answer_weight_RY=targets(batch.answer_weight_BT),
    )


def gradients(
    params,
    batch: Batch | PackedBatch,
    *,
    loss: Callable,
    micro_batch_rows: int,
    row_responses: int = 1,
    frozen=False,
):
    """Gradient of Σ weight_RY · loss_RY with respect to `params`, and the metrics.

    The sum runs over the micro-batches of the batch, `micro_batch_rows` packed rows
    each (0: one micro-batch). `row_responses`: full-length responses that a packed row
    has columns for. frozen: bool, may be traced; True walks no micro-batch, and the
    gradient is 0.

    `loss(params, micro) → loss_RY, means, maxima` gives fp32 arrays [R, Y] of a
    PackedBatch, the latter two by name. Metrics are the loss, the means over the chosen
    tokens of the whole batch and the maxima over them, and `padding_share`.
    """
    micro_batches = _micro_batches(
        batch, rows=micro_batch_rows, row_responses=row_responses
    )

    def weighted_loss(params, micro: PackedBatch):
        loss_RY, means, maxima = loss(params, micro)
        # where, not weight 0 alone: 0 · inf of a token off the mask would be nan.
        value = jnp.sum(jnp.where(micro.mask_RY, micro.weight_RY * loss_RY, 0.0))
        chosen_RY = micro.chosen_RY
        sums = {k: jnp.sum(jnp.where(chosen_RY, v, 0)) for k, v in means.items()}
        highs = {k: jnp.max(jnp.where(chosen_RY, v, 0)) for k, v in maxima.items()}
        return value, ({"loss": value, **sums}, highs)

    # Differentiated within the loop: backward through one of traced length JAX cannot
    # go, and it would keep every micro-batch's activations.
    def add(i, so_far):
        so_far_grads, so_far_sums, so_far_highs = so_far
        micro = micro_batches.take(i)
        (_, (sums, highs)), grads = add_gradient(
            partial(weighted_loss, micro=micro), params, so_far_grads
        )
        return (
            grads,
            jax.tree.map(jnp.add, so_far_sums, sums),
            jax.tree.map(jnp.maximum, so_far_highs, highs),
        )

    # The number of micro-batches is traced and may be 0, so the sums begin with zeros.
    _, shapes = jax.eval_shape(lambda: weighted_loss(params, micro_batches.take(0)))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (params, *shapes))
    count = micro_batches.count
    # False itself, not an array of it: a run that freezes nothing compiles no test.
    if frozen is not False:
        count = jnp.where(frozen, 0, count)
    grads, sums, highs = jax.lax.fori_loop(0, count, add, zeros)
    # Sums are divided once, after all micro-batches, which have unequal numbers of
    # tokens. The loss is a sum of weighted terms already.
    tokens = jnp.maximum(micro_batches.chosen_tokens, 1)
    means = {k: v if k == "loss" else v / tokens for k, v in sums.items()}
    return grads, {**means, **highs, "padding_share": micro_batches.padding_share}


def update(
    state: TrainState,
    batch: Batch | PackedBatch,
    *,
    optimizer,
    loss: Callable,
    micro_batch_rows: int,
    row_responses: int = 1,
    frozen=False,
) -> tuple[TrainState, dict]:
    """One optimiser step: the next state, and metrics as JAX scalars by name.

    loss, micro_batch_rows, row_responses and frozen are as for `gradients`.

    Where the gradient is 0 throughout there is nothing to learn (no token; or no
    advantage, KL or entropy bonus), and the state stays as it is: parameters, Adam's
    moments and the count of updates that the schedule goes by. The moments of earlier
    updates, and weight decay, would else move the parameters. It stays as well where
    the loss or the gradient's norm is no finite number (metric `nonfinite_share`).
    """
    grads, metrics = gradients(
        state.params,
        batch,
        loss=loss,
        micro_batch_rows=micro_batch_rows,
        row_responses=row_responses,
        frozen=frozen,
    )
    metrics["gradient_norm"] = optax.tree.norm(grads)
    # Not by the norm: small squares are 0 before their roots are.
    learns = jnp.any(jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(grads)]))
    metrics["skipped_share"] = jnp.float32(~learns)
    # An entry that is inf or nan makes the norm so, too.
    finite = jnp.isfinite(metrics["gradient_norm"]) & jnp.isfinite(metrics["loss"])
    metrics["nonfinite_share"] = jnp.float32(~finite)

    def move(state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return TrainState(optax.apply_updates(state.params, updates), opt_state)

    return jax.lax.cond(learns & finite, move, lambda state: state, state), metrics


def minibatch_rows(key, *, rows: int, group: int, minibatches: int, passes: int):
    """The rows of each update in turn, int32 [passes · minibatches, rows a minibatch].

    Every pass has each row once, in an order of its own. Groups (rows g · group … of
    the batch) are shuffled and stay together where a minibatch can hold one; of those
    that do not divide a minibatch, one goes on in the next. Smaller minibatches are of
    single rows.
    """
    size = rows // minibatches
    unit = group if group <= size else 1

    def one_pass(number):
        key_of_pass = jax.random.fold_in(key, number)
        unit_X = jax.random.permutation(key_of_pass, rows // unit).astype(jnp.int32)
        row_XG = unit_X[:, None] * unit + jnp.arange(unit, dtype=jnp.int32)[None]
        return row_XG.reshape(minibatches, size)

    return jax.vmap(one_pass)(jnp.arange(passes)).reshape(-1, size)


def walk(
    descend: Callable,
    states,
    batch: Batch,
    key,
    *,
    group: int,
    minibatches: int,
    passes: int,
):
    """`descend(states, minibatch) → states, metrics`, over all minibatches, `passes` ×.

    `minibatch_rows` says which rows they are. Metrics are means over the updates, those
    that end in "max" the largest. Of several updates `mismatch/log_weight_first` is the
    first one's: in the others is also what the policy has moved.
    """
    # One on-policy update, the usual step: no row has to move.
    if minibatches * passes == 1:
        return descend(states, batch)
    rows_UX = minibatch_rows(
        key,
        rows=batch.mask_BT.shape[0],
        group=group,
        minibatches=minibatches,
        passes=passes,
    )

    def step(states, rows_X):
        if minibatches == 1:  # all rows, in whatever order
            return descend(states, batch)
        return descend(states, jax.tree.map(lambda x: _rows(x, rows_X), batch))

    states, updates = jax.lax.scan(step, states, rows_UX)
    metrics = {
        name: jnp.max(x) if name.endswith("max") else jnp.mean(x, dtype=jnp.float32)
        for name, x in updates.items()
    }
    if "mismatch/log_weight" in updates:
        metrics["mismatch/log_weight_first"] = updates["mismatch/log_weight"][0]
    return states, metrics


def _rows(x, rows_X):
    """These rows, over the devices as a batch's are; whichever devices have them."""
    # Rows of a permutation: all within bounds, and none twice.
    taken = x.at[rows_X].get(mode="promise_in_bounds", unique_indices=True)
    return constrain(taken, ROWS)


@dataclasses.dataclass(frozen=True)
class Learning:
    """How one step's rollouts are learned."""

    batch: Callable  # advantages.rl_batch or jepo.jepo_batch, but for the arrays
    objective: Callable  # (logprob_BT, entropy_BT, micro, kl_coefficient=…)
    kl_coefficient: float  # of the first step
    adapt_kl: Callable | None  # (coefficient, mean KL) → the next step's; None: fixed
    optimizer: Any
    critic_optimizer: Any | None  # None: no critic
    value_clip: float  # of the critic's loss
    normaliser: str  # one of batch.NORMALISERS
    group: int  # rollouts of a problem, one after another in the batch
    minibatches: int  # optimiser steps of one pass over the rollouts
    passes: int
    micro_batch_rows: int  # rows of one forward and backward pass; 0: a minibatch
    compute: ComputeConfig
    row_responses: int = 1  # full-length ones that a packed row has room for
    # jepo.make_thoughts, but for the arrays; None: not JEPO
    thoughts: Callable | None = None
    semi_verifiable: bool = False  # JEPO only where no rollout of a prompt is right
    pretrain_steps: int = 0  # first steps, in which the critic alone is learned

    def critic(self, policy_params) -> TrainState | None:
        """The critic before the first step; policy_params: those that are learned."""
        if self.critic_optimizer is None:
            return None
        params = critic.init_params(policy_params, width=self.compute.model.width)
        return init(params, self.critic_optimizer)

    def learn(
        self,
        states,
        kl_coefficient,
        temperature,
        batch: Batch,
        batch_metrics: dict,
        *,
        key,
        step=0,
        base=None,
    ):
        """The step's updates: ((policy, critic), next KL coefficient), metrics.

        states: the TrainStates of policy and critic, None for a critic that there is
        not. batch_metrics: the metrics that came with the batch. key: of the order of
        the rows over the minibatches. step: steps done before this one. base: LoRA's,
        which the parameters of both are beside; None: they are all.
        """
        frozen = self.pretrain_steps > 0 and step < self.pretrain_steps

        def policy_loss(learned, micro):
            # Differentiated with respect to what is learned alone.
            return losses.policy_loss(
                lora.join(base, learned),
                micro,
                temperature=temperature,
                objective=partial(self.objective, kl_coefficient=kl_coefficient),
                compute=self.compute,
            )

        def critic_loss(learned, micro):
            return losses.critic_loss(
                lora.join(base, learned),
                micro,
                value_clip=self.value_clip,
                compute=self.compute,
            )

        def descend(states, minibatch):
            policy, value = states
            # The normaliser is of this update's rows, not of the step's.
            weighed = weigh(minibatch, self.normaliser)
            critic_metrics = {}
            # Advantages are frozen in the batch, so which of the two is updated first
            # makes no difference.
            if value is not None:
                value, metrics = update(
                    value,
                    weighed,
                    optimizer=self.critic_optimizer,
                    loss=critic_loss,
                    micro_batch_rows=self.micro_batch_rows,
                    row_responses=self.row_responses,
                )
                critic_metrics = {f"critic/{name}": x for name, x in metrics.items()}
            policy, metrics = update(
                policy,
                weighed,
                optimizer=self.optimizer,
                loss=policy_loss,
                micro_batch_rows=self.micro_batch_rows,
                row_responses=self.row_responses,
                frozen=frozen,
            )
            metrics = losses.with_sample_size(metrics)
            return (policy, value), critic_metrics | metrics

        states, metrics = walk(
            descend,
            states,
            batch,
            key,
            group=self.group,
            minibatches=self.minibatches,
            passes=self.passes,
        )
        if self.adapt_kl:
            adapted = self.adapt_kl(kl_coefficient, batch_metrics["kl"])
            # Of no token, and of a policy that is not learned yet, the KL says nothing,
            # nor does one that is no number: the coefficient stays.
            says = jnp.any(batch.chosen_BT) & jnp.logical_not(frozen)
            says &= jnp.isfinite(batch_metrics["kl"])
            kl_coefficient = jnp.where(says, adapted, kl_coefficient)
        return (states, kl_coefficient), batch_metrics | metrics
