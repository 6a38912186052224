"""`GenerateConfig`, what a generation is compiled for, and `Rollout`, its result."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.rollout.slots import LOOPS, SlotPlan, plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the policy wrote; row b is prompt b // G, rollout b % G."""

    prompt_PL: jax.Array  # int32, left-padded
    position_PL: jax.Array  # int32, -1 = padding
    response_BT: jax.Array  # int32, padding after the end
    mask_BT: jax.Array  # bool: a token that the policy chose, end token included
    logprob_BT: jax.Array  # fp32, of each chosen token at the rollout's temperature
    entropy_BT: jax.Array  # fp32, nats, of that distribution, before any filter
    truncated_B: jax.Array  # bool: the limit came before an end token
    # int32, one a device that rows lie on: its slots, summed over the decode steps.
    slot_steps_M: jax.Array
    # int32, likewise: decode steps, and the live rows summed over them.
    steps_M: jax.Array
    row_steps_M: jax.Array
    # bool: rollouts that were to be written, the others have no token; None: all.
    asked_B: jax.Array | None = None

    @property
    def quota(self) -> jax.Array | int:
        """Rollouts that were to be written."""
        if self.asked_B is None:
            return self.mask_BT.shape[0]
        return jnp.sum(self.asked_B)

    @property
    def group(self) -> int:
        """Rollouts a prompt (G)."""
        return self.response_BT.shape[0] // self.prompt_PL.shape[0]

    def waste(self) -> tuple[jax.Array, jax.Array]:
        """The slots of all decode steps that held no live row, and all of them.

        A device that is done and waits for another has no slots.
        """
        slots = jnp.sum(self.slot_steps_M)
        return slots - jnp.sum(self.row_steps_M), jnp.maximum(slots, 1)

    @property
    def decoded(self) -> jax.Array:
        """Tokens that decode steps gave: a rollout's first comes from its prompt."""
        return jnp.sum(self.mask_BT) - self.quota

    @property
    def problem_B(self) -> jax.Array:
        """Which of the P prompts a row answers, int32."""
        rows = jnp.arange(self.response_BT.shape[0], dtype=jnp.int32)
        return rows // self.group

    def sequences(self) -> tuple[jax.Array, jax.Array]:
        """Prompt and response as one row: tokens_BS and position_BS, S = L + T."""
        prompt_BL = jnp.repeat(self.prompt_PL, self.group, axis=0)
        position_BL = jnp.repeat(self.position_PL, self.group, axis=0)
        # Prompts are left-padded, so their last column has the last position.
        position_BT = position_BL[:, -1:] + jnp.cumsum(self.mask_BT, axis=1)
        position_BT = jnp.where(self.mask_BT, position_BT, -1).astype(jnp.int32)
        return (
            jnp.concatenate([prompt_BL, self.response_BT], axis=1),
            jnp.concatenate([position_BL, position_BT], axis=1),
        )


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """What `generate` is compiled for, beside the model; hashable."""

    group: int  # G, rollouts a prompt
    response_length: int  # T, tokens of a rollout at most
    slots: int  # rollouts decoded at once, on all devices
    stop_ids: tuple[int, ...]  # tokens that end a rollout
    pad_id: int  # what stands after the end
    compactions: int = LOOPS - 1  # moves of the live rows into fewer slots, at most
    # Rollouts a prompt that a step may ask for on average; None: all G of each.
    mean_group: int | None = None
    step_tokens: int = 1  # J, tokens of a rollout in a decode step at most
    drafts_kept: int = 0  # rollouts of a problem that are kept to draft from, at most
    int8: bool = False  # whether a decode step reads kernels of one byte a weight

    @property
    def paid_group(self) -> int:
        """Rollouts a prompt that are written, on average and at most."""
        return self.mean_group or self.group

    def slot_plan(self, prompts: int, devices: int) -> SlotPlan:
        """The slots of so many prompts' rollouts, on so many devices."""
        return plan(
            self.slots,
            rollouts=prompts * self.paid_group,
            devices=devices,
            longest=self.response_length,
            compactions=self.compactions,
        )
