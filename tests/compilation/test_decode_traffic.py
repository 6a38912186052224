"""The schedule without a model, and the bytes that it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout.test_slots import simulated

from limr_jax.compilation import decode_traffic
from limr_jax.models.attention import ragged_decode
from limr_jax.rollout import slots


def whole(row_Z, count_Z, column_Z):
    return jnp.full(len(count_Z), 64)


def sizes(rollouts, size=32, compactions=6, longest=128):
    return slots.plan(
        size, rollouts=rollouts, devices=1, longest=longest, compactions=compactions
    ).sizes


def parts(length_B, read=whole, group=1, **plan):
    return decode_traffic.simulated(
        length_B,
        np.full(len(length_B), 3),
        sizes=sizes(len(length_B), **plan),
        length=8,
        read=read,
        group=group,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "rollouts, size",
    [
        pytest.param(64, 32, marks=pytest.mark.soak),
        pytest.param(32, 32, marks=pytest.mark.soak),
        (200, 48),
        (5, 8),
    ],
)
def test_it_is_the_schedule_of_the_loop(rollouts, size):
    random = np.random.default_rng(rollouts)
    length_B = np.minimum(random.geometric(1 / 32, rollouts), 128)
    # The loop's own state counts a first token as a step; decode begins after it.
    made_MB, held, steps = simulated(
        np.maximum(length_B - 1, 1)[None].astype(np.int32),
        min(size, rollouts),
        rollouts,
        128,
    )
    length_B = np.maximum(length_B, 2)
    found = parts(length_B, size=size)
    assert sum(p.steps for p in found) == steps
    assert sum(p.steps * p.slots for p in found) == held
    assert made_MB.sum() == (length_B - 1).sum()


def test_columns_by_hand():
    """Prompts of 3, rollouts of 3, 2 and 2 tokens in two slots, rows of 64 whole.

    Columns after each step: 4 + 4; then 5, and the third's 4; nobody is left. Each row
    writes one at each step.
    """
    found = parts(np.array([3, 2, 2]), size=2, compactions=0)
    assert found == [steps(live=17)]
    assert decode_traffic.ratio(found, weights=100, column=1) == (200 + 256 + 4) / (
        200 + 17
    )


def steps(live):
    return decode_traffic.Steps(slots=2, steps=2, live=live, read=256, written=4)


def test_where_rows_write():
    """Each behind what it has, of prompts of 8 columns; a refilled row begins anew."""
    seen = []

    def read(row_Z, count_Z, column_Z):
        jax.debug.callback(
            lambda *x: seen.append([y.tolist() for y in x]), row_Z, count_Z, column_Z
        )
        return jnp.zeros_like(column_Z)

    parts(np.array([3, 2, 2]), read=read, size=2, compactions=0)
    jax.effects_barrier()
    assert seen == [[[0, 1], [4, 4], [8, 8]], [[0, 2], [5, 4], [9, 8]]]


def test_xlas_attention_reads_what_the_fullest_live_row_has():
    read = decode_traffic._FilledColumns(1000)
    for column_Z, width in (([5, 255, 3], 256), ([5, 256, 3], 512), ([5, 9, 700], 256)):
        live_Z = jnp.array([6, 7, 0])  # the last has ended
        found = read(jnp.arange(3), live_Z, jnp.array(column_Z))
        assert found.tolist() == [width] * 3


def test_shared_columns_are_live_once():
    """As above, the second and third of one prompt: 3 of 4 + 4, and of 5 + 4 both."""
    found = parts(np.array([3, 2, 2]), size=2, compactions=0, group=2)
    assert found == [steps(live=14)]


def test_first_tokens_that_end_need_no_step():
    found = parts(np.array([1, 1, 1, 2]), size=2, compactions=0)
    assert sum(p.steps for p in found) == 1 and found[0].live == 4


def test_lengths_are_as_they_are_said_to_be():
    length_B = decode_traffic.lengths(8192, 3072)
    assert abs(np.median(length_B) - 600) < 20
    assert length_B.min() >= 1 and length_B.max() == 3072
    assert np.array_equal(length_B, decode_traffic.lengths(8192, 3072))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt, figures",
    [
        (1024, {"xla": (1.69, 1.36, 1.67), "kernel": (1.15, 1.06, 1.14)}),
        (115, {"xla": (2.27, 1.41, 2.18), "kernel": (1.27, 1.09, 1.25)}),
    ],
)
def test_a_step_of_the_paper_on_v4_32(prompt, figures):
    """A chip of 16, 128 slots, a head's cache, a quarter of the weights.

    Of 512 slots, of 128 as the last rows end, and of all steps; the figures are those
    of limr_jax/rollout/RECORDS.md.
    """
    length_B = decode_traffic.lengths(8192, 3072)[:2048]
    given = {"sizes": sizes(2048, 128, 1, 3072), "length": 1024}
    costs = {"weights": 7.07e9 * 2 / 4, "column": 28 * 2 * 128 * 2}

    by_widths = decode_traffic._FilledColumns(4096)
    cuts = ragged_decode.Cut(1024, 1024), ragged_decode.OwnCut(3072, 512)

    def by_rows(row_Z, count_Z, column_Z):
        live_Z = count_Z > 0
        seen_Z, column_Z = (jnp.where(live_Z, x, 0) for x in (prompt, column_Z - 1024))
        given = column_Z, seen_Z, row_Z // 8
        return ragged_decode.columns_read(*given, *cuts)

    prompt_B = np.full(len(length_B), prompt)
    for read, written, group, wanted in (
        (by_widths, 1, 1, "xla"),
        (by_rows, 128, 8, "kernel"),
    ):
        how = {"read": read, "written": written, "group": group}
        found = decode_traffic.simulated(length_B, prompt_B, **how, **given)
        ratios = [decode_traffic.ratio(some, **costs) for some in (*zip(found), found)]
        assert np.allclose(ratios, figures[wanted], atol=0.005), ratios
