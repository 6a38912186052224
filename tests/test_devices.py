"""Sharding changes nothing: the loop's first steps on one device and on every mesh."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import configure, run_records, set_up, with_parity, write_problems

from limr_jax import prng
from limr_jax.data.prompts import put_prompts
from limr_jax.first_state import frozen_of
from limr_jax.models import transformer
from limr_jax.rewards.stats import over_rounds
from limr_jax.rollout.sampling import scaled_logits
from limr_jax.step import Phases
from limr_jax.storage import checkpoint
from limr_jax.train import one_step, train

STEPS = 5
TIE = 1e-4  # scores so close may change places from one summation order to another
MESHES = [m for m in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(m) == 8]
# data, fsdp, tensor; and all of them along data.
SOME = [(1, 4, 2), pytest.param((1, 1, 8), marks=pytest.mark.soak)]


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Twelve problems, eight a step: LIM scores after steps 2 and 4."""
    train = tmp_path_factory.mktemp("problems") / "train.jsonl"
    return {
        "train": write_problems(train, 12),
        "num_steps": STEPS,
        "sampler__name": "lim",
        "prompts_per_step": 8,
        "rollout__max_response_length": 12,
        "micro_batch_rows": 8,
        "model__heads": 8,
        "model__width": 32,
        # Adam makes whole steps of gradients that are rounding errors.
        "optimizer__learning_rate": 1e-3,
    }


@dataclasses.dataclass
class Step:
    """One step on one mesh, as host arrays; the state is that before it."""

    state: object
    ids_P: np.ndarray
    written: object
    graded: object
    numbers: dict
    scores: tuple  # LIM's score and weight of every problem, after it


class Loop:
    """The loop's steps on a mesh, from a state that may be set."""

    def __init__(self, fields, devices, mesh=(-1, 1, 1)):
        sizes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh))
        self.config = configure(**fields, **sizes)
        self.run = with_parity(set_up(self.config, devices))
        with jax.set_mesh(self.run.mesh):
            params = self.run.load_params()
            self.frozen = frozen_of(self.run, params)
            self.state = self.run.programs.init(params)
            self.prompts = put_prompts(self.run.train_set, self.run.mesh)

    def step(self) -> Step:
        before = jax.device_get(self.state)
        with jax.set_mesh(self.run.mesh):
            self.state, rounds, _, (numbers, tallies) = one_step(
                self.run,
                Phases(),
                self.state,
                self.frozen,
                self.prompts,
            )
        sampler = jax.device_get(self.state.sampler)
        (drawn, written, graded), numbers, tallies = jax.device_get(
            (rounds[0].groups, numbers, tallies)
        )
        numbers |= over_rounds(tallies)
        scores = (sampler.score_N, sampler.weight_N, sampler.cell_count_2N)
        return Step(before, drawn.ids_P, written, graded, numbers, scores)

    def go_on_from(self, state) -> None:
        places = jax.tree.map(lambda x: x.sharding, self.run.programs.state)
        self.state = jax.device_put(state, places)


@pytest.fixture(scope="module")
def alone(fields):
    """The steps on one device, and the loop that made them."""
    loop = Loop(fields, devices=1)
    return loop, [loop.step() for _ in range(STEPS)]


@pytest.fixture(scope="module")
def spread(fields):
    """The loop on eight devices, of the same config."""
    return Loop(fields, devices=8)


def leads(loop: Loop, step: Step):
    """By how much the best perturbed score beats the second, at every token: [B, T]."""
    run, (tokens_BS, position_BS) = loop.run, step.written.sequences()
    T = step.written.mask_BT.shape[1]
    how = {"config": run.compute.model, "dtype": run.compute.dtype}
    params = step.state.train.params
    hidden_BSD = transformer.forward(params, tokens_BS, position_BS, **how)
    logits_BTV = transformer.unembed(params, hidden_BSD[:, -T - 1 : -1], **how)
    temperature = jax.device_get(run.sampling.temperature)
    scaled_BTV = np.array(scaled_logits(logits_BTV, temperature))
    key = prng.stream_key(0, "rollout", step.state.step)
    group = step.written.group
    key_B = prng.rollout_keys(
        key,
        jnp.repeat(step.ids_P, group),
        jnp.tile(jnp.arange(group), len(step.ids_P)),
    )
    for t in range(T):
        scaled_BTV[:, t] += prng.gumbel(key_B, t, scaled_BTV.shape[-1])
    best_BT2 = np.sort(scaled_BTV, axis=-1)[..., -2:]
    chosen = np.argmax(scaled_BTV, axis=-1) == step.written.response_BT
    assert chosen[step.written.mask_BT].all()  # or these are not the scores
    return best_BT2[..., 1] - best_BT2[..., 0]


def ties(loop: Loop, here: Step, there: Step) -> int:
    """Rollouts that part at two scores within TIE of each other; the rest must not."""
    differs_BT = here.written.response_BT != there.written.response_BT
    rows = np.flatnonzero(differs_BT.any(axis=1))
    if len(rows):
        first = differs_BT[rows].argmax(axis=1)
        assert (leads(loop, here)[rows, first] < TIE).all()
    return len(rows)


def same_steps(alone, loop: Loop) -> int:
    """Asserts that each step is the one on one device; returns the ties."""
    one, steps = alone
    parted = 0
    for number, here in enumerate(steps):
        there = loop.step()
        np.testing.assert_array_equal(there.ids_P, here.ids_P)
        if found := ties(one, here, there):
            # What follows from another token is another run: take up the first again.
            parted += found
            if number + 1 < STEPS:
                loop.go_on_from(steps[number + 1].state)
            continue
        jax.tree.map(np.testing.assert_array_equal, there.graded, here.graded)
        np.testing.assert_array_equal(there.written.mask_BT, here.written.mask_BT)
        np.testing.assert_allclose(
            there.written.logprob_BT, here.written.logprob_BT, rtol=0, atol=1e-5
        )
        for a, b in zip(there.scores, here.scores):
            np.testing.assert_array_equal(a, b)
        for name in ("loss", "reward", "pass_rate", "entropy", "response_length"):
            assert abs(there.numbers[name] - here.numbers[name]) <= 1e-5, name
        assert there.numbers["gradient_norm"] == pytest.approx(
            here.numbers["gradient_norm"], rel=1e-4
        )
    return parted


@pytest.mark.slow
def test_there_is_something_to_compare(alone):
    loop, steps = alone
    assert len(MESHES) == 10
    for here in steps:
        assert here.numbers["gradient_norm"] > 1e-3
        assert 0 < here.numbers["reward"] < 1
        assert leads(loop, here)[here.written.mask_BT].min() > 0
    assert len(np.unique(steps[-1].scores[0])) > 2  # LIM has scored
    policies = [here.state.train.params["embedder"]["embedding"] for here in steps]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(policies, policies[1:]))


@pytest.mark.slow
def test_eight_devices_change_nothing(alone, spread):
    assert same_steps(alone, spread) == 0


def stopped_at(run, step):
    """The run, but it is interrupted in its step-th step."""
    calls = []

    def grade(written, drawn):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return run.grade(written, drawn)

    return dataclasses.replace(run, grade=grade)


@pytest.mark.slow
def test_another_number_of_devices_goes_on(alone, spread, tmp_path):
    """From one to eight and from eight to one, after the checkpoint of step 2."""
    one, eight = alone[0], spread
    train(one.run, one.config, tmp_path / "whole")
    expected = run_records(tmp_path / "whole")
    for name, first, second in (("up", one, eight), ("down", eight, one)):
        with pytest.raises(KeyboardInterrupt):
            train(stopped_at(first.run, 4), first.config, tmp_path / name)
        train(second.run, second.config, tmp_path / name)
        found = run_records(tmp_path / name)
        assert found["rollouts"] == expected["rollouts"]
        for here, there in zip(found["metrics"], expected["metrics"], strict=True):
            assert abs(here["loss"] - there["loss"]) <= 1e-5
            assert here["reward"] == there["reward"]
            same = [x for x in here if x.startswith("lim/")]
            assert [here[x] for x in same] == [there[x] for x in same]
        with checkpoint.Checkpointer(tmp_path / name, read_only=True) as saver:
            state, _ = saver.restore(STEPS, one.run.programs.state)
        np.testing.assert_array_equal(
            state.sampler.cell_count_2N, alone[1][-1].scores[2]
        )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", SOME)
def test_a_mesh_changes_nothing(alone, fields, mesh):
    assert same_steps(alone, Loop(fields, 8, mesh)) == 0


@pytest.mark.soak
def test_no_mesh_changes_anything(alone, fields):
    parted = {mesh: same_steps(alone, Loop(fields, 8, mesh)) for mesh in MESHES}
    rollouts = STEPS * len(alone[1][0].written.response_BT)
    print(f"\nparted at a tie, of {rollouts} rollouts a mesh: {parted}")
    assert sum(parted.values()) <= 2
