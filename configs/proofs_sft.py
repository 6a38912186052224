"""Fine-tuning on proofs: the small model that configs/proofs.py starts from.

    python launch/sft.py --config configs/proofs_sft.py --workdir runs/proof_set/warm

configs/proofs.py has the whole pipeline, and what it gave.
"""

from configs import sft_base

REMEDIES = {
    "data.train": "make it: python launch/texts.py plans runs/proof_set/train.jsonl "
    "--out runs/proof_set/warm.jsonl (configs/proofs.py has all the commands)",
    "tokenizer": "make it: python launch/tokenizer.py runs/proof_set/tokenizer.model "
    "--texts proofs:valid (configs/proofs.py has all the commands)",
}


def get_config():
    """1.0 M parameters on 360 proofs, three of four after a plan; 5.7 epochs."""
    c = sft_base.get_config()
    c.num_steps = 60
    c.rows = 16
    c.columns = 552  # 512 of problem and proof, a plan, the phrase, the end token
    c.data.train = "runs/proof_set/warm.jsonl"
    c.tokenizer = "runs/proof_set/tokenizer.model"
    c.micro_batch_rows = 4
    c.log_every = 5
    c.model.width = 128
    c.model.layers = 4
    c.model.heads = 4
    c.model.kv_heads = 2
    c.model.head_dim = 32
    c.model.mlp_width = 448
    c.optimizer.learning_rate = 3e-3
    c.optimizer.warmup_steps = 10
    c.optimizer.decay_steps = 60
    c.optimizer.b2 = 0.98
    c.optimizer.weight_decay = 0.1
    c.checkpoint.every = 50
    return c
