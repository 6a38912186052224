"""The page of launch/report.py of runs under way, in a browser on this machine.

    python launch/watch.py runs/tiny                      # http://127.0.0.1:8008/
    python launch/watch.py runs/a runs/b --port 9000

The page shows itself anew as the runs go on; what was searched and sorted stays. It is
served on 127.0.0.1 alone, and nothing but it. From another machine: ssh -L
8008:127.0.0.1:8008 HOST. Who else has an account here can look at it too. Ctrl-C ends
it, and no run notices.
"""

import os

# A page of numbers is no reason to take the accelerator from a run on this host.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from limr_jax.config.load import Parser, run_main
from limr_jax.errors import InputError

_SAMPLES = 4  # that the page shows without a script


def main(argv: list[str]) -> None:
    """Parse, make the page, then serve it until Ctrl-C."""
    parser = Parser("launch/watch.py", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="runs' folders")
    parser.add_argument(
        "--port", type=int, metavar="N", default=8008, help="0: any that is free"
    )
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        default=5.0,
        help="between two looks for changes",
    )
    parser.add_argument(
        "--rollouts",
        type=int,
        metavar="N",
        default=20_000,
        help="rollouts in the page's table",
    )
    options = parser.parse_args(argv)
    if not 0 <= options.port < 2**16:
        raise InputError(f"--port {options.port} must be from 0 to 65535")
    if not 1 <= options.every <= 3600:
        raise InputError(f"--every {options.every:g} must be from 1 to 3600 seconds")
    if options.rollouts < 0:
        raise InputError(f"--rollouts={options.rollouts} must be 0 or more")
    from limr_jax.studies import html_report, html_report_server

    html_report_server.check_port(options.port)
    page = html_report_server.LivePage(
        options.runs,
        lambda version: html_report.page(
            options.runs, samples=_SAMPLES, rollouts=options.rollouts, live=version
        ),
    )
    with html_report_server.serving(page, options.port) as address:
        print(f"{address} shows {', '.join(options.runs)}; Ctrl-C ends it", flush=True)
        try:
            html_report_server.follow(page, options.every)
        except KeyboardInterrupt:
            print("ended; the runs go on")


if __name__ == "__main__":
    run_main(main)
