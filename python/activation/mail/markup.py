"""Html as mail programs read it: where its tags and attributes are, its text, and its links. Pure.

The standard library's parser takes quadratic time over broken html, and a cancel does not reach Python. Here each
character is read once: what is begun and never ended takes the rest of the text with it, as in browsers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from time import monotonic
from typing import NamedTuple

from activation.errors import RenderError

# There is one way only in which these match, so that they fail at once where they do not.
_VALUE = r"""(?:"[^"]*"|'[^']*'|(?!["'])[^ \t\n\r\f>]*(?=[ \t\n\r\f>]|$))"""
_ATTRIBUTE = re.compile(
    r"([^ \t\n\r\f/>][^ \t\n\r\f/>=]*)(?=[ \t\n\r\f/>=]|$)"
    rf"(?:[ \t\n\r\f]*=[ \t\n\r\f]*({_VALUE})|(?![ \t\n\r\f]*=))"
)
_ANY_ATTRIBUTE = _ATTRIBUTE.pattern.replace("([^", "(?:[^", 1).replace("((?:", "(?:(?:", 1)
_TAG = re.compile(rf"<(/?)([a-zA-Z][^ \t\n\r\f/>]*)(?=[ \t\n\r\f/>])(?:[ \t\n\r\f/]|{_ANY_ATTRIBUTE})*>")
_BEGINS_TAG = re.compile("</?[a-zA-Z]")
_TEXT = re.compile(r"(?:[^<]+|<(?![a-zA-Z/!?]))+")
_WHITE = re.compile(r"\s+")
_COMMENT_END = re.compile(r"--!?>")
#: What is between their tags is text, whatever it looks like.
_RAW = frozenset(("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes"))
_RAW_END = {name: re.compile(rf"</{name}(?=[ \t\n\r\f/>])", re.IGNORECASE) for name in _RAW}

#: Attributes that hold an address.
_ADDRESSES = frozenset(
    "href src srcset action formaction xlink:href background poster cite data longdesc ping".split()  # noqa: SIM905
)
#: With which an address that comes from data may begin.
_ALLOWED = re.compile(r"(?:https?|mailto):", re.IGNORECASE)


class Attribute(NamedTuple):
    """name: in lower case. begin, end: where it stands. value, value_begin: as written. quoted: whether in quotes."""

    name: str
    begin: int
    end: int
    value: str
    value_begin: int
    quoted: bool


class Token(NamedTuple):
    """kind: text, start or end (of an element), raw (what is in a raw element) or comment. name: of the element."""

    kind: str
    begin: int
    end: int
    name: str = ""


def tokens(html: str, *, conditional: bool = False, until: float = float("inf")) -> Iterator[Token]:
    """The parts of an html text, in order. conditional: read what is in Outlook's conditional comments, too.

    Raises RenderError after that moment of the monotonic clock.
    """
    at = 0
    while at < len(html):
        if monotonic() > until:
            raise RenderError("html: takes too long to read")
        begin = at
        if match := _TEXT.match(html, at):
            at = match.end()
            yield Token("text", begin, at)
        elif match := _TAG.match(html, at):
            at = match.end()
            name = match[2].lower()
            yield Token("end" if match[1] else "start", begin, at, name)
            if name in _RAW and not match[1]:
                close = _RAW_END[name].search(html, at)
                begin, at = at, close.start() if close else len(html)
                yield Token("raw", begin, at, name)
        elif _BEGINS_TAG.match(html, at):
            return
        else:
            at = _comment_end(html, at, conditional)
            yield Token("comment", begin, at)


def attributes(html: str, token: Token) -> list[Attribute]:
    """Those of a tag. Raises RenderError for one that is none."""
    found: list[Attribute] = []
    if token.kind not in ("start", "end"):
        return found
    after_name = token.begin + len(token.name) + (1 if token.kind == "start" else 2)
    for match in _ATTRIBUTE.finditer(html, after_name, token.end - 1):
        value, begin = match[2] or "", match.start(2)
        quoted = value[:1] in ('"', "'") and len(value) > 1
        if quoted:
            value, begin = value[1:-1], begin + 1
        found.append(Attribute(match[1].lower(), match.start(), match.end(), value, begin, quoted))
        if len(found) > 1_000:
            raise RenderError("html: holds a tag with more than 1,000 attributes")
    return found


def _comment_end(html: str, at: int, conditional: bool) -> int:
    if not html.startswith("<!--", at):
        end = html.find(">", at)
        return end + 1 if end >= 0 else len(html)
    if conditional and html.startswith("<!--[if", at):
        end = html.find("]>", at)
        return end + 2 if end >= 0 else len(html)
    match = _COMMENT_END.search(html, at + 2)
    return match.end() if match else len(html)


def _decoded(text: str) -> str:
    try:
        return unescape(text)
    except ValueError:
        # `&#` and more digits than Python makes a number of.
        return text


# -- plain text ----------------------------------------

_BLOCKS = frozenset(
    "p div tr table h1 h2 h3 h4 h5 h6 ul ol li br hr blockquote section".split()  # noqa: SIM905
)


def text_of(html: str, until: float = float("inf")) -> str:
    """Readable plain text of an html mail: blocks on lines of their own, links with their address."""
    parts: list[str] = []
    links: list[str | None] = []
    in_head = 0
    for token in tokens(html, until=until):
        name, opens = token.name, token.kind == "start"
        if token.kind == "text" or (token.kind == "raw" and name == "textarea"):
            if in_head <= 0:
                parts.append(_WHITE.sub(" ", _decoded(html[token.begin : token.end])))
        elif opens or token.kind == "end":
            if name == "head":
                in_head += 1 if opens else -1
            if name in _BLOCKS:
                parts.append("\n- " if opens and name == "li" else "\n")
            if name == "a" and opens:
                links.append(next((_decoded(a.value) for a in attributes(html, token) if a.name == "href"), None))
            elif name == "a" and links and (href := links.pop()):
                parts.append(f" ({href})")
    lines = [line.strip() for line in "".join(parts).splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def without_tags(html: str, until: float = float("inf")) -> str:
    """The html's text, entities left as they are."""
    return "".join(html[t.begin : t.end] for t in tokens(html, until=until) if t.kind == "text" or t.name == "textarea")


# -- links ----------------------------------------

#: In the text of a template: what Liquid writes there, the same if it may hold quotes, and where a block begins, goes
#: on and ends.
OUTPUT, QUOTING, OPEN, NEXT, CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
MARKS = re.compile(f"[{OUTPUT}-{CLOSE}]")


@dataclass(frozen=True)
class Links:
    """What a template says about its links.

    own: addresses that stand in the template itself. begun: what stands there of addresses that go on with an output,
    where that is enough to tell the scheme. outputs: the numbers of the outputs that an address begins with. proven:
    whether no other output can become the beginning of an address.
    """

    own: frozenset[str]
    begun: tuple[str, ...]
    outputs: frozenset[int]
    proven: bool


def links_of(template: str, until: float) -> Links:
    """Where addresses in html come from. template: its text, with marks in place of Liquid."""
    own: set[str] = set()
    begun: set[str] = set()
    outputs: set[int] = set()
    # What is written behind a bracket can make it a tag.
    proven = not re.search(f"<[/!?-]*{MARKS.pattern}", template)
    ended = 0
    for token in tokens(template, conditional=True, until=until):
        ended = token.end
        inside = template[token.begin : token.end]
        if token.kind in ("raw", "comment"):
            # Where it ends may depend on what is written.
            proven = proven and _balanced(inside) and not ("<" in inside and MARKS.search(inside))
        elif token.kind != "text":
            found = attributes(template, token)
            values = [a.value for a in found if a.quoted and MARKS.search(a.value)]
            marks = MARKS.findall(inside)
            # A mark anywhere else in a tag can become anything.
            proven = proven and QUOTING not in marks
            proven = proven and len(marks) == len(MARKS.findall("".join(values)))
            proven = proven and all(map(_balanced, values))
            for attribute in found:
                if attribute.name in _ADDRESSES:
                    before, *dynamic = MARKS.split(attribute.value, maxsplit=1)
                    if not dynamic:
                        own.add(before)
                    elif re.search("[:/?#]", before):
                        begun.add(before)
                    elif attribute.value.startswith(OUTPUT):
                        outputs.add(len(re.findall(f"[{OUTPUT}{QUOTING}]", template[: attribute.value_begin])))
                    else:
                        proven = False
    return Links(frozenset(own), tuple(begun), frozenset(outputs), proven and ended == len(template))


def _balanced(text: str) -> bool:
    """Whether each block of Liquid that has a part in this text is in it as a whole."""
    depth = 0
    for mark in MARKS.findall(text):
        depth += {OPEN: 1, CLOSE: -1}.get(mark, 0)
        if depth < 0 or (mark == NEXT and depth == 0):
            return False
    return depth == 0


def plainly_allowed(address: str) -> bool:
    """Whether an address is one that may come from data, at first sight."""
    return address.startswith(("https://", "http://", "mailto:"))


def without_odd_links(html: str, links: Links, until: float = float("inf")) -> str:
    """The html without the addresses that neither stand in the template nor begin with http, https or mailto."""
    # Once as Outlook reads it and once as everybody else does.
    for conditional in (True, False):
        kept: list[str] = []
        at = 0
        for token in tokens(html, conditional=conditional, until=until):
            for attribute in attributes(html, token):
                if attribute.name in _ADDRESSES and not _allowed(attribute.value, links):
                    kept.append(html[at : attribute.begin].rstrip(" \t\n\r\f"))
                    at = attribute.end
        html = "".join((*kept, html[at:]))
    return html


def _allowed(value: str, links: Links) -> bool:
    if value in links.own or value.startswith(links.begun):
        return True
    # Browsers leave out white space and control characters before the address, and breaks within it.
    return bool(_ALLOWED.match(re.sub(r"^[\x00-\x20]+|[\t\n\r]", "", _decoded(value))))
