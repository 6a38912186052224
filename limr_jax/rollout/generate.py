"""Responses of the policy: prefill once a prompt, decode G rollouts of each.

A slot whose rollout has ended takes the next one (slots.py), so that only live rows
are paid for. The mask is made where the token is chosen and includes the end token:
stopping is an action.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax import prng
from limr_jax.chunking import row_parts, split_rows
from limr_jax.models import kv_cache as kv
from limr_jax.models import transformer
from limr_jax.models.config import ComputeConfig
from limr_jax.rollout import slots as slots_lib
from limr_jax.rollout.decode_state import Batcher, DecodeState, Pending
from limr_jax.rollout.length_order import asked_first, longest_first
from limr_jax.rollout.sampling import Sampling, choose
from limr_jax.rollout.slots import SlotPlan
from limr_jax.rollout.types import GenerateConfig, Rollout
from limr_jax.sharding import (
    BATCH,
    REPLICATED,
    ROWS,
    constrain_params,
    on_each,
    row_shards,
    shards,
)


def generate(
    params,
    prompt_PL: jax.Array,
    position_PL: jax.Array,
    problem_P: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    expected_P: jax.Array | None = None,
    asked_PG: jax.Array | None = None,
    *,
    config: GenerateConfig,
    compute: ComputeConfig,
) -> Rollout:
    """All rollouts of a step, `config.slots` rows of the cache at once, at most all.

    Where the mesh's `tensor` is 1, each device goes through its own rows at its own
    pace; where it divides the model, all devices walk in step.

    `problem_P` are the problems' indices in the data set: with `key` (of stream and
    step) and the sample number they are all that the drawn tokens depend on.
    `expected_P`: tokens that answers are expected to have, 0 where nobody knows.
    `asked_PG`: bool, the rollouts to write; the others cost no decode step, and have no
    token. None: all.

    Raises:
      ValueError: the slots do not divide over the devices that share the rows.
    """
    devices = row_shards(len(prompt_PL))
    slots = config.slot_plan(len(prompt_PL), devices)
    # Decode reads the smaller copy, gathered once: not layer by layer at each token.
    params = constrain_params(
        transformer.compute_params(params, compute.dtype), gathered=("fsdp",)
    )

    def write(params, prompts, key, sampling, expected_P, *, slots=slots):
        return _write(
            params,
            prompts,
            key,
            sampling,
            expected_P,
            config=config,
            compute=compute,
            slots=slots,
        )

    if devices > 1 and shards("tensor") == 1:
        # Each device goes by a plan of its own, as if there were no other. Its loops
        # may turn more often than another's, so nothing may pass between devices within
        # them: nothing does, as what `fsdp` divides was gathered above.
        write = on_each(
            partial(write, slots=dataclasses.replace(slots, devices=1)),
            (REPLICATED, BATCH, REPLICATED, REPLICATED, BATCH),
            BATCH,
        )
    prompts = prompt_PL, position_PL, problem_P, asked_PG
    return write(params, prompts, key, sampling, expected_P)


def _write(
    params,
    prompts,
    key,
    sampling,
    expected_P,
    *,
    config: GenerateConfig,
    compute: ComputeConfig,
    slots: SlotPlan,
) -> Rollout:
    """`generate` on one device, or on all of them, which then walk in step."""
    P, L = prompts[0].shape
    ordered, back = longest_first(expected_P, prompts)
    prompt_PL, position_PL, problem_P, asked_PG = ordered
    asked_B = None if asked_PG is None else asked_PG.reshape(-1)
    sample_B = jnp.tile(jnp.arange(config.group), P)
    problem_B = jnp.repeat(problem_P, config.group)
    # Keys are by problem and sample, so the order of the prompts draws nothing else.
    key_B = prng.rollout_keys(key, problem_B, sample_B)
    first, cache = _first_tokens(
        params,
        prompt_PL,
        position_PL,
        key_B,
        sampling,
        asked_PG,
        config=config,
        compute=compute,
    )
    token_B = first["response_BT"]
    columns = _first_column(first, asked_B, config)
    pending = Pending.of(token_B, _ends(token_B, 0, config), key_B, position_PL)
    asked_M, rows_back = None, lambda out: out
    if asked_B is not None:
        # Slots take a device's rollouts from the first on, and stop after asked_M.
        rows, asked_M, rows_back = asked_first(asked_B, (pending, columns))
        pending, columns = rows
    batcher = Batcher.of(
        cache,
        pending,
        asked_M,
        config=compute.model,
        length=L,
        longest=config.response_length,
        step_tokens=config.step_tokens,
        rows_over=ROWS if slots.devices > 1 else None,
    )
    step = partial(
        _step,
        params=transformer.unstack(params, compute.model),
        sampling=sampling,
        batcher=batcher,
        key_impl=jax.random.key_impl(key),
        config=config,
        compute=compute,
    )
    state = batcher.init(slots_lib.init(slots), columns)
    state, held = slots_lib.drive(state, step, batcher, slots)
    # Only what was written was reordered; the prompts are returned as they came. The
    # rollouts were reordered last, so they go back first.
    out = back(rows_back(state.out))
    # By the mask too: the padding behind a truncated response may be an end token.
    stopped_BT = _stops(out["response_BT"], config) & out["mask_BT"]
    truncated_B = ~jnp.any(stopped_BT, axis=1)
    prompt_PL, position_PL, _, asked_PG = prompts
    asked_B = None if asked_PG is None else asked_PG.reshape(-1)
    return Rollout(
        prompt_PL=prompt_PL,
        position_PL=position_PL,
        truncated_B=truncated_B if asked_B is None else truncated_B & asked_B,
        slot_steps_M=jnp.full(slots.devices, held),
        asked_B=asked_B,
        **out,
    )


def _stops(token_X, config: GenerateConfig):
    return jnp.isin(token_X, jnp.asarray(config.stop_ids, jnp.int32))


def _ends(token_B, t_B, config: GenerateConfig):
    """Whether a token at response position t is a rollout's last."""
    return _stops(token_B, config) | (t_B + 1 == config.response_length)


def _step(
    state: DecodeState,
    *,
    params,
    sampling: Sampling,
    batcher: Batcher,
    key_impl: str,
    config: GenerateConfig,
    compute: ComputeConfig,
) -> DecodeState:
    """The state after one more token of every live row."""
    live_Z, t_Z = state.slots.live_Z, state.slot_state.t_Z
    # token_Z is number t − 1 of the response, so at last + 1 + (t − 1). An ended row
    # has -1: nobody sees the column that it writes.
    position_Z = jnp.where(live_Z, state.slot_state.last_Z + t_Z, -1)
    hidden_ZJD, cache = transformer.decode(
        params,
        state.slot_state.token_Z[:, None],
        position_Z[:, None],
        state.cache,
        batcher.column(state.slot_state),
        batcher.shared(state.slot_state),
        config=compute.model,
        dtype=compute.dtype,
    )
    logits_ZV = transformer.unembed(
        params, hidden_ZJD[:, 0], config=compute.model, dtype=compute.dtype
    )
    key_Z = jax.random.wrap_key_data(state.slot_state.key_Z2, impl=key_impl)
    token_Z, logprob_Z, entropy_Z = choose(logits_ZV, key_Z, t_Z, sampling)
    column = _column(token_Z, logprob_Z, entropy_Z)
    replace = dataclasses.replace
    return DecodeState(
        slots=replace(state.slots, live_Z=live_Z & ~_ends(token_Z, t_Z, config)),
        slot_state=replace(state.slot_state, token_Z=token_Z, t_Z=t_Z + 1),
        cache=cache,
        # By the slots before the step: a row that ends with this token writes it too.
        out=batcher.write(state.out, state.slots, t_Z, column),
    )


def _first_tokens(
    params,
    prompt_PL,
    position_PL,
    key_B,
    sampling,
    asked_PG,
    *,
    config: GenerateConfig,
    compute: ComputeConfig,
):
    """The first column of every rollout, and the prompts' cache.

    The logits of a prompt's last token are made once for all its rollouts. asked_PG:
    as of `generate`; what is not asked for may be anything.
    """
    hidden_PD, prompts = _prefill(params, prompt_PL, position_PL, config, compute)
    logits_PV = transformer.unembed(
        params, hidden_PD, config=compute.model, dtype=compute.dtype
    )
    key_GP = key_B.reshape(len(logits_PV), -1).T

    def choose_one(key_P):
        return choose(logits_PV, key_P, 0, sampling)

    def choose_asked(key_and_asked):
        key_P, asked_P = key_and_asked
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(choose_one, key_P))
        return jax.lax.cond(jnp.any(asked_P), choose_one, lambda _: nothing, key_P)

    # One rollout of each prompt at a time: noise of [P, V] and not of [P · G, V].
    if asked_PG is None:
        chosen = jax.lax.map(choose_one, key_GP)
    else:
        chosen = jax.lax.map(choose_asked, (key_GP, asked_PG.T))
    token_B, logprob_B, entropy_B = (x_GP.T.reshape(-1) for x_GP in chosen)
    return _column(token_B, logprob_B, entropy_B), prompts


def _prefill(
    params, prompt_PL, position_PL, config: GenerateConfig, compute: ComputeConfig
):
    """The prompts' last hidden states and cache, in parts where one would be large."""

    def some(prompt_XL, position_XL):
        hidden_XLD, cache = transformer.prefill(
            params,
            prompt_XL,
            position_XL,
            columns=L,
            config=compute.model,
            dtype=compute.dtype,
            step_tokens=config.step_tokens,
        )
        # Prompts are left-padded, so each one's last token is in the last column.
        return hidden_XLD[:, -1], cache

    P, L = prompt_PL.shape
    parts = row_parts(P, L * compute.model.mlp_width)
    if parts == 1:
        return some(prompt_PL, position_PL)
    return kv.by_parts(
        some, split_rows(prompt_PL, parts), split_rows(position_PL, parts)
    )


def _column(token_B, logprob_B, entropy_B) -> dict:
    """One column of what is written, by the names of `Rollout`."""
    return {
        "response_BT": token_B,
        "mask_BT": jnp.ones_like(token_B, bool),
        "logprob_BT": logprob_B,
        "entropy_BT": entropy_B,
    }


def _first_column(first: dict, asked_B, config: GenerateConfig) -> dict:
    """All columns, the first of them written where it is asked for (None: all)."""
    empty = {
        "response_BT": config.pad_id,
        "mask_BT": False,
        "logprob_BT": 0,
        "entropy_BT": 0,
    }

    def column(name, x_B):
        x_BT = jnp.full((len(x_B), config.response_length), empty[name], x_B.dtype)
        if asked_B is not None:
            x_B = jnp.where(asked_B, x_B, x_BT[:, 0])
        return x_BT.at[:, 0].set(x_B)

    return {name: column(name, x_B) for name, x_B in first.items()}
