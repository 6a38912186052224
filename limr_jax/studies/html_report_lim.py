"""LIM on a page: scores, curves of kept and dropped problems, and how weights move.

All is computed from the run's dump, for any sampler: what LIM's rule says of the
problems' own reward curves (arXiv:2502.11886). Cells that an epoch lacks are carried
forward, as the online sampler does, so that the scores after the last epoch that has
ended are that sampler's, where the dump is whole. The scores of an epoch that is under
way are what they would be if it ended there.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from limr_jax.algorithms import lim
from limr_jax.config import load
from limr_jax.storage import metrics
from limr_jax.studies import reward_curves
from limr_jax.studies.html_report_curves import chart, rounded
from limr_jax.studies.html_report_rollouts import RunRollouts
from limr_jax.studies.html_report_runs import ReportRun

_MOST_CELLS = 2**24  # problems × epochs
_BINS = 40
_LOWEST = -0.5  # scores below it are in the first bin
_DRAWN = 12  # curves of single problems, kept and dropped, that are drawn
_MOST_LISTED = 2000  # problems that entered or left an epoch, by name
_DEFAULTS = {"weights": "threshold", "threshold": 0.6, "floor": 0.05}
_DEFAULTS |= {"temperature": 0.1}


@dataclasses.dataclass(frozen=True)
class LimHistory:
    """Scores and weights of N problems after each of E epochs, as the run went."""

    ids: tuple[str, ...]
    value_NE: np.ndarray  # reward curves; missing cells carried
    known_NE: np.ndarray  # bool
    score_NE: np.ndarray  # −inf: never seen by then
    weight_NE: np.ndarray
    threshold: float

    @property
    def keep_NE(self) -> np.ndarray:
        """Which problems LIM's rule keeps after each epoch."""
        return self.score_NE >= self.threshold


def history(run: ReportRun, rollouts: RunRollouts) -> LimHistory | str:
    """The run's LIM past, or why there is none."""
    cells = rollouts.cells
    epochs = {epoch for cell in cells.values() for epoch in cell}
    if not any(count for cell in cells.values() for _, count in cell.values()):
        return "The dump holds no rollout with its correctness."
    if len(cells) * len(epochs) > _MOST_CELLS:
        return (
            f"{len(cells):,} problems in {len(epochs):,} epochs are more than "
            f"{_MOST_CELLS:,} cells: launch/lim.py score makes their scores."
        )
    curves = reward_curves.of_cells(cells)
    fields = _fields(run.config)
    value_NE, known_NE, score_EN, weight_EN = (
        np.asarray(x) for x in _as_it_went(curves.value_NE, curves.seen_NE, fields)
    )
    return LimHistory(
        ids=curves.ids,
        value_NE=value_NE,
        known_NE=known_NE,
        score_NE=score_EN.T,
        weight_NE=weight_EN.T,
        threshold=fields["threshold"],
    )


def _as_it_went(value_NE, seen_NE, fields: Mapping):
    """(curves, which cells they have, scores [E, N], weights [E, N]) by epoch."""

    def end_epoch(carried, column):
        apart_N, room_N, ever_N = carried
        value_N, known_N = column
        apart, room = lim.terms(value_N[:, None], known_N[:, None])
        apart_N, room_N, ever_N = apart_N + apart, room_N + room, ever_N | known_N
        score_N = lim.score_of_terms(apart_N, room_N)
        weight_N = _weights(fields, score_N, ever_N)
        score_N = jnp.where(ever_N, score_N, -jnp.inf)
        return (apart_N, room_N, ever_N), (score_N, weight_N)

    @jax.jit
    def run(value_NE, seen_NE):
        value_NE, known_NE = lim.carry(value_NE, seen_NE)
        zeros_N = jnp.zeros(value_NE.shape[0], value_NE.dtype)
        start = zeros_N, zeros_N, zeros_N > 0
        _, (score_EN, weight_EN) = jax.lax.scan(
            end_epoch, start, (value_NE.T, known_NE.T)
        )
        return value_NE, known_NE, score_EN, weight_EN

    # As the online sampler has them, so that a score at the threshold falls likewise.
    return run(value_NE.astype(np.float32), seen_NE)


def _fields(config: Mapping) -> dict:
    """The config's sampler.lim, defaults where a field is none or no number."""
    leaves = dict(load.leaves(config))
    fields = dict(_DEFAULTS)
    for name, default in _DEFAULTS.items():
        value = leaves.get(f"sampler.lim.{name}")
        if isinstance(default, float):
            number = metrics.number({"x": value}, "x")
            fields[name] = default if number is None else number
        elif value in ("threshold", "softmax"):
            fields[name] = value
    fields["temperature"] = max(fields["temperature"], 1e-6)
    return fields


def _weights(fields: Mapping, score_N, seen_N):
    if fields["weights"] == "softmax":
        own = {"temperature": fields["temperature"], "floor": fields["floor"]}
        return lim.softmax_weight(score_N, seen_N, **own)
    own = {"threshold": fields["threshold"], "floor": fields["floor"]}
    return lim.threshold_weight(score_N, seen_N, **own)


def charts(past: LimHistory) -> list[dict]:
    """The histogram of scores, the kept and dropped curves, the weights' drift."""
    return [
        _histogram(past),
        _curves(past),
        *([_moves(past), _drift(past)] if past.score_NE.shape[1] > 1 else []),
    ]


def _histogram(past: LimHistory) -> dict:
    score_N = past.score_NE[:, -1]
    score_N = score_N[np.isfinite(score_N)]
    edges = np.linspace(_LOWEST, 1, _BINS + 1)
    counts, _ = np.histogram(np.clip(score_N, _LOWEST, 1), edges)
    keep = np.histogram(np.clip(score_N[score_N >= past.threshold], _LOWEST, 1), edges)
    x = rounded((edges[:-1] + edges[1:]) / 2)
    return chart(
        "Scores after the last epoch",
        [
            {"label": name, "tone": name, "group": None, "x": x, "y": rounded(y)}
            for name, y in (("dropped", counts - keep[0]), ("kept", keep[0]))
        ],
        help=f"problems by LIM score; kept from {past.threshold:g} on; scores below "
        f"{_LOWEST:g} are in the first bar",
        x="LIM score",
        kind="bars",
        marks=[past.threshold],
    )


def _curves(past: LimHistory) -> dict:
    """The paper's second figure: curves of problems beside the mean curve."""
    epochs = past.value_NE.shape[1]
    x = rounded(np.arange(1.0, epochs + 1))
    keep_N = past.keep_NE[:, -1]
    seen_N = past.known_NE.any(axis=1)
    series = []
    for label, of_N, tone in (
        ("a dropped problem", seen_N & ~keep_N, "dropped"),
        ("a kept problem", keep_N, "kept"),
    ):
        index = np.flatnonzero(of_N)
        # Evenly by score, so that both ends of it are seen.
        index = index[np.argsort(past.score_NE[index, -1], kind="stable")]
        places = np.linspace(0, len(index) - 1, min(_DRAWN, len(index))).round()
        series += [
            {
                "label": label,
                "group": None,
                "tone": tone,
                "thin": True,
                "title": past.ids[n],
                "x": x,
                "y": _masked(past.value_NE[n], past.known_NE[n]),
            }
            for n in index[places.astype(int)]
        ]
    for label, of_N, tone in (
        ("mean of the dropped", seen_N & ~keep_N, "dropped"),
        ("mean of the kept", keep_N, "kept"),
        ("mean of all (r_avg)", seen_N, "mean"),
    ):
        if of_N.any():
            series.append(
                {
                    "label": label,
                    "group": None,
                    "tone": tone,
                    "x": x,
                    "y": _means(past, of_N),
                }
            )
    return chart(
        "Curves of kept and dropped problems",
        series,
        help=f"mean reward by epoch; thin: {_DRAWN} problems of each, evenly by score",
        x="epoch",
        share=True,
    )


def _masked(values, known) -> list:
    return rounded(np.where(known, values, np.nan))


def _means(past: LimHistory, of_N) -> list:
    count_E = past.known_NE[of_N].sum(axis=0)
    total_E = np.where(past.known_NE[of_N], past.value_NE[of_N], 0).sum(axis=0)
    return rounded(np.where(count_E > 0, total_E / np.maximum(count_E, 1), np.nan))


def _moves(past: LimHistory) -> dict:
    """How many problems are kept after each epoch, entered and left."""
    keep_NE = past.keep_NE
    entered = (keep_NE[:, 1:] & ~keep_NE[:, :-1]).sum(axis=0)
    left = (~keep_NE[:, 1:] & keep_NE[:, :-1]).sum(axis=0)
    x = rounded(np.arange(1.0, keep_NE.shape[1] + 1))
    kept = keep_NE.sum(axis=0)
    entered, left = (np.append(np.nan, moves) for moves in (entered, left))
    return chart(
        "Problems kept, entered and left",
        [
            {"label": name, "group": None, "x": x, "y": rounded(y)}
            for name, y in (("kept", kept), ("entered", entered), ("left", left))
        ],
        help="after each epoch, by the scores so far",
        x="epoch",
    )


def _drift(past: LimHistory) -> dict:
    """How far weights move from one epoch's end to the next."""
    x = rounded(np.arange(1.0, past.weight_NE.shape[1] + 1))
    moved_E = np.abs(np.diff(past.weight_NE, axis=1)).mean(axis=0)
    share_NE = past.weight_NE / past.weight_NE.sum(axis=0)
    # Half the sum of absolute differences: the share of draws that goes elsewhere.
    shifted_E = np.abs(np.diff(share_NE, axis=1)).sum(axis=0) / 2
    return chart(
        "Drift of the weights",
        [
            {"label": name, "group": None, "x": x, "y": rounded(y)}
            for name, y in (
                ("mean |change of a weight|", np.append(np.nan, moved_E)),
                ("draws that move to other problems", np.append(np.nan, shifted_E)),
            )
        ],
        help="from one epoch's end to the next",
        x="epoch",
        share=True,
    )


def summary(past: LimHistory, run: ReportRun) -> list[str]:
    """What the scores come to, in words."""
    score_N = past.score_NE[:, -1]
    scored = int(np.isfinite(score_N).sum())
    kept = int(past.keep_NE[:, -1].sum())
    never = past.keep_NE[:, -1] & (past.value_NE.max(axis=1) <= 0)
    epochs = past.score_NE.shape[1]
    done = metrics.number(run.rows[-1], "epoch")
    under_way = ", the last of them under way" * (done is not None and done < epochs)
    lines = [
        f"{kept:,} of {scored:,} problems score {past.threshold:g} or more after "
        f"{epochs} epoch{'s' * (epochs > 1)}{under_way}; mean score "
        f"{score_N[np.isfinite(score_N)].mean():.3f}."
    ]
    if never.any():
        lines.append(
            f"{int(never.sum()):,} of the kept were never solved: where r_avg is below "
            ".387, LIM's rule keeps what nobody can solve (algorithms/lim.py)."
        )
    section = run.config.get("sampler")
    name = section.get("name") if isinstance(section, Mapping) else None
    if name != "lim":
        lines.append(
            f"This run drew by {name!r}: these are the weights that LIM would have "
            "given, and nobody drew by them."
        )
    elif dict(load.leaves(run.config)).get("sampler.lim.scores"):
        lines.append(
            "This run drew by the scores of a file, from its first step on: these are "
            "the scores of its own rewards, and nobody drew by them."
        )
    return lines


def moved(past: LimHistory) -> tuple[list[list], int]:
    """(rows, how many more): which problems entered or left, by epoch, as texts.

    A row: epoch, "entered" or "left", id, the score before and after.
    """
    rows = []
    for k in range(1, past.score_NE.shape[1]):
        for word, of_N in (
            ("entered", past.keep_NE[:, k] & ~past.keep_NE[:, k - 1]),
            ("left", ~past.keep_NE[:, k] & past.keep_NE[:, k - 1]),
        ):
            rows += [
                [
                    k + 1,
                    word,
                    past.ids[n],
                    *rounded(past.score_NE[n, k - 1 : k + 1]),
                ]
                for n in np.flatnonzero(of_N)
            ]
    return rows[:_MOST_LISTED], max(0, len(rows) - _MOST_LISTED)


def by_problem(past: LimHistory, ids: Sequence[str]) -> list[list]:
    """[score, weight, first and last known reward] of each id; empty of an unknown."""
    place = {name: n for n, name in enumerate(past.ids)}
    rows = []
    for name in ids:
        n = place.get(name)
        if n is None or not past.known_NE[n].any():
            rows.append([])
            continue
        known = past.value_NE[n][past.known_NE[n]]
        ends = [past.score_NE[n, -1], past.weight_NE[n, -1], known[0], known[-1]]
        rows.append(rounded(map(float, ends)))
    return rows
