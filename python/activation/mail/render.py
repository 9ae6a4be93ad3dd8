"""Templates: from a template, the personalization and the user's row to subject, html and text. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from io import StringIO
from time import monotonic
from typing import Any, TextIO

from liquid import BoundTemplate, Environment
from liquid.ast import BlockNode, Node
from liquid.builtin.content import ContentNode
from liquid.builtin.expressions import FilteredExpression, StringLiteral
from liquid.builtin.output import OutputNode
from liquid.builtin.tags.assign_tag import AssignNode
from liquid.builtin.tags.case_tag import CaseNode
from liquid.builtin.tags.comment_tag import CommentNode
from liquid.builtin.tags.doc_tag import DocNode
from liquid.builtin.tags.for_tag import ForNode
from liquid.builtin.tags.if_tag import IfNode
from liquid.builtin.tags.unless_tag import UnlessNode
from liquid.exceptions import LiquidError, UndefinedError
from liquid.stringify import to_liquid_string

from activation.errors import Refusal, RenderError
from activation.mail import liquid_limits, markup
from activation.mail.lines import one_line, writable
from activation.text import near

BUILT_IN = ("activation_welcome", "activation_nudge", "milestone")

_LINK = re.compile(r"[@/]|[.\u3002](?! |$)")


def _greeting(value: object) -> str:
    """Liquid filter: a name that is safe to greet by, else nothing.

    Strangers can sign up somebody else's address under any name, and mail clients make links of what looks like one; so
    a name that is long, or may be an address or a link, is not repeated. Nor is what cannot be seen in it.
    """
    if not value or not isinstance(value, str | int | float) or (isinstance(value, str) and len(value) > 1_000):
        return ""
    name = one_line(str(value))
    seen = name if name.isascii() else unicodedata.normalize("NFKC", name)
    return "" if len(name) > 40 or _LINK.search(seen) else name


_TAG = re.compile(r"\{%-?\s*(\w*)")
_LOADING_TAGS = {"extends", "include", "render"}
#: A template with no others writes each part of itself at most once: to count what it writes would take a fifth of the
#: time.
_STRAIGHT_TAGS = {"if", "elsif", "else", "endif", "unless", "endunless", "comment", "endcomment"}


@lru_cache(maxsize=2)
def _environment(html: bool) -> Environment:
    return liquid_limits.environment(html, {"greeting": _greeting})


@dataclass(frozen=True)
class Source:
    """A template's text: html or text may be absent, not both."""

    subject: str
    html: str | None
    text: str | None


@dataclass(frozen=True)
class Rendered:
    """What one message says."""

    subject: str
    html: str | None
    text: str


def built_in(name: str) -> Source | None:
    """The template of that name that comes with the package."""
    if name not in BUILT_IN:
        return None
    folder = resources.files(__package__) / "templates"
    return Source(
        *(
            (folder / f"{name}.{part}.liquid").read_text(encoding="utf-8").strip()
            for part in ("subject", "html", "text")
        )
    )


@dataclass(frozen=True)
class _Template:
    """A parsed template. straight: whether it writes each part of itself at most once. links: of an html template."""

    bound: BoundTemplate
    straight: bool
    links: markup.Links | None


@lru_cache(maxsize=1000)
def _parsed(text: str, html: bool) -> _Template:
    bound = _environment(html).from_string(text)
    liquid_limits.limit(bound.nodes)
    straight = _STRAIGHT_TAGS.issuperset(_TAG.findall(text))
    return _Template(bound, straight, _links(bound.nodes) if html else None)


class _LinkNode(OutputNode):
    """An output that an address begins with."""

    def render_to_output(self, context: Any, buffer: TextIO) -> int:
        address = to_liquid_string(self.expression.evaluate(context), context.autoescape)
        if not markup.plainly_allowed(address):
            context.odd_link = True
        return buffer.write(address)


_BLOCKS = (IfNode, UnlessNode, CaseNode, ForNode)


def _links(nodes: list[Node]) -> markup.Links:
    """What an html template's links are. Outputs that an address begins with say from now on when it is an odd one."""
    proven = True
    outputs: list[tuple[list[Node], int]] = []

    def marked(nodes: list[Node]) -> str:
        nonlocal proven
        text = ""
        for number, node in enumerate(nodes):
            if isinstance(node, ContentNode):
                proven = proven and not markup.MARKS.search(node.text)
                text += node.text
            elif isinstance(node, OutputNode):
                outputs.append((nodes, number))
                written = _literals(node)
                proven = proven and not set(written) & set("<>")
                text += markup.QUOTING if set(written) & set("'\"") else markup.OUTPUT
            elif isinstance(node, AssignNode):
                proven = proven and not set(_literals(node)) & set("<>'\"")
            elif not isinstance(node, CommentNode | DocNode):
                # What captures, cycles or breaks off is not followed.
                proven = proven and isinstance(node, _BLOCKS)
                text += markup.OPEN + markup.NEXT.join(map(part, children(node))) + markup.CLOSE
        return text

    def part(node: Node) -> str:
        return marked(children(node)) if isinstance(node, BlockNode) else "".join(map(part, children(node)))

    def children(node: Node) -> list[Node]:
        return node.nodes if isinstance(node, BlockNode) else list(node.children(None, include_partials=False))  # type: ignore[arg-type]

    links = markup.links_of(marked(nodes), deadline())
    if not (links.proven and proven):
        return markup.Links(links.own, links.begun, frozenset(), False)
    for number in links.outputs:
        where, index = outputs[number]
        where[index] = _LinkNode(where[index].token, where[index].expression)  # type: ignore[attr-defined]
    return links


def _literals(node: Node) -> str:
    """The literal texts in a node, and what `safe` would let through."""
    found = []
    for expression in liquid_limits.expressions([node]):
        if isinstance(expression, StringLiteral):
            found.append(expression.value)
        if isinstance(expression, FilteredExpression) and any(f.name == "safe" for f in expression.filters or ()):
            found.append("<")
    return "".join(found)


def _reason(error: BaseException) -> str:
    """An error's first line, as the database can hold it."""
    lines = str(error).splitlines()
    return one_line(writable(lines[0]))[:500] if lines and lines[0].strip() else type(error).__name__


def _filled(text: str, html: bool, variables: Mapping[str, object], what: str, until: float) -> str:
    if "{" not in text:
        return text
    try:
        return _written(text, html, variables, until)
    except Exception as error:
        # Not only LiquidError: a filter given a value that it did not expect raises whatever Python does.
        raise RenderError(f"{what}: {_reason(error)}") from error


def _written(text: str, html: bool, variables: Mapping[str, object], until: float) -> str:
    template = _parsed(text, html)
    buffer = StringIO() if template.straight else liquid_limits.Output()
    context = liquid_limits.Context(template.bound, variables, until, buffer)
    for node in template.bound.nodes:
        node.render(context, buffer)
    context.look()
    written = buffer.getvalue()
    if template.links and (context.odd_link or not template.links.proven):
        written = markup.without_odd_links(written, template.links, until)
    return writable(written)


def deadline() -> float:
    """When the rendering of a mail that begins now has to be done."""
    return monotonic() + liquid_limits.SECONDS


def variables_of(
    personalization: Mapping[str, object],
    user: Mapping[str, object],
    loop: str,
    context: object,
    unsubscribe_url: str | None,
    until: float | None = None,
) -> dict[str, object]:
    """What a template may name: user, loop, enrollment, unsubscribe_url, and the personalization keys at top level."""
    base: dict[str, object] = {"user": user, "loop": {"name": loop}, "enrollment": {"context": context or {}}}
    if unsubscribe_url:
        base["unsubscribe_url"] = unsubscribe_url
    until = until or deadline()
    own = {
        # What renders to nothing is absent, so that `if` and `default` treat NULL and '' alike.
        key: (_filled(value, False, base, f"personalization {key}", until) or None) if isinstance(value, str) else value
        for key, value in personalization.items()
    }
    return {**own, **base}


def render(source: Source, variables: Mapping[str, object], until: float | None = None) -> Rendered:
    """Subject, html and text, until a moment of the monotonic clock. Raises RenderError with the reason."""
    until = until or deadline()
    subject = one_line(_filled(source.subject, False, variables, "subject", until))
    if not subject:
        raise RenderError("subject: is empty")
    html = None if source.html is None else _filled(source.html, True, variables, "html", until)
    if source.text is None:
        text = markup.text_of(html or "", until)
    else:
        text = _filled(source.text, False, variables, "text", until)
    return Rendered(subject, html, text)


class _Number(float):
    """A number that is written as the database writes it: 12.50."""

    def __new__(cls, text: str) -> _Number:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str

    def __str__(self) -> str:
        return self.text


def _whole(text: str) -> int | str:
    return int(text) if len(text) <= liquid_limits.DIGITS else text


_ROW = json.JSONDecoder(parse_float=_Number)
_ROW_WITH_LONG_NUMBERS = json.JSONDecoder(parse_float=_Number, parse_int=_whole)
#: Of a row as JSON: of more, a value of each few characters would take up hundreds of megabytes.
_ROW_CHARACTERS = 20_000_000


def read(text: str, what: str) -> Any:
    """A JSON value of the database's. Raises RenderError where Python cannot hold it."""
    if len(text) > _ROW_CHARACTERS:
        raise RenderError(f"{what} cannot be read: it is longer than {_ROW_CHARACTERS:,} characters")
    try:
        try:
            return _ROW.decode(text)
        except ValueError:
            # Python makes no number of more than 4,300 digits.
            return _ROW_WITH_LONG_NUMBERS.decode(text)
    except RecursionError:
        raise RenderError(f"{what} cannot be read: a value in it is nested too deeply") from None
    except ValueError as error:
        raise RenderError(f"{what} cannot be read: {_reason(error)}") from None


def check(source: Source, personalization: Mapping[str, object], columns: list[str], what: str) -> None:
    """Refuses a template that no user's row could fill: broken Liquid, or a reference to what is neither a column of
    the users table nor a personalization key. A reference under `default` or `if` is optional.

    It is rendered twice, for a row of texts and for a row of NULLs, so that both sides of an `if` are seen.
    """
    parts = {"subject": source.subject, "html": source.html, "body_text": source.text}
    for name, text in parts.items():
        if text is not None:
            _check_syntax(text, name == "html", f"{what}: {name}")
    for key, value in personalization.items():
        if isinstance(value, str):
            _check_syntax(value, False, f"{what}: personalization {key}")
    for sample in ("1", None):
        user = dict.fromkeys(columns, sample)
        try:
            variables = variables_of(personalization, user, "loop", None, "https://example.net/" if sample else None)
            for name, text in parts.items():
                if text is not None:
                    _written(text, name == "html", variables, deadline())
        except RenderError as error:
            if isinstance(error.__cause__, UndefinedError):
                raise _missing(_reason(error.__cause__), columns, f"{what}: {error}") from None
        except UndefinedError as error:
            raise _missing(_reason(error), columns, f"{what}: {_reason(error)}") from None
        except Exception:
            # A filter that cannot work on a sample (a date, a number) may well work on a real row.
            continue


def check_syntax(source: Source, what: str) -> None:
    """Refuses broken Liquid in any part."""
    for name, text in (("subject", source.subject), ("html", source.html), ("body_text", source.text)):
        if text is not None:
            _check_syntax(text, name == "html", f"{what}: {name}")


def _check_syntax(text: str, html: bool, what: str) -> None:
    try:
        liquid_limits.check_size(text)
        template = _parsed(text, html).bound
    except RenderError as error:
        raise Refusal(f"{what}: {error}", hint="Write it as html that mail programs can read.", code="22023") from None
    except LiquidError as error:
        raise Refusal(
            f"{what} is not valid Liquid: {_reason(error)}",
            detail="\n".join(str(error).splitlines()[1:]).strip(),
            hint="Templates are written in Liquid: {{ user.name }}, {% if … %}…{% endif %}.",
            code="42601",
        ) from None

    # Liquid itself would find these only when a mail is rendered.
    used = template.analyze(include_partials=False)
    for name in used.filters:
        if name not in template.env.filters:
            raise Refusal(
                f'{what} uses the Liquid filter "{name}", which does not exist',
                hint=near(name, template.env.filters).strip() or "Use one of Liquid's own filters, such as default.",
                code="42601",
            )
    for name in sorted(_LOADING_TAGS.intersection(used.tags)):
        raise Refusal(
            f"{what} uses {{% {name} %}}, and a template is one text",
            hint="Write what it would bring in into the template itself.",
            code="0A000",
        )


def _missing(text: str, columns: list[str], message: str) -> Refusal:
    name = text.split(" ")[0].strip("'\"")
    if name.startswith("user."):
        return Refusal(
            message,
            detail=f"The users table has no column {name[len('user.') :]}; it has {', '.join(columns)}.",
            hint="Name one of its columns, or make the reference optional: {{ " + name + " | default: 'there' }}.",
            code="42703",
        )
    return Refusal(
        message,
        detail=f"The template needs {name}, and nothing gives it a value.",
        hint=f'Add it: activation.email(…, personalization => \'{{"{name}": "…"}}\'), '
        "or make the reference optional with `default` or `if`.",
        code="22023",
    )
