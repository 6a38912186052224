"""One HTML page of a run, or of several compared: a verdict, curves, LIM, rollouts.

    python launch/report.py runs/tiny                     # runs/tiny/report.html
    python launch/report.py runs/a runs/b --out ab.html

The page is one file and loads nothing. The first run is what the others' settings are
compared with; runs that differ in the seed only are one line with an interval. Runs may
still be going on: launch/watch.py shows them as they do.
"""

import os

# A page of numbers is no reason to take the accelerator from a run on this host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError
from limr_jax.storage import files


def main(argv: list[str]) -> None:
    """Parse, then write the page."""
    parser = Parser("launch/report.py", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument(
        "--out", metavar="FILE", default="", help="the page; default: RUN/report.html"
    )
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        default=4,
        help="rollouts of each run's first and last step that are shown without a "
        "script",
    )
    parser.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        default=50_000,
        help="rollouts in the page's table, of all runs together, evenly by step",
    )
    options = parser.parse_args(argv)
    for name in ("samples", "rollouts"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name}={getattr(options, name)} must be 0 or more")
    if len(options.runs) > 1 and not options.out:
        raise InputError("a page of several runs has no folder; give --out FILE.html")
    if options.out:
        out = files.output(options.out)
    else:
        out = files.local(f"{options.runs[0]}/report.html", "--out")
    from limr_jax.studies import html_report, run_files

    for run in options.runs:
        run_files.refuse(out, run)
    text = html_report.page(
        options.runs, samples=options.samples, rollouts=options.rollouts
    )
    files.write_text(out, text)
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_main(main)
