"""What the rollouts of a step look like: sums over each round, divided once."""

import dataclasses

import jax
import jax.numpy as jnp

from limr_jax.algorithms import grpo


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tally:
    """What the rollouts of one round look like; rounds add up, and then divide."""

    total: dict[str, jax.Array]
    count: dict[str, jax.Array]  # of what each total is a sum; absent: it is no mean
    longest: jax.Array  # tokens of the longest response


def tally(written, graded) -> Tally:
    """Of all of a Rollout, Graded; over valid rollouts where it says reward."""
    valid_PG, length_B = graded.valid_PG, jnp.sum(written.mask_BT, axis=1)
    tokens, rollouts = jnp.sum(length_B), jnp.int32(length_B.shape[0])
    some_tokens, all_valid = jnp.maximum(tokens, 1), jnp.sum(valid_PG)
    flat_P = grpo.zero_variance(graded.correct_PG, valid_PG)

    def valid(x_PG):
        return jnp.sum(jnp.where(valid_PG, x_PG, 0.0)), all_valid

    means = {
        "reward": valid(graded.reward_PG),
        **{
            f"reward/{name}": (jnp.nansum(part_PG), jnp.sum(~jnp.isnan(part_PG)))
            for name, part_PG in graded.parts.items()
        },
        "pass_rate": valid(graded.correct_PG),
        "well_formed": valid(graded.well_formed_PG),
        "zero_variance_share": (jnp.sum(flat_P), jnp.int32(len(flat_P))),
        "truncated_share": (jnp.sum(written.truncated_B), rollouts),
        "invalid_share": (jnp.sum(~valid_PG), rollouts),
        "response_length": (tokens, rollouts),
        "rollout_waste": written.waste(),
        "rollout_entropy": (jnp.sum(written.entropy_BT), some_tokens),
    }
    return Tally(
        total={name: total for name, (total, _) in means.items()}
        | {"tokens": tokens, "rollouts": rollouts},
        count={name: count for name, (_, count) in means.items()},
        longest=jnp.max(length_B),
    )


def over_rounds(tallies: list[Tally]) -> dict[str, float]:
    """The metrics of a step, on the host; nan where a mean is of nothing."""

    def added(name, dicts):
        return sum(each[name].item() for each in dicts)

    totals, counts = [x.total for x in tallies], [x.count for x in tallies]
    metrics = {"response_length_max": max(int(x.longest) for x in tallies)}
    for name in totals[0]:
        metrics[name] = added(name, totals)
        if name in counts[0]:
            count = added(name, counts)
            metrics[name] = metrics[name] / count if count else float("nan")
    return metrics
