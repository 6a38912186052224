"""The arena: when does choosing problems pay? One regime an argument.

    python launch/arena.py --config configs/arena.py            # all regimes and arms
    python launch/tpu.py --config configs/arena.py:hard         # one regime, uniformly

The embedded task as `ablation.py` has it, on training sets that are made as real ones
are (limr_jax/data/datasets/arithmetic/mixture.py). Arms are compared at equal generated
tokens, so `num_steps` is what launch/arena.py sets. A run takes about half a minute on
two quiet cores.

What was expected of each regime, written down on 2026-11-30 before any of its runs.
Differences are to uniform draws, in points of held-out accuracy at equal tokens:

    clean    1,024 problems, all useful, four epochs: what every ablation of ours had.
             No arm gains a point. CDAS, MoPPS and the fixed subsets lose 3 to 7, as
             they draw few problems again and again. The oracle gains 1 to 2.
    hard     2,048 problems, half of them hopeless. Uniform draws waste half of their
             rollouts. Whoever learns that gains 3 or more: informative, MoPPS, BOTS,
             CDAS and the oracle most, LIM's set as it holds no hopeless problem, online
             LIM half of that, since it begins after the first epoch. The hardest tenth
             is all hopeless, and learns nothing.
    solved   2,048 problems, three quarters solved from the start. As hard, but the
             hardest tenth is now the best fixed subset, and gains as much as the
             oracle.
    skew     2,048 problems, nine tenths of one template. Held out are all. Informative
             and the oracle leave the template when it is learned, and gain 3. LIM's set
             is the template alone, as its problems' curves are the average: it loses.
    wrong    1,024 problems, a fifth with a wrong reference. LIM's set is cleaner than
             the whole, but small: it beats as many at random by 3 and does not beat
             all. The hardest tenth and informative draw wrong ones: they lose 2 to 5.
    limr     8,523 problems (hopeless 15 %, solved 30 %, wrong 2 %), half an epoch, and
             held-out problems of another distribution: nearest to LIMR's own. LIM's set
             is within 1.5 of uniform draws, and above as many at random by 1 or less.
             Samplers that learn as they go know too little to differ from uniform.
"""

from configs import ablation
from limr_jax.errors import choose

# Regime → its training set.
_TRAIN = {
    "clean": "arithmetic:train",
    "hard": "arithmetic:train-2048-hard50",
    "solved": "arithmetic:train-2048-solved75",
    "skew": "arithmetic:train-2048-skew90",
    "wrong": "arithmetic:train-1024-wrong20",
    "limr": "arithmetic:train-8523-hard15-solved30-wrong2",
}


def get_config(argument: str = "clean"):
    """The ablations' run on one regime's problems, evaluated every fourth step."""
    c = ablation.get_config()
    c.data.train = choose(_TRAIN, argument, "regime")
    if argument == "limr":
        c.data.eval = "arithmetic:eval-shifted[:512]"
    # The hopeless problems are longer.
    c.rollout.max_prompt_length = 24
    c.evaluation.every = 4
    c.checkpoint.every = 16
    return c
