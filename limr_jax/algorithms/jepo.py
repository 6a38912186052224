"""Jensen's evidence lower bound in a verifier's place: JEPO (arXiv:2503.19618).

ℓ_i = log π(a*|x, c_i): the sum of the reference answer's token log-probs, scored as its
own token ids after the i-th sampled thought. LSE is log Σ exp over the group of n.

    one sample     ∇ = 1/n Σ_i (ℓ_i − mean_{j≠i} ℓ_j) ∇log π(c_i|x) + 1/n Σ_i ∇ℓ_i
    multi-sample   L̂ = LSE(ℓ) − log n;   ṽ_i = LSE_{j≠i}(ℓ) − log(n−1);   A_i = L̂ − ṽ_i
                   ∇ = Σ_i A_i ∇log π(c_i|x) + Σ_i softmax(ℓ)_i ∇ℓ_i
    in practice    ∇ = 1/n Σ_i (Ã_i + Ã_i^fmt) ∇log π(c_i|x)
                       + β_sup Σ_i softmax(ℓ)_i ∇ℓ_i
                   Ã_i = clip(A_i / std(A), −1, 1), no mean taken off
                   Ã_i^fmt the same of r_i − mean_{j≠i} r_j, the leave-one-out advantage
                   of the format reward: r = 0 with the phrase, −penalty without

c_i is what was written up to and with the last phrase that introduces an answer. A
response y_i without the phrase is badly formatted: in practice its one term is
Ã_i^fmt ∇log π(y_i|x), end token included, and the bound is that of the group's other
thoughts; with the other two estimators the phrase is forced after it, and y_i stands in
c_i's place in ∇log π. What these three climb, and how exactly, learner/jepo.py says.

Departures: the printed practical update has ∇log π(a_i|x, c_i) where c_i is meant, and
its log-average lacks an exp. The set of the std is not stated: here the prompt's own
group, ddof 1 (to have the whole batch, reshape to P = 1), with ε added; of A it is the
well formatted part of the group, of the format reward all of it. Ã^fmt is credited to
the tokens up to the *first* phrase, which decide it: credited to all of c_i, as
printed, it would reward writing the phrase again. Invalid rollouts count nowhere; one
valid rollout has no baseline, so its advantages are 0. RLOO with a verifier, the
paper's baseline, has clip(A / std) as well: `normalised_rloo`. Prompts that
semi-verifiable data leaves to RLOO have the plain advantage of rloo.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Coefficients(NamedTuple):
    """The constants of JEPO's update, averaged over a group's n valid rollouts:

    1/n Σ_i thought_i ∇log π(c_i|x) + format_i ∇log π(up to the first phrase|x)
    + answer_i ∇ℓ_i; without a phrase, of the whole response in both places.
    """

    thought_PG: jax.Array
    format_PG: jax.Array
    answer_PG: jax.Array


def bound(answer_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """JEPO's multi-sample bound L̂ of log π(a*|x) in nats, [P] (arXiv:2503.19618).

    answer_PG: ℓ_i, the answer's log-probability after each thought, in nats. valid_PG:
    bool; a group without a valid rollout has −inf.

    Its negative at n = 4 is the proxy-NLL by which unverifiable data is judged.
    """
    known_PG = jnp.where(valid_PG, answer_PG, -jnp.inf)
    count_P = jnp.sum(valid_PG, axis=1)
    return jax.nn.logsumexp(known_PG, axis=1) - jnp.log(jnp.maximum(count_P, 1))


def one_sample_advantage(answer_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """JEPO's one-sample advantage (arXiv:2503.19618): ℓ_i above the others' mean.

    answer_PG: ℓ_i in nats. valid_PG: bool; invalid rollouts, and one valid rollout
    alone, get 0. Returns advantage_PG in nats, to be averaged over the group.
    """
    best_P1 = jnp.max(
        jnp.where(valid_PG, answer_PG, -jnp.inf), axis=1, keepdims=True
    )  # measured from it, the sums below lose no digits to the size of ℓ
    below_PG = jnp.where(valid_PG, answer_PG - best_P1, 0)
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    others_PG = jnp.sum(below_PG, axis=1, keepdims=True) - below_PG
    baseline_PG = others_PG / jnp.maximum(count_P1 - 1, 1)
    return jnp.where(valid_PG & (count_P1 > 1), below_PG - baseline_PG, 0)


def multi_sample_advantage(answer_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """JEPO's multi-sample advantage A_i = L̂ − ṽ_i (arXiv:2503.19618).

    answer_PG: ℓ_i in nats. valid_PG: bool; invalid rollouts, and one valid rollout
    alone, get 0. Returns advantage_PG in nats, to be summed over the group.
    """
    known_PG = jnp.where(valid_PG, answer_PG, -jnp.inf)
    # From the best ℓ, so that differences lose no digits to its size.
    below_PG = known_PG - jnp.max(known_PG, axis=1, keepdims=True)
    # Row i of [P, G, G] has the group without its own ℓ_i: the j ≠ i of ṽ_i.
    itself_1GG = jnp.eye(below_PG.shape[1], dtype=bool)[None]
    others_PGG = jnp.where(itself_1GG, -jnp.inf, below_PG[:, None])
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    rest_P1 = jnp.maximum(count_P1 - 1, 1)
    baseline_PG = jax.nn.logsumexp(others_PGG, axis=2) - jnp.log(rest_P1)
    # L̂ and ṽ are shifted by the same ℓ, which their difference does not see. Without a
    # second valid rollout ṽ is −inf, and of none all is nan: masked below.
    bound_P1 = bound(below_PG, valid_PG)[:, None]
    return jnp.where(valid_PG & (count_P1 > 1), bound_P1 - baseline_PG, 0)


def answer_weight(answer_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """The weight softmax(ℓ)_i of JEPO's supervised term ∇ℓ_i (arXiv:2503.19618).

    answer_PG: ℓ_i in nats. valid_PG: bool; an invalid rollout gets 0. Returns
    weight_PG, which sums to 1 over a group.
    """
    known_PG = jnp.where(valid_PG, answer_PG, -jnp.inf)
    # softmax of −inf alone is nan; the where makes it 0.
    return jnp.where(valid_PG, jax.nn.softmax(known_PG, axis=1), 0)


def normalise(
    advantage_PG: jax.Array, valid_PG: jax.Array, *, epsilon: float = 1e-4
) -> jax.Array:
    """JEPO's normalised advantage clip(A / (std(A) + ε), −1, 1), no mean taken off.

    The std is of the valid rollouts of a prompt's group, with ddof 1. Invalid rollouts
    get 0. Returns advantage_PG, without a unit.
    """
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    total_P1 = jnp.sum(jnp.where(valid_PG, advantage_PG, 0), axis=1, keepdims=True)
    # For the std alone: the advantage itself stays uncentred.
    mean_P1 = total_P1 / jnp.maximum(count_P1, 1)
    squares_PG = jnp.where(valid_PG, (advantage_PG - mean_P1) ** 2, 0)
    squares_P1 = jnp.sum(squares_PG, axis=1, keepdims=True)
    std_P1 = jnp.sqrt(squares_P1 / jnp.maximum(count_P1 - 1, 1))
    return jnp.where(valid_PG, jnp.clip(advantage_PG / (std_P1 + epsilon), -1, 1), 0)


def normalised_rloo(
    reward_PG: jax.Array, valid_PG: jax.Array, *, epsilon: float = 1e-4
) -> jax.Array:
    """The baseline in JEPO's paper (arXiv:2503.19618): RLOO, divided and clipped.

    It is clip(A / (std(A) + ε), −1, 1) of the leave-one-out advantage A. reward_PG:
    fp32; valid_PG: bool, an invalid rollout gets 0. Returns advantage_PG. Rewards 1 1 1
    0 have .5 .5 .5 −1, equal ones 0.
    """
    raw_PG = one_sample_advantage(reward_PG, valid_PG)
    return normalise(raw_PG, valid_PG, epsilon=epsilon)


def practical(
    answer_PG: jax.Array,
    formatted_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    beta_sup: float,
    format_penalty: float = 10.0,
    epsilon: float = 1e-4,
) -> Coefficients:
    """The coefficients of JEPO's practical update (arXiv:2503.19618).

    answer_PG: ℓ_i in nats, read where the response is well formatted. formatted_PG:
    bool, the answer phrase was written. valid_PG: bool. beta_sup: the weight of the
    supervised term. format_penalty: taken off the format reward of a response without
    the phrase.
    """
    # ℓ is a weight here; what is learned of ℓ_i itself is the answers' own loss term.
    answer_PG = jax.lax.stop_gradient(answer_PG)
    # Without the phrase there is no ℓ: the bound is that of the group's other thoughts.
    answered_PG = formatted_PG & valid_PG
    raw_PG = multi_sample_advantage(answer_PG, answered_PG)
    reward_PG = jnp.where(formatted_PG, 0.0, -format_penalty)
    count_P1 = jnp.sum(valid_PG, axis=1, keepdims=True)
    return Coefficients(
        thought_PG=normalise(raw_PG, answered_PG, epsilon=epsilon),
        format_PG=normalised_rloo(reward_PG, valid_PG, epsilon=epsilon),
        # The paper's Σ_i has no 1/n, and the coefficients are averaged: hence n times.
        answer_PG=beta_sup * count_P1 * answer_weight(answer_PG, answered_PG),
    )


def unsolved(reward_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Which prompts no valid rollout has solved: bool [P] (arXiv:2503.19618).

    Of semi-verifiable data, prompts without a positive verifier reward take the JEPO
    loss, the others the RL loss.
    """
    return ~jnp.any(valid_PG & (reward_PG > 0), axis=1)


def thought_end(
    response_BT: jax.Array, mask_BT: jax.Array, phrase_X: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where each thought ends: end_B, int32, and whether it has an answer phrase, bool.

    end_B is the number of columns up to and with the last phrase, 0 where the phrase is
    absent. It is looked for by its token ids `phrase_X`, within the mask.
    """
    end_B = jnp.max(_phrase_ends(response_BT, mask_BT, phrase_X), axis=1)
    return end_B, end_B > 0


def format_end(
    response_BT: jax.Array, mask_BT: jax.Array, phrase_X: jax.Array
) -> jax.Array:
    """Where a response's format is decided: end_B, int32.

    It is the number of columns up to and with the first answer phrase, which alone
    decide whether the response is well formatted; the response's length where the
    phrase is absent.
    """
    end_BS = _phrase_ends(response_BT, mask_BT, phrase_X)
    length_B = jnp.sum(mask_BT, axis=1, dtype=jnp.int32)
    # No phrase ends behind the response, so the least is the first one's end, or the
    # length where there is none.
    end_BS = jnp.where(end_BS > 0, end_BS, length_B[:, None])
    return jnp.min(end_BS, axis=1)


def _phrase_ends(response_BT, mask_BT, phrase_X):
    """Columns up to and with the phrase that starts at s, end_BS; 0 where none does."""
    T, X = response_BT.shape[1], phrase_X.shape[0]
    starts = T - X + 1
    if starts < 1:  # the phrase is longer than any response
        return jnp.zeros((response_BT.shape[0], 1), jnp.int32)
    here_BS = jnp.ones((response_BT.shape[0], starts), bool)
    # The phrase is a few tokens: one comparison each, for all starts at once.
    for k in range(X):
        token_BS = response_BT[:, k : k + starts]
        here_BS &= mask_BT[:, k : k + starts] & (token_BS == phrase_X[k])
    end_1S = jnp.arange(X, T + 1, dtype=jnp.int32)[None]
    return jnp.where(here_BS, end_1S, 0)
