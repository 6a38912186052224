"""A comparison of arms on disk: a page, its numbers as JSON and CSV, a picture."""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from limr_jax import ablation, files, jobs, metrics, picture
from limr_jax.ablation import FIGURES
from limr_jax.randomness import stream_key

PICTURE = "curves.png"
_SHOWN = ("accuracy", "response_length", "well_formed", "step_seconds", "seconds")
_WITH_DIFFERENCE = ("accuracy", "response_length", "step_seconds")


def write(
    stem: pathlib.Path,
    made: Mapping[tuple[str, int], jobs.Job],
    *,
    title: str,
    command: str,
    notes: Sequence[str] = (),
    figures: Callable[[jobs.Job], dict] = lambda job: ablation.figures(job.workdir),
) -> dict:
    """Write <stem>.md, .json and .csv, each whole; returns what the JSON holds.

    made: (arm, seed) → its run, finished or not; the first arm is compared with.
    """
    runs = [_ran(job, stem.parent, *place, figures) for place, job in made.items()]
    arms = list(dict.fromkeys(arm for arm, _ in made))
    said = {"title": title, "command": command} | ablation.summary(
        runs, arms, stream_key(0, "bootstrap")
    )
    for suffix, text in (
        (".md", markdown(said, notes)),
        (".json", json.dumps(said, indent=2, allow_nan=False) + "\n"),
        (".csv", table(said["runs"])),
    ):
        files.write_text(stem.with_suffix(suffix), text)
    return said


def finish(stem: pathlib.Path, made: Mapping[tuple[str, int], jobs.Job], said) -> int:
    """Draw the curves, say the table and one JSON line; returns the exit code."""
    workdirs: dict[str, list] = {}
    for (arm, _), job in made.items():
        if job.done():
            workdirs.setdefault(arm, []).append(job.workdir)
    picture.save(picture.learning_curves(workdirs), stem.with_name(PICTURE))
    metrics.say(markdown(said, ()).partition("## ")[0].strip())
    failed = sum(run["error"] is not None for run in said["runs"])
    told = {name: said[name] for name in ("arms", "resolvable")}
    metrics.say(json.dumps(told | {"failed": failed, "out": str(stem.parent)}))
    return 1 if failed else 0


def line(job: jobs.Job) -> str:
    """What a finished run came to, for the progress."""
    made = ablation.figures(job.workdir)
    return (
        f"accuracy {made['accuracy_before']:.1%} → {made['accuracy']:.1%} "
        f"in {made['seconds']:.0f} s"
    )


def _ran(job: jobs.Job, out, arm: str, seed: int, figures) -> ablation.Ran:
    starts = [row for row in jobs.read_record(job) if "commit" in row]
    commits = [
        (row["commit"] or "no git")[:12] + (" dirty" if row["dirty"] else "")
        for row in starts
    ]
    return ablation.Ran(
        arm=arm,
        seed=seed,
        folder=str(job.workdir.relative_to(out)),
        command=job.as_typed(),
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


def markdown(said: Mapping, notes: Sequence[str]) -> str:
    """The summary as a page: one row an arm, what failed, and every run's command."""
    arms = said["arms"]
    first = next(iter(arms))
    before = arms[first]
    head = ["arm", "seeds"]
    for name in _SHOWN:
        head.append(FIGURES[name][0])
        if name in _WITH_DIFFERENCE:
            head.append(f"− {first}")
    head += [FIGURES["rollouts"][0]]
    lines = [
        f"# {said['title']}",
        f"`{said['command']}`",
        f"Before training: accuracy {_shown(before['accuracy_before'], 100, 1)} %, "
        f"{_shown(before['response_length_before'], 1, 1)} tokens a response. In "
        "brackets: the 95 % bootstrap interval over seeds, which is too narrow where "
        f"seeds are few. A difference is to {first}, paired by seed.",
        _rows(head, (_arm(name, arm) for name, arm in arms.items())),
    ]
    if (smallest := said["resolvable"]["accuracy"]) is not None:
        lines.append(
            f"These seeds show a true difference in accuracy of {100 * smallest:.1f} "
            "points or more with a chance of 80 % (paired t-test at 5 %)."
        )
    lines += [*notes, f"![learning curves]({PICTURE})"]
    failed = [run for run in said["runs"] if run["error"]]
    if failed:
        lines.append("Failed, and not counted:")
        lines.append(
            "\n".join(f"* {x['arm']}, seed {x['seed']}: {x['error']}" for x in failed)
        )
    lines += ["## Every run", _runs(said["runs"])]
    return "\n\n".join(lines) + "\n"


def _arm(name: str, arm: Mapping) -> list[str]:
    cells = [name, str(arm["accuracy"]["seeds"])]
    for figure in _SHOWN:
        _, unit, digits = FIGURES[figure]
        cells.append(_shown(arm[figure], unit, digits))
        if figure in _WITH_DIFFERENCE:
            cells.append(_shown(arm[figure]["difference"], unit, digits, sign="+"))
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
            [run["arm"], str(run["seed"]), *cells, commits, f"`{run['command']}`"]
        )
    return _rows(head, rows)


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells):
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def _shown(figure: Mapping | None, unit: float, digits: int, sign: str = "") -> str:
    """'62.5 [60.1, 64.9]'; '–' where there is no number."""
    if figure is None or figure["mean"] is None:
        return "–"
    form = f"{sign}.{digits}f"
    mean = format(figure["mean"] * unit, form)
    if figure["low"] is None:
        return mean
    low, high = (format(figure[name] * unit, form) for name in ("low", "high"))
    return f"{mean} [{low}, {high}]"
