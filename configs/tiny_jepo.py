"""The main job without a verifier: JEPO (arXiv:2503.19618) on the embedded task.

    python launch/tpu.py --config configs/tiny_jepo.py

Rollouts get no reward; the policy learns from how likely its thoughts make the
reference answer, and only the evaluation looks at answers of its own. Beside it:

    --config.reward=token --config.jepo.semi_verifiable=true    RLOO where one is right
    --config.reward=token --config.algorithm=rloo               a verifier alone

(RLOO without a verifier has nothing to learn from and is refused.) Expected: 20 points
more on held-out problems, as with a verifier. Got, seed 0, held-out problems 512 to 999
(--config.data.eval='arithmetic:eval[512:]'), greedy accuracy before 20.9 %, after
60 steps; seconds on two cores that some ten other processes shared:

    jepo, practical                           67.8 %   195
    jepo, estimator one_sample                68.6 %   421
    jepo, semi_verifiable                     68.6 %   154
    rloo                                      68.4 %   111

and 22.7 to 65.8 % of problems 0 to 511 after 80 steps. The bound L̂ rises from −12 to
−4 nats an answer. A step costs more than RLOO's: ℓ is scored in a pass of its own, and
what is learned is longer by the reference answer.
"""

from configs import tiny


def get_config():
    """What differs from GRPO with a verifier in configs/tiny.py."""
    c = tiny.get_config()
    c.num_steps = 60
    c.sampler.name = "uniform"
    c.reward = "none"
    c.algorithm = "jepo"
    c.loss_normaliser = "rollout"
    c.filter.tau = -1.0
    c.jepo.beta_sup = 0.01
    c.evaluation.samples = 0
    return c
