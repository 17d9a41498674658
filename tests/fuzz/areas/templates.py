"""Chat templates: any Jinja, in a bundle whose hashes fit, rendered for a question."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tests.fuzz.area import Area
from tests.fuzz.areas.bundles import SEAL, TOYS
from tests.fuzz.areas.bundles import _build as build_toys
from tests.fuzz.case import Case, Change
from tests.fuzz.hostile import TEXTS
from tests.runtime.toy_model import CHAT_TEMPLATE

FILE = "bundle/chat_template.jinja"
PROMPT = "<s><image> what is the colour ? what"
ATOMS = [
    *("messages", "bos_token", "eos_token", "add_generation_prompt", "tools", "documents", "none", "true", "x", "loop"),
    *("0", "1", "-1", "3", "10**9", "2**64", "'a'", "''", "[]", "{}", "[1, 2]", "1.5", "namespace", "range", "dict"),
    *(
        "messages[0]",
        "messages[0]['content']",
        "messages[-9]",
        "messages[0].role",
        "cycler",
        "joiner",
        "lipsum",
        "self",
    ),
    *(
        "strftime_now('%Y')",
        "raise_exception('no')",
        "messages.__class__",
        "''.__class__.__mro__",
        "x.y.z",
        "()",
        "(1,)",
    ),
]
FILTERS = [
    *(
        "trim",
        "upper",
        "length",
        "tojson",
        "list",
        "join(', ')",
        "first",
        "last",
        "reverse",
        "sort",
        "unique",
        "string",
    ),
    *("int", "float", "safe", "escape", "indent(4)", "replace('a', 'b')", "default('x')", "map('upper')", "batch(2)"),
    *(
        "center(10**9)",
        "round(10**9)",
        "format(1, 2)",
        "attr('__class__')",
        "xmlattr",
        "wordwrap(1)",
        "nofilter",
        "sum",
    ),
    *(
        "selectattr('role', 'equalto', 'user')",
        "groupby('role')",
        "tojson(indent=10**9)",
        "random",
        "pprint",
        "slice(3)",
    ),
]
TESTS = ["defined", "string", "none", "mapping", "odd", "nothing", "sequence"]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "and", "or", "is", "is not", "if x else"]
WRONG = [
    *(
        "{{ 1/0 }}",
        "{{ nothing() }}",
        "{{ x.y.z }}",
        "{% for %}",
        "{{",
        "{% if %}",
        "{% endfor %}",
        "{{ 'a' | nofilter }}",
    ),
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in 'abc' %}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{{ 'a' * 10**10 }}",
    "{% set ns = namespace(x='a') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=3) %}{% for a in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ [0] * 10**10 }}",
    "{{ range(10**9) | list }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'a' | center(10**10) }}",
    "{{ 'a'.__class__.__mro__ }}",
    "{{ ''.join(['a'] * 10**9) }}",
    "{{ messages.append(messages) }}{{ messages }}",
    "{% include 'other' %}",
    "{% import 'os' as os %}",
    "{% extends 'base' %}",
    "{{ raise_exception('\x1b[31mred') }}",
    "{{ raise_exception('a' * 5000) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
]
"""Templates that nobody can render: what is wrong with them is said in a line, and soon."""
RIGHT = ["{# a comment #}", "{% set x = 1 %}", "{% if false %}x{% endif %}", "{%- set ns = namespace(a=1) -%}", ""]


def _build(bases: Path) -> None:
    build_toys(bases)


def _draw(random: Random, bases: Path) -> Case:
    kind = random.randrange(8)
    if kind == 0:
        text = random.choice(RIGHT) + CHAT_TEMPLATE
        changes = [_written(text, "right"), {**SEAL, "is": "right"}]
    elif kind == 1:
        changes = [_written(random.choice(WRONG), "wrong"), SEAL]
    else:
        changes = [_written(_template(random, 4)), SEAL]
    return Case("templates", random.choice(sorted(TOYS)), tuple(changes), ("chat", "bundle"))


def _written(text: str, mark: str = "") -> Change:
    change = {"do": "write", "file": FILE, "text": text}
    return {**change, "is": mark} if mark else change


def _template(random: Random, depth: int) -> str:
    if depth == 0:
        return random.choice(["a", "\n", "<image>", "{{ x }}", random.choice(TEXTS), CHAT_TEMPLATE])
    inner = [_template(random, depth - 1) for _ in range(random.choice([1, 1, 2]))]
    body, value = "".join(inner), _value(random, 2)
    return random.choice(
        [
            body,
            f"{{{{ {value} }}}}{body}",
            f"{{% for x in {value} %}}{body}{{% endfor %}}",
            f"{{% for x in range({random.choice([3, 1000, 99999])}) %}}{body}{{% endfor %}}",
            f"{{% for x in {value} recursive %}}{{{{ loop([x]) }}}}{body}{{% endfor %}}",
            f"{{% if {value} %}}{body}{{% else %}}b{{% endif %}}",
            f"{{% set x = {value} %}}{body}",
            f"{{% set x %}}{body}{{% endset %}}{{{{ x ~ x }}}}",
            f"{{% macro m(x) %}}{body}{{% endmacro %}}{{{{ m({value}) }}}}",
            f"{{% macro m(x) %}}{{{{ m(x) }}}}{body}{{% endmacro %}}{{{{ m(1) }}}}",
            f"{{% call {value} %}}{body}{{% endcall %}}",
            f"{{% filter {random.choice(FILTERS)} %}}{body}{{% endfilter %}}",
            f"{{% generation %}}{body}{{% endgeneration %}}",
            f"{{% block b %}}{body}{{% endblock %}}",
            f"{{% raw %}}{body}",
            f"{{% with x = {value} %}}{body}{{% endwith %}}{{% break %}}",
            f"{body[: random.randrange(len(body) + 1)]}",
        ]
    )


def _value(random: Random, depth: int) -> str:
    if depth == 0:
        return random.choice(ATOMS)
    one, two = _value(random, depth - 1), _value(random, depth - 1)
    return random.choice(
        [
            one,
            f"{one} | {random.choice(FILTERS)}",
            f"({one}) {random.choice(OPERATORS)} ({two})",
            f"{one}({two})",
            f"{one}[{two}]",
            f"[{one}, {two}]",
            f"{one} is {random.choice(TESTS)}",
        ]
    )


def _result(case: Case, code: int, out: str, place: Path, bases: Path) -> str:
    """What says nothing changes no prompt."""
    if code or case.expects != "accepted":
        return ""
    return "" if out.strip() == PROMPT else f"another prompt: {out.strip()[:200]!r}"


AREA = Area(_build, _draw, _result)
