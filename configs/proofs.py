"""JEPO on proofs, which no rule can check (arXiv:2503.19618), with a small model.

The proofs of ../shared/data/proofs.jsonl of at most 512 tokens, problem and proof:
360 of `valid` to learn from, 349 of `test` held out. A model that has never thought
takes a plan for a thought: words that tell most of the reference proof, then the answer
phrase, then the proof (limr_jax/data/sft_texts.py). Fine-tuning on such texts comes
first; from there JEPO, and for comparison fine-tuning on the references alone.

    D=runs/proof_set; mkdir -p $D; M='--manual_dir ../shared/data'
    python launch/tokenizer.py $D/tokenizer.model --texts proofs:valid $M
    python launch/texts.py short proofs:valid $M --tokenizer $D/tokenizer.model \\
        --out $D/train.jsonl
    python launch/texts.py short proofs:test $M --tokenizer $D/tokenizer.model \\
        --out $D/test.jsonl
    python launch/texts.py plans $D/train.jsonl --out $D/warm.jsonl
    python launch/texts.py plans $D/train.jsonl --terms 0 --out $D/references.jsonl
    python launch/sft.py --config configs/proofs_sft.py --workdir $D/warm
    python launch/tpu.py --config configs/proofs.py --workdir $D/jepo
    python launch/sft.py --config configs/proofs_sft.py --workdir $D/sft \\
        --config.model.init=$D/warm/model --config.data.train=$D/references.jsonl \\
        --config.num_steps=13 --config.optimizer.learning_rate=3e-4 \\
        --config.optimizer.warmup_steps=0 --config.optimizer.decay_steps=0 \\
        --config.optimizer.weight_decay=0
    for m in warm sft; do python launch/likelihood.py --config configs/proofs.py \\
        --config.model.init=$D/$m/model --sets "$D/test.jsonl[::6]"; done
    python launch/likelihood.py --workdir $D/jepo --sets "$D/test.jsonl[::6]"

Got on 2026-11-28: −L̂ of 4 thoughts on 59 held-out proofs, nats a proof (and a token);
gain is what the policy's own thoughts are worth beside those of other problems, with
its 95 % t interval over proofs:

                    own thoughts    shuffled    none   gain
    warmed up       769.2 (4.279)      769.2   769.6   −0.01 [−0.33, 0.31]
    JEPO            765.7 (4.259)      765.8   766.1    0.08 [−0.33, 0.49]
    fine-tuning     755.0 (4.200)      755.2   755.1    0.18 [−0.10, 0.45]

So fine-tuning learns four times as much of as many tokens, and at this size thoughts
are worth nothing that shows to any of the three. 13 updates of fine-tuning learn 77,884
tokens; 6 steps of JEPO as many, thoughts and references, and at most 323 end tokens of
thoughts without the phrase. Version 0.2.0, which did not learn those, came to the same.

The multi-sample estimator, since after so short a warm-up four thoughts of five lack
the phrase. Forced, every thought has its proof behind it, and what is climbed is the
very L̂ of 4 thoughts that launch/likelihood.py measures, where the phrase is forced too
(limr_jax/learner/jepo.py: exactly that, but for the survival of the last phrase). The
practical estimator learns the format first: of 4 thoughts that have the phrase one time
in five, 41 % of the groups would learn no proof, and 82 % compare no two thoughts.
"""

from configs import base

REMEDIES = {
    "data.train": "make it: python launch/texts.py short proofs:valid --tokenizer "
    "runs/proof_set/tokenizer.model --out runs/proof_set/train.jsonl (this file has "
    "all the commands)",
    "tokenizer": "make it: python launch/tokenizer.py runs/proof_set/tokenizer.model "
    "--texts proofs:valid (this file has all the commands)",
    "model.init": "make it: python launch/sft.py --config configs/proofs_sft.py "
    "--workdir runs/proof_set/warm",
}


def get_config():
    """16 proofs x 4 thoughts a step; the references' own term weighs 1."""
    c = base.get_config()
    c.num_steps = 6
    c.prompts_per_step = 16
    c.group_size = 4
    c.data.train = "runs/proof_set/train.jsonl"
    c.tokenizer = "runs/proof_set/tokenizer.model"
    c.model.init = "runs/proof_set/warm/model"
    c.rollout.max_prompt_length = 256
    c.rollout.max_response_length = 40
    c.reward = "none"
    c.algorithm = "jepo"
    c.loss_normaliser = "rollout"
    c.jepo.estimator = "multi_sample"
    c.jepo.beta_sup = 1.0
    c.micro_batch_rows = 8
    c.optimizer.learning_rate = 3e-4
    c.optimizer.b2 = 0.98
    return c
