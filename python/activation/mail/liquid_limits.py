"""Liquid within limits that no honest mail comes near and no runaway template gets past. Pure.

A cancel does not reach Python, so nothing here may take long. What a filter takes and gives is limited, and what it
could make of that is limited before it is called; each name that is looked up, each filter and each turn of a loop
looks at the clock and at how much has been written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import StringIO
from time import monotonic
from typing import Any, TextIO

from liquid import Environment, FalsyStrictUndefined, RenderContext
from liquid.ast import Node
from liquid.builtin.expressions.primitive import RangeLiteral
from liquid.builtin.tags.cycle_tag import CycleNode, CycleTag
from liquid.exceptions import LiquidError, LiquidSyntaxError
from liquid.expression import Expression
from liquid.filter import sequence_filter, with_context
from liquid.token import Token
from liquid.undefined import UNDEFINED

from activation.mail import markup

#: The rendering of one mail, in seconds.
SECONDS = 2.0
#: Of one text: a template, a part of a mail, a value.
CHARACTERS = 1_000_000
#: Of a list, a range, nested loops.
ITEMS = 20_000
#: Of a whole number.
DIGITS = 4_000
#: Of Liquid in one tag, and in one template.
TAG_CHARACTERS = 5_000
LIQUID_CHARACTERS = 50_000
_BITS = int(DIGITS * 3.33)


class TooMuch(LiquidError):
    """A template that is past its limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text, token=None)


class Output(StringIO):
    """What a template writes. Where loops could repeat it, it is counted while it is written."""

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        self.size = size

    def write(self, text: str, /) -> int:
        self.size += len(text)
        if self.size > CHARACTERS:
            raise TooMuch(f"writes more than {CHARACTERS:,} characters")
        return super().write(text)


class Context(RenderContext):
    """One rendering of one template, until a moment of the monotonic clock."""

    __slots__ = ("buffer", "odd_link", "until")

    def __init__(self, template: Any, variables: Mapping[str, object], until: float, buffer: StringIO) -> None:
        super().__init__(template, globals=variables)
        self.until = until
        self.buffer = buffer
        #: Whether an address that is not plainly allowed has been written.
        self.odd_link = False

    def look(self) -> None:
        if monotonic() > self.until:
            raise TooMuch(f"rendering takes longer than {SECONDS:g} seconds")
        if self.buffer.tell() > CHARACTERS:
            raise TooMuch(f"writes more than {CHARACTERS:,} characters")

    def get(self, path: list[object], *, token: Token | None, default: object = UNDEFINED) -> object:
        if monotonic() > self.until or self.buffer.tell() > CHARACTERS:
            self.look()
        return super().get(path, token=token, default=default)

    def assign(self, key: str, val: Any) -> None:
        self.look()
        super().assign(key, val)

    @contextmanager
    def loop(self, namespace: Mapping[str, object], forloop: Any) -> Iterator[RenderContext]:
        forloop.it = self._watched(forloop.it)
        with super().loop(namespace, forloop) as context:
            yield context

    def _watched(self, items: Iterable[object]) -> Iterator[object]:
        for item in items:
            self.look()
            yield item

    def get_buffer(self, buf: TextIO | None = None) -> StringIO:
        return Output(buf.size if isinstance(buf, Output) else 0)


# -- filters ----------------------------------------


def weigh(*values: object) -> int:
    """Refuses values that are too large together; returns how many items there are in them."""
    items = characters = 0
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            characters += len(value)
        elif isinstance(value, int):
            characters += value.bit_length() // 3
            if value.bit_length() > _BITS:
                raise TooMuch(f"a number of more than {DIGITS:,} digits")
        elif isinstance(value, list | tuple | dict):
            items += len(value)
            if items <= ITEMS:
                waiting.extend((*value.keys(), *value.values()) if isinstance(value, dict) else value)
        elif isinstance(value, range):
            items += len(value)
        if items > ITEMS:
            raise TooMuch(f"a list of more than {ITEMS:,} items")
        if characters > CHARACTERS:
            raise TooMuch(f"a text of more than {CHARACTERS:,} characters")
    return items


def _light(value: object) -> bool:
    """Whether a value is plainly small."""
    return (isinstance(value, str) and len(value) < 10_000) or value is None or value.__class__ is float


def _grows_to(size: int) -> None:
    if size > CHARACTERS:
        raise TooMuch(f"a text of more than {CHARACTERS:,} characters")


def _before_replace(value: object, seq: object = "", sub: object = "") -> None:
    text, found = _text(value), _text(seq)
    _grows_to(len(text) + (text.count(found) if found else len(text) + 1) * len(_text(sub)))


def _before_last(value: object, seq: object = "", sub: object = "") -> None:
    # From the right, Python searches in the time of both lengths multiplied.
    if len(_text(value)) * len(_text(seq)) > 100 * CHARACTERS:
        raise TooMuch("a long text to be searched from its end for a long one")


def _before_join(value: object, separator: object = " ") -> None:
    _grows_to((weigh(value) + 1) * len(_text(separator)))


def _before_map(value: object, key: object = "") -> None:
    # It is made a text for each item.
    if len(_text(key)) > 1_000:
        raise TooMuch("a key of more than 1,000 characters")


def _before_split(value: object, separator: object = "") -> None:
    text, found = _text(value), _text(separator)
    if (text.count(found) if found else len(text)) >= ITEMS:
        raise TooMuch(f"a list of more than {ITEMS:,} items")


def _before_date(value: object, form: object = "") -> None:
    if len(_text(value)) > 100 or len(_text(form)) > 1_000:
        raise TooMuch("a date of more than 100 characters, or a format of more than 1,000")


def _text(value: object) -> str:
    return "" if value is None else str(value)


@with_context
@sequence_filter
def _uniq(values: Iterable[object], key: object = None, *, context: Context) -> list[object]:
    """Liquid filter: as Liquid's own, which compares each item with all others without a look at the clock."""
    found: list[object] = []
    keys: set[object] = set()
    unhashable: list[object] = []
    for value in values:
        context.look()
        mine = value.get(key) if key is not None and isinstance(value, dict) else value
        try:
            new = mine not in keys
            keys.add(mine)
        except TypeError:
            if new := mine not in unhashable:
                unhashable.append(mine)
        if new:
            found.append(value)
    return found


@with_context
def _strip_html(value: object, *, context: Context) -> str:
    """Liquid filter: as Liquid's own, but in linear time."""
    return markup.without_tags(_text(value), context.until)


#: What looks at its value without reading all of it, and gives back nothing larger.
UNLIMITED = frozenset(("default", "first", "last", "size", "greeting"))

_BEFORE: dict[str, Callable[..., None]] = {
    "replace": _before_replace,
    "replace_last": _before_last,
    "remove_last": _before_last,
    "join": _before_join,
    "map": _before_map,
    "split": _before_split,
    "date": _before_date,
}


def _limited(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_context = getattr(function, "with_context", False)
    takes_environment = getattr(function, "with_environment", False)
    before = _BEFORE.get(name)

    def limited(value: object, *arguments: object, context: Context, **named: object) -> object:
        context.look()
        if named or not all(map(_light, (value, *arguments))):
            weigh(value, *arguments, *named.values())
        if before:
            before(value, *arguments, **named)
        if takes_context:
            named["context"] = context
        if takes_environment:
            named["environment"] = context.env
        result = function(value, *arguments, **named)
        if not _light(result):
            weigh(result)
        return result

    return with_context(limited)


# -- tags ----------------------------------------


class _Range(RangeLiteral):
    __slots__ = ()

    def _make_range(self, start: Any, stop: Any) -> range:
        made = super()._make_range(start, stop)
        if made.stop - made.start > ITEMS:
            raise TooMuch(f"a range of more than {ITEMS:,} items")
        return made


class _CycleNode(CycleNode):
    """It writes down all its arguments, to know which cycle it is."""

    def render_to_output(self, context: RenderContext, buffer: TextIO) -> int:
        weigh(*(argument.evaluate(context) for argument in self.args))
        return super().render_to_output(context, buffer)


class _CycleTag(CycleTag):
    node_class = _CycleNode


class _Limited(Environment):
    loop_iteration_limit = ITEMS
    context_depth_limit = 20
    local_namespace_limit = CHARACTERS


def environment(html: bool, filters: Mapping[str, Callable[..., Any]]) -> Environment:
    """Liquid with limits and more filters."""
    made = _Limited(autoescape=html, undefined=FalsyStrictUndefined)
    made.add_tag(_CycleTag)
    all_filters = {**made.filters, "uniq": _uniq, "strip_html": _strip_html, **filters}
    made.filters = {name: f if name in UNLIMITED else _limited(name, f) for name, f in all_filters.items()}
    return made


def limit(nodes: Iterable[Node]) -> None:
    """Puts the limit into the ranges of a parsed template."""
    for expression in expressions(nodes):
        if isinstance(expression, RangeLiteral):
            expression.__class__ = _Range


def expressions(nodes: Iterable[Node]) -> Iterator[Expression]:
    """All expressions of a parsed template, and those that they are made of."""
    for node in nodes:
        waiting = list(node.expressions())
        while waiting:
            expression = waiting.pop()
            yield expression
            waiting.extend(expression.children())
        yield from expressions(node.children(None, include_partials=False))  # type: ignore[arg-type]


# -- text of templates ----------------------------------------

_OPENS = re.compile(r"\{[{%]")
_RAW = re.compile(r"-?\s{0,99}(raw|doc)\s{0,99}-?%\}")
_RAW_ENDS = {name: re.compile(rf"\{{%-?\s{{0,99}}end{name}\s{{0,99}}-?%\}}") for name in ("raw", "doc")}


def check_size(text: str) -> None:
    """Refuses a template that would take Liquid long to read: it looks for the end of what is not ended from each
    place anew, and for the end of a name from each white space behind it."""
    if len(text) > CHARACTERS:
        raise _syntax(f"it is longer than {CHARACTERS:,} characters")
    at = liquid = 0
    while match := _OPENS.search(text, at):
        close = "}}" if match[0] == "{{" else "%}"
        end = text.find(close, match.end())
        if end < 0:
            raise _syntax(f"expected '{close}', found end of file")
        inner = text[match.end() : end]
        liquid += len(inner) + 4
        if len(inner) > TAG_CHARACTERS or liquid > LIQUID_CHARACTERS:
            raise _syntax(
                f"more than {TAG_CHARACTERS:,} characters in one tag, or {LIQUID_CHARACTERS:,} in all of them"
            )
        if len(inner) - len(inner.strip()) > 100:
            raise _syntax("more than 100 characters of white space at the ends of a tag")
        at = end + 2
        if match[0] == "{%" and (raw := _RAW.match(text, match.end())):
            ended = _RAW_ENDS[raw[1]].search(text, at)
            if ended is None:
                raise _syntax(f"{{% {raw[1]} %}} without {{% end{raw[1]} %}}")
            at = ended.end()


def _syntax(problem: str) -> LiquidSyntaxError:
    return LiquidSyntaxError(problem, token=None)
