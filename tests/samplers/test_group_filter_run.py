"""A filter of groups in the loop: rounds, the bound, what is carried, and stops."""

import dataclasses
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from tiny_run import configure, run_records, set_up, with_parity, write_problems

from limr_jax import sharding
from limr_jax.check import warn_of_old_names
from limr_jax.programs import Graded
from limr_jax.samplers.order import Order
from limr_jax.storage import checkpoint, metrics
from limr_jax.storage.workdir import claim, read_run, workdir_path, write_json
from limr_jax.train import train

STEPS, P, G, ROUNDS = 6, 4, 2, 3
MOVED = ("max_rounds", "max_age")  # from sampler.dynamic to filter


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """Thirty problems: the bound is 3 rounds of 4."""
    return write_problems(tmp_path_factory.mktemp("problems") / "train.jsonl", 30)


def configured(problems, **fields):
    given = {
        "num_steps": STEPS,
        "model__layers": 1,
        "checkpoint__every": 1,
        "filter__groups": "mixed",
        "filter__max_rounds": ROUNDS,
    }
    return configure(problems, **given | fields)


@pytest.fixture(scope="module")
def config(problems):
    return configured(problems)


@pytest.fixture(scope="module")
def made(config):
    return with_parity(set_up(config))


@pytest.fixture(scope="module")
def whole(made, config, tmp_path_factory):
    """The workdir of the run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    train(made, config, workdir)
    return workdir


def grading(made, grade):
    """The run with `grade(row's first token, sample) → right` for every rollout."""

    def graded(written, drawn):
        first_PG = written.response_BT[:, 0].reshape(-1, written.group)
        correct_PG = grade(first_PG, jnp.arange(G)[None] + 0 * first_PG)
        everywhere_PG = first_PG >= 0
        right_PG = correct_PG.astype(jnp.float32)
        return Graded(right_PG, right_PG, everywhere_PG, everywhere_PG)

    rows = NamedSharding(made.mesh, sharding.BATCH)
    return dataclasses.replace(made, grade=jax.jit(graded, out_shardings=rows))


def replayed(seen):
    """What the dump says that each step must have used: numpy, a group at a time."""
    waiting, steps = [], []
    for row in seen["metrics"]:
        rows = [x for x in seen["rollouts"] if x["step"] == row["step"]]
        groups = [rows[i : i + G] for i in range(0, len(rows), G)]
        fresh = []
        for group in groups:
            valid = [x["correct"] for x in group if x["valid"]]
            assert len({x["id"] for x in group}) == 1
            if 0 < sum(valid) < len(valid):
                fresh.append((row["step"], valid))
        ready = waiting + fresh
        used, waiting = ready[:P], ready[P:]
        steps.append((groups, used, waiting))
    return steps


@pytest.mark.slow
def test_the_numbers_are_those_of_the_dump(whole):
    seen = run_records(whole)
    assert len(seen["metrics"]) == STEPS
    for row, (groups, used, over) in zip(seen["metrics"], replayed(seen), strict=True):
        rounds = row["dynamic/rounds"]
        assert len(groups) == rounds * P and row["rollouts"] == rounds * P * G
        assert len({group[0]["id"] for group in groups}) == len(groups)
        # Another round only while there is too little, and within the bound.
        assert row["dynamic/used_groups"] == len(used)
        assert len(used) == P or rounds == ROUNDS
        assert row["dynamic/used_rollouts"] == len(used) * G
        assert row["dynamic/surplus_groups"] == len(over)
        ages = [row["step"] - step for step, _ in used]
        assert row["dynamic/carried_groups"] == sum(age > 0 for age in ages)
        assert row["dynamic/age_max"] == max(ages) <= 1
        assert row["dynamic/age_mean"] == pytest.approx(np.mean(ages), abs=1e-6)
        used_right = np.concatenate([valid for _, valid in used])
        assert row["dynamic/used_pass_rate"] == pytest.approx(used_right.mean())
        # The rest is of all that was written, used or not.
        rows = [x for group in groups for x in group]
        valid = [x for x in rows if x["valid"]]
        for name, field in (("reward", "reward"), ("pass_rate", "correct")):
            want = np.mean([x[field] for x in valid])
            assert row[name] == pytest.approx(want, rel=1e-5), name
        lengths = [x["length"] for x in rows]
        assert row["response_length"] == pytest.approx(np.mean(lengths), rel=1e-6)
        assert row["response_length_max"] == max(lengths)
        assert row["tokens"] == sum(lengths)
        assert row["invalid_share"] == pytest.approx(1 - len(valid) / len(rows))


@pytest.mark.slow
def test_lengths_of_all_that_was_written_are_kept(whole, made):
    """Of groups that were used, that wait, and that are neither."""
    length = {}
    for row in run_records(whole)["rollouts"]:
        length.setdefault((row["id"], row["step"]), []).append(row["length"])
    last = {id: np.mean(length[id, step]) for id, step in sorted(length)}
    with checkpoint.Checkpointer(whole, read_only=True) as saver:
        state, _ = saver.restore(STEPS, made.programs.state)
    want = [last.get(id, 0) for id in made.train_set.problems.ids]
    np.testing.assert_allclose(state.length_N, want, rtol=1e-6)


@pytest.mark.slow
def test_there_was_something_to_see(whole):
    rows = run_records(whole)["metrics"]
    assert len({row["dynamic/rounds"] for row in rows}) > 1
    assert any(row["dynamic/carried_groups"] for row in rows)
    assert all(row["gradient_norm"] > 0 for row in rows)


@pytest.mark.slow
def test_carried_groups_keep_the_log_probabilities_of_their_rollout(whole):
    """The policy has moved since: what is learned from drifts there, and only there."""
    for row in metrics.read_metrics(whole):
        if row["dynamic/carried_groups"]:
            assert row["drift_max"] > 1e-4
        else:
            assert row["drift_max"] < 1e-5


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step(whole):
    counts = [row["compile_count"] for row in metrics.read_metrics(whole)]
    assert set(counts) == {counts[0]} and counts[0] > 0


def interrupted(made, call):
    """The run, interrupted in its `call`-th grading."""
    calls = []

    def grade(written, drawn):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return made.grade(written, drawn)

    return dataclasses.replace(made, grade=grade)


@pytest.mark.slow
def test_a_stop_in_any_round_is_no_difference(made, config, whole, tmp_path):
    expected = run_records(whole)
    rounds = [int(row["dynamic/rounds"]) for row in expected["metrics"]]
    carried = 0
    for call in range(2, sum(rounds) + 1, 3):
        workdir = tmp_path / str(call)
        with pytest.raises(KeyboardInterrupt):
            train(interrupted(made, call), config, workdir)
        with checkpoint.Checkpointer(workdir, read_only=True) as saver:
            step = saver.latest()
            if step is not None:
                state, _ = saver.restore(step, made.programs.state)
                waiting = int(jax.device_get(state.surplus.kept_P).sum())
                assert (
                    waiting == expected["metrics"][step - 1]["dynamic/surplus_groups"]
                )
                carried += waiting > 0
        train(made, config, workdir)
        assert run_records(workdir) == expected
    assert carried > 0  # a checkpoint held groups that wait


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dynamic:
    """What limr_jax 0.3 kept of sampler.name=dynamic."""

    order: Order
    rounds: jax.Array


@pytest.mark.slow
def test_a_run_of_version_0_3_goes_on(made, problems, config, whole, tmp_path):
    """With its run.json and its checkpoint, by the old name, which is the same run."""
    with pytest.raises(KeyboardInterrupt):
        train(interrupted(made, 6), config, tmp_path)
    run = read_run(tmp_path)
    moved = {name: run["config"]["filter"].pop(name) for name in MOVED}
    run["config"]["sampler"] |= {"name": "dynamic", "dynamic": moved}
    del run["config"]["filter"]["groups"]
    write_json(workdir_path(tmp_path) / "run.json", run)
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        step = saver.latest()
        state, meta = saver.restore(step, made.programs.state)
    sampler = Dynamic(state.sampler.sampler, state.sampler.rounds)
    shutil.rmtree(tmp_path / "checkpoints")
    old = configured(problems, sampler__name="dynamic", filter__groups="none")
    by_old_name = dataclasses.replace(
        made, identity=made.identity | {"config": old.to_dict()}
    )
    claim(tmp_path, by_old_name.identity)
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(step, dataclasses.replace(state, sampler=sampler), meta)
    train(by_old_name, old, tmp_path)
    assert run_records(tmp_path) == run_records(whole)


def test_the_old_name_says_what_to_write_instead(problems, capsys):
    old = configured(problems, sampler__name="dynamic", filter__groups="none")
    warn_of_old_names(configured(problems))
    assert capsys.readouterr().err == ""
    warn_of_old_names(old)
    assert capsys.readouterr().err == (
        "warning: sampler.name=dynamic goes with the next version; write "
        "--config.sampler.name=uniform --config.filter.groups=mixed, which is the "
        "same\n"
    )


@pytest.mark.slow
def test_where_every_group_varies_it_is_uniform_sampling(made, problems, tmp_path):
    """One round a step, nothing over: the same run, bit for bit, for an epoch."""
    steps = 30 // P
    digests = []
    for name in ("mixed", "none"):
        config = configured(problems, filter__groups=name, num_steps=steps)
        other = made if name == "mixed" else set_up(config)
        programs = other.programs._replace(generate=made.programs.generate)
        other = dataclasses.replace(
            other, programs=programs, identity={"config": config.to_dict()}
        )
        run = grading(other, lambda first_PG, g_PG: g_PG == 0)
        digests.append(train(run, config, tmp_path / name)["params_digest"])
    assert digests[0] == digests[1]
    for row in metrics.read_metrics(tmp_path / "mixed"):
        assert row["dynamic/rounds"] == 1 and row["dynamic/used_groups"] == P
        assert row["dynamic/surplus_groups"] == row["dynamic/carried_groups"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_where_no_group_varies_nothing_is_learned_and_nothing_breaks(
    made, config, tmp_path, right
):
    run = grading(made, lambda first_PG, g_PG: (g_PG >= 0) == right)
    train(run, config, tmp_path)
    for row in metrics.read_metrics(tmp_path):
        assert row["dynamic/rounds"] == ROUNDS and row["rollouts"] == ROUNDS * P * G
        assert row["dynamic/used_groups"] == row["gradient_norm"] == row["loss"] == 0
        assert row["dynamic/used_pass_rate"] is None
        assert row["pass_rate"] == right and row["invalid_share"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "bots",
        # An order, as lim has in test_devices.py; and posteriors, as bots has.
        pytest.param("uniform", marks=pytest.mark.soak),
        pytest.param("informative", marks=pytest.mark.soak),
        pytest.param("dps", marks=pytest.mark.soak),
    ],
)
def test_eight_devices_are_one(problems, tmp_path, name):
    rows, fields = [], {"prompts_per_step": 8, "num_steps": 4, "sampler__name": name}
    for devices in (1, 8):
        config = configured(problems, **fields)
        train(with_parity(set_up(config, devices)), config, tmp_path / str(devices))
        rows.append(run_records(tmp_path / str(devices)))
    here, there = rows
    assert here["rollouts"] == there["rollouts"]
    assert sum(row["dynamic/carried_groups"] for row in here["metrics"]) > 0
    for one, eight in zip(here["metrics"], there["metrics"], strict=True):
        for name, value in one.items():
            near = None if value is None else pytest.approx(value, rel=1e-3, abs=1e-5)
            assert eight[name] == near, name


@pytest.mark.slow
def test_graded_on_the_hosts(problems, tmp_path, monkeypatch):
    """A user's reward and the overlong penalty: shaped, but judged on what is raw."""
    (tmp_path / "graders_of_dynamic.py").write_text(
        "def even(prompts, completions, **columns):\n"
        "    return [None if not c else float(ord(c[0]) % 2) for c in completions]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = configured(
        problems,
        num_steps=3,
        reward="graders_of_dynamic.even",
        overlong__buffer=4,
        overlong__weight=0.5,
    )
    try:
        made = set_up(config)
        train(made, config, tmp_path / "run")
        made.close()
    finally:
        sys.modules.pop("graders_of_dynamic", None)
    seen = run_records(tmp_path / "run")
    shaped = {row["reward"] for row in seen["rollouts"] if row["valid"]}
    assert len(shaped) > 2  # or there would be nothing to be misled by
    for row, (groups, used, over) in zip(seen["metrics"], replayed(seen), strict=True):
        assert row["dynamic/used_groups"] == len(used)
        assert row["dynamic/surplus_groups"] == len(over)
        rows = [x for group in groups for x in group]
        part = np.mean([x["reward/overlong"] for x in rows])
        assert row["reward/overlong"] == pytest.approx(part, rel=1e-5)


@pytest.mark.slow
def test_drafts_come_from_groups_that_were_filtered_as_well(problems, whole, tmp_path):
    """Of each problem the newest group, as the dump has it; no rollout changes."""
    config = configured(problems, rollout__drafts=2)
    made = with_parity(set_up(config))
    train(made, config, tmp_path)
    drafted, without = run_records(tmp_path)["rollouts"], run_records(whole)["rollouts"]
    assert [(x["id"], x["response"]) for x in drafted] == [
        (x["id"], x["response"]) for x in without
    ]
    with checkpoint.Checkpointer(tmp_path, read_only=True) as saver:
        state, _ = saver.restore(STEPS, made.programs.state)
    newest = {}
    for i in range(0, len(drafted), G):
        group = drafted[i : i + G]
        newest[group[0]["id"]] = [row["length"] for row in group]
    used = sum(row["dynamic/used_groups"] for row in metrics.read_metrics(tmp_path))
    assert used < len(drafted) / G
    written_ND = np.sum(np.asarray(state.drafts) >= 0, axis=2)
    for n, name in enumerate(made.train_set.problems.ids):
        assert list(written_ND[n]) == newest.get(name, [0] * G)
