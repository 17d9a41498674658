"""Chat templates, rendered as `transformers` renders them, within bounds of time, memory and output.

A template is a program that came with a checkpoint. Jinja's sandbox keeps it from the system; here every step of it is
counted as well, and no value may grow beyond a size. Nothing of this needs signals or threads.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from itertools import islice
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_SOURCE = 2**17
"""Characters of a template. The longest of published checkpoints have a tenth."""
MOST_VALUE = 2**20
"""Characters of a text, or entries of a list with all that is in them."""
MOST_STEPS = 2**22
MOST_SECONDS = 5.0
MOST_BITS = 4096
"""Of a whole number."""
_UNBOUNDED = ("lipsum", "urlize", "wordwrap", "pprint")
"""What no chat template needs, and what takes more time than its input is long."""
_MEASURED = (str, int, list, tuple, dict, range)


class TemplateLimit(TemplateError):
    """A template takes too long, or makes too much."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Parameters
    ----------
    template : str
        Jinja source.
    variables : mapping

    Returns
    -------
    str

    Raises
    ------
    jinja2.TemplateError
        Whatever is wrong with the template; its message is one line.
    """
    if len(template) > MOST_SOURCE:
        raise TemplateLimit(f"it has {len(template)} characters, and {MOST_SOURCE} are the most")
    try:
        code, bounded = _compiled(template), _Bounded()
        return Template.from_code(bounded, code, bounded.make_globals(None)).render(**variables)
    except TemplateSyntaxError as error:
        raise TemplateError(f"line {error.lineno}: {_line(error.message)}") from error
    except TemplateError as error:
        raise type(error)(_line(error.message) or "it cannot be rendered") from error
    except RecursionError as error:
        raise TemplateLimit("it calls itself without end, or is nested too deep") from error
    except Exception as error:  # what Python says to an operation of the template
        raise TemplateError(f"{type(error).__name__}: {_line(str(error))}") from error


@lru_cache(maxsize=8)
def _compiled(template: str) -> CodeType:
    """A template as Python code, which names its environment only when it is run, and takes longer than running it."""
    return _Bounded().compile(template)


def _line(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= 200 else f"{line[:200]}..."


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's words for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounded(ImmutableSandboxedEnvironment):
    """An environment for one rendering. Jinja asks it for every operator, call, filter, and joined text."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._steps, self._end = 0, time.monotonic() + MOST_SECONDS
        self.filters["tojson"] = _to_json
        self.globals.update({"raise_exception": _refuse, "strftime_now": _now})
        for name in _UNBOUNDED:
            self.filters.pop(name, None)
            self.globals.pop(name, None)
        self.filters = {name: self._guarded(name, function) for name, function in self.filters.items()}
        self.filters |= {"_step": self._counted(), "_joined": self._joined, "_made": self._made}
        self.concat = self._concat  # type: ignore[method-assign]
        self.finalize = self._made

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        real = super().wrap_str_format(value)
        if real is None:
            return None

        def bounded(*args: Any, **options: Any) -> str:
            _bounded(_called("format", value.__self__, (*args, *options.values())))
            return real(*args, **options)

        return bounded

    # Each loop, macro and block begins with a step that counts the nodes in it; texts are joined and lists are made
    # by filters, so that both are measured.

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block))):
            work = 1 + sum(1 for _ in node.find_all(nodes.Node))
            body: list[nodes.Node] = getattr(node, "body")  # noqa: B009 (each of these kinds has one)
            body.insert(0, nodes.ExprStmt(_filter(nodes.Const(work), "_step")))
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(_filter(nodes.Const(work), "_step"), node.test)
        _wrap(tree)
        nodes.Node.set_environment(tree, self)
        return tree

    def _counted(self) -> Callable[[Context, int], bool]:
        @pass_context  # or else Jinja takes it for a constant
        def step(_context: Context, work: int) -> bool:
            return self._step(work)

        return step

    def _step(self, work: int = 1) -> bool:
        self._steps += work
        if self._steps > MOST_STEPS or time.monotonic() > self._end:
            raise TemplateLimit("it takes too long: loops within loops, or calls without end")
        return True

    def _made(self, value: Any) -> Any:
        """A value, once it is known not to be too large."""
        if isinstance(value, str | list | tuple | dict | int):
            size = _size(value)
            self._step(1 + size // 64)
            if size > MOST_VALUE:
                raise _too_large()
        return value

    def _joined(self, parts: list[Any]) -> str:
        return self._concat(str(self._made(part)) for part in parts)

    def _concat(self, parts: Iterable[str]) -> str:
        found, size = [], 0
        for part in parts:
            size += len(part)
            if size > MOST_VALUE:
                raise TemplateLimit(f"it writes more than {MOST_VALUE} characters")
            found.append(part)
        return "".join(found)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self._step()
        if operator == "*":
            _bounded(_product(left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _bounded(0 if abs(left) < 2 else left.bit_length() * abs(right) * (MOST_VALUE // MOST_BITS))
        elif operator == "%" and isinstance(left, str):
            _bounded(_formatted(left, "%", right if isinstance(right, tuple) else (right,)))
        elif operator == "+" and isinstance(left, str | list | tuple):
            _bounded(_size(left) + _size(right))
        return self._made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # As Jinja names them: a template's own arguments may be called self and context.
        __self._step()
        name, own = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if isinstance(own, str | bytes):
            args = tuple(list(arg) if name == "join" and not isinstance(arg, str) else arg for arg in args)
            _bounded(_called(name, own, (*args, *kwargs.values())))
        else:
            _no_large_number((*args, *kwargs.values()))
        return __self._made(super().call(__context, __obj, *args, **kwargs))

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose arguments and result are measured."""

        @wraps(function)
        def guarded(*args: Any, **options: Any) -> Any:
            self._step()
            args = tuple(list(islice(arg, MOST_VALUE)) if isinstance(arg, Iterator) else arg for arg in args)
            values = [one for one in (*args, *options.values()) if isinstance(one, _MEASURED)]
            text = next((value for value in values if isinstance(value, str)), "")
            if name in ("indent", "replace", "join", "format", "center"):
                _bounded(_called(name, text, values if name == "join" else values[1:]))
            _no_large_number(values[1:])
            return self._made(function(*args, **options))

        return guarded


def _filter(value: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(value, name, [], [], None, None)


def _wrap(node: nodes.Node) -> None:
    """Put the filters that measure around texts that are joined and lists that are made."""
    for field, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, field, [_measured(one) if isinstance(one, nodes.Node) else one for one in value])
        elif isinstance(value, nodes.Node):
            setattr(node, field, _measured(value))


def _measured(node: nodes.Node) -> nodes.Node:
    _wrap(node)
    if isinstance(node, nodes.Concat):
        return _filter(nodes.List(node.nodes), "_joined")
    # What stands on the left of an assignment is made nowhere, and what holds constants alone is as long as its source.
    if isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load"):
        return _filter(node, "_made") if list(node.find_all(nodes.Name)) else node
    return node


def _size(value: Any) -> int:
    """Characters and entries of a value with all that is in it, counted up to the most that there may be."""
    if isinstance(value, bool) or value is None:
        return 1
    if isinstance(value, int):
        return 1 if value.bit_length() <= MOST_BITS else MOST_VALUE + 1
    if isinstance(value, str | bytes | range):
        return len(value)
    size, waiting = 0, [value]
    while waiting and size <= MOST_VALUE:
        one = waiting.pop()
        size += 1
        if isinstance(one, str | bytes):
            size += len(one)
        elif isinstance(one, Mapping):
            waiting.extend(one.keys())
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            size += len(one) if len(one) > MOST_VALUE else 0
            waiting.extend(one)
    return size


def _product(left: Any, right: Any) -> int:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | bytes | list | tuple) and isinstance(other, int):
            return max(_size(one), 1) * max(other, 0)
    if isinstance(left, int) and isinstance(right, int):
        return 0 if left.bit_length() + right.bit_length() <= MOST_BITS else MOST_VALUE + 1
    return 0


def _called(name: str, text: str | bytes, args: Iterable[Any]) -> int:
    """What a method or a filter of a text can come to at most."""
    given = list(args)
    numbers = [abs(one) for one in given if isinstance(one, int)]
    texts = [one for one in given if isinstance(one, str | bytes)]
    if name == "replace" and len(texts) > 1:
        old, new = texts[-2:]
        found = len(text) // max(len(old), 1) + 1 if old and isinstance(text, str) else len(text) + 1
        return len(text) + min(found, text.count(old) if old else found) * len(new)  # type: ignore[arg-type]
    if name == "join":
        parts = [one for one in given if isinstance(one, list | tuple | range)]
        between = max([len(text), *map(len, texts)])
        return sum(_size(part) + len(part) * between for part in parts)
    if name in ("format", "format_map"):
        return _formatted(str(text), "{", given) + _formatted(str(text), "%", given)
    if name == "indent":
        width = max([4, *numbers, *map(len, texts)])
        return len(text) + (str(text).count("\n") + 1) * width
    if name == "translate":
        return len(text) * max([1, *(_size(value) for one in given if isinstance(one, dict) for value in one.values())])
    if name == "expandtabs":
        return len(text) * max([8, *numbers])
    return len(text) + sum(numbers)


def _formatted(form: str, mark: str, args: Iterable[Any]) -> int:
    widths = [int(digits) for digits in re.findall(r"\d{1,9}", form)]
    given = list(args)
    numbers = [abs(one) for one in given if isinstance(one, int)] if mark == "%" or "{" in form else []
    return len(form) + form.count(mark) * max([0, *widths, *numbers, *map(_size, given)])


def _no_large_number(args: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > MOST_VALUE for one in args):
        raise _too_large()


def _bounded(size: int) -> None:
    if size > MOST_VALUE:
        raise _too_large()


def _too_large() -> TemplateLimit:
    return TemplateLimit(f"it makes a value of more than {MOST_VALUE} characters or entries")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    if isinstance(indent, int):
        _bounded(_size(value) * max(indent, 1))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
