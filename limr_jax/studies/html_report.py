"""One HTML page of a run, or of several beside one another; nothing else is loaded.

The page has a verdict in words, tables and a few rollouts as HTML. Its script, whose
libraries are within it, draws the charts and the table of all rollouts from data that
is packed as base64. What a policy or a data set wrote, and every name, is text: escaped
in the HTML, a text node in what the script makes, and the page's own policy forbids to
load or to send anything.
"""

import base64
import collections
import hashlib
import html
import importlib.resources
import io
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import matplotlib

from limr_jax.config import load
from limr_jax.errors import InputError
from limr_jax.storage import metrics
from limr_jax.studies import (
    ablation,
    html_report_curves,
    html_report_lim,
    html_report_rollouts,
    html_report_verdict,
    plots,
)
from limr_jax.studies.html_report_rollouts import RunRollouts, cut, pack
from limr_jax.studies.html_report_runs import (
    ReportRun,
    RunGroup,
    groups,
    read_run_files,
    setting_differences,
    short_names,
)

ROLLOUTS = 50_000  # of a page, unless it is told otherwise
_LONGEST = 2000  # characters of a text in the HTML
# Scripts in the page's order, each with the licence of what is not this project's.
_SCRIPTS = {
    "uplot.js": ("LICENSE.uplot.txt",),
    "tanstack_table.js": ("LICENSE.tanstack.txt", "LICENSE.tanstack-store.txt"),
    "temml.js": ("LICENSE.temml.txt",),
    "report.js": (),
}
_STYLES = ("uplot.css", "report.css")
# Heading → (which of `ablation.before_and_after`, the number in it).
_EVALS = {
    "accuracy before": (0, "accuracy"),
    "accuracy after": (1, "accuracy"),
    "well formed after": (1, "well_formed"),
    "tokens before": (0, "response_length"),
    "tokens after": (1, "response_length"),
}


def page(
    workdirs: Sequence, *, samples: int, rollouts: int = ROLLOUTS, live: str = ""
) -> str:
    """The page of these runs, finished or going on, as HTML.

    The others' settings are compared with the first one's; runs that differ in the seed
    only are one group. Raises InputError where there is no run, or it has no step yet.

    samples: how many rollouts of each run's first and last step are there without a
      script. rollouts: how many there are with one, at most, evenly over the steps.
    live: the page's version, by which it asks its server for a newer one; empty: it
      asks nobody.
    """
    names = [str(workdir) for workdir in workdirs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name} is named twice; name each run once")
    runs = [read_run_files(workdir) for workdir in workdirs]
    dumps = {
        run.name: html_report_rollouts.read_rollouts(run.name, keep=_end_steps(run))
        for run in runs
    }
    by_seed = groups(runs)
    title = "limr_jax: " + ", ".join(names)
    lims = {run.name: html_report_lim.history(run, dumps[run.name]) for run in runs}
    parts = [
        f"<h1>{_text(title)}</h1>",
        _NAVIGATION,
        _verdict(by_seed, dumps),
        _missing(runs, dumps),
        _overview(runs),
        _levels(runs),
        f'<div class="nojs">{_curves(by_seed)}</div>',
        '<div id="charts" class="js"></div>',
        _lim(runs, lims),
        '<div id="draws" class="js"></div>',
        _ROLLOUT_TABLE,
        '<div class="nojs">',
        *(_samples(run, dumps[run.name], samples) for run in runs),
        "</div>",
        _kernels(runs),
        _compiled(runs),
        _settings(runs),
    ]
    data = _data(runs, by_seed, dumps, lims=lims, rollouts=rollouts, live=live)
    return _document(title, parts, data, live=live)


_NAVIGATION = """<nav aria-label="Sections"><a href="#verdict">Verdict</a>
<a href="#results">Results</a> <a href="#charts" class="js">Charts</a>
<a href="#lim">LIM</a> <a href="#draws" class="js">Draws</a>
<a href="#rollouts">Rollouts</a> <a href="#settings">Settings</a></nav>
<p class="js" id="state" role="status"></p>"""
_ROLLOUT_TABLE = """<section id="rollouts"><h2>Rollouts</h2>
<div id="table" class="js"></div></section>"""


def _document(title: str, parts: Iterable[str], data: str, *, live: str) -> str:
    web = importlib.resources.files("limr_jax.assets") / "web"

    def asset(name: str) -> str:
        return (web / name).read_text(encoding="utf-8").replace("\r\n", "\n")

    scripts = []
    for name, licences in _SCRIPTS.items():
        notices = "".join(f"/*! {name}\n{asset(each)}*/\n" for each in licences)
        scripts.append(notices + asset(name))
    # Only these scripts run, whatever else the page might come to hold.
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(x).decode()}'" for x in digests)
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'" + "; connect-src 'self'" * bool(live)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_plain_text(title)}</title>"
        f"<style>{''.join(map(asset, _STYLES))}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + data
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body></html>\n"
    )


def _data(
    runs: Sequence[ReportRun],
    by_seed: Sequence[RunGroup],
    dumps: Mapping[str, RunRollouts],
    *,
    lims: Mapping,
    rollouts: int,
    live: str,
) -> str:
    """The page's data for its script: elements that hold base64 alone."""
    labels = short_names([run.name for run in runs])
    sections = [
        {"title": title, "into": "charts", "charts": charts}
        for title, charts in html_report_curves.step_charts(by_seed).items()
    ]
    drawn: dict[str, list] = {}
    for run, label in zip(runs, labels):
        charts = html_report_curves.draw_charts(label, dumps[run.name])
        for title, each in charts.items():
            drawn.setdefault(title, []).extend(each)
        if not isinstance(past := lims[run.name], str):
            for each in html_report_lim.charts(past):
                each["title"] = f"{label}: {each['title']}"
                into = {"title": "", "into": f"lim-{labels.index(label)}"}
                sections.append(into | {"charts": [each]})
    sections += [
        {"title": f"What was drawn: {title}", "into": "draws", "charts": charts}
        for title, charts in drawn.items()
    ]
    chosen = html_report_rollouts.shown_chunks([*dumps.values()], most=rollouts)
    tables = []
    for run, label, chunks in zip(runs, labels, chosen):
        dump = dumps[run.name]
        table = html_report_rollouts.table(dump, chunks) | {"run": label}
        past = lims[run.name]
        if not isinstance(past, str):
            ids = [problem[0] for problem in table["problems"]]
            table["lim"] = html_report_lim.by_problem(past, ids)
        tables.append(table)
    names = html_report_curves.every_number(runs)
    numbers = {name: html_report_curves.numbers(by_seed, name) for name in names}
    packed = {
        "summary": {
            "sections": sections,
            "groups": [group.label for group in by_seed],
            "live": live,
        },
        "rollout-columns": tables,
        "numbers": {name: series for name, series in numbers.items() if series},
    }
    elements = [_element(name, pack(value)) for name, value in packed.items()]
    for at, (run, chunks) in enumerate(zip(runs, chosen)):
        elements += [
            _element(f"texts-{at}-{n}", dumps[run.name].chunks[c])
            for n, c in enumerate(chunks)
        ]
    return "".join(elements)


def _element(name: str, data: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{data.decode()}</script>\n'


def _end_steps(run: ReportRun) -> set[int]:
    return {run.rows[0]["step"], run.rows[-1]["step"]}


def _verdict(by_seed: Sequence[RunGroup], dumps: Mapping[str, RunRollouts]) -> str:
    parts = ['<section id="verdict"><h2>Verdict</h2>']
    for group in by_seed:
        word, sentences = html_report_verdict.group_verdict(group, dumps)
        first, *others = sentences
        more = "".join(f"<p>{_text(each)}</p>" for each in others)
        parts.append(
            f'<div class="verdict {word}"><h3>{_text(group.label)}</h3>'
            f"<p><strong>{_text(first)}</strong></p>{more}</div>"
        )
    if compared := html_report_verdict.comparisons(by_seed):
        parts.append(_list(compared))
    parts.append("<h3>What went wrong</h3>")
    fine = []
    for group in by_seed:
        for run in group.runs:
            if lines := html_report_verdict.troubles(run):
                parts.append(f"<p>{_text(run.name)}</p>{_list(lines)}")
            else:
                fine.append(run.name)
    if fine:
        parts.append(
            f"<p>Nothing was found in {_text(', '.join(fine))}. Looked for were "
            f"warnings of the run, and {html_report_verdict.CHECKED}.</p>"
        )
    return "\n".join(parts) + "</section>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul>"


def _missing(runs: Sequence[ReportRun], dumps: Mapping[str, RunRollouts]) -> str:
    """A list of what in the runs' files cannot be read; empty where all can be.

    And of rollouts that the dump lacks: damaged, or more than `dump.max_bytes`.
    """
    unreadable = []
    for run in runs:
        unreadable += run.missing
        rows_per_step = metrics.number(
            dict(load.leaves(run.config)), "dump.rows_per_step"
        )
        there = collections.Counter(dumps[run.name].step_R.tolist())
        short = [
            row["step"]
            for row in run.rows
            # A line that does not say how many asks for one at least.
            if there[row["step"]]
            < min(metrics.number(row, "rollouts") or 1, rows_per_step or math.inf)
        ]
        if short:
            unreadable.append(
                f"{run.name}/rollouts: lacks rollouts of {len(short):,} of "
                f"{len(run.rows):,} steps, first {short[0]:,}; what is below, LIM's "
                "scores too, is of those that are there"
            )
    return f"<h2>Missing</h2>{_list(unreadable)}" if unreadable else ""


def _overview(runs: Sequence[ReportRun]) -> str:
    head = ["run", "steps", *_EVALS, "pass rate of the last step", "seconds"]
    table = []
    for run in runs:
        evals = ablation.before_and_after(run.name)
        cells = [_number(evals[at], figure) for at, figure in _EVALS.values()]
        table.append(
            [run.name, f"{run.rows[-1]['step']} of {run.config.get('num_steps')}"]
            + cells
            + [_number(run.rows[-1], "pass_rate"), _number(run.result, "seconds")]
        )
    return '<h2 id="results">Results</h2>' + _table(head, table)


def _curves(by_seed: Sequence[RunGroup]) -> str:
    figure = plots.learning_curves(
        {group.label: [run.name for run in group.runs] for group in by_seed}
    )
    text = io.StringIO()
    # Text as text: an outline for each letter would be most of the page.
    # Ids and date are fixed: the same runs make the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "limr_jax"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return (
        # From the element on: the XML declaration before it has no place in HTML.
        "<h2>Learning curves</h2>\n" + text.getvalue()[text.getvalue().index("<svg") :]
    )


def _levels(runs: Sequence[ReportRun]) -> str:
    """Held-out accuracy by level, before and after."""
    prefix = "accuracy_level_"
    table, levels = [], {}
    for run in runs:
        ends = ablation.before_and_after(run.name)
        for when, row in zip(("before", "after"), ends):
            # A run that has just begun has no policy after.
            if not row:
                continue
            at = {x.removeprefix(prefix): row[x] for x in row if x.startswith(prefix)}
            # A dict, as a set in order: runs may have been evaluated on other levels.
            levels |= dict.fromkeys(at)
            table.append((run.name, f"{when}, step {row['step']}", at))
    if not levels:
        return ""
    rows = [
        [name, when, *(_number(at, level) for level in levels)]
        for name, when, at in table
    ]
    head = ["run", "", *(f"level {level}" for level in levels)]
    return "<h2>Held-out accuracy by level</h2>" + _table(head, rows)


def _lim(runs: Sequence[ReportRun], lims: Mapping) -> str:
    """What LIM's scores come to; charts go where the script finds the run's place."""
    parts = ['<section id="lim"><h2>LIM</h2>']
    for at, run in enumerate(runs):
        parts.append(f"<h3>{_text(run.name)}</h3>")
        past = lims[run.name]
        if isinstance(past, str):
            parts.append(f"<p>{_text(past)}</p>")
            continue
        parts += [f"<p>{_text(x)}</p>" for x in html_report_lim.summary(past, run)]
        parts.append(f'<div id="lim-{at}" class="charts js"></div>')
        rows, more = html_report_lim.moved(past)
        if rows:
            shown = [
                [f"{epoch}", word, name, _score(before), _score(after)]
                for epoch, word, name, before, after in rows
            ]
            head = ["after epoch", "", "problem", "score before", "score after"]
            parts.append(
                f"<details><summary>Which problems entered and left: {len(rows) + more}"
                f" moves</summary>{_table(head, shown)}"
                + (f"<p>{more:,} moves more.</p>" if more else "")
                + "</details>"
            )
    return "\n".join(parts) + "</section>"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _kernels(runs: Sequence[ReportRun]) -> str:
    """What each run's start found of the kernels of attention, where any fitted."""
    table = []
    for run in runs:
        if run.kernels_fault:
            table.append([run.name, "", run.kernels_fault, "", ""])
        table += [
            [run.name, row.get("kernel", ""), row.get("rows", "")]
            + [_number(row, "gap"), row.get("fault") or "taken"]
            for row in run.kernels
        ]
    if not table:
        return ""
    head = ["run", "kernel", "rows", "gap to XLA's attention", "outcome"]
    return "<h2>Kernels</h2>" + _table(head, table)


def _compiled(runs: Sequence[ReportRun]) -> str:
    """The compile report beside each workdir, and what else launch/tpu.py left there.

    Each is a table of programs, as far as it has them, and all fields as they are.
    """
    parts, table = [], []
    for run in runs:
        programs = run.beside.get("compile", {}).get("programs")
        for row in programs if isinstance(programs, list) else ():
            if isinstance(row, Mapping):
                bounds = row.get("bound_seconds")
                bounds = bounds if isinstance(bounds, Mapping) else {}
                known = [x for n in bounds if (x := metrics.number(bounds, n))]
                longest = f"{max(known):.4g}" if known else "–"
                numbers = [_number(row, x) for x in ("total_gib", "share_of_hbm")]
                names = [row.get(x) or "–" for x in ("limited_by", "error")]
                table.append([run.name, row.get("name"), *numbers, longest, *names])
        for kind, record in run.beside.items():
            fields = "\n".join(
                f"{name} = {value!r}" for name, value in load.leaves(record)
            )
            parts.append(
                f"<details><summary>{_text(run.name)}.{kind}.json</summary>"
                f"<pre>{_text(fields, longest=20 * _LONGEST)}</pre></details>"
            )
    head = ["run", "program", "GiB a chip", "share of HBM", "seconds, at least"]
    head += ["limited by", "error"]
    if table:
        parts.insert(0, _table(head, table))
    return "<h2>Compile report</h2>" + "\n".join(parts) if parts else ""


def _settings(runs: Sequence[ReportRun]) -> str:
    """How the configs differ from the first one's, and that one whole."""
    first, *others = runs
    parts = ['<h2 id="settings">Settings</h2>']
    for other in others:
        fields = setting_differences(first, other)
        parts.append(
            f"<p>{_text(first.name)} → {_text(other.name)}:</p>{_list(fields)}"
        )
    fields = "\n".join(
        f"{name} = {value!r}" for name, value in load.leaves(first.config)
    )
    parts.append(
        f"<details><summary>All fields of {_text(first.name)}</summary>"
        f"<pre>{_text(fields, longest=20 * _LONGEST)}</pre></details>"
    )
    return "\n".join(parts)


def _samples(run: ReportRun, dump: RunRollouts, count: int) -> str:
    """Some rollouts of the first and the last step, as HTML."""
    parts = [f"<h3>Some of {_text(run.name)}</h3>"]
    for step in sorted(_end_steps(run)):
        rows = dump.kept[step]
        if not rows:
            parts.append(f"<p>The dump holds no rollouts of step {step}.</p>")
            continue
        parts.append(f"<h3>Step {step}</h3>")
        for sample in html_report_rollouts.samples(rows, count):
            parts.append(f"<p>{_text(sample['who'])}: {_text(sample['grade'])}</p>")
            texts = (sample["prompt"], sample["response"])
            parts += [f"<pre>{_text(text)}</pre>" for text in texts]
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    titles = "".join(f'<th scope="col">{_text(x)}</th>' for x in head)
    lines = [f"<thead><tr>{titles}</tr></thead><tbody>"]
    for first, *cells in rows:
        numbers = "".join(f'<td class="n">{_text(cell)}</td>' for cell in cells)
        lines.append(f"<tr><td>{_text(first)}</td>{numbers}</tr>")
    # Tables scroll within their own frame, else a narrow page would as a whole.
    return (
        '<div class="scroll" tabindex="0"><table>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _number(row: Mapping, name: str) -> str:
    value = metrics.number(row, name)
    return "–" if value is None else f"{value:.4g}"


def _text(value, *, longest: int = _LONGEST) -> str:
    """Text that stays text: escaped, and not too long.

    A character that is not seen, or would move others, is its number in a frame.
    """
    # Cut first and escaped then, or a cut might go through an &lt;.
    text = cut(str(value), longest)
    return "".join(
        f'<span class="u">{_code(c)}</span>' if _hidden(c) else html.escape(c)
        for c in text
    )


def _plain_text(value) -> str:
    """As `_text`, for places that hold no elements."""
    text = cut(str(value), _LONGEST)
    return html.escape("".join(f"[{_code(c)}]" if _hidden(c) else c for c in text))


def _hidden(character: str) -> bool:
    """Whether it is a control, a mark of direction, half a character, or no character.

    Tabs and ends of line are shown as they are.
    """
    if character.isprintable() or character in "\n\t":
        return False
    kind = unicodedata.category(character)
    return kind[0] == "C" or kind in ("Zl", "Zp")


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"
