"""The main job without a verifier: JEPO (arXiv:2503.19618) on the embedded task.

    python launch/tpu.py --config configs/tiny_jepo.py

Rollouts get no reward; the policy learns from how likely its thoughts make the
reference answer, and only the evaluation looks at answers of its own. Beside it:

    --config.reward=token --config.jepo.semi_verifiable=true    RLOO where one is right
    --config.reward=token --config.algorithm=rloo_normalised    a verifier alone

(RLOO without a verifier has nothing to learn from and is refused.) The paper divides
and clips RLOO's advantages as it does JEPO's, so `rloo_normalised` is what JEPO is
compared with; plain `rloo` is another step size. Expected: 20 points more on held-out
problems, as with a verifier. Got on 2026-11-28 (RECORDS.md, ablation (e)), seeds 0, 1,
2, 512 held-out problems, greedy accuracy 22.7 % before, after 60 steps:

    rloo_normalised           64.5  67.6  67.2 %
    jepo, practical           64.5  64.8  66.4 %
    jepo, semi_verifiable     65.0  66.8  65.8 %
    rloo                      65.2  66.8  68.0 %

The bound L̂ rises from −12 to −3 nats an answer. A step costs more than RLOO's: ℓ is
scored in a pass of its own, and what is learned is longer by the reference answer.
"""

from configs import tiny


def get_config():
    """What differs from GRPO with a verifier in configs/tiny.py."""
    c = tiny.get_config()
    c.num_steps = 60
    c.reward = "none"
    c.algorithm = "jepo"
    c.loss_normaliser = "rollout"
    c.filter.tau = -1.0
    c.jepo.beta_sup = 0.01
    c.evaluation.samples = 0
    return c
