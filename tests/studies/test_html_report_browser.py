"""The page in headless Chromium: clicked, typed into, sorted, searched, and looked at.

`apt-get install chromium` brings the browser; where there is none these skip.
"""

import json
import time

import pytest
from chromium import BROWSER, Chromium

from limr_jax.storage import metrics, rollout_dump
from limr_jax.storage.workdir import claim, release, write_result
from limr_jax.studies import html_report, html_report_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]

EVIL = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    "<!-- \x00\x1b[31m \ud800 \u202egnp.exe $\\href{javascript:hacked=1}{x}$ "
    "$x^2$ and $\\frac{1}{2}$, $5 and $6, \\[ \\unknown{ \\]"
)


def write_run(path, *, seed=0, steps=6, problems=20, group=4, response="1 + 1 = {i}"):
    """A run's folder: half of the problems a step, all levels, some invalid."""
    claim(path, {"config": {"num_steps": steps, "seed": seed, "sampler": {}}})
    release(path)
    dump = rollout_dump.Dump(path, max_bytes=2**31)
    with metrics.Metrics(path) as log:
        for step in range(1, steps + 1):
            rows = []
            for i in range(step % 2, problems, 2):
                for g in range(group):
                    right = (i + g + seed) % 3 == 0 or g < step - 3
                    valid = (i + g) % 7 > 0
                    rows.append(
                        {
                            "id": f"p{i:05d}",
                            "sample": g,
                            "prompt": f"what is $x_{{{i}}}$ ?",
                            "response": response.format(i=i * step),
                            "reference": str(i),
                            "level": i % 3 + 1,
                            "reward": float(right),
                            "correct": float(right),
                            "valid": valid,
                            "reason": "graded" if valid else "timeout",
                            "truncated": g == 3,
                            "length": 10 + i,
                        }
                    )
            dump.add(step, rows)
            numbers = {"pass_rate": min(1.0, step / 8), "reward": step / 8}
            numbers |= {"tokens": 100.0}
            log.step(step, numbers | {"signal_groups": 3, "epoch": step / 2})
        for step, accuracy in ((0, 0.2), (steps, 0.5)):
            log.evaluation(step, {"accuracy": accuracy, "accuracy_level_1": accuracy})
    write_result(path, {"seconds": 1.0, "eval_problems": 100})
    return path


@pytest.fixture(scope="module")
def browser():
    browser = Chromium()
    yield browser
    browser.close()


@pytest.fixture
def shown(browser, tmp_path):
    """runs → the browser, with their page open; at the end it had no complaint."""

    def show(*runs, ready=True, **how):
        page = tmp_path / "page.html"
        text = html_report.page(runs, samples=2, rollouts=60_000)
        page.write_bytes(text.encode("utf-8", "backslashreplace"))
        browser.open(page.as_uri(), ready=ready, **how)
        return browser

    yield show
    assert browser.problems == []
    # Nothing was asked for but the page.
    assert [x for x in browser.requests if not x.startswith("file:")] == []
    assert not browser.run("window.hacked")


def cells(browser, column):
    return browser.run(
        f"[...document.querySelectorAll('#grid tbody td.{column}')]"
        ".map(x => x.textContent)"
    )


def counted(browser):
    return browser.run("document.getElementById('count').textContent")


def choose(browser, filter_id, text):
    browser.run(
        f"(() => {{ const s = document.getElementById('filter-{filter_id}');"
        f"s.selectedIndex = [...s.options].findIndex(o => o.text === {text!r});"
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_sort_filter_and_search(shown, tmp_path):
    browser = shown(write_run(tmp_path / "a"))
    assert counted(browser) == "240 of 240 rollouts"
    browser.click("#grid th:nth-child(7) button")  # tokens, up and down
    assert browser.run("document.querySelectorAll('th[aria-sort=ascending]').length")
    assert cells(browser, "length")[:2] == ["10", "10"]
    browser.click("#grid th:nth-child(7) button")
    assert cells(browser, "length")[:2] == ["29", "29"]
    browser.click("#grid th:nth-child(7) button")
    assert not browser.run("document.querySelectorAll('[aria-sort$=scending]').length")
    assert cells(browser, "step")[0] == "1"
    choose(browser, "grade", "invalid")
    assert set(cells(browser, "grade")) <= {"invalid", "invalid, cut"}
    choose(browser, "reason", "graded")
    assert counted(browser) == "0 of 240 rollouts"
    browser.click("#clear")
    assert counted(browser) == "240 of 240 rollouts"
    choose(browser, "grade", "right")
    choose(browser, "level", "2")
    browser.click("#step-from")
    browser.type("2")
    browser.click("#step-to")
    browser.type("3")
    browser.key("Enter")
    assert set(cells(browser, "step")) == {"2", "3"}
    assert set(cells(browser, "level")) == {"2"}
    browser.click("#clear")
    # In the prompt, which is no column; then in a response's midst.
    browser.run("document.activeElement.blur()")
    browser.key("/")
    browser.type("x_{17}")
    browser.wait("document.getElementById('count').textContent.startsWith('12 of')")
    assert set(cells(browser, "problem")) == {"p00017"}
    browser.run("document.getElementById('search').select()")
    browser.type("+ 1 = 57")
    browser.wait("document.getElementById('count').textContent.startsWith('4 of')")
    assert set(cells(browser, "end")) == {"1 + 1 = 57"}


def test_the_keyboard_alone(shown, tmp_path):
    browser = shown(write_run(tmp_path / "a"))
    browser.run("document.getElementById('grid').focus()")
    for key in ("ArrowDown", "ArrowDown", "End", "PageUp", "Home", "ArrowDown"):
        browser.key(key)
    active = "document.getElementById('grid').getAttribute('aria-activedescendant')"
    assert browser.run(active) == "row-1"
    browser.key("Enter")
    browser.wait("!document.getElementById('detail').hidden")
    assert browser.run("document.activeElement.textContent") == "p00001"
    browser.click("#next")
    browser.wait(
        "document.querySelector('#detail .facts').textContent.includes('ple 2')"
    )
    browser.run("document.querySelector('#detail h3').focus()")
    browser.key("Escape")
    assert browser.run("document.getElementById('detail').hidden")
    assert browser.run("document.activeElement.id") == "grid"
    browser.key("p")
    browser.wait("document.querySelectorAll('#history .visit').length === 3")
    browser.key("Escape")
    assert browser.run("document.getElementById('history').hidden")


def test_a_problems_history_in_one_click_several_runs_beside_one_another(
    shown, tmp_path
):
    runs = [write_run(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    browser = shown(*runs)
    browser.click("#row-5 td.problem")
    browser.wait("document.querySelectorAll('#history .visit').length === 6")
    sides = browser.run(
        "[...document.querySelectorAll('#history .sides > div > h3')]"
        ".map(x => [x.textContent, x.getBoundingClientRect().top])"
    )
    assert [name for name, _ in sides] == ["a", "b"] and sides[0][1] == sides[1][1]
    assert counted(browser).startswith("24 of 480")
    assert browser.wait("document.querySelector('#history canvas') !== null")
    visit = browser.run("document.querySelector('#history .visit').textContent")
    assert visit.startswith("step 1: ") and "1 + 1 = " in visit
    # The group of two seeds is a line with its interval, and can be hidden.
    assert browser.run("document.querySelectorAll('#charts figure').length") > 5
    browser.run("document.querySelector('#charts figure').scrollIntoView()")
    browser.wait("document.querySelector('#charts canvas') !== null")
    browser.click("#charts .legend button")
    pressed = "document.querySelector('#charts .legend button').ariaPressed"
    assert browser.run(pressed) == "false"
    browser.click("#charts figure summary")
    browser.wait("document.querySelectorAll('#charts figure details td').length > 3")


def test_what_a_policy_wrote_does_nothing_and_is_shown(shown, tmp_path):
    path = write_run(
        tmp_path / "evil", response=EVIL.replace("{", "{{").replace("}", "}}")
    )
    # Names too: of the problem, its level, its reason, and the run's numbers.
    rows = [
        row | {"id": EVIL, "level": EVIL, "reason": EVIL, EVIL: EVIL, "reference": EVIL}
        for row in rollout_dump.read_dump(path)
        if row["step"] == 1
    ]
    dump = rollout_dump.Dump(path, step=0)
    dump.add(1, rows)
    line = json.dumps({"step": 7, EVIL: 3.0, f"reward/{EVIL}": 1.0, "loss": 1.0})
    with (path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    browser = shown(path)
    browser.click("#row-0 td.step")
    browser.wait("!document.getElementById('detail').hidden")
    text = browser.run(
        "document.querySelector('#detail .text:nth-of-type(3)').innerText"
    )
    for part in (
        "</script>",
        "U+0000",
        "U+001B",
        "U+D800",
        "U+202Egnp.exe",
        "$5 and $6",
    ):
        assert part in text, part
    # A formula that is one is MathML; one that is none stays as it was written.
    assert browser.run("document.querySelectorAll('#detail .text math').length") >= 2
    assert "\\unknown" in text and "\\href" in text
    assert (
        browser.run("document.querySelectorAll('#detail a, #detail img').length") == 0
    )
    browser.click("#maths")
    browser.wait("document.querySelectorAll('#detail .text math').length === 0")
    browser.click("#all-of")
    browser.wait("document.querySelectorAll('#history .visit').length > 0")


def test_fifty_thousand_rollouts_open_in_two_seconds(shown, tmp_path):
    path = write_run(
        tmp_path / "big", steps=98, problems=1024, group=1, response="x{i} " * 100
    )
    browser = shown(path, ready=False)
    # From the navigation's begin to a table that can be used, by the page's own clock.
    opened = browser.wait("document.documentElement?.dataset.ready")
    assert counted(browser) == "50,176 of 50,176 rollouts"
    print(f"opened in {opened} ms")
    assert int(opened) < 2000
    browser.wait("document.documentElement.classList.contains('done')")
    begun = time.monotonic()
    browser.click("#grid th:nth-child(2) button")
    assert cells(browser, "problem")[0] == "p00000"
    print(f"sorted in {time.monotonic() - begun:.2f} s")
    assert browser.run("document.querySelectorAll('#grid tbody tr').length") < 100
    browser.run("document.getElementById('grid').focus()")
    browser.key("End")
    assert cells(browser, "problem")[-1] == "p01023"


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_page(shown, tmp_path, dark):
    path = write_run(tmp_path / ("a" * 80))
    browser = shown(path, width=400, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= 400
    browser.click("#row-1 td.step")
    browser.wait("!document.getElementById('detail').hidden")
    assert browser.run("document.documentElement.scrollWidth") <= 400
    shown_cells = browser.run(
        "[...document.querySelectorAll('#row-0 td')].filter(x => x.offsetWidth).length"
    )
    assert shown_cells == 3
    # Letters against what is behind them, by WCAG's formula.
    least = browser.run(
        """(() => {
      const light = (css) => { const [r, g, b] = css.match(/[\\d.]+/g).map(Number)
        .map((v) => v / 255)
        .map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b; };
      const behind = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (c !== 'rgba(0, 0, 0, 0)' && c !== 'transparent') return c; }
        return 'rgb(255, 255, 255)'; };
      let least = 99;
      const all = 'p, td, th, button, a, small, summary, .text';
      for (const e of document.querySelectorAll(all)) {
        if (!e.offsetWidth || !e.textContent.trim() || e.disabled) continue;
        const [a, b] = [light(getComputedStyle(e).color), light(behind(e))];
        least = Math.min(least, (Math.max(a, b) + .05) / (Math.min(a, b) + .05));
      }
      return least; })()"""
    )
    assert least >= 4.5, least


def test_without_a_script_verdict_and_tables_are_there(browser, shown, tmp_path):
    path = write_run(tmp_path / "a")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        shown(path, ready=False)
        time.sleep(1)
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
        text = browser.run("document.body.innerText")
        assert "It learned: held-out accuracy 20.0 % before" in text
        assert "Some of " in text and "1 + 1 = " in text
        assert browser.run("document.querySelector('svg').clientWidth") > 300
        assert "Search" not in text
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_data_that_is_damaged_is_said_on_the_page(browser, tmp_path):
    page = tmp_path / "page.html"
    text = html_report.page([write_run(tmp_path / "a")], samples=2)
    page.write_text(text.replace('id="rollout-columns">', 'id="rollout-columns">AAAA'))
    browser.open(page.as_uri(), ready=False)
    browser.wait("document.getElementById('state')?.textContent.includes('cannot be')")
    assert "Some of " in browser.run("document.body.innerText")
    browser.problems.clear()


def test_a_page_of_a_run_under_way_shows_itself_anew(browser, tmp_path):
    path = write_run(tmp_path / "a")
    page = html_report_server.LivePage(
        [path], lambda version: html_report.page([path], samples=1, live=version)
    )
    with html_report_server.serving(page, 0) as address:
        browser.open(address)
        choose(browser, "grade", "right")
        before = counted(browser)
        with metrics.Metrics(path, step=6) as log:
            log.step(7, {"pass_rate": 0.875})
        assert page.refresh() and not page.refresh()
        browser.wait("document.body?.innerText.includes('7 of 6')")
        browser.wait("document.documentElement.classList.contains('done')")
        assert counted(browser) == before  # what was chosen stays
        # Not while somebody reads a rollout.
        browser.click("#row-0 td.step")
        browser.wait("!document.getElementById('detail').hidden")
        with metrics.Metrics(path, step=7) as log:
            log.step(8, {"pass_rate": 0.9})
        assert page.refresh()
        browser.wait("document.getElementById('state').textContent.includes('newer')")
        assert not browser.run("document.getElementById('detail').hidden")
        assert browser.problems == []
    browser.wait("document.getElementById('state').textContent.includes('not answer')")
    browser.problems.clear()  # a server that is gone is one
