"""launch/watch.py: one page, to this machine alone, until Ctrl-C."""

import http.client
import os
import pathlib
import runpy
import signal
import socket
import subprocess
import sys
import time

import pytest
from tiny_run import ROOT

from limr_jax.errors import InputError
from limr_jax.storage import metrics
from limr_jax.storage.workdir import claim, release
from limr_jax.studies import html_report, html_report_server


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    claim(path, {"config": {"num_steps": 3}})
    release(path)
    with metrics.Metrics(path) as log:
        log.step(1, {"pass_rate": 0.5})
    return path


def live(*runs):
    return html_report_server.LivePage(
        runs, lambda version: html_report.page(runs, samples=1, live=version)
    )


def ask(address, method="GET", path="/", host=None, body=None, **headers):
    port = int(address.rstrip("/").rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host=True)
    if host is None:
        host = f"localhost:{port}"
    for name, value in ({"Host": host} | headers).items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def test_the_page_and_nothing_else_is_served(run):
    page = live(run)
    with html_report_server.serving(page, 0) as address:
        status, headers, text = ask(address)
        assert status == 200 and text == page.current[1]
        assert b"connect-src 'self'" in text[:2000]
        assert headers["ETag"] == f'"{page.current[0]}"'
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert ask(address, "HEAD")[::2] == (200, b"")
        for path in ("/run.json", "/../run.json", "//etc/passwd", "/%2e%2e/run.json"):
            status, _, text = ask(address, path=path)
            assert status == 404 and b"pass_rate" not in text, path
        for path in (f"/{run}/metrics.jsonl", "/?x", "http://evil/", "*"):
            assert ask(address, path=path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
            assert ask(address, method)[0] == 501, method
        # Who asks by another name was led here by somebody's DNS.
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
            assert ask(address, host=host)[0] == 421, host
        for host in (
            "localhost:1@evil",
            "localhost:x",
            "[::1]",
            "0.0.0.0",
            "\tlocalhos",
        ):
            assert ask(address, host=host)[0] == 421, host
        assert ask(address, host="LOCALHOST:9999")[0] == 200  # a tunnel's port
        assert ask(address, host="127.0.0.1")[0] == 200


def test_it_listens_on_this_machine_alone(run):
    with html_report_server.serving(live(run), 0) as address:
        assert address.startswith("http://127.0.0.1:")
        port = int(address.rstrip("/").rpartition(":")[2])
        listening = [
            line.split()[1]
            for file in map(pathlib.Path, ("/proc/net/tcp", "/proc/net/tcp6"))
            for line in (file.read_text().splitlines() if file.exists() else ())
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        ]
        assert listening == [f"0100007F:{port:04X}"]


def test_it_is_made_anew_where_the_run_went_on_and_kept_where_it_cannot(run, capsys):
    page = live(run)
    assert not page.refresh()
    first = page.current
    with metrics.Metrics(run, step=1) as log:
        log.step(2, {"pass_rate": 0.625})
    assert page.refresh() and page.current[0] != first[0]
    assert b"2 of 3" in page.current[1]
    whole = (run / "run.json").read_text()
    (run / "run.json").write_text("{")
    assert not page.refresh() and not page.refresh()
    said = capsys.readouterr().err
    assert said.count("the page stays as it is") == 1 and "run.json" in said
    assert b"2 of 3" in page.current[1]
    (run / "run.json").write_text(whole)
    # As it was, in the same second: only the clock of the disk could tell.
    with metrics.Metrics(run, step=2) as log:
        log.step(3, {"pass_rate": 0.75})
    assert page.refresh()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: RUN"),
        (["nowhere"], "run.json does not exist"),
        (["run", "--port=-1"], "--port -1 must be from 0 to 65535"),
        (["run", "--port=65536"], "--port 65536"),
        (["run", "--every=0"], "--every 0 must be"),
        (["run", "--every=nan"], "--every nan must be"),
        (["run", "--rollouts=-1"], "--rollouts=-1"),
        (["run", "--port=TAKEN"], "in use by another program; give another one"),
    ],
)
def test_a_mistake_is_one_line(run, monkeypatch, words, said):
    monkeypatch.chdir(run.parent)
    main = runpy.run_path(str(ROOT / "launch/watch.py"))["main"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError) as caught:
            main([word.replace("TAKEN", port) for word in words])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_ends_at_control_c(run):
    watching = subprocess.Popen(
        [sys.executable, str(ROOT / "launch/watch.py"), str(run), "--port=0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = watching.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and str(run) in line
        address = line.split()[0]
        assert ask(address)[0] == 200
        # A browser that has sent half a request holds up nothing.
        port = int(address.rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as half:
            half.sendall(b"GET / HT")
            watching.send_signal(signal.SIGINT)
            begun = time.monotonic()
            out, err = watching.communicate(timeout=60)
        assert (watching.returncode, out, err) == (0, "ended; the runs go on\n", "")
        assert time.monotonic() - begun < 30
    finally:
        watching.kill()
