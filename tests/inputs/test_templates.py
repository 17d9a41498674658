"""Chat templates are rendered within bounds, and what is wrong with one is one line."""

from __future__ import annotations

import time
from typing import Any

import pytest
from jinja2 import TemplateError

from vtc.inputs import templates
from vtc.inputs.templates import MOST_SOURCE, render

VARIABLES = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "word": "hello"}


def doubled(first: str, then: str) -> str:
    """A template that makes a value twice as large, 60 times."""
    return f"{{% set ns = namespace(x={first}) %}}{{% for i in range(60) %}}{then}{{% endfor %}}{{{{ ns.x|string }}}}"


HOSTILE = {
    "loops in loops": "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "loops that skip all": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "range": "{% for a in range(10**12) %}x{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "loop that calls itself": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "block that calls itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "division": "{{ 1 / 0 }}",
    "text times number": "{{ 'a' * 10**12 }}",
    "list times number": "{{ [1] * 10**9 }}",
    "power": "{{ 10**(10**10) }}",
    "squares": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "joined texts": doubled("'a'", "{% set ns.x = ns.x ~ ns.x %}"),
    "added texts": doubled("'a'", "{% set ns.x = ns.x + ns.x %}"),
    "list of lists": doubled("[1]", "{% set ns.x = [ns.x, ns.x] %}"),
    "object of objects": doubled("1", "{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "blocks of text": doubled("'a'", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "width by %": "{{ '%999999999d' % 1 }}{{ '%*d' % (999999999, 1) }}",
    "width by format": "{{ '{:>999999999}'.format(1) }}",
    "width in format": "{{ '{:{w}}'.format(1, w=999999999) }}",
    "format filter": "{{ '%999999999d'|format(1) }}",
    "center": "{{ 'a'|center(999999999) }}",
    "ljust": "{{ 'a'.ljust(999999999) }}",
    "indent": "{{ 'a'|indent(999999999, true) }}",
    "replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "replace filter": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "join": "{{ ('a' * 100000).join(range(99999)|map('string')) }}",
    "join filter": "{{ range(99999)|map('string')|join('a' * 100000) }}",
    "batch": "{{ [1]|batch(99999999, 0)|list }}",
    "lipsum": "{{ lipsum(n=99999999) }}",
    "indented JSON": "{{ [1, [2]]|tojson(indent=99999999) }}",
    "bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}",
    "text of the template": f"{{% for i in range(9999) %}}{'b' * 5000}{{% endfor %}}",
    "caller": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call m() %}{{ 'a' * 1000000 }}{% endcall %}",
    "syntax": "{% for %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested loops": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "own refusal in two lines": "{{ raise_exception('no\nsystem') }}",
    "attributes": "{{ ''.__class__.__mro__ }}",
    "other files": "{% include 'x' %}",
    "types": "{{ 1 + 'a' }}",
    "unknown filter": "{{ 1|nonesuch }}",
    "undefined": "{{ x.y.z }}",
    "length": "a" * (MOST_SOURCE + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_template_without_bounds_is_refused_in_a_line(name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TemplateError) as refused:
        render(HOSTILE[name], VARIABLES)
    assert time.monotonic() - begin < 10
    assert str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{% for m in messages %}{{ m.role ~ ': ' ~ m['content'][0].text }}{{ loop.last }}{% endfor %}", "user: qTrue"),
        ("{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "36"),
        ("{{ messages|tojson }}", '[{"role": "user", "content": [{"type": "text", "text": "q"}]}]'),
        ("{{ [word, 'b']|join('-') }}{{ '-'.join(['a', word]) }}{{ word.split('l')[-1] }}", "hello-ba-helloo"),
        ("{{ '=' * 3 }}{{ word|upper|trim }}{{ '%s!' % word }}{{ '{}?'.format(word) }}", "===HELLOhello!hello?"),
        ("{% macro m(x) %}[{{ x }}]{% endmacro %}{{ m(word) }}{% generation %}g{% endgeneration %}", "[hello]g"),
        ("{% for k, v in {'x': word}.items() if k != 'y' %}{{ k }}={{ v }}{% endfor %}", "x=hello"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}{{ (1, 2)[1] }}", "12"),
        ("{% set a, b = (1, word) %}{{ b }}{% for i in range(3) %}{% break %}{% endfor %}{{ missing }}", "hello"),
        ("{% set x %}{{ word }}!{% endset %}{{ x }}{{ none is none }}{{ true }}", "hello!TrueTrue"),
    ],
)
def test_what_templates_of_checkpoints_do_is_rendered(template: str, text: str) -> None:
    assert render(template, VARIABLES) == text


def test_template_is_compiled_once_and_bounded_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    real = templates._Bounded.compile

    def counted(self: Any, source: Any, *rest: Any, **options: Any) -> Any:
        compiled.append(source)
        return real(self, source, *rest, **options)

    monkeypatch.setattr(templates._Bounded, "compile", counted)
    template = "{% for i in range(n) %}{{ word }}{% endfor %}{# compiled once #}"
    assert [render(template, {"n": n, "word": word}) for n, word in ((1, "a"), (3, "b"), (0, "c"))] == ["a", "bbb", ""]
    assert compiled == [template]
    for _ in range(2):
        with pytest.raises(TemplateError, match="writes more than"):
            render(template, {"n": 99_999, "word": "hello, world"})
    assert render(template, {"n": 2, "word": "d"}) == "dd"
    assert compiled == [template]
