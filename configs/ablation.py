"""The embedded task as arms of a comparison have it: at most 90 s a run on two cores.

    python launch/ablate.py --config configs/ablation.py --vary kl=0,0.001,0.01,0.1

Plain GRPO: uniform sampling, no KL, four epochs; an arm says what it adds. The filter
leaves the gradient as it is where there is no KL, and halves the seconds of a run. That
it can tell arms apart was tried before any were compared, by rewards that tell nothing:

    python launch/ablate.py --config configs/ablation.py --seeds 3 --arm true: \\
        --arm shuffled:reward=limr_jax.rewards.placebo.shuffled
"""

from configs import tiny


def get_config():
    """The main job in four epochs, and without pass@k."""
    c = tiny.get_config()
    c.num_steps = 64
    c.evaluation.samples = 0
    c.checkpoint.every = 64
    c.checkpoint.keep = 1
    c.dump.rows_per_step = 16
    return c
