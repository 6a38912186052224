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
from limr_jax.rollout import drafts
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
    draft_PDT: jax.Array | None = None,
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
    token. None: all. `draft_PDT`: rollouts of these problems in which drafts are looked
    up (drafts.py), int32, -1 where there is no token; None: decode steps are of one
    token. The rollouts are the same with drafts and without.

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
    prompts = prompt_PL, position_PL, problem_P, asked_PG, draft_PDT
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
    prompt_PL, position_PL, problem_P, asked_PG, draft_PDT = ordered
    if draft_PDT is None:
        config = dataclasses.replace(config, step_tokens=1)
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
    end_Pn = None
    if draft_PDT is not None:
        end_Pn = drafts.prompt_ends(prompt_PL, position_PL)
    pending = Pending.of(token_B, _ends(token_B, 0, config), key_B, position_PL, end_Pn)
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
        int8=config.int8,
        source_PW=None if end_Pn is None else drafts.sources(draft_PDT, end_Pn),
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
    drafted = None if draft_PDT is None else partial(step, drafted=True)
    state, held = slots_lib.drive(state, step, batcher, slots, drafted)
    # Only what was written was reordered; the prompts are returned as they came. The
    # rollouts were reordered last, so they go back first.
    out = back(rows_back(state.out))
    # By the mask too: the padding behind a truncated response may be an end token.
    stopped_BT = _stops(out["response_BT"], config) & out["mask_BT"]
    truncated_B = ~jnp.any(stopped_BT, axis=1)
    prompt_PL, position_PL, _, asked_PG, _ = prompts
    asked_B = None if asked_PG is None else asked_PG.reshape(-1)
    return Rollout(
        prompt_PL=prompt_PL,
        position_PL=position_PL,
        truncated_B=truncated_B if asked_B is None else truncated_B & asked_B,
        slot_steps_M=jnp.full(slots.devices, held),
        steps_M=state.steps_M,
        row_steps_M=state.row_steps_M,
        asked_B=asked_B,
        **out,
    )


def _stops(token_X, config: GenerateConfig):
    return jnp.isin(token_X, jnp.asarray(config.stop_ids, jnp.int32))


def _ends(token_X, t_X, config: GenerateConfig):
    """Whether a token at response position t is a rollout's last."""
    return _stops(token_X, config) | (t_X + 1 >= config.response_length)


def _step(
    state: DecodeState,
    *,
    params,
    sampling: Sampling,
    batcher: Batcher,
    key_impl: str,
    config: GenerateConfig,
    compute: ComputeConfig,
    drafted: bool = False,
) -> DecodeState:
    """The state after one more token of every live row; drafted: or of several."""
    slots, slot_state = state.slots, state.slot_state
    live_Z, t_Z = slots.live_Z, slot_state.t_Z
    draft_ZK = batcher.draft(state) if drafted else jnp.zeros((len(t_Z), 0), jnp.int32)
    # What a row has chosen and not read yet, and what may come behind it.
    token_ZJ = jnp.concatenate([slot_state.token_Z[:, None], draft_ZK], axis=1)
    Z, J = token_ZJ.shape
    t_ZJ = t_Z[:, None] + jnp.arange(J, dtype=jnp.int32)[None]
    # token_Z is number t − 1 of the response, so at last + 1 + (t − 1). An ended row
    # has -1: nobody sees the columns that it writes.
    position_ZJ = jnp.where(live_Z[:, None], slot_state.last_Z[:, None] + t_ZJ, -1)
    hidden_ZJD, cache = transformer.decode(
        params,
        jnp.maximum(token_ZJ, 0),
        position_ZJ,
        state.cache,
        batcher.column(slot_state),
        batcher.shared(slot_state),
        config=compute.model,
        dtype=compute.dtype,
    )
    logits_XV = transformer.unembed(
        params,
        hidden_ZJD.reshape(Z * J, -1),
        config=compute.model,
        dtype=compute.dtype,
    )
    key_Z = jax.random.wrap_key_data(slot_state.key_Z2, impl=key_impl)
    # Each with the noise of its own position, as without a draft.
    chosen = choose(logits_XV, jnp.repeat(key_Z, J), t_ZJ.reshape(-1), sampling)
    drawn_ZJ, logprob_ZJ, entropy_ZJ = (x_X.reshape(Z, J) for x_X in chosen)
    ends_ZJ = _ends(drawn_ZJ, t_ZJ, config)
    count_Z = drafts.accepted(draft_ZK, drawn_ZJ, ends_ZJ)

    def last(x_ZJ):
        if J == 1:
            return x_ZJ[:, 0]
        return jnp.take_along_axis(x_ZJ, count_Z[:, None] - 1, axis=1)[:, 0]

    replace = dataclasses.replace
    return DecodeState(
        slots=replace(slots, live_Z=live_Z & ~last(ends_ZJ)),
        slot_state=replace(
            slot_state,
            token_Z=last(drawn_ZJ),
            t_Z=t_Z + count_Z,
            end_Zn=_moved_on(slot_state.end_Zn, drawn_ZJ, count_Z),
        ),
        cache=cache,
        # By the slots before the step: a row that ends with this token writes it too.
        out=batcher.write(
            state.out,
            slots,
            t_Z,
            count_Z,
            _column(drawn_ZJ, logprob_ZJ, entropy_ZJ),
        ),
        steps_M=state.steps_M + 1,
        row_steps_M=state.row_steps_M + slots.live_M,
        hits_M=(
            batcher.hits(state, draft_ZK, drawn_ZJ, weight=1 / drafts.STEPS)
            if drafted
            else batcher.probed_hits(state, drawn_ZJ)
        ),
    )


def _moved_on(end_Zn, drawn_ZJ, count_Z):
    """The last n tokens of each row after the first `count` that were drawn."""
    if end_Zn is None:
        return None
    both = jnp.concatenate([end_Zn, drawn_ZJ], axis=1)
    at_Zn = count_Z[:, None] + jnp.arange(end_Zn.shape[1])[None]
    return jnp.take_along_axis(both, at_Zn, axis=1)


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
