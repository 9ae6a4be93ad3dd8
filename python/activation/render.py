"""Templates: from a template, the personalization and the user's row to subject, html and text. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from importlib import resources
from typing import ClassVar

from liquid import BoundTemplate, Environment, FalsyStrictUndefined
from liquid.exceptions import LiquidError, UndefinedError

from activation.errors import Refusal, RenderError

BUILT_IN = ("activation_welcome", "activation_nudge", "milestone")


class _Limited(Environment):
    """Limits that no honest mail comes near and no runaway template gets past."""

    loop_iteration_limit = 20_000
    output_stream_limit: ClassVar[int | None] = 1_000_000
    context_depth_limit = 20
    local_namespace_limit = 1_000_000


def _greeting(value: object) -> str:
    """Liquid filter: a name that is safe to greet by, else nothing.

    Strangers can sign up somebody else's address under any name, and mail clients make links of what looks like one; so
    a name that is long, or may be an address or a link, is not repeated.
    """
    name = " ".join(str(value or "").split())
    return "" if len(name) > 40 or re.search(r"[@/]|\.(?! |$)", name) else name


class _Straight(_Limited):
    """For templates with plain conditions only, which write each part of themselves at most once: counting what they
    write would take a fifth of the time."""

    output_stream_limit: ClassVar[int | None] = None


_TAG = re.compile(r"\{%-?\s*(\w*)")
_LOADING_TAGS = {"extends", "include", "render"}
_STRAIGHT_TAGS = {"if", "elsif", "else", "endif", "unless", "endunless", "comment", "endcomment"}


@lru_cache(maxsize=4)
def _environment(html: bool, straight: bool) -> Environment:
    environment = (_Straight if straight else _Limited)(autoescape=html, undefined=FalsyStrictUndefined)
    environment.add_filter("greeting", _greeting)
    return environment


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
    folder = resources.files("activation") / "templates"
    return Source(
        *(
            (folder / f"{name}.{part}.liquid").read_text(encoding="utf-8").strip()
            for part in ("subject", "html", "text")
        )
    )


@lru_cache(maxsize=1000)
def _parsed(text: str, html: bool) -> BoundTemplate:
    return _environment(html, _STRAIGHT_TAGS.issuperset(_TAG.findall(text))).from_string(text)


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0].strip() or type(error).__name__


def _filled(text: str, html: bool, variables: Mapping[str, object], what: str) -> str:
    if "{" not in text:
        return text
    try:
        return str(_parsed(text, html).render(variables))
    except Exception as error:
        # Not only LiquidError: a filter given a value that it did not expect raises whatever Python does.
        raise RenderError(f"{what}: {_one_line(error)}") from error


def variables_of(
    personalization: Mapping[str, object],
    user: Mapping[str, object],
    loop: str,
    context: object,
    unsubscribe_url: str | None,
) -> dict[str, object]:
    """What a template may name: user, loop, enrollment, unsubscribe_url, and the personalization keys at top level."""
    base: dict[str, object] = {"user": user, "loop": {"name": loop}, "enrollment": {"context": context or {}}}
    if unsubscribe_url:
        base["unsubscribe_url"] = unsubscribe_url
    own = {
        # What renders to nothing is absent, so that `if` and `default` treat NULL and '' alike.
        key: (_filled(value, False, base, f"personalization {key}") or None) if isinstance(value, str) else value
        for key, value in personalization.items()
    }
    return {**own, **base}


def render(source: Source, variables: Mapping[str, object]) -> Rendered:
    """Subject, html and text. Raises RenderError with the reason."""
    subject = _filled(source.subject, False, variables, "subject").strip()
    if re.search(r"[\r\n]", subject):
        raise RenderError("subject: holds a line break")
    if not subject:
        raise RenderError("subject: is empty")
    if re.search(r"[\x00-\x1f\x7f]", subject):
        raise RenderError("subject: holds a control character")
    html = None if source.html is None else _filled(source.html, True, variables, "html")
    text = text_of(html or "") if source.text is None else _filled(source.text, False, variables, "text")
    return Rendered(subject, html, text)


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
                    _parsed(text, name == "html").render(variables)
        except RenderError as error:
            if isinstance(error.__cause__, UndefinedError):
                raise _missing(_one_line(error.__cause__), columns, f"{what}: {error}") from None
        except UndefinedError as error:
            raise _missing(_one_line(error), columns, f"{what}: {_one_line(error)}") from None
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
        template = _parsed(text, html)
    except LiquidError as error:
        raise Refusal(
            f"{what} is not valid Liquid: {_one_line(error)}",
            detail="\n".join(str(error).splitlines()[1:]).strip(),
            hint="Templates are written in Liquid: {{ user.name }}, {% if … %}…{% endif %}.",
            code="42601",
        ) from None

    # Liquid itself would find these only when a mail is rendered.
    used = template.analyze(include_partials=False)
    for name in used.filters:
        if name not in template.env.filters:
            near = difflib.get_close_matches(name, template.env.filters, n=1)
            raise Refusal(
                f'{what} uses the Liquid filter "{name}", which does not exist',
                hint=f'Did you mean "{near[0]}"?' if near else "Use one of Liquid's own filters, such as default.",
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


class _Text(HTMLParser):
    """Readable plain text of a mail: blocks on lines of their own, links with their address."""

    _BLOCKS = frozenset(
        (
            "p",
            "div",
            "tr",
            "table",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "ul",
            "ol",
            "li",
            "br",
            "hr",
            "blockquote",
            "section",
        )
    )
    _HIDDEN = frozenset(("style", "script", "head", "title"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0
        self._links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self._HIDDEN:
            self._hidden += 1
        if tag in self._BLOCKS:
            self.parts.append("\n")
        if tag == "li":
            self.parts.append("- ")
        if tag == "a":
            self._links.append(dict(attrs).get("href"))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._HIDDEN:
            self._hidden -= 1
        if tag in self._BLOCKS:
            self.parts.append("\n")
        if tag == "a" and self._links and (href := self._links.pop()):
            self.parts.append(f" ({href})")

    def handle_data(self, data: str) -> None:
        if self._hidden <= 0:
            self.parts.append(re.sub(r"\s+", " ", data))


def text_of(html: str) -> str:
    """Plain text for an html mail that has none of its own."""
    parser = _Text()
    try:
        parser.feed(html)
        parser.close()
    except AssertionError as error:
        # How the standard library's parser says that it cannot go on, at `<![x]>` for instance.
        raise RenderError(f"html: {_one_line(error)}") from None
    lines = [line.strip() for line in "".join(parser.parts).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
