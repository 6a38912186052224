"""Dynamic sampling and the overlong penalty: DAPO (arXiv:2503.14476).

    keep a prompt  ⇔  0 < number of right responses in its group < G
    penalty(y)  =  0                        |y| ≤ L_max − L_cache
                   (L_max − L_cache − |y|) / L_cache      up to L_max
                   −1                       beyond

The loop generates more groups until enough are kept, within a bound. Lengths are in
tokens.

Departures: judged on raw correctness, never on shaped rewards, which the penalty would
make unequal; on whole groups, among their valid rollouts. A group with one valid
rollout is not kept. Groups left over are the caller's to carry to the next step.
"""

import jax
import jax.numpy as jnp
import numpy as np


def keep(correct_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Which groups DAPO learns from (arXiv:2503.14476): bool keep_P.

    A group is kept if it has a right and a wrong response among its valid ones.
    correct_PG and valid_PG are bool.
    """
    # An invalid rollout is neither right nor wrong, so it makes no group mixed.
    right_P = jnp.any(valid_PG & correct_PG, axis=1)
    wrong_P = jnp.any(valid_PG & ~correct_PG, axis=1)
    return right_P & wrong_P


def overlong_penalty(
    length_B: np.ndarray, *, max_length: int, buffer: int
) -> np.ndarray:
    """DAPO's soft overlong penalty (arXiv:2503.14476): penalty_B in [−1, 0].

    It is to be added to the reward. length_B: of the responses in tokens. It falls
    linearly over the last `buffer` (> 0) tokens before `max_length`. NumPy, for it is
    computed on the hosts, where the other parts of the reward are.
    """
    return np.clip((max_length - buffer - length_B) / buffer, -1.0, 0.0)
