"""How many rollouts each drawn problem gets, with any prompt sampler.

A step has a budget of B = P · G rollouts, P problems of G on average. `fixed` gives
each G. `knapsack` (arXiv:2509.25849) divides them before the rollouts, by what it
believes of each problem's pass rate. `ada` (arXiv:2510.04996) gives them out in rounds,
until a problem has said enough. Arrays have a row for each of the G_max rollouts that a
problem may get, [P, G_max], and `asked_PG` says which are written: one that is not
costs no decode step, has no token, and is invalid. What rollout g of a problem says is
the same whoever else is written.

An allocation wraps a sampler, and its state is a part of the sampler's.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.algorithms import informative, knapsack, reinforce_ada
from limr_jax.config import limits
from limr_jax.samplers.interface import PromptSampler

MOST = 4  # G_max in groups, where allocation.most is 0


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an allocation divides, beside the fields of its own."""

    problems: int  # N, of the data set
    prompts: int  # P, problems that a step draws
    group: int  # G, rollouts a problem on average
    most: int  # G_max, of a problem

    @property
    def rollouts(self) -> int:
        """B, of a draw."""
        return self.prompts * self.group


def largest_group(config) -> int:
    """G_max: the rows that a problem has in a step's arrays."""
    if config.allocation.name == "fixed":
        return config.group_size
    return config.allocation.most or MOST * config.group_size


def allocated(sampler: PromptSampler, section, budget: Budget) -> PromptSampler:
    """The sampler with the allocation that the config's section `allocation` names."""
    row = ALLOCATIONS[section.name]
    if row.make is None:
        return sampler
    return row.make(sampler, budget, **section[section.name])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KnapsackState:
    """A sampler's state, and what is believed of each problem's pass rate."""

    sampler: Any
    posterior: informative.State


def by_knapsack(
    sampler: PromptSampler, budget: Budget, *, least: int, decay: float, weigh: str
) -> PromptSampler:
    """The sampler with `knapsack.allocate` of its draws (arXiv:2509.25849).

    least: rollouts of each problem at least. decay: what a visit leaves of what was
    seen of a problem before. weigh is the learner's.
    """
    del weigh
    count = partial(
        knapsack.allocate, budget=budget.rollouts, least=least, most=budget.most
    )

    def pass_rates(state):
        right_N, wrong_N = state.posterior
        return right_N / (right_N + wrong_N)

    def sample(state, key, earlier=None):
        inner, ids_P = sampler.sample(state.sampler, key, earlier)
        return dataclasses.replace(state, sampler=inner), ids_P

    def ask(state, ids_P):
        count_P = count(pass_rates(state)[ids_P])
        return jnp.arange(budget.most)[None] < count_P[:, None]

    def update(state, ids_P, correct_PG, valid_PG):
        inner = sampler.update(state.sampler, ids_P, correct_PG, valid_PG)
        posterior = informative.update(
            state.posterior, ids_P, correct_PG > 0, valid_PG, decay=decay
        )
        return KnapsackState(inner, posterior)

    def report(state, ids_P):
        rate_P = pass_rates(state)[ids_P]
        count_P = count(rate_P)
        # The chance that a group has both outcomes, as it is believed.
        both_P = 1 - rate_P**count_P - (1 - rate_P) ** count_P
        return sampler.report(state.sampler, ids_P) | {
            "allocation/most": jnp.max(count_P),
            "allocation/least_share": jnp.mean(count_P == least),
            "allocation/pass_rate": jnp.mean(rate_P),
            "allocation/mixed_chance": jnp.mean(both_P),
        }

    return PromptSampler(
        init=lambda: KnapsackState(sampler.init(), informative.init(budget.problems)),
        sample=sample,
        update=update,
        report=report,
        in_order=sampler.in_order,
        importance=sampler.importance
        and (lambda state, key: sampler.importance(state.sampler, key)),
        ask=ask,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaState:
    """A sampler's state, and the rounds of the step that is going on."""

    sampler: Any
    rounds: jax.Array  # int32: rounds that this step has drawn; 0 between steps
    ids_P: jax.Array  # int32: its problems, the same in all rounds
    asked_PG: jax.Array  # bool: rollouts of this step so far
    round_PG: jax.Array  # bool: those of the newest round
    correct_PG: jax.Array  # fp32: raw correctness of those that are graded
    valid_PG: jax.Array  # bool

    @classmethod
    def before_rounds(cls, inner, ids_P, most: int) -> "AdaState":
        """Of the sampler's state `inner`; no rollout is asked for yet."""
        shape = (len(ids_P), most)
        none_PG = jnp.zeros(shape, bool)
        return cls(
            sampler=inner,
            rounds=jnp.int32(0),
            ids_P=ids_P,
            asked_PG=none_PG,
            round_PG=none_PG,
            correct_PG=jnp.zeros(shape, jnp.float32),
            valid_PG=none_PG,
        )

    @property
    def begun_P(self) -> jax.Array:
        """Rollouts of each problem so far, int32."""
        return jnp.sum(self.asked_PG, axis=1, dtype=jnp.int32)

    def right_and_wrong(self) -> tuple[jax.Array, jax.Array]:
        """Rollouts of each problem so far of either outcome, int32."""
        right_PG = self.valid_PG & (self.correct_PG > 0)
        right_P = jnp.sum(right_PG, axis=1)
        return right_P, jnp.sum(self.valid_PG, axis=1) - right_P


def in_ada_rounds(
    sampler: PromptSampler,
    budget: Budget,
    *,
    rounds: int,
    per_round: int,
    taken: int,
    exit: str,
) -> PromptSampler:
    """The sampler with the rounds of Reinforce-Ada (arXiv:2510.04996).

    rounds: of a step, at most. per_round: rollouts of an open problem in each. taken: G
    of the paper, rollouts of a problem that are learned. exit: of
    `reinforce_ada.EXITS`. The sampler learns once a step, from all rollouts.
    """
    leaves = partial(reinforce_ada.EXITS[exit], taken=taken)
    before_rounds = partial(AdaState.before_rounds, most=budget.most)

    def open_problems(state):
        right_P, wrong_P = state.right_and_wrong()
        return ~leaves(right_P, wrong_P)

    def init():
        return before_rounds(sampler.init(), jnp.zeros(budget.prompts, jnp.int32))

    # No `earlier`, as no filter of groups goes with it: a step has one draw.
    def sample(state, key):
        inner, ids_P = jax.lax.cond(
            state.rounds == 0,
            lambda: sampler.sample(state.sampler, key),
            lambda: (state.sampler, state.ids_P),
        )
        begun_P = state.begun_P
        count_P = reinforce_ada.ask(
            open_problems(state),
            begun_P,
            budget.rollouts - jnp.sum(begun_P),
            per_round=per_round,
            most=budget.most,
            last=state.rounds + 1 >= rounds,
        )
        # A problem's rollouts are written in order: this round's are the `count` behind
        # those that have begun, and none is in two rounds.
        g_1G = jnp.arange(budget.most)[None]
        round_PG = (g_1G >= begun_P[:, None]) & (g_1G < (begun_P + count_P)[:, None])
        state = dataclasses.replace(
            state,
            sampler=inner,
            rounds=state.rounds + 1,
            ids_P=ids_P,
            asked_PG=state.asked_PG | round_PG,
            round_PG=round_PG,
        )
        return state, ids_P

    # A round's grades are only noted: to the sampler an update is a visit of its
    # problems, and a step is one visit in however many rounds.
    def update(state, ids_P, correct_PG, valid_PG):
        newest = state.round_PG
        return dataclasses.replace(
            state,
            correct_PG=jnp.where(newest, correct_PG, state.correct_PG),
            valid_PG=jnp.where(newest, valid_PG, state.valid_PG),
        )

    def take(state, may_PG):
        taken_PG = reinforce_ada.take(
            state.correct_PG > 0, state.valid_PG & may_PG, taken=taken
        )
        open_P, begun_P = open_problems(state), state.begun_P
        spent = jnp.sum(begun_P) == budget.rollouts
        whole = spent | ~jnp.any(open_P & (begun_P < budget.most))
        return (
            taken_PG,
            whole | (state.rounds >= rounds),
            {
                "ada/rounds": state.rounds,
                "ada/open_share": jnp.mean(open_P),
                "ada/most": jnp.max(begun_P),
                "ada/taken_rollouts": jnp.sum(taken_PG),
            },
        )

    def end_step(state):
        inner = sampler.update(
            state.sampler, state.ids_P, state.correct_PG, state.valid_PG
        )
        return before_rounds(inner, state.ids_P)

    return PromptSampler(
        init=init,
        sample=sample,
        update=update,
        report=lambda state, ids_P: sampler.report(state.sampler, ids_P),
        in_order=sampler.in_order,
        ask=lambda state, ids_P: state.round_PG,
        take=take,
        end_step=end_step,
    )


@dataclasses.dataclass(frozen=True)
class AllocationRow:
    """One value of `allocation.name`: how it wraps a sampler, and its own fields."""

    make: Callable[..., PromptSampler] | None  # None: as many rollouts of each
    # The fields of the section allocation.NAME, and what each may be.
    own: Mapping[str, limits.Row] = dataclasses.field(default_factory=dict)
    rounds: bool = False  # it asks in rounds, so that no filter of groups goes with it


ALLOCATIONS = {
    "fixed": AllocationRow(None),
    "knapsack": AllocationRow(
        by_knapsack,
        {
            "least": limits.Whole(2, limits.ROWS),
            "decay": limits.Real(0, 1),
            "weigh": limits.Choice(("rollouts", "problems")),
        },
    ),
    "ada": AllocationRow(
        in_ada_rounds,
        {
            "rounds": limits.Whole(1, limits.ROWS),
            "per_round": limits.Whole(1, limits.ROWS),
            "taken": limits.Whole(2, limits.ROWS),
            "exit": limits.Choice(tuple(reinforce_ada.EXITS)),
        },
        rounds=True,
    ),
}


def own_limits() -> dict[str, limits.Row]:
    """What each field of an allocation's own may be: its name → a row of limits.py."""
    return {
        f"allocation.{name}.{field}": limit
        for name, row in ALLOCATIONS.items()
        for field, limit in row.own.items()
    }
