"""Chat templates in their own process: bounded whatever they do."""

import time

import pytest

from limr_jax import worker_pool
from limr_jax.data import chat_template
from limr_jax.data.chat_template import ChatTemplate, Refusal
from limr_jax.errors import InputError

CHAT = [{"role": "user", "content": "one"}]


@pytest.fixture(scope="module")
def small():
    """The process with limits that a test has the time for."""
    pool = worker_pool.WorkerPool(
        workers=1,
        wall_seconds=60.0,
        cpu_seconds=0.5,
        memory_mib=192,
        module="limr_jax.data.template_worker",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "_pool", lambda: pool)
        yield pool
    pool.close()


def render(source, chats=(CHAT,)):
    template = ChatTemplate(source, "file")
    return template.render(chats, add_generation_prompt=True, names={})


LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}"
# What may not be said with so few characters → how it ends.
ENDLESS = {
    "two loops": (LOOP + "{% endfor %}{% endfor %}", "timeout"),
    "two loops that write": (LOOP + "a" * 999 + "{% endfor %}{% endfor %}", "length"),
    "a product": ("{{ ('a' * 10**9) * 100 }}", "memory"),
    "a product in a condition": ("{% if ('a' * 10**9) * 100 %}{% endif %}", "memory"),
    "a product at run time": (
        "{% set n = messages | length %}{{ 'a' * (n * 10**11) }}",
        "memory",
    ),
    "a power": ("{% set n = 10 %}{{ n ** (n ** n) }}", "timeout|died"),
    "a power of constants": ("{{ 9 ** (9 ** (9 ** 9)) }}", "timeout|died"),
    "a centred text": ("{{ 'a' | center(10**10) }}", "memory"),
    "an indented text": ("{{ 'a\nb' | indent(10**10) }}", "memory"),
    "a format": ("{{ '%10000000000d' % 1 }}", "memory"),
    "a format of another kind": ("{{ '{:10000000000}'.format(1) }}", "memory"),
    "a justified text": ("{{ 'a'.ljust(10**10) }}", "memory"),
    "a list": ("{{ [1] * 10**10 }}", "memory"),
    "a join": ("{{ ('a' * 10**4) | join('b' * 10**7) }}", "memory"),
    "a text that doubles": (
        "{% set s = namespace(x='a') %}{% for i in range(99) %}"
        "{% set s.x = s.x ~ s.x %}{% endfor %}{{ s.x }}",
        "memory|timeout",
    ),
    "a replacement that grows": (
        "{% set s = namespace(x='a') %}{% for i in range(99) %}"
        "{% set s.x = s.x | replace('a', 'aa') %}{% endfor %}{{ s.x }}",
        "memory|timeout",
    ),
    "words of nobody": ("{{ lipsum(n=10**7) }}", "timeout|memory"),
    "loops in a macro": (
        "{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% endif %}"
        "{% endfor %}{% endmacro %}{{ f(40) }}",
        "timeout",
    ),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_loops_or_grows_is_stopped(small, name):
    source, said = ENDLESS[name]
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        render(source)
    assert time.monotonic() - start < 60  # 1 s; many times that on a busy machine
    assert str(caught.value) in [
        "file: the chat template takes more than 5 s of processor time, 512 MiB or "
        f"16,777,216 characters ({each}); mend it or take it out"
        for each in said.split("|")
    ]


def test_a_template_that_is_good_works_after_all_of_them(small):
    assert render("{{ messages[0].content }}!") == ["one!"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the messages ("),
        ("{{ messages.append(1) }}", "refuses the messages ("),
        (
            "{{ raise_exception('a\nb\x1b[31m' ~ 'c' * 10**6) }}",
            "refuses the messages (",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "(RecursionError: "),
        ("{{ 1 / 0 }}", "(ZeroDivisionError: division by zero)"),
        ("{{ messages[9].content }}", "has no element 9"),
        ("{% include 'other' %}", "refuses the messages ("),
        (r"{{ '\ud800' }}", "(UnicodeEncodeError: "),
        ("{{ range(10**9) | list }}", "Range too big"),
    ],
)
def test_what_ends_by_itself(small, source, said):
    with pytest.raises(Refusal) as caught:
        render(source)
    line = str(caught.value)
    assert line.startswith("file: the chat template refuses the messages (")
    assert said in line and line.isprintable() and len(line) < 500


def test_many_chats_are_several_jobs(small, monkeypatch):
    """In their order, and none of the jobs too large."""
    sizes = []
    run = worker_pool.WorkerPool.map

    def counted(self, jobs):
        sizes.extend(len(job["chats"]) for job in jobs)
        return run(self, jobs)

    monkeypatch.setattr(worker_pool.WorkerPool, "map", counted)
    chats = [[{"role": "user", "content": str(i)}] for i in range(150)]
    chats[140] = [{"role": "user", "content": "x" * 2**20}]
    texts = render("{{ messages[0].content }}", chats)
    assert texts == [chat[0]["content"] for chat in chats]
    assert sizes == [0, 64, 64, 12, 1, 9]


def test_one_chat_is_longer_than_any_model_reads(small):
    loop = "{% for i in range(17) %}{{ messages[0].content }}{% endfor %}"
    chat = [{"role": "user", "content": "é" * 2**20}]
    with pytest.raises(InputError, match=r"16,777,216 characters \(length\); mend it"):
        render(loop, [chat])


def test_a_killed_process_is_replaced(small):
    template = ChatTemplate("{{ messages[0].content }}", "file")
    small.close()
    assert template.render([CHAT], add_generation_prompt=True, names={}) == ["one"]
