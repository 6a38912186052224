"""A step's budget, divided: what is written, learned and kept, in the loop."""

import collections
import sys
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_table import RL, row_of
from tiny_run import (
    configure,
    run_records,
    set_up,
    stopping,
    with_parity,
    write_problems,
)

from limr_jax.algorithms import dr_grpo, grpo, knapsack, reinforce_pp, rloo
from limr_jax.check import check, check_batch
from limr_jax.errors import InputError
from limr_jax.evaluation import trained_policy
from limr_jax.learner.batch import Batch, learned_rows, problems_of_one_weight, weigh
from limr_jax.rewards.host import HostGrades
from limr_jax.samplers import allocation
from limr_jax.samplers.uniform import uniform
from limr_jax.storage import checkpoint, metrics
from limr_jax.train import train

STEPS, P, G = 5, 4, 4
BUDGET = allocation.Budget(problems=12, prompts=P, group=G, most=3 * G)
ADA = {"rounds": 3, "per_round": 2, "taken": 4, "exit": "balance"}
KNAPSACK = {"least": 2, "decay": 0.5, "weigh": "rollouts"}

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 12)


def configured(problems, name, **fields):
    return configure(
        problems,
        **{
            "num_steps": STEPS,
            "prompts_per_step": P,
            "group_size": G,
            "model__layers": 1,
            "checkpoint__every": 1,
            "filter__tau": 0.0,
            "allocation__name": name,
            "allocation__most": 3 * G,
            "allocation__ada__per_round": 2,
            "allocation__ada__rounds": 3,
            "allocation__ada__taken": 2,
        }
        | fields,
    )


@pytest.fixture(scope="module", params=["knapsack", "ada"])
def ran(request, problems, tmp_path_factory, quick_compiler):
    """A run of one allocation: its name, config, parts and workdir."""
    config = configured(problems, request.param)
    made = with_parity(set_up(config))
    workdir = tmp_path_factory.mktemp(request.param)
    train(made, config, workdir)
    return SimpleNamespace(
        name=request.param, config=config, made=made, workdir=workdir
    )


def by_step(rows):
    steps = collections.defaultdict(list)
    for row in rows:
        steps[row["step"]].append(row)
    return steps


# ---- what is written


def test_each_rollout_of_a_problem_once_and_never_beyond_the_budget(ran):
    seen = run_records(ran.workdir)
    assert len(seen["metrics"]) == STEPS
    dumped = by_step(seen["rollouts"])
    for row in seen["metrics"]:
        rows = dumped[row["step"]]
        assert row["rollouts"] == len(rows) <= P * G
        assert row["tokens"] == sum(x["length"] for x in rows)
        samples = collections.defaultdict(list)
        for x in rows:
            samples[x["id"]].append(x["sample"])
        assert len(samples) == P
        # The first so many of each, none twice.
        for numbers in samples.values():
            assert sorted(numbers) == list(range(len(numbers)))
            assert 2 <= len(numbers) <= 3 * G
        sizes = {len(numbers) for numbers in samples.values()}
        if ran.name == "knapsack":
            assert len(rows) == P * G  # all of the budget
            assert row["allocation/most"] == max(sizes)
        else:
            assert row["ada/most"] == max(sizes)
    # They do differ, or the test says nothing.
    assert any(
        len(set(collections.Counter(x["id"] for x in rows).values())) > 1
        for rows in dumped.values()
    )


@pytest.fixture(scope="module")
def fixed(problems, tmp_path_factory, quick_compiler):
    """The rollouts of a step of all G_max of each problem, by problem and number."""
    workdir = tmp_path_factory.mktemp("fixed")
    config = configured(problems, "fixed", group_size=3 * G, num_steps=1)
    train(with_parity(set_up(config)), config, workdir)
    return {(x["id"], x["sample"]): x for x in run_records(workdir)["rollouts"]}


@pytest.mark.slow
def test_drafts_come_from_every_round(ran, problems, tmp_path):
    """Of each problem the newest rollout at each place, as the dump has it."""
    config = configured(problems, ran.name, rollout__drafts=2)
    made = with_parity(set_up(config))
    train(made, config, tmp_path)
    newest = {
        (row["id"], row["sample"]): row["length"]
        for row in run_records(tmp_path)["rollouts"]
    }
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        state, _ = saver.restore(STEPS, made.programs.state)
    written_ND = np.sum(np.asarray(state.drafts) >= 0, axis=2)
    for n, name in enumerate(made.train_set.problems.ids):
        want = [newest.get((name, g), 0) for g in range(written_ND.shape[1])]
        assert list(written_ND[n]) == want


def test_what_a_rollout_says_does_not_depend_on_the_allocation(ran, fixed):
    """The first step's are those of all G_max of each problem, word for word."""
    first = by_step(run_records(ran.workdir)["rollouts"])[1]
    assert len(first) >= P * 2
    for x in first:
        assert x == fixed[x["id"], x["sample"]]


def test_invalid_rollouts_are_those_that_were_asked_for(ran):
    seen = run_records(ran.workdir)
    for row in seen["metrics"]:
        rows = by_step(seen["rollouts"])[row["step"]]
        want = np.mean([not x["valid"] for x in rows])
        assert row["invalid_share"] == pytest.approx(want)
        want = np.mean([x["correct"] for x in rows if x["valid"]])
        assert row["pass_rate"] == pytest.approx(want)


def test_the_page_says_what_each_number_is(ran):
    row = run_records(ran.workdir)["metrics"][0]
    own = [x for x in row if x.startswith(("allocation/", "ada/", "signal_"))]
    assert len(own) == 5
    for name in own:
        assert row_of(name, RL), name


# ---- ada's rounds, replayed from the dump by plain Python


def test_ada_leaves_and_takes_by_its_rules(ran):
    if ran.name != "ada":
        pytest.skip("of ada alone")
    seen = run_records(ran.workdir)
    for row in seen["metrics"]:
        rows = by_step(seen["rollouts"])[row["step"]]
        order = list(dict.fromkeys(x["id"] for x in rows))
        groups = {i: [x for x in rows if x["id"] == i] for i in order}
        written, left = dict.fromkeys(order, 0), P * G
        for number in range(3):
            still = [i for i in order if not _balanced(groups[i][: written[i]])]
            last = number == 2
            share = left // max(len(still), 1)
            extra = left - share * len(still)
            if share >= 2 and not last:
                share, extra = 2, 0
            for place, i in enumerate(still):
                more = min(share + (place < extra), 3 * G - written[i])
                written[i] += more
                left -= more
            if not left or all(_balanced(groups[i][: written[i]]) for i in order):
                break
        assert written == {i: len(group) for i, group in groups.items()}
        assert row["ada/rounds"] == number + 1
        taken = [_taken(group) for group in groups.values()]
        assert row["ada/taken_rollouts"] == sum(map(len, taken))
        open_share = np.mean([not _balanced(group) for group in groups.values()])
        assert row["ada/open_share"] == pytest.approx(open_share)


@pytest.mark.slow
def test_ada_takes_no_rollout_that_is_not_learned(problems, tmp_path):
    """With mask_truncated a truncated one has no place among those taken."""
    config = configured(
        problems,
        "ada",
        mask_truncated=True,
        filter__tau=-1.0,
        num_steps=2,
        # A random policy seldom ends: of 100 tokens about four in ten.
        rollout__max_response_length=100,
    )
    train(with_parity(set_up(config)), config, tmp_path)
    for row in run_records(tmp_path)["metrics"]:
        assert 0 < row["truncated_share"] < 1
        learned = row["kept_share"] * row["rollouts"]
        assert learned == pytest.approx(row["ada/taken_rollouts"])


def _outcomes(group):
    valid = [x for x in group if x["valid"]]
    right = [x for x in valid if x["correct"]]
    return right, [x for x in valid if not x["correct"]]


def _balanced(group):
    right, wrong = _outcomes(group)
    return len(right) >= 1 and len(wrong) >= 1


def _taken(group):
    right, wrong = _outcomes(group)
    of_right = min(len(right), max(1, 2 - len(wrong)))
    return right[:of_right] + wrong[: 2 - of_right]


# ---- stops, devices, compilations


def test_a_run_that_stops_in_a_step_goes_on_to_the_same_end(ran, tmp_path):
    rounds = 3 if ran.name == "ada" else 1
    stopped = stopping(ran.made, 2 * rounds + 1)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, ran.config, tmp_path)
    train(ran.made, ran.config, tmp_path)
    assert run_records(tmp_path) == run_records(ran.workdir)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["knapsack", pytest.param("ada", marks=pytest.mark.soak)]
)
def test_eight_devices_are_one(problems, name, tmp_path):
    """A problem a device: one may have six rollouts to write where another has two."""
    runs = []
    for devices in (1, 8):
        config = configured(problems, name, prompts_per_step=8, num_steps=3)
        workdir = tmp_path / str(devices)
        train(with_parity(set_up(config, devices)), config, workdir)
        runs.append(run_records(workdir))
    one, eight = runs
    assert one["rollouts"] == eight["rollouts"]
    sizes = collections.Counter((x["step"], x["id"]) for x in one["rollouts"])
    assert len({*sizes.values()}) > 1
    for a, b in zip(one["metrics"], eight["metrics"], strict=True):
        assert a["rollouts"] == b["rollouts"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_nothing_is_compiled_after_the_first_step(ran):
    rows = list(metrics.read_metrics(ran.workdir))
    assert len({row["compile_count"] for row in rows[1:]}) == 1


@pytest.mark.slow
def test_a_knapsack_that_knows_nothing_is_fixed(problems, tmp_path):
    """All pass rates alike: G of each, and the same rollouts.

    The parameters are the same but for rounding: its update is another program, whose
    sums a processor without AVX-512 adds up in another order.
    """
    rollouts, params = [], []
    for name in ("fixed", "knapsack"):
        config = configured(problems, name, num_steps=3, data__eval="")
        made, workdir = with_parity(set_up(config)), tmp_path / name
        train(made, config, workdir)
        rollouts.append(run_records(workdir)["rollouts"])
        params.append(
            trained_policy.load_params(workdir, 3, made.compute.model, made.mesh)
        )
    assert rollouts[0] == rollouts[1]
    # Of up to 0.03, by which three updates move a parameter.
    same = partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    jax.tree.map(same, *params)


@pytest.mark.slow
def test_a_knapsack_goes_with_a_filter_of_groups(problems, tmp_path):
    config = configured(
        problems, "knapsack", filter__groups="mixed", filter__max_rounds=3
    )
    train(with_parity(set_up(config)), config, tmp_path)
    for row in run_records(tmp_path)["metrics"]:
        assert row["rollouts"] == row["dynamic/rounds"] * P * G
        assert row["signal_groups"] == row["dynamic/used_groups"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["ada", pytest.param("knapsack", marks=pytest.mark.soak)]
)
def test_hosts_grade_only_what_was_asked_for(problems, name, tmp_path, monkeypatch):
    (tmp_path / "counted.py").write_text(
        "seen = []\n"
        "def reward(prompts, completions, **columns):\n"
        "    seen.append(len(completions))\n"
        "    return [float(len(x) % 2) for x in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "counted", raising=False)
    config = configured(problems, name, reward="counted.reward", num_steps=3)
    train(set_up(config), config, tmp_path / "run")
    rows = run_records(tmp_path / "run")["metrics"]
    assert sum(sys.modules["counted"].seen) == sum(row["rollouts"] for row in rows)
    dumped = run_records(tmp_path / "run")["rollouts"]
    assert all(x["reward"] == len(x["response"]) % 2 for x in dumped)


def test_grades_spread_over_more_rows():
    grades = HostGrades(
        correctness_B=np.float32([1, 0]),
        reward_B=np.float32([2, 3]),
        valid_B=np.array([True, False]),
        well_formed_B=np.array([True, True]),
        parts={"math": np.float32([1, np.nan])},
        reasons=("graded", "timeout"),
    )
    got = grades.spread(np.array([False, True, False, True]))
    assert got.reward_B.tolist() == [0, 2, 0, 3]
    assert got.valid_B.tolist() == [False, True, False, False]
    assert got.reasons == ("no answer", "graded", "no answer", "timeout")
    np.testing.assert_array_equal(got.parts["math"], [np.nan, 1, np.nan, np.nan])


# ---- the expected gradient, by enumeration of every outcome


def expected_gradient(counts, rates, estimator, alike):
    """Of two problems with σ(θ_i) = rate, one token a rollout, and `counts` rollouts.

    The mean over rollouts (normaliser "rollout"), ∂ log π of reward r being r − rate.
    """
    most = max(counts)
    asked_PG = np.arange(most)[None] < np.array(counts)[:, None]
    rows = np.flatnonzero(asked_PG)
    every = (np.arange(2 ** len(rows))[:, None] >> np.arange(len(rows))) & 1
    reward_X = np.zeros((len(every), 2 * most), np.float32)
    reward_X[:, rows] = every
    reward_XPG = reward_X.reshape(-1, 2, most)
    rate_P1 = np.array(rates)[:, None]
    chance_XPG = np.where(reward_XPG > 0, rate_P1, 1 - rate_P1)
    chance_X = np.where(asked_PG, chance_XPG, 1).prod((1, 2))
    valid_PG = jnp.asarray(asked_PG)
    advantage_XPG = np.asarray(
        jax.vmap(lambda r: estimator(r, valid_PG))(jnp.asarray(reward_XPG))
    )
    weight_PG = asked_PG / asked_PG.sum()
    if alike:
        mask_BT = asked_PG.reshape(-1, 1)
        weight_B = problems_of_one_weight(mask_BT, learned_rows(mask_BT, most))
        weight_PG = weight_PG * np.asarray(weight_B).reshape(2, most)
    terms_XP = (weight_PG * advantage_XPG * (reward_XPG - rate_P1)).sum(2)
    return chance_X @ terms_XP / np.prod([rate_P1, 1 - rate_P1], axis=0)[:, 0]


@pytest.mark.parametrize("rates", [(0.2, 0.7), (0.5, 0.05)])
def test_rloo_is_unbiased_problem_by_problem(rates):
    """Each problem's own gradient, as often as it has rollouts; or all as often."""
    by_rollouts = expected_gradient((6, 2), rates, rloo.advantage, alike=False)
    np.testing.assert_allclose(by_rollouts, [6 / 8, 2 / 8], rtol=1e-5)
    alike = expected_gradient((6, 2), rates, rloo.advantage, alike=True)
    np.testing.assert_allclose(alike, [1 / 2, 1 / 2], rtol=1e-5)


def test_dr_grpos_mean_holds_the_rollout_itself():
    got = expected_gradient((6, 2), (0.2, 0.7), dr_grpo.advantage, alike=True)
    np.testing.assert_allclose(got, [5 / 6 / 2, 1 / 2 / 2], rtol=1e-5)


def test_grpo_is_biased_as_it_always_is():
    """As with fixed groups of as many: the allocation adds nothing to it."""
    got = expected_gradient((6, 2), (0.2, 0.7), grpo.advantage, alike=True)
    for i, count in enumerate((6, 2)):
        fixed = expected_gradient((count, count), (0.2, 0.7), grpo.advantage, False)
        np.testing.assert_allclose(got[i], fixed[i], rtol=1e-5)


def test_problems_weigh_alike_in_every_update():
    """Whichever of them a minibatch has, and if it has a part of one alone."""
    asked_PG = np.arange(6)[None] < np.array([6, 6, 2, 2])[:, None]
    mask_BT = jnp.asarray(asked_PG.reshape(-1, 1))
    batch = Batch(
        tokens_BS=jnp.zeros((24, 2), jnp.int32),
        position_BS=jnp.zeros((24, 2), jnp.int32),
        problem_B=jnp.repeat(jnp.arange(4), 6),
        mask_BT=mask_BT,
        problem_rows_B=learned_rows(mask_BT, 6),
    )

    def weights(rows_X):
        part = jax.tree.map(lambda x: x[np.array(rows_X)], batch)
        weight_X = np.asarray(weigh(part, "rollout").weight_BT)[:, 0]
        problem_X = np.array(rows_X) // 6
        return [weight_X[problem_X == p].sum() for p in range(4)]

    np.testing.assert_allclose(weights(range(24)), [1 / 4] * 4, rtol=1e-6)
    # Both large problems in one update, both small ones in the other.
    np.testing.assert_allclose(weights(range(12)), [1 / 2, 1 / 2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(weights(range(12, 24)), [0, 0, 1 / 2, 1 / 2], rtol=1e-6)
    # Three of the six rollouts of one, and both of another: half a problem and a whole.
    got = weights([0, 1, 2, 12, 13, 14])
    np.testing.assert_allclose(got, [1 / 3, 0, 2 / 3, 0], rtol=1e-6)
    # Rows without a learned token alone: 0, and no nan.
    np.testing.assert_array_equal(weights([14, 15, 20]), [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("counts", "want"), [((4, 4), (1.83, 1.85)), ((6, 2), (1.90, 1.98))]
)
def test_reinforce_pp_compares_with_all_of_the_step(counts, want):
    got = expected_gradient(counts, (0.2, 0.7), reinforce_pp.advantage, alike=True)
    np.testing.assert_allclose(2 * got, want, atol=0.006)
    assert f"{want[0]:.2f} and {want[1]:.2f}" in knapsack.__doc__


# ---- samplers on their own


def test_ada_updates_its_sampler_once_a_step():
    updates = []
    inner = uniform(problems=12, prompts=P, key=jax.random.key(0))

    def update(state, ids_P, correct_PG, valid_PG):
        updates.append((np.asarray(correct_PG), np.asarray(valid_PG)))
        return inner.update(state, ids_P, correct_PG, valid_PG)

    sampler = allocation.in_ada_rounds(inner._replace(update=update), BUDGET, **ADA)
    state, drawn = sampler.init(), []
    for _ in range(3):
        state, ids_P = sampler.sample(state, jax.random.key(1))
        drawn.append(ids_P.tolist())
        asked_PG = sampler.ask(state, ids_P)
        # Half of what is asked is right; one problem is never graded.
        right_PG = jnp.asarray((np.arange(3 * G) % 2)[None] * np.ones((P, 1)))
        valid_PG = asked_PG & (jnp.arange(P) > 0)[:, None]
        state = sampler.update(state, ids_P, jnp.float32(right_PG), valid_PG)
        assert not updates
        _, whole, _ = sampler.take(state, asked_PG)
    assert drawn[0] == drawn[1] == drawn[2] and whole
    state = sampler.end_step(state)
    ((correct_PG, valid_PG),) = updates
    # Three problems have left with four rollouts, and one has all that was over.
    assert valid_PG.sum(axis=1).tolist() == [0, 4, 4, 4]
    assert correct_PG[1].sum() == 2
    following, ids_P = sampler.sample(state, jax.random.key(2))
    assert following.rounds == 1 and ids_P.tolist() != drawn[0]
    assert sampler.ask(following, ids_P).sum() == P * 2


def test_a_knapsack_learns_from_what_it_saw():
    inner = uniform(problems=12, prompts=P, key=jax.random.key(0))
    sampler = allocation.by_knapsack(inner, BUDGET, **KNAPSACK)
    ids_P = jnp.arange(P)
    right_PG = jnp.zeros((P, 3 * G)).at[0, :2].set(1).at[1].set(1)
    valid_PG = jnp.ones((P, 3 * G), bool)
    state = sampler.update(sampler.init(), ids_P, right_PG, valid_PG)
    count_P = sampler.ask(state, ids_P).sum(axis=1)
    # Solved: the fewest. One in six: the most.
    assert int(count_P.argmax()) == 0 and count_P[1] == 2 and count_P.sum() == P * G


# ---- what cannot work is refused by name


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"allocation__most": 6}, "allocation.most=6 .* multiple of group_size=4"),
        ({"allocation__most": 2}, "allocation.most=2 .* multiple of group_size=4"),
        ({"group_size": 1, "algorithm": "reinforce_pp"}, "group_size=1"),
        ({"allocation__knapsack__least": 5}, "least=5 .* above group_size=4"),
        ({"allocation__knapsack__least": 1}, "allocation.knapsack.least=1"),
        (
            {"algorithm": "jepo", "filter__tau": -1.0},
            "allocation.name=knapsack with algorithm=jepo",
        ),
        (
            {"allocation__name": "ada", "allocation__ada__per_round": 5},
            "per_round=5 .* above group_size=4",
        ),
        (
            {"allocation__name": "ada", "allocation__ada__taken": 13},
            "taken=13 is above the 12",
        ),
        (
            {"allocation__name": "ada", "filter__groups": "mixed"},
            "filter.groups=mixed",
        ),
        (
            {
                "allocation__name": "ada",
                "sampler__unbiased": True,
                "loss_normaliser": "rollout",
            },
            "allocation.name=ada with sampler.unbiased=True",
        ),
        (
            {"sampler__unbiased": True, "loss_normaliser": "rollout"},
            "weigh=problems",
        ),
        ({"allocation__name": "fair"}, "allocation.name='fair'"),
        ({"allocation__ada__exit": "never"}, "allocation.ada.exit"),
    ],
)
def test_bad_settings(problems, fields, said):
    with pytest.raises(InputError, match=said):
        config = configured(problems, "knapsack", **fields)
        check(config)


@pytest.mark.parametrize(
    ("devices", "fields"),
    [
        # 84 rows are 12 minibatches of 7 rows; 28 rollouts are not.
        (1, {"prompts_per_step": 7, "minibatches_per_step": 12}),
        # 64 rows are a row of each device in 8 minibatches; 16 rollouts are not.
        (
            8,
            {
                "prompts_per_step": 8,
                "group_size": 2,
                "allocation__most": 8,
                "minibatches_per_step": 8,
            },
        ),
    ],
)
def test_minibatches_divide_the_rollouts_that_are_written(problems, devices, fields):
    """Else micro-batches, of as many rows, would not divide a minibatch's rows."""
    config = configured(problems, "knapsack", **fields)
    mesh = SimpleNamespace(shape={"data": devices, "fsdp": 1, "tensor": 1})
    with pytest.raises(InputError, match="minibatches_per_step=.* must divide the"):
        check_batch(config, mesh)


def test_unbiased_goes_with_problems_that_weigh_alike(problems):
    check(
        configured(
            problems,
            "knapsack",
            sampler__unbiased=True,
            loss_normaliser="rollout",
            allocation__knapsack__weigh="problems",
        )
    )


def test_every_allocation_has_its_rows_in_base(problems):
    config = configured(problems, "fixed")
    for name, row in allocation.ALLOCATIONS.items():
        if row.own:
            assert set(config.allocation[name]) == set(row.own)
