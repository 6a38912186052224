"""A filter of groups, with any prompt sampler: rounds until enough groups are kept.

`filter.groups` names what is learned from; `mixed` are the groups with a right and a
wrong response, and with `uniform` it is DAPO's dynamic sampling (arXiv:2503.14476). A
step then draws P problems a round until P groups are kept, or the bound is reached. The
problems of all rounds of a step are different; after each round the sampler learns from
all that was written, kept or not: a posterior of the kept groups alone would believe
that every problem is half solved. Groups that are kept beyond P wait for the next step:
see group_buffer.py.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from limr_jax.algorithms import dynamic_sampling
from limr_jax.samplers.interface import Earlier, PromptSampler


def mixed(correct_PG, valid_PG):
    """keep_P: the groups with a right and a wrong response among the valid ones."""
    # Correctness is 0 to 1: all above 0 is right.
    return dynamic_sampling.keep(correct_PG > 0, valid_PG)


# filter.groups → which groups are learned from; None: all.
GROUP_FILTERS = {"none": None, "mixed": mixed}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoundsState:
    """A sampler's state, and the rounds of the step that is going on."""

    sampler: Any
    rounds: jax.Array  # int32: rounds that this step has drawn; 0 between steps
    # bool: drawn by this step; None: the sampler draws in order, which has no problem
    # twice.
    drawn_N: jax.Array | None


def in_rounds(
    sampler: PromptSampler, *, keep, problems: int, prompts: int, max_rounds: int
) -> PromptSampler:
    """The sampler with a filter of its groups, drawn in up to `max_rounds` rounds.

    keep: of `GROUP_FILTERS`. max_rounds · P ≤ N, the number of problems. Where the
    sampler counts its steps, each round is one.
    """

    def nothing_drawn():
        return None if sampler.in_order else jnp.zeros((problems,), bool)

    def sample(state, key):
        earlier = Earlier(
            first=state.rounds == 0,
            drawn_N=state.drawn_N,
            ahead=max_rounds * prompts,
        )
        inner, ids_P = sampler.sample(state.sampler, key, earlier)
        drawn_N = state.drawn_N
        if drawn_N is not None:
            drawn_N = drawn_N.at[ids_P].set(True)
        return RoundsState(inner, state.rounds + 1, drawn_N), ids_P

    def update(state, ids_P, correct_PG, valid_PG):
        inner = sampler.update(state.sampler, ids_P, correct_PG, valid_PG)
        return dataclasses.replace(state, sampler=inner)

    def report(state, ids_P):
        numbers = sampler.report(state.sampler, ids_P)
        return numbers | {"dynamic/rounds": state.rounds}

    def end_step(state):
        # The next draw is the first round of another step.
        return RoundsState(state.sampler, jnp.int32(0), nothing_drawn())

    return PromptSampler(
        init=lambda: RoundsState(sampler.init(), jnp.int32(0), nothing_drawn()),
        sample=sample,
        update=update,
        report=report,
        in_order=sampler.in_order,
        keep=keep,
        end_step=end_step,
        ask=sampler.ask and (lambda state, ids_P: sampler.ask(state.sampler, ids_P)),
    )
