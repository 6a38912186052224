"""The policy answers: prefill once per prompt, decode G rollouts of each.

A row of the cache that has ended is given to the next rollout (slots.py says when), so
that only live rows are paid for. The mask is made where the token is chosen and
includes the end token: stopping is an action.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from limr_jax import cache as kv
from limr_jax import model, randomness
from limr_jax.chunks import row_parts, split_rows
from limr_jax.expected import longest_first
from limr_jax.seats import Queue, State, Table
from limr_jax.sharding import (
    BATCH,
    REPLICATED,
    ROWS,
    constrain_params,
    on_each,
    row_shards,
    shards,
)
from limr_jax.slots import drive, seated


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
    # int32, one for each part the rows lie in: its slots, summed over the decode steps.
    slot_steps_D: jax.Array

    @property
    def group(self) -> int:
        """Rollouts a prompt (G)."""
        return self.response_BT.shape[0] // self.prompt_PL.shape[0]

    def waste(self) -> tuple[jax.Array, jax.Array]:
        """The slots of all decode steps that held no live row, and all of them.

        A rollout's first token comes from its prompt, without a decode step. A device
        that is done and waits for another has no slots.
        """
        decoded = jnp.sum(self.mask_BT) - self.mask_BT.shape[0]
        slots = jnp.sum(self.slot_steps_D)
        return slots - decoded, jnp.maximum(slots, 1)

    @property
    def problem_B(self) -> jax.Array:
        """Which of the P prompts a row answers, int32."""
        rows = jnp.arange(self.response_BT.shape[0], dtype=jnp.int32)
        return rows // self.group

    def sequences(self) -> tuple[jax.Array, jax.Array]:
        """Prompt and response as one row: tokens_BS and position_BS, S = L + T."""
        prompt_BL = jnp.repeat(self.prompt_PL, self.group, axis=0)
        position_BL = jnp.repeat(self.position_PL, self.group, axis=0)
        position_BT = position_BL[:, -1:] + jnp.cumsum(self.mask_BT, axis=1)
        position_BT = jnp.where(self.mask_BT, position_BT, -1).astype(jnp.int32)
        return (
            jnp.concatenate([prompt_BL, self.response_BT], axis=1),
            jnp.concatenate([position_BL, position_BT], axis=1),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; every field is traced, so no value compiles anew.

    A filter that is None is off, and is not compiled: in each of a generation's loops
    they are a seventh of what XLA:CPU has to compile for the benchmark.
    """

    temperature: jax.Array | float = 1.0  # 0 is argmax
    top_p: jax.Array | float | None = None  # 1 is off
    top_k: jax.Array | int | None = None  # 0 is off
    min_p: jax.Array | float | None = None  # 0 is off


def scaled_logits(logits_XV: jax.Array, temperature) -> jax.Array:
    """Logits over the temperature; at 0, where drawing is argmax, the logits."""
    return logits_XV / jnp.where(temperature > 0, temperature, 1.0)


def filter_logits(scaled_BV: jax.Array, sampling: Sampling) -> jax.Array:
    """-inf for the tokens that top-k, then top-p, then min-p leave out.

    Each filter keeps the most probable token, and whatever ties with the last that it
    keeps.
    """
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    kept_BV = scaled_BV

    def lighter_than(most, weight_BV):
        rank_BV = _ordered(scaled_BV)
        stays_BV = rank_BV >= _least(rank_BV, weight_BV, most)
        return jnp.where(stays_BV, kept_BV, -jnp.inf)

    if top_k is not None:
        most = jnp.where(top_k > 0, top_k, jnp.inf)
        kept_BV = lighter_than(most, jnp.ones_like(scaled_BV))
    if top_p is not None:
        # At 1 all stay: in fp32 the mass above a tail token may round to 1.
        most = jnp.where(top_p < 1, top_p, jnp.inf)
        kept_BV = lighter_than(most, jax.nn.softmax(kept_BV, axis=-1))
    if min_p is not None:
        best_B1 = jnp.max(scaled_BV, axis=-1, keepdims=True)
        stays_BV = scaled_BV >= best_B1 + jnp.log(min_p)
        kept_BV = jnp.where(stays_BV, kept_BV, -jnp.inf)
    return kept_BV


def _ordered(x: jax.Array) -> jax.Array:
    """fp32 as int32 of the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _least(rank_BV, weight_BV, bound):
    """The least rank above which all weigh less than `bound`; at most the highest.

    Found by halving: to sort a whole vocabulary and add it up in order takes XLA's TPU
    compiler minutes.
    """

    def halve(_, ends):
        low_B1, high_B1 = ends
        middle_B1 = (low_B1 >> 1) + (high_B1 >> 1) + (low_B1 & high_B1 & 1)
        above_BV = jnp.where(rank_BV > middle_B1, weight_BV, 0.0)
        light_B1 = jnp.sum(above_BV, axis=-1, keepdims=True) < bound
        return (
            jnp.where(light_B1, low_B1, middle_B1 + 1),
            jnp.where(light_B1, middle_B1, high_B1),
        )

    ends = (f(rank_BV, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    return jax.lax.fori_loop(0, 32, halve, tuple(ends))[1]


def choose(logits_BV, key_B, position_B, sampling: Sampling):
    """Draw one token a row: (token_B, logprob_B, entropy_B).

    The log-probability is that under the full temperature-scaled distribution, before
    any filter, as the learner computes it.
    """
    scaled_BV = scaled_logits(logits_BV, sampling.temperature)
    noise_BV = randomness.gumbel(key_B, position_B, logits_BV.shape[-1])
    noise_BV = jnp.where(sampling.temperature > 0, noise_BV, 0.0)
    token_B = _argmax(filter_logits(scaled_BV, sampling) + noise_BV)
    logprob_B, entropy_B = token_logprob(scaled_BV, token_B)
    return token_B, logprob_B, entropy_B


def _argmax(score_BV):
    """int32: the first index of each row's largest.

    XLA:CPU's own argmax runs an element at a time, and takes what it is fused with
    along: 4.7 ms of a step of 64 rows and 4,096 words where this takes 0.5.
    """
    score_BV = jax.lax.optimization_barrier(score_BV)
    index_BV = jax.lax.broadcasted_iota(jnp.int32, score_BV.shape, 1)
    best_B1 = jnp.max(score_BV, axis=-1, keepdims=True)
    last = score_BV.shape[-1] - 1  # where a score is no number
    return jnp.min(jnp.where(score_BV == best_B1, index_BV, last), axis=-1)


def token_logprob(scaled_XV: jax.Array, token_X: jax.Array):
    """Log-probability of each token and entropy of its distribution, in nats."""
    log_sum_X = jax.nn.logsumexp(scaled_XV, axis=-1)
    chosen_X = jnp.take_along_axis(scaled_XV, token_X[..., None], axis=-1)[..., 0]
    probability_XV = jnp.exp(scaled_XV - log_sum_X[..., None])
    mean_X = jnp.sum(probability_XV * scaled_XV, axis=-1)
    return chosen_X - log_sum_X, log_sum_X - mean_X


def generate(
    params,
    prompt_PL: jax.Array,
    position_PL: jax.Array,
    problem_P: jax.Array,
    key: jax.Array,
    sampling: Sampling,
    expected_P: jax.Array | None = None,
    *,
    config: model.ModelConfig,
    group: int,
    response_length: int,
    slots: int,
    shrinks: int = 6,
    stop_ids: tuple[int, ...],
    pad_id: int,
    dtype,
) -> Rollout:
    """All rollouts of a step, `slots` rows of the cache at once, at most all.

    Where the mesh's `tensor` is 1, each device goes through its own rows at its own
    pace; where it divides the model, all devices walk in step.

    `problem_P` are the problems' indices in the data set: with `key` (of stream and
    step) and the sample number they are all that the drawn tokens depend on.
    `expected_P`: tokens that answers are expected to have, 0 where nobody knows.

    Raises:
      ValueError: `slots` does not divide over the devices that share the rows.
    """
    devices = row_shards(len(prompt_PL))
    if slots < 1 or slots % devices:
        raise ValueError(f"slots={slots} for {devices} devices")
    # Decode reads the smaller copy, gathered once: not layer by layer at each token.
    params = constrain_params(model.compute_params(params, dtype), gathered=("fsdp",))
    prompts = prompt_PL, position_PL, problem_P
    given = params, prompts, key, sampling, expected_P
    write = partial(
        _write,
        group=group,
        response_length=response_length,
        shrinks=shrinks,
        stop_ids=stop_ids,
        pad_id=pad_id,
        config=config,
        dtype=dtype,
    )
    if devices == 1 or shards("tensor") > 1:
        return write(*given, slots=slots)
    specs = REPLICATED, BATCH, REPLICATED, REPLICATED, BATCH
    return on_each(partial(write, slots=slots // devices), specs, BATCH)(*given)


def _write(
    params,
    prompts,
    key,
    sampling,
    expected_P,
    *,
    group,
    response_length,
    slots,
    shrinks,
    stop_ids,
    pad_id,
    config,
    dtype,
) -> Rollout:
    """`generate` by one device, or by all, in step."""
    (P, L), devices = prompts[0].shape, row_shards(len(prompts[0]))
    (*ordered, problem_P), back = longest_first(expected_P, prompts)
    sample_B = jnp.tile(jnp.arange(group), P)
    key_B = randomness.rollout_keys(key, jnp.repeat(problem_P, group), sample_B)
    how = {"config": config, "dtype": dtype}
    ends = partial(_ends, stop_ids=stop_ids, response_length=response_length)
    first, cache = _first_tokens(params, *ordered, key_B, sampling, **how)
    token_B = first["response_BT"]
    table = Table.of(
        cache,
        Queue.of(token_B, ends(token_B, 0), key_B, ordered[1]),
        config=config,
        length=L,
        longest=response_length,
        rows_over=ROWS if devices > 1 else None,
    )
    params = model.unstack(params, config)
    step = partial(_step, params, sampling, table, ends, jax.random.key_impl(key), how)
    out = _first_column(first, response_length, pad_id)
    start = table.seated(seated(slots, P * group, devices), out)
    state, held = drive(start, step, table, shrinks)
    out = back(state.out)
    stopped_BT = _stops(out["response_BT"], stop_ids) & out["mask_BT"]
    return Rollout(
        prompt_PL=prompts[0],
        position_PL=prompts[1],
        truncated_B=~jnp.any(stopped_BT, axis=1),
        slot_steps_D=jnp.full(devices, held),
        **out,
    )


def _stops(token_X, stop_ids):
    return jnp.isin(token_X, jnp.asarray(stop_ids, jnp.int32))


def _ends(token_B, t_B, *, stop_ids, response_length):
    """Whether a token at response position t is a rollout's last."""
    return _stops(token_B, stop_ids) | (t_B + 1 == response_length)


def _step(params, sampling, table, ends, random, how, state: State) -> State:
    """A token of every live row."""
    live_S, t_S = state.slots.live_S, state.seats.t_S
    hidden_SD, cache = model.decode(
        params,
        state.seats.token_S,
        jnp.where(live_S, state.seats.last_S + t_S, -1),
        state.cache,
        state.column,
        table.shared(state.slots),
        **how,
    )
    logits_SV = model.unembed(params, hidden_SD, **how)
    key_S = jax.random.wrap_key_data(state.seats.key_S2, impl=random)
    token_S, logprob_S, entropy_S = choose(logits_SV, key_S, t_S, sampling)
    written = _column(token_S, logprob_S, entropy_S)
    replace = dataclasses.replace
    return State(
        slots=replace(state.slots, live_S=live_S & ~ends(token_S, t_S)),
        seats=replace(state.seats, token_S=token_S, t_S=t_S + 1),
        cache=cache,
        column=state.column + 1,
        out=table.noted(state.out, state.slots, t_S, written),
    )


def _first_tokens(params, prompt_PL, position_PL, key_B, sampling, **how):
    """The first column of every rollout, and the prompts' cache.

    What a prompt's rollouts share is computed once, its logits too.
    """
    hidden_PD, prompts = _prefill(params, prompt_PL, position_PL, **how)
    logits_PV = model.unembed(params, hidden_PD, **how)
    key_GP = key_B.reshape(len(logits_PV), -1).T
    chosen = jax.lax.map(lambda key_P: choose(logits_PV, key_P, 0, sampling), key_GP)
    return _column(*(x_GP.T.reshape(-1) for x_GP in chosen)), prompts


def _prefill(params, prompt_PL, position_PL, *, config: model.ModelConfig, dtype):
    """The prompts' last hidden states and cache; so many at a time as are not large."""

    def some(prompt_XL, position_XL):
        hidden_XLD, cache = model.prefill(
            params, prompt_XL, position_XL, columns=L, config=config, dtype=dtype
        )
        return hidden_XLD[:, -1], cache

    P, L = prompt_PL.shape
    parts = row_parts(P, L * config.mlp_width)
    if parts == 1:
        return some(prompt_PL, position_PL)
    split = (split_rows(x, parts) for x in (prompt_PL, position_PL))
    return kv.by_parts(some, *split)


def _column(token_B, logprob_B, entropy_B) -> dict:
    """One column of what is written, by the names of `Rollout`."""
    return {
        "response_BT": token_B,
        "mask_BT": jnp.ones_like(token_B, bool),
        "logprob_BT": logprob_B,
        "entropy_BT": entropy_B,
    }


def _first_column(first: dict, response_length: int, pad_id: int) -> dict:
    """All columns, the first of them written."""
    empty = {"response_BT": pad_id, "mask_BT": False, "logprob_BT": 0, "entropy_BT": 0}

    def column(name, x_B):
        x_BT = jnp.full((len(x_B), response_length), empty[name], x_B.dtype)
        return x_BT.at[:, 0].set(x_B)

    return {name: column(name, x_B) for name, x_B in first.items()}
