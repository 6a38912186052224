"""Evaluation: the estimator, the figures; chunks and devices change nothing."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from tiny_policy import (
    GENERATE,
    QUICK,
    QWEN,
    SHAPE,
    fp32,
    prompts_of,
    random_params,
    sampling,
)

from limr_jax.data import problems
from limr_jax.data.prompts import put_prompts
from limr_jax.evaluation import evaluator
from limr_jax.evaluation.accuracy import pass_at_k, summary
from limr_jax.prng import stream_key
from limr_jax.rewards import in_graph
from limr_jax.rewards.types import CODE
from limr_jax.sharding import make_mesh, param_shardings

POLICY = dataclasses.replace(QWEN, layers=1)
COUNT, K, T = 5, 2, SHAPE.response_length


@pytest.mark.parametrize("n, k", [(1, 1), (5, 1), (5, 2), (6, 4), (6, 6)])
def test_pass_at_k_is_the_share_of_all_subsets(n, k):
    for c in range(n + 1):
        right = np.arange(n) < c
        share = np.mean(
            [any(right[list(s)]) for s in itertools.combinations(range(n), k)]
        )
        np.testing.assert_allclose(
            pass_at_k(np.array(c), np.array(n), k), share, atol=1e-12
        )


def test_pass_at_k_of_several_problems():
    got = pass_at_k(np.array([0, 1, 8, 4]), np.array([8, 8, 8, 200]), 4)
    want = [0, 0.5, 1, 1 - np.prod((196 - np.arange(4)) / (200 - np.arange(4)))]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def result_of(correct, valid, well_formed=None, truncated=None, length=None):
    """An Evaluation of these values; what is not given is of no account."""
    correct, valid = np.array(correct, np.float32), np.array(valid, bool)
    formed = np.ones_like(valid) if well_formed is None else np.array(well_formed, bool)
    return evaluator.Evaluation(
        correct_Nk=correct,
        valid_Nk=valid,
        well_formed_Nk=formed,
        truncated_Nk=np.array(
            np.zeros_like(valid) if truncated is None else truncated, bool
        ),
        length_Nk=np.array(np.ones_like(valid) if length is None else length, np.int32),
        response_NkT=np.zeros((*valid.shape, 1), np.int32),
        reason_Nk=np.where(valid, CODE["graded"], CODE["timeout"]),
    )


def test_summary_by_hand():
    result = result_of(
        correct=[[1, 0], [0, 0], [1, 1], [1, 0]],
        valid=[[1, 1], [1, 1], [1, 0], [0, 0]],
        well_formed=[[1, 0], [1, 0], [1, 1], [1, 1]],
        truncated=[[0, 1], [0, 0], [0, 0], [0, 0]],
        length=[[1, 2], [3, 4], [5, 6], [7, 8]],
    )
    result.reason_Nk[3, 0] = CODE["memory"]
    assert evaluator.ungradable(result) == {"timeout": 2, "memory": 1}
    figures = summary(result, levels=["a", None, "b", "a"])
    want = {
        # An ungradable response is wrong: the second 1 of the third problem, and both
        # responses to the last one.
        "accuracy": 2 / 8,
        "accuracy_well_formed": 2 / 6,
        "well_formed": 6 / 8,
        "truncated_share": 1 / 8,
        "ungradable_share": 3 / 8,
        "ungradable/timeout": 2 / 8,
        "ungradable/memory": 1 / 8,
        "response_length": 36 / 8,
        "pass_at_2": 2 / 4,
        "accuracy_level_a": 1 / 4,
        "accuracy_level_b": 1 / 2,
    }
    assert figures.keys() == want.keys()
    for name, value in want.items():
        assert type(figures[name]) is float
        np.testing.assert_allclose(figures[name], value, rtol=1e-6, err_msg=name)


def test_ungradable_answers_raise_nothing():
    """Half of the problems are solved; a tenth of the wrong answers is ungradable."""
    random = np.random.default_rng(0)
    right_Nk = np.repeat([1, 0], 50)[:, None] * np.ones((100, 8))
    valid_Nk = np.ones((100, 8), bool)
    wrong = random.permutation(np.argwhere(right_Nk == 0))[:40]
    valid_Nk[tuple(wrong.T)] = False
    figures = summary(result_of(right_Nk, valid_Nk))
    assert figures["accuracy"] == figures["pass_at_8"] == figures["pass_at_2"] == 0.5
    assert figures["ungradable_share"] == 0.05


def test_summary_of_one_response_a_problem_has_no_pass_at_k():
    figures = summary(result_of([[1], [0], [1]], [[1], [1], [0]]))
    assert figures["accuracy"] == 1 / 3
    assert not [name for name in figures if name.startswith(("pass_at", "accuracy_le"))]


def test_nothing_graded_is_wrong_and_nothing_well_formed_no_number():
    figures = summary(result_of([[1, 1]], [[0, 0]]), levels=[3])
    for name in ("accuracy", "accuracy_well_formed", "pass_at_2", "accuracy_level_3"):
        assert figures[name] == 0, name
    assert figures["ungradable_share"] == figures["well_formed"] == 1
    figures = summary(result_of([[0]], [[1]], well_formed=[[0]]))
    assert figures["accuracy"] == 0 and np.isnan(figures["accuracy_well_formed"])


@functools.cache
def mesh_of(devices):
    return make_mesh(-1, 1, 1, jax.devices()[:devices])


def evaluation(*, devices=1, slots=0):
    """Five problems answered twice; also the evaluator and the calls of `advance`."""
    mesh = mesh_of(devices)
    tokens_NL, position_NL = prompts_of(range(COUNT))
    length_N = position_NL[:, -1] + 1
    tokens_NL = np.stack([np.roll(r, n) for r, n in zip(tokens_NL, length_N)])
    tokenized = problems.TokenizedProblems(
        problems=problems.Problems("", *4 * [("",) * COUNT], columns={}),
        prompt_NL=tokens_NL,
        prompt_length_N=length_N.astype(np.int32),
        answer_NA=np.array([[12], [5], [6], [20], [8]], np.int32),
        answer_length_N=np.array([1, 1, 1, 1, 0], np.int32),
        left_out=(),
    )
    quick = functools.partial(jax.jit, compiler_options=QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick)
        made = evaluator.make_evaluator(
            mesh,
            put_prompts(tokenized, mesh),
            count=COUNT,
            k=K,
            seed=0,
            generation=dataclasses.replace(SHAPE, slots=slots or COUNT * K),
            compute=fp32(POLICY),
            grade=quick(functools.partial(in_graph.grade, phrase=(18,))),
        )
    done = []
    return answer(made, mesh, done.append), made, done


def answer(made, mesh, advance=lambda n: None, **options):
    params = random_params(POLICY)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, param_shardings(mesh, params))
        return made(params, sampling(**options), advance)


@functools.cache
def plain():
    return evaluation()


@pytest.mark.slow
def test_an_evaluation():
    result, made, done = plain()
    assert made.chunk == COUNT and done == [COUNT]
    for name, value in result._asdict().items():
        assert isinstance(value, np.ndarray), name
        assert value.shape == (COUNT, K, T)[: value.ndim] and value.ndim >= 2, name
    # The fifth problem has no reference answer.
    assert result.valid_Nk.tolist() == [[True] * K] * 4 + [[False] * K]
    # It is the rollout of the evaluation's own stream, problem by problem.
    written = {
        stream: GENERATE(
            random_params(POLICY),
            *prompts_of(range(8)),
            np.arange(8, dtype=np.int32),
            stream_key(0, stream),
            sampling(),
            config=SHAPE,
            compute=fp32(POLICY),
        )
        for stream in ("eval", "rollout")
    }
    tokens = {
        stream: np.asarray(w.response_BT).reshape(8, K, T)[:COUNT]
        for stream, w in written.items()
    }
    np.testing.assert_array_equal(result.response_NkT, tokens["eval"])
    assert np.all(np.any(result.response_NkT != tokens["rollout"], axis=2))
    length_B = np.asarray(written["eval"].mask_BT).sum(axis=1)
    np.testing.assert_array_equal(result.length_Nk, length_B.reshape(8, K)[:COUNT])
    truncated_B = np.asarray(written["eval"].truncated_B)
    np.testing.assert_array_equal(
        result.truncated_Nk, truncated_B.reshape(8, K)[:COUNT]
    )


def test_any_seed_of_32_bits():
    """Seeds below 2^31 have the stream that they had; those above have one too."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    make = functools.partial(
        evaluator.make_evaluator,
        mesh,
        None,
        count=1,
        k=1,
        generation=SHAPE,
        compute=fp32(POLICY),
        grade=None,
    )
    key = make(seed=2**31 - 1, number=5).key
    assert key == stream_key(2**31 - 1, "eval", 5)
    keys = [make(seed=seed).key for seed in (2**31, 2**32 - 1)]
    assert keys[0] != keys[1]


def test_graded_by_the_verifier():
    """Each response's answer is what stands between the last 18 and its end token."""
    result, _, _ = plain()
    answers = [[12], [5], [6], [20], []]
    for n, k in itertools.product(range(COUNT), range(K)):
        response = result.response_NkT[n, k, : result.length_Nk[n, k]].tolist()
        formed = 18 in response and not result.truncated_Nk[n, k]
        tail = response[::-1][1 : response[::-1].index(18)][::-1] if formed else None
        assert result.well_formed_Nk[n, k] == formed
        assert result.correct_Nk[n, k] == (tail == answers[n])


@pytest.mark.slow
@pytest.mark.parametrize(
    "devices, slots, chunk, done",
    [
        (1, 4, 2, [2, 2, 1]),  # the last chunk is filled up, and not counted
        (8, 0, 8, [5]),  # a chunk is at least a problem a device
    ],
)
def test_chunks_and_devices_change_nothing(devices, slots, chunk, done):
    result, made, advanced = evaluation(devices=devices, slots=slots)
    assert made.chunk == chunk and advanced == done
    jax.tree.map(np.testing.assert_array_equal, result, plain()[0])


def test_again_is_the_same_and_no_value_compiles():
    result, made, _ = plain()
    again, greedy = (answer(made, mesh_of(1), temperature=x) for x in (1.0, 0.0))
    jax.tree.map(np.testing.assert_array_equal, result, again)
    np.testing.assert_array_equal(greedy.response_NkT[:, 0], greedy.response_NkT[:, 1])
    assert made.generate._cache_size() == 1


def test_a_chunk_is_graded_while_the_next_is_written(monkeypatch):
    """And the next is begun when all devices have written the one before."""
    events, count = [], 5

    def ready(chunk):
        events.extend([] if chunk is None else [f"written {chunk.start}"])

    monkeypatch.setattr(evaluator.preemption, "ready", ready)
    one = evaluator.Evaluator(
        prompts=None,
        count=count,
        chunk=2,
        generate=None,
        grade=None,
        replicated=None,
        key=None,
    )

    class Noted(type(one)):
        def write(self, params, sampling, start):
            events.append(f"write {start}")
            return evaluator.GeneratedChunk(start, None, None)

        def _graded(self, chunk):
            events.append(f"grade {chunk.start}")
            return chunk.start

    noted = Noted(**{f.name: getattr(one, f.name) for f in dataclasses.fields(one)})
    assert list(noted.answers(None, None)) == [0, 2, 4]
    assert events == [
        "write 0",
        *("written 0", "write 2", "grade 0"),
        *("written 2", "write 4", "grade 2"),
        *("written 4", "grade 4"),
    ]
    assert list(noted.answers(None, None, start=4)) == [4]
    assert list(noted.answers(None, None, start=5)) == []
