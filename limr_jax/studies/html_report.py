"""One HTML page of a run, or of several beside one another; nothing else is loaded.

What a policy wrote, and every name, is text: escaped, on a page without a script.
"""

import html
import io
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np

from limr_jax.config import load
from limr_jax.config.diff import differences
from limr_jax.errors import InputError
from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.workdir import read_kernels, read_result, read_run
from limr_jax.studies import ablation, plots

_LONGEST = 2000  # characters of a prompt or a response that are shown
_STYLE = """
body { font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: left; }
td.n { text-align: right; }
pre { background: #f4f4f4; padding: .6em; white-space: pre-wrap; }
pre { overflow-wrap: anywhere; }
svg { max-width: 100%; height: auto; }
"""
# Heading → (which of `ablation.before_and_after`, the number in it).
_EVALS = {
    "accuracy before": (0, "accuracy"),
    "accuracy after": (1, "accuracy"),
    "well formed after": (1, "well_formed"),
    "tokens before": (0, "response_length"),
    "tokens after": (1, "response_length"),
}


def page(workdirs: Sequence, *, samples: int) -> str:
    """The page of these runs, finished or going on, as HTML.

    The others' settings are compared with the first one's. samples: how many rollouts
    of each run's first and last step are shown. Raises InputError where there is no
    run, or it has no step yet.
    """
    runs = {}
    for workdir in workdirs:
        name = str(workdir)
        if name in runs:
            raise InputError(f"{name} is named twice; name each run once")
        rows = list(metrics.read_metrics(workdir))
        stored = read_run(workdir).get("config")
        # An evaluation's run.json has no config.
        if not rows or not isinstance(stored, Mapping):
            raise InputError(
                f"{name} has no step of a run yet that can be read; wait for one"
            )
        runs[name] = rows, stored
    title = "limr_jax: " + ", ".join(runs)
    parts = [f"<h1>{_text(title)}</h1>", _missing(runs), _overview(runs)]
    parts += [_curves(runs), _levels(runs), _kernels(runs), _settings(runs)]
    for name, (rows, _) in runs.items():
        steps = sorted({rows[0]["step"], rows[-1]["step"]})
        parts.append(f"<h2>Rollouts of {_text(name)}</h2>")
        parts += [_rollouts(name, step, samples) for step in steps]
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def _missing(runs: Mapping) -> str:
    """A list of what in the runs' files cannot be read; empty where all can be."""
    unreadable = []
    for name in runs:
        for file in (metrics.METRICS, metrics.EVALS):
            if count := metrics.damaged_lines(name, file):
                unreadable.append(f"{name}/{file}: {count} lines cannot be read")
        _, complaint = _result(name)
        unreadable += [complaint] if complaint else []
    items = "".join(f"<li>{_text(each)}</li>" for each in unreadable)
    return f"<h2>Missing</h2><ul>{items}</ul>" if unreadable else ""


def _result(workdir) -> tuple[dict, str | None]:
    """A run's result (empty without one), and why it cannot be read."""
    try:
        return read_result(workdir) or {}, None
    except InputError as error:
        return {}, str(error)


def _overview(runs: Mapping) -> str:
    head = ["run", "steps", *_EVALS, "pass rate of the last step", "seconds"]
    table = []
    for name, (rows, stored) in runs.items():
        evals = ablation.before_and_after(name)
        result, _ = _result(name)
        cells = [_number(evals[at], figure) for at, figure in _EVALS.values()]
        table.append(
            [name, f"{rows[-1]['step']} of {stored.get('num_steps')}", *cells]
            + [_number(rows[-1], "pass_rate"), _number(result, "seconds")]
        )
    return "<h2>Results</h2>" + _table(head, table)


def _curves(runs: Mapping) -> str:
    figure = plots.learning_curves({name: [name] for name in runs})
    text = io.StringIO()
    # Text as text: an outline for each letter would be most of the page.
    # Ids and date are fixed: the same runs make the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "limr_jax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return (
        # From the element on: the XML declaration before it has no place in HTML.
        "<h2>Learning curves</h2>\n" + text.getvalue()[text.getvalue().index("<svg") :]
    )


def _levels(runs: Mapping) -> str:
    """Held-out accuracy by level, before and after."""
    prefix = "accuracy_level_"
    table, levels = [], {}
    for name in runs:
        for when, row in zip(("before", "after"), ablation.before_and_after(name)):
            # A run that has just begun has no policy after.
            if not row:
                continue
            at = {x.removeprefix(prefix): row[x] for x in row if x.startswith(prefix)}
            # A dict, as a set in order: runs may have been evaluated on other levels.
            levels |= dict.fromkeys(at)
            table.append((name, f"{when}, step {row['step']}", at))
    if not levels:
        return ""
    rows = [
        [name, when, *(_number(at, level) for level in levels)]
        for name, when, at in table
    ]
    head = ["run", "", *(f"level {level}" for level in levels)]
    return "<h2>Held-out accuracy by level</h2>" + _table(head, rows)


def _kernels(runs: Mapping) -> str:
    """What each run's start found of the kernels of attention, where any fitted."""
    table = []
    for name in runs:
        try:
            rows = read_kernels(name)
        except InputError as error:
            table.append([name, "", str(error), "", ""])
            continue
        table += [
            [name, row.get("kernel", ""), row.get("rows", "")]
            + [_number(row, "gap"), row.get("fault") or "taken"]
            for row in rows
        ]
    if not table:
        return ""
    head = ["run", "kernel", "rows", "gap to XLA's attention", "outcome"]
    return "<h2>Kernels</h2>" + _table(head, table)


def _settings(runs: Mapping) -> str:
    """How the configs differ from the first one's, and that one whole."""
    (first, (_, stored)), *others = runs.items()
    parts = ["<h2>Settings</h2>"]
    for name, (_, other) in others:
        fields = differences(stored, other) or ["no field"]
        listed = "".join(f"<li>{_text(field)}</li>" for field in fields)
        parts.append(f"<p>{_text(first)} → {_text(name)}:</p><ul>{listed}</ul>")
    fields = "\n".join(f"{name} = {value!r}" for name, value in load.leaves(stored))
    parts.append(
        f"<details><summary>All fields of {_text(first)}</summary>"
        f"<pre>{_text(fields)}</pre></details>"
    )
    return "\n".join(parts)


def _rollouts(workdir, step: int, samples: int) -> str:
    """Some of one step's rollouts, the same ones each time."""
    rows = list(rollout_dump.read_dump(workdir, steps={step}))
    if not rows:
        return f"<p>The dump holds no rollouts of step {step}.</p>"
    chosen = np.random.default_rng(0).permutation(len(rows))[:samples]
    parts = [f"<h3>Step {step}</h3>"]
    for row in (rows[i] for i in sorted(chosen)):
        grade = ", ".join(
            f"{name} {row[name]}"
            for name in ("reward", "correct", "valid", "truncated", "length")
            if name in row
        )
        who, sample = (_text(row.get(name, "–")) for name in ("id", "sample"))
        texts = (_prompt(row.get("prompt", "–")), row.get("response", "–"))
        parts.append(f"<p>{who}, sample {sample}: {_text(grade)}</p>")
        parts += [f"<pre>{_text(text)}</pre>" for text in texts]
    return "\n".join(parts)


def _prompt(prompt) -> str:
    """A prompt that is a chat as its contents, one after another."""
    if not isinstance(prompt, list):
        return str(prompt)
    contents = (x.get("content") if isinstance(x, dict) else x for x in prompt)
    return "\n\n".join(map(str, contents))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<tr>" + "".join(f"<th>{_text(x)}</th>" for x in head) + "</tr>"]
    for first, *cells in rows:
        numbers = "".join(f'<td class="n">{_text(cell)}</td>' for cell in cells)
        lines.append(f"<tr><td>{_text(first)}</td>{numbers}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _number(row: Mapping, name: str) -> str:
    value = metrics.number(row, name)
    return "–" if value is None else f"{value:.4g}"


def _text(value) -> str:
    """Text that stays text: escaped, without control characters, and not too long."""
    text = str(value)
    # Cut first and escaped then, or a cut might go through an &lt;.
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}… ({len(text) - _LONGEST:,} characters more)"
    shown = (
        # Else control characters, marks of direction, halves of characters.
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
    return html.escape("".join(shown))
