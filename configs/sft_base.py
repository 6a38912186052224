"""Every field of supervised fine-tuning, with its unit and default.

python launch/sft.py --config configs/tiny_sft.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """`mesh`, `model` and all from `optimizer` on are base.py's."""
    rl = base.get_config()
    c = ConfigDict()
    c.seed = 0
    c.num_steps = 1000  # updates
    c.rows = 64  # packed rows an update
    c.columns = 512  # tokens a row; a longer text is left out
    c.data = ConfigDict()
    c.data.train = ""  # a set with `problem` and `solution`, as in base.py
    c.data.cache_dir = rl.data.cache_dir
    c.data.manual_dir = ""
    c.data.allow_overlap = False  # train although evaluation problems are in the set
    c.tokenizer = ""
    c.micro_batch_rows = 0  # packed rows a backward pass; 0: all
    c.log_every = 50  # steps
    c.model = rl.model
    c.mesh = rl.mesh
    c.optimizer = rl.optimizer
    c.divergence = rl.divergence
    c.checkpoint = rl.checkpoint
    c.wandb = rl.wandb
    return c
