"""JEPO's expected gradient, end tokens and all, against what it says it climbs.

Every group of n responses of a tabular policy goes through `jepo.make_thoughts`,
`jepo.jepo_batch` and the loss, weighted by its probability, in float64.
"""

import dataclasses
import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tabular
from tabular import EOS, log_prob
from tiny_policy import QUICK, unpacked

from limr_jax.algorithms import jepo
from limr_jax.learner import batch as batch_lib
from limr_jax.learner import losses
from limr_jax.learner.jepo import ESTIMATORS, jensen_loss, jepo_batch, make_thoughts

LOSS = partial(
    jensen_loss,
    objective=partial(
        losses.policy_gradient,
        clip_low=0.2,
        clip_high=0.2,
        kl_coefficient=0.0,
        kl_estimator="k3",
        kl_placement="loss",
        entropy_coefficient=0.0,
    ),
)


class Case(NamedTuple):
    """A vocabulary of V tokens, end token included; T of a response; groups of n."""

    V: int
    T: int
    phrase: tuple[int, ...]
    answer: tuple[int, ...]
    n: int

    def table(self, seed=0):
        depth = self.T + len(self.phrase) + len(self.answer) + 1
        return jnp.asarray(tabular.table_of(self.V, depth, seed))

    def responses(self):
        return tabular.responses(self.V, self.T)

    def groups(self):
        """Which response each rollout of each group is, row_PG."""
        return np.array(
            [*itertools.product(range(len(self.responses())), repeat=self.n)]
        )

    def ends(self, response):
        """Where each phrase in it ends."""
        K = len(self.phrase)
        return [
            k for k in range(K, len(response) + 1) if response[k - K : k] == self.phrase
        ]


CASES = [
    Case(V=4, T=3, phrase=(1,), answer=(2,), n=2),  # 40 responses
    Case(V=3, T=4, phrase=(1, 2), answer=(1, 1), n=2),  # 31
    Case(V=2, T=4, phrase=(1, 1, 1), answer=(1, 1), n=4),  # 5; phrases that overlap
]
NAMES = [f"V{c.V}T{c.T}K{len(c.phrase)}n{c.n}" for c in CASES]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def quick(function):
    """Jitted; the first argument, a case, is static."""
    return jax.jit(function, static_argnums=0, compiler_options=QUICK)


@partial(
    jax.jit, static_argnums=(0, 2), static_argnames="forced", compiler_options=QUICK
)
def learned(case, table, estimator, *, forced):
    """Expected gradient of ascent by the implementation, and by each coefficient."""
    rows_PG, responses = case.groups(), case.responses()
    P = len(rows_PG)
    weight_P = jnp.exp(jnp.sum(exact_parts(case, table)["response"][rows_PG], axis=1))
    rollout = tabular.rollout_of(
        table, [responses[i] for i in rows_PG.reshape(-1)], case.T, case.n
    )
    rows = make_thoughts(
        rollout,
        jnp.tile(jnp.array([case.answer]), (P, 1)),
        jnp.full(P, len(case.answer)),
        jnp.zeros(P, bool),
        phrase=case.phrase,
        eos_id=EOS,
        forced=forced,
    )
    node_BY = tabular.nodes_of(rows.tokens_BS[:, 1:], case.V)
    node_BY = jnp.where(rows.position_BS[:, 1:] >= 0, node_BY, 0)

    def logprob_BY(table):
        return jax.nn.log_softmax(table)[node_BY, rows.target_BY]

    answer_B = jnp.sum(jnp.where(rows.answer_BY, logprob_BY(table), 0), axis=1)
    rows = dataclasses.replace(rows, answer_B=answer_B)

    def gradient(only=None):
        batch, _ = jepo_batch(
            rollout,
            jnp.zeros((P, case.n)),
            jnp.ones((P, case.n), bool),
            batch_lib.Scores(thoughts=rows),
            0.0,
            estimator=partial(_only, estimator, only),
            kl_estimator="k3",
        )
        batch = batch_lib.weigh(batch, "rollout")
        # A prompt's share of the loss is 1 / P; here it is its group's probability.
        weight_BT = batch.weight_BT * P * jnp.repeat(weight_P, case.n)[:, None]

        def ascent(table):
            chosen_BY = logprob_BY(table)
            loss_BY, _, _ = LOSS(chosen_BY, jnp.zeros_like(chosen_BY), unpacked(batch))
            return -jnp.sum(jnp.where(batch.mask_BT, weight_BT * loss_BY, 0))

        return jax.grad(ascent)(table)

    return gradient(), {name: gradient(name) for name in jepo.Coefficients._fields}


def _only(estimator, name, *group):
    """The estimator's coefficients, or but one of them."""
    made = estimator(*group)
    none = {x: jnp.zeros_like(made.thought_PG) for x in made._fields if x != name}
    return made if name is None else made._replace(**none)


def exact_parts(case, table):
    """By response, from the definitions alone: log-probabilities and the format."""
    responses = case.responses()
    last = [max(case.ends(y), default=len(y)) for y in responses]
    read = [
        y[:x] if case.ends(y) else tuple(v for v in y if v != EOS) + case.phrase
        for x, y in zip(last, responses)
    ]
    return {
        "response": log_prob(table, [()] * len(responses), responses),
        # What comes after the last phrase; nothing where there is none.
        "rest": log_prob(
            table,
            [y[:x] for x, y in zip(last, responses)],
            [y[x:] for x, y in zip(last, responses)],
        ),
        "answer": log_prob(table, read, [(*case.answer, EOS)] * len(responses)),
        "formatted": np.array([bool(case.ends(y)) for y in responses]),
    }


@quick
def answers(case, table):
    """ℓ of each rollout of each group, answer_PG."""
    return exact_parts(case, table)["answer"][case.groups()]


@partial(jax.jit, static_argnums=(0, 2), compiler_options=QUICK)
def expected(case, table, bound):
    """The gradient of E[bound(ℓ_PG)], of its weights as well."""

    def value(table):
        parts, row_PG = exact_parts(case, table), case.groups()
        chance_P = jnp.exp(jnp.sum(parts["response"][row_PG], axis=1))
        return jnp.sum(chance_P * bound(parts["answer"][row_PG]))

    return jax.grad(value)(table)


@partial(jax.jit, static_argnums=(0, 3), compiler_options=QUICK)
def score(case, table, coefficient_PG, name):
    """E[Σ_i coefficient_i ∇log-probability `name` of rollout i]; they are constants."""
    fixed_PG = exact_parts(case, table)["response"][case.groups()]
    weight_PG = jnp.exp(jnp.sum(fixed_PG, axis=1))[:, None] * coefficient_PG

    def value(table):
        return jnp.sum(weight_PG * exact_parts(case, table)[name][case.groups()])

    return jax.grad(value)(table)


@quick
def share(case, table):
    """f, the probability of a well formatted response, and its gradient."""

    def value(table):
        parts = exact_parts(case, table)
        return jnp.sum(jnp.exp(parts["response"]) * parts["formatted"])

    return jax.value_and_grad(value)(table)


def apart(one, two):
    return float(jnp.linalg.norm(one - two) / jnp.linalg.norm(two))


def once(case, table):
    """The same table, but that after a phrase no token but the end is ever chosen."""
    table = np.array(table)
    for response in case.responses():
        for x in range(min(case.ends(response), default=case.T), case.T):
            node = tabular.nodes_of(np.array([[*response[:x], 0]]), case.V)[0, x]
            table[node, 1:] = -200.0
    return jnp.asarray(table)


BOUNDS = {
    "multi_sample": lambda answer_PG: jnp.log(jnp.mean(jnp.exp(answer_PG), axis=1)),
    "one_sample": lambda answer_PG: jnp.mean(answer_PG, axis=1),
}


def advantages(estimator, answer_PG):
    """A_i of the docstring, in numpy, in a group's own words."""
    answer_PG, n = np.asarray(answer_PG), answer_PG.shape[1]
    others_PGG = np.stack([np.delete(answer_PG, i, axis=1) for i in range(n)], axis=1)
    if estimator == "one_sample":
        return (answer_PG - others_PGG.mean(axis=2)) / n
    bound_P = np.log(np.mean(np.exp(answer_PG), axis=1))
    return bound_P[:, None] - np.log(np.mean(np.exp(others_PGG), axis=2))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", BOUNDS)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_gradient_is_the_bound_s_but_for_the_last_phrase_s_survival(
    case, estimator
):
    table = case.table()
    of = partial(ESTIMATORS[estimator].coefficients, beta_sup=1.0)
    got, _ = learned(case, table, of, forced=True)
    exact = expected(case, table, BOUNDS[estimator])
    survival = score(case, table, advantages(estimator, answers(case, table)), "rest")
    assert apart(got + survival, exact) < 1e-6
    # Where no phrase comes twice it is nothing: the gradient is the bound's.
    table = once(case, table)
    got, _ = learned(case, table, of, forced=True)
    assert apart(got, expected(case, table, BOUNDS[estimator])) < 1e-6


def test_how_large_the_survival_is():
    """The figure of jepo.py's docstring: 40 responses, three random tables."""
    case, ratios = CASES[0], {}
    for estimator in BOUNDS:
        for seed in range(3):
            table = case.table(seed)
            constants = advantages(estimator, answers(case, table))
            survival = score(case, table, constants, "rest")
            exact = expected(case, table, BOUNDS[estimator])
            ratio = jnp.linalg.norm(survival) / jnp.linalg.norm(exact)
            ratios[estimator, seed] = float(ratio)
    assert min(ratios.values()) > 0.01 and max(ratios.values()) < 0.09
    np.testing.assert_allclose(max(ratios.values()), 0.08, atol=0.01)


def normalised(raw, counted):
    """clip(A / (std + ε), ±1) of the group's rollouts that count, in plain Python."""
    some = raw[counted]
    if len(some) < 2:
        return np.zeros(len(raw))
    return np.where(counted, np.clip(raw / (np.std(some, ddof=1) + 1e-4), -1, 1), 0)


def in_practice(case, table):
    """(Ã, the answers' weights, Ã^fmt) of each group, in plain Python."""
    has = np.array([bool(case.ends(y)) for y in case.responses()])
    made, answer_PG = [], np.asarray(answers(case, table))
    for answer_G, row_G in zip(answer_PG, case.groups()):
        formatted_G = has[row_G]
        raw_G, weight_G = np.zeros(case.n), np.zeros(case.n)
        if formatted_G.sum() > 1:
            some = answer_G[None, formatted_G]
            raw_G[formatted_G] = advantages("multi_sample", some)[0]
        if formatted_G.any():
            likely_G = np.where(formatted_G, np.exp(answer_G), 0)
            weight_G = likely_G / likely_G.sum()
        reward_G = np.where(formatted_G, 0.0, -10.0)
        others_G = (reward_G.sum() - reward_G) / (case.n - 1)
        format_G = normalised(reward_G - others_G, np.ones(case.n, bool))
        made.append((normalised(raw_G, formatted_G), weight_G, format_G))
    return map(np.array, zip(*made))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_in_practice_each_part_is_what_it_is_meant_to_be(case):
    table = case.table()
    jensen_PG, weight_PG, format_PG = in_practice(case, table)
    practical = partial(ESTIMATORS["practical"].coefficients, beta_sup=0.5)
    whole, parts = learned(case, table, practical, forced=False)
    assert apart(sum(parts.values()), whole) < 1e-12

    # The format: REINFORCE on whole responses, and so the gradient of h(f).
    format_part = parts["format_PG"]
    of_format = score(case, table, format_PG / case.n, "response")
    assert apart(format_part, of_format) < 1e-6
    f, gradient = share(case, table)
    slope = rise(float(f), case.n)
    assert slope > 0
    assert apart(format_part, slope * gradient) < 1e-6
    # The end token at once is never formatted: it falls. It used to rise.
    assert format_part[0, EOS] < 0

    # The Jensen part, less what comes after the last phrase.
    wanted = score(case, table, jensen_PG / case.n, "response")
    survival = score(case, table, jensen_PG / case.n, "rest")
    assert jnp.linalg.norm(
        parts["thought_PG"] + survival - wanted
    ) < 1e-6 * jnp.linalg.norm(wanted)
    wanted = score(case, table, 0.5 * weight_PG, "answer")
    assert apart(parts["answer_PG"], wanted) < 1e-6


def rise(f, n):
    """h'(f): over the others, what a response gains by having the phrase."""
    total = 0.0
    for others in itertools.product([True, False], repeat=n - 1):
        chance = np.prod([f if one else 1 - f for one in others])
        gained = []
        for own in (True, False):
            reward = np.where([own, *others], 0.0, -10.0)
            raw = reward - (reward.sum() - reward) / (n - 1)
            gained.append(normalised(raw, np.ones(n, bool))[0])
        total += chance * (gained[0] - gained[1])
    return total


@pytest.mark.slow
def test_what_of_a_badly_formatted_response_is_learned():
    """`0` and `2 0`: the end token too; the phrase and the answer only where forced."""
    case = CASES[0]
    rollout = tabular.rollout_of(
        case.table(), [(0,), (2, 0), (2, 2, 3), (2, 1, 3)], 3, 4
    )
    where = {"phrase": (1,), "eos_id": EOS}
    given = rollout, jnp.array([[3]]), jnp.array([1]), jnp.array([False])
    for forced, read in (
        (False, [[0], [2, 0], [2, 2, 3], [2, 1, 3, 0]]),
        (True, [[1, 3, 0], [2, 1, 3, 0], [2, 2, 3, 1, 3, 0], [2, 1, 3, 0]]),
    ):
        made = jax.jit(partial(make_thoughts, forced=forced, **where))
        rows = jax.tree.map(np.asarray, made(*given))
        there_BY = rows.position_BS[:, 1:] >= 0
        seen = [x[on].tolist() for x, on in zip(rows.tokens_BS[:, 1:], there_BY)]
        assert seen == read
        chosen = [x[on].tolist() for x, on in zip(rows.target_BY, rows.thought_BY)]
        assert chosen == [[0], [2, 0], [2, 2, 3], [2, 1]]
        answers = [x[on].tolist() for x, on in zip(rows.target_BY, rows.answer_BY)]
        assert answers == [[3, 0] if forced else []] * 3 + [[3, 0]]
        assert rows.answered_B.tolist() == [forced] * 3 + [True]
        assert rows.format_BY.sum(axis=1).tolist() == [1, 2, 3, 2]


@pytest.mark.slow
def test_a_policy_learns_the_format_from_its_penalty_alone():
    """64 prompts × 8, a position's logits for all: formatted .19 → .99.

    Without the end token of what is badly formatted it went to .004, and responses to
    1.02 tokens. Credited to the last phrase, a response has the phrase 2.64 times.
    """
    P, G, T, V, phrase = 64, 8, 8, 4, (1,)
    columns = T + 2

    @partial(jax.jit, compiler_options=QUICK)
    def step(logits_TV, key):
        drawn_BT = jax.random.categorical(key, logits_TV, shape=(P * G, T))
        ended_BT = jnp.cumsum(drawn_BT == EOS, axis=1) - (drawn_BT == EOS) > 0
        mask_BT, length = ~ended_BT, jnp.arange(T)
        logprob_TV = jax.nn.log_softmax(logits_TV)
        rollout = dataclasses.replace(
            tabular.rollout_of(np.zeros((1, V)), [(EOS,)] * (P * G), T, G),
            response_BT=jnp.where(mask_BT, drawn_BT, EOS).astype(jnp.int32),
            mask_BT=mask_BT,
            logprob_BT=jnp.where(mask_BT, logprob_TV[length, drawn_BT], 0),
            truncated_B=jnp.all(drawn_BT != EOS, axis=1),
        )
        rows = make_thoughts(
            rollout,
            jnp.full((P, 1), 2),
            jnp.ones(P, int),
            jnp.zeros(P, bool),
            phrase=phrase,
            eos_id=EOS,
            forced=False,
        )
        # The same ℓ everywhere, so no advantage but the format's.
        rows = dataclasses.replace(rows, answer_B=jnp.zeros(P * G))
        batch, _ = jepo_batch(
            rollout,
            jnp.zeros((P, G)),
            jnp.ones((P, G), bool),
            batch_lib.Scores(thoughts=rows),
            0.0,
            estimator=partial(jepo.practical, beta_sup=0.0),
            kl_estimator="k3",
        )
        batch = batch_lib.weigh(batch, "rollout")

        def loss(logits_TV):
            wide_XV = jnp.pad(logits_TV, [(0, columns - T), (0, 0)])
            chosen_BY = jax.nn.log_softmax(wide_XV)[jnp.arange(columns), rows.target_BY]
            loss_BY, _, _ = LOSS(chosen_BY, jnp.zeros_like(chosen_BY), unpacked(batch))
            return jnp.sum(jnp.where(batch.mask_BT, batch.weight_BT * loss_BY, 0))

        seen = jnp.array(
            [
                jnp.mean(rows.formatted_B),
                jnp.mean(jnp.sum(mask_BT, axis=1)),
                jnp.mean(jnp.sum(mask_BT & (drawn_BT == phrase[0]), axis=1)),
            ]
        )
        return logits_TV - jax.grad(loss)(logits_TV), seen

    logits_TV = jnp.tile(jnp.log(jnp.array([0.2, 0.05, 0.375, 0.375])), (T, 1))
    history = []
    for key in jax.random.split(jax.random.key(0), 100):
        logits_TV, seen = step(logits_TV, key)
        history.append(np.asarray(seen))
    before, after = np.mean(history[:3], axis=0), np.mean(history[-3:], axis=0)
    assert 0.15 < before[0] < 0.25
    assert after[0] > 0.95
    assert after[1] > 4  # tokens
    assert after[2] < 2  # phrases
