"""A comparison of arms on disk: a Markdown page, numbers as JSON and CSV, a plot."""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from limr_jax import console
from limr_jax.storage import files
from limr_jax.studies import ablation, jobs, plots
from limr_jax.studies import markdown as md
from limr_jax.studies.ablation import FIGURES

CURVES_FILE = "curves.png"
_SHOWN = ("accuracy", "response_length", "well_formed", "step_seconds", "seconds")
# Where arms are compared at equal generated tokens.
_AT_TOKENS = ("accuracy_at_tokens", "accuracy_area", "signal_rate", *_SHOWN)
_WITH_DIFFERENCE = (
    "accuracy_at_tokens",
    "accuracy_area",
    "signal_rate",
    "accuracy",
    "response_length",
    "step_seconds",
)


def write(
    stem: pathlib.Path,
    grid: Mapping[tuple[str, int], jobs.Job],
    *,
    title: str,
    command: str,
    notes: Sequence[str] = (),
    figures: Callable[[jobs.Job], dict] = lambda job: ablation.figures(job.workdir),
    tokens: int = 0,
) -> dict:
    """Write <stem>.md, .json and .csv, each whole; returns what the JSON holds.

    grid: (arm, seed) → its run, finished or not; differences are to the first arm.
    notes: paragraphs of Markdown. figures: of a finished run, `ablation.FIGURES`.
    tokens: generated ones at which arms are compared, and tested; 0: at their ends.
    """
    runs = [
        _record(job, stem.parent, arm=arm, seed=seed, figures=figures)
        for (arm, seed), job in grid.items()
    ]
    arms = list(dict.fromkeys(arm for arm, _ in grid))
    summary = {"title": title, "command": command, "tokens": tokens}
    summary |= ablation.summary(runs, arms)
    for suffix, text in (
        (".md", markdown(summary, notes)),
        (".json", json.dumps(summary, indent=2, allow_nan=False) + "\n"),
        (".csv", table(summary["runs"])),
    ):
        files.write_text(stem.with_suffix(suffix), text)
    return summary


def finish(stem: pathlib.Path, grid: Mapping[tuple[str, int], jobs.Job], written):
    """Draw the curves, print the table and one JSON line; returns the exit code.

    written: what `write` returned for the same grid.
    """
    workdirs: dict[str, list] = {}
    for (arm, _), job in grid.items():
        if job.done():
            workdirs.setdefault(arm, []).append(job.workdir)
    curves = plots.learning_curves(workdirs, tokens=written["tokens"])
    plots.save(curves, stem.with_name(CURVES_FILE))
    # Without the list of runs.
    console.say(markdown(written, ()).partition("## ")[0].strip())
    failed = sum(run["error"] is not None for run in written["runs"])
    statistics = {name: written[name] for name in ("arms", "comparisons", "resolvable")}
    console.say(json.dumps(statistics | {"failed": failed, "out": str(stem.parent)}))
    return 1 if failed else 0


def progress_line(job: jobs.Job) -> str:
    """A finished run's accuracy before and after, and its seconds."""
    figures = ablation.figures(job.workdir)
    return (
        f"accuracy {figures['accuracy_before']:.1%} → {figures['accuracy']:.1%} "
        f"in {figures['seconds']:.0f} s"
    )


def _record(
    job: jobs.Job, out: pathlib.Path, *, arm: str, seed: int, figures
) -> ablation.RunRecord:
    starts = [row for row in jobs.read_record(job) if "commit" in row]
    commits = [
        (row["commit"] or "no git")[:12] + (" dirty" if row["dirty"] else "")
        for row in starts
    ]
    return ablation.RunRecord(
        arm=arm,
        seed=seed,
        folder=str(job.workdir.relative_to(out)),
        command=job.as_typed(),
        # Each once, in the order of the starts.
        commits=tuple(dict.fromkeys(commits)),
        figures=figures(job) if job.done() else None,
        error=jobs.failure(job),
    )


def table(runs: Sequence[Mapping]) -> str:
    """One line of CSV a run, with every figure in its own unit."""
    text = io.StringIO()
    names = ["arm", "seed", *FIGURES, "commits", "error", "command"]
    rows = csv.DictWriter(text, names)
    rows.writeheader()
    for run in runs:
        row = {name: run[name] for name in ("arm", "seed", "error", "command")}
        row |= {"commits": ", ".join(run["commits"])}
        rows.writerow(row | (run["figures"] or {}))
    return text.getvalue()


def markdown(summary: Mapping, notes: Sequence[str]) -> str:
    """The summary as a page: one row an arm, what failed, and every run's command."""
    arms = summary["arms"]
    first = next(iter(arms))
    before = arms[first]
    tokens, tested = summary["tokens"], _tested(summary)
    head = ["arm", "seeds"]
    for name in _shown_figures(summary):
        head.append(FIGURES[name][0])
        if name in _WITH_DIFFERENCE:
            head.append(f"− {first}")
        if name == tested:
            head.append("p, Holm")
    head += [FIGURES["rollouts"][0]]
    lines = [
        f"# {md.text(summary['title'])}",
        md.code(summary["command"]),
        f"Before training: accuracy {shown(before['accuracy_before'], 100, 1)} %, "
        f"{shown(before['response_length_before'], 1, 1)} tokens a response. In "
        "brackets: the 95 % interval over seeds, Student's t. A difference is to "
        f"{md.text(first)}, paired by seed."
        + f" Equal tokens are {tokens:,} generated in training."
        * (tokens > 0),
        md.table(head, (_arm(name, arm, summary) for name, arm in arms.items())),
        *_verdict(summary, first),
        *_too_few_tokens(summary),
    ]
    lines += [*notes, f"![learning curves]({CURVES_FILE})"]
    failed = [run for run in summary["runs"] if run["error"]]
    if failed:
        lines.append("Failed, and not counted:")
        lines.append(
            "\n".join(
                f"* {md.text(x['arm'])}, seed {x['seed']}: {md.text(x['error'])}"
                for x in failed
            )
        )
    lines += ["## Every run", _runs(summary["runs"])]
    return "\n\n".join(lines) + "\n"


def _shown_figures(summary: Mapping) -> tuple[str, ...]:
    return _AT_TOKENS if summary["tokens"] else _SHOWN


def _tested(summary: Mapping) -> str:
    """The figure whose differences are tested together."""
    return "accuracy_at_tokens" if summary["tokens"] else "accuracy"


def _verdict(summary: Mapping, first: str) -> list[str]:
    """Which differences in accuracy hold, of how many; what so many seeds can show."""
    tested = _tested(summary)
    lines, count = [], summary["comparisons"][tested]
    if count:
        differences = {
            name: arm[tested]["difference"]
            for name, arm in summary["arms"].items()
            if name != first
        }
        holding = [
            name
            for name, x in differences.items()
            if x["p_holm"] is not None and x["p_holm"] < 0.05
        ]
        lines.append(
            f"{count} difference{'s' * (count > 1)} in accuracy to "
            f"{md.text(first)} "
            f"{'are' if count > 1 else 'is'} tested (paired t-test, p adjusted by "
            f"Holm's step-down); below .05: "
            f"{', '.join(map(md.text, holding)) or 'none'}. The "
            "intervals are each for itself."
        )
    if (smallest := summary["resolvable"][tested]) is not None:
        lines.append(
            f"These seeds show a true difference in accuracy of {100 * smallest:.1f} "
            "points or more with a chance of 80 % (one paired t-test at 5 %)."
        )
    return lines


def _too_few_tokens(summary: Mapping) -> list[str]:
    """Which arms have runs that ended before so many tokens: they make no pair."""
    short = []
    for name, arm in summary["arms"].items():
        ran, compared = arm["accuracy"]["seeds"], arm["accuracy_at_tokens"]["seeds"]
        if summary["tokens"] and compared < ran:
            short.append(f"{md.text(name)} ({ran - compared} of {ran})")
    if not short:
        return []
    return [
        f"Ended before {summary['tokens']:,} tokens, and not compared there: "
        f"{', '.join(short)}. Which runs those are depends on how long their responses "
        "are: raise num_steps, or lower --tokens."
    ]


def _arm(name: str, arm: Mapping, summary: Mapping) -> list[str]:
    cells = [name, str(arm[_tested(summary)]["seeds"])]
    for figure in _shown_figures(summary):
        _, unit, digits = FIGURES[figure]
        cells.append(shown(arm[figure], unit, digits))
        if figure in _WITH_DIFFERENCE:
            cells.append(shown(arm[figure]["difference"], unit, digits, sign="+"))
        if figure == _tested(summary):
            cells.append(holm_p(arm[figure]["difference"]))
    mean = arm["rollouts"]["mean"]
    return [*cells, "–" if mean is None else f"{mean:,.0f}"]


def _runs(runs: Iterable[Mapping]) -> str:
    names = ("accuracy", "response_length", "seconds")
    head = ["arm", "seed", *(FIGURES[name][0] for name in names), "commit", "command"]
    rows = []
    for run in runs:
        values = run["figures"] or dict.fromkeys(names)
        cells = [
            "–" if values[name] is None else f"{values[name] * unit:.{digits}f}"
            for name in names
            for _, unit, digits in [FIGURES[name]]
        ]
        commits = ", ".join(run["commits"])
        rows.append(
            [run["arm"], str(run["seed"]), *cells, commits, md.code(run["command"])]
        )
    return md.table(head, rows)


def shown(figure: Mapping | None, unit: float, digits: int, sign: str = "") -> str:
    """'62.5 [60.1, 64.9]'; '–' where there is no number."""
    if figure is None or figure["mean"] is None:
        return "–"
    form = f"{sign}.{digits}f"
    mean = format(figure["mean"] * unit, form)
    if figure["low"] is None:
        return mean
    low, high = (format(figure[name] * unit, form) for name in ("low", "high"))
    return f"{mean} [{low}, {high}]"


def holm_p(difference: Mapping | None) -> str:
    """Holm's p: '.021', '< .001'; '–' where there is none."""
    if difference is None or difference["p_holm"] is None:
        return "–"
    p = difference["p_holm"]
    return "< .001" if p < 0.001 else f"{p:.3f}".replace("0.", ".", 1)
