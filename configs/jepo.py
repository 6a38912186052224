"""JEPO: reference answers in a verifier's place (arXiv:2503.19618).

    python launch/tpu.py --config configs/jepo.py --config.data.train=numina.jsonl \\
        --config.model.init=DIR --config.tokenizer=DIR

For data of which no answer can be verified; with a verifier for some of it add
--config.reward=math --config.jepo.semi_verifiable=True. The paper's set-up: 64 problems
× 4 thoughts a step, T 1, KL 1e-3, the reference answer's own term weighted 0 to 1e-2
where answers are short and 1 for proofs, format penalty 10. What it reports, of which
our notes have no figure:

    MATH, no verifier                 as good as RLOO with one (configs/rloo.py)
    NuminaMath                        better on the 40 % that cannot be verified
    proofs                            below fine-tuning's negative log-likelihood
    got                               – at this size; small: tiny_jepo.py, proofs.py

launch/likelihood.py measures the last. The learning rate is not published: 1e-6 is
ours.
"""

from configs import base


def get_config():
    """64 prompts x 4 thoughts at temperature 1; KL in the loss."""
    c = base.get_config()
    c.prompts_per_step = 64
    c.group_size = 4
    c.rollout.max_prompt_length = 512
    c.rollout.max_response_length = 2048
    c.reward = "none"
    c.answer_phrase = "The answer is "
    c.algorithm = "jepo"
    c.loss_normaliser = "rollout"
    c.micro_batch_rows = 16
    c.jepo.beta_sup = 0.01
    c.kl.coefficient = 0.001
    c.optimizer.learning_rate = 1e-6
    c.model.remat = True
    return c
