"""The probe of LIMR's pipeline: a run on all problems, whose curves score them."""

import dataclasses

from limr_jax.studies import reward_curves

# The fields of a run that is made for its rollouts.
PROBE = {
    "sampler.name": "uniform",
    # Nothing but its rollouts is wanted of the probe.
    "data.eval": "",
    "evaluation.samples": 0,
    # Scores are made of every rollout.
    "dump.max_bytes": 2**62,
    "dump.rows_per_step": 0,
}


def steps(problems: int, prompts: int, epochs: int) -> int:
    """How many steps of so many prompts draw each problem `epochs` times."""
    # Rounded up: the last step goes on into an epoch that does not count (`curves`).
    return -(-problems * epochs // prompts)


def curves(workdir, epochs: int) -> reward_curves.Curves:
    """Each problem's accuracy in the first so many epochs of a finished probe."""
    recorded = reward_curves.read_run(workdir, value="accuracy")
    # The step that ends the last epoch draws some problems for the one after it.
    return dataclasses.replace(
        recorded,
        value_NE=recorded.value_NE[:, :epochs],
        seen_NE=recorded.seen_NE[:, :epochs],
    )
