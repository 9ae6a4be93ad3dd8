"""Html: its text, and the addresses in it that come from data; whatever the html, in linear time."""

from __future__ import annotations

from itertools import pairwise
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation.errors import RenderError
from activation.mail import markup, render


def html_of(template: str, **user: object) -> str:
    variables = render.variables_of({}, user, "first", None, None)
    return str(render.render(render.Source("s", template, None), variables).html)


def test_text_of_html() -> None:
    html = """<html><head><title>no</title><style>p { no: no }</style></head><body>
        <h1>Hello</h1><p>one<br>two &amp; three</p><ul><li>a</li><li>b</li></ul>
        <a href="https://acme.dev/?a=1&amp;b=2">go</a><a>nowhere</a><!-- no --><script>no</script>
        <!--[if mso]><b>no</b><![endif]--><textarea>yes</textarea> 1 < 2 &lt;3></body></html>"""
    assert markup.text_of(html).split() == (
        "Hello one two & three - a - b go (https://acme.dev/?a=1&b=2)nowhere yes 1 < 2 <3>".split()  # noqa: SIM905
    )


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<a title="x > y" href=https://a.de/>go</a>', "go (https://a.de/)"),
        ("<A HREF='https://a.de/x'>go</A>", "go (https://a.de/x)"),
        ("before<a href='x", "before"),
        ("a</>b</ x>c<?php x ?>d<!x>e", "abcde"),
        ("a<!-->b<!-- -->c<!-- --!>d<!-- e", "abcd"),
        ("<li>a<li>b", "- a\n- b"),
        ("&#" + "9" * 5_000 + ";", "&#" + "9" * 5_000 + ";"),
        ("<script>a</scripty></script>b", "b"),
    ],
    ids=lambda text: text[:20],
)
def test_text_of_odd_html(html: str, text: str) -> None:
    assert markup.text_of(html) == text


@given(st.text(alphabet=st.sampled_from(list("<>!/[]-=\"' abCDATAscript&#;0x\n")), max_size=60))
def test_any_html(html: str) -> None:
    markup.text_of(html)
    found = list(markup.tokens(html))
    assert all(before.end == after.begin for before, after in pairwise(found))
    rest = html[found[-1].end if found else 0 :]
    assert rest == "" or rest.startswith("<")
    none = markup.Links(frozenset(), (), frozenset(), False)
    cleaned = markup.without_odd_links(html, none)
    assert markup.without_odd_links(cleaned, none) == cleaned


UNITS = [
    "<",
    "<a ",
    "<a '",
    "<a x=",
    "<a x='",
    "<!--",
    "</a",
    "</",
    "<p>",
    "<title>",
    "<script>",
    "<?",
    "<!",
    "&",
    "&#9",
    "<![x]>",
    "</title",
    "<svg/",
]


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear(unit: str) -> None:
    """No character is looked at more often in a longer text: counted in tokens and attributes, not in seconds."""
    try:
        found = list(markup.tokens(unit * 300_000))
    except RenderError as error:
        assert "more than 1,000 attributes" in str(error)
    else:
        assert len(found) <= 300_001


@pytest.mark.parametrize("unit", ["<p>", "<a b>", "</p>", "x<!-- -->"])
def test_reading_looks_at_the_clock(unit: str) -> None:
    for read in (markup.text_of, markup.without_tags):
        with pytest.raises(RenderError, match="takes too long to read"):
            read(unit * 100, monotonic() - 1)


GOOD = [
    "https://a.de/?x=1&y=2",
    "http://a.de",
    "HTTPS://A.DE",
    "mailto:a@b.de",
    " https://a.de",
    "ht\ttps://a.de",
    "&#104;ttps://a.de",
]
BAD = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "java\tscript:alert(1)",
    "java\nscript:x",
    " javascript:x",
    "\x01javascript:x",
    "javascript&#58;x",
    "javascript&colon;x",
    "&#106;avascript:x",
    "data:text/html,x",
    "vbscript:x",
    "file:///etc",
    "//evil.com",
    "/path",
    "evil.com",
    "",
    "ftp://a.de",
    "https",
    "tel:1",
    "blob:https://a.de",
    "\\\\evil",
    "ht tps://a.de",
    "\u00a0javascript:x",
]
PLACES = [
    '<a href="{{ user.x }}">go</a>',
    "<a href='{{ user.x }}'>go</a>",
    '<a class="a" href="{{ user.x }}" title="t">go</a>',
    '<A\nHREF = "{{ user.x }}">go</A>',
    '<a href="{{ user.x }}{{ user.y }}">go</a>',
    "<a href={{ user.x }}>go</a>",
    '<a href="{% if user.x %}{{ user.x }}{% endif %}">go</a>',
    '<a {% if user.x != nil %}href="{{ user.x }}"{% endif %}>go</a>',
    '{% capture l %}{{ user.x }}{% endcapture %}<a href="{{ l }}">go</a>',
    '{% assign l = user.x %}<a href="{{ l }}">go</a>',
    '<a href="{{ user.x | strip }}">go</a>',
    "{% assign a = '<a href=\"' %}{{ a }}{{ user.x }}\">go</a>",
    "{{ '<a href=\"' }}{{ user.x }}\">go</a>",
    '<a href="{% cycle user.x, user.x %}">go</a>',
    '<a href="{% echo user.x %}">go</a>',
    '<!--[if mso]><a href="{{ user.x }}">go</a><![endif]-->',
    '<img src="{{ user.x }}">',
    '<form action="{{ user.x }}"></form>',
    '<svg><a xlink:href="{{ user.x }}">go</a></svg>',
    '<button formaction="{{ user.x }}">go</button>',
    '{% for i in (1..2) %}<a href="{{ user.x }}">go</a>{% endfor %}',
    '<a href="{{ user.y }}{{ user.x }}">go</a>',
    '<a {{ user.z }} href="{{ user.x }}">go</a>',
    "{{ user.html | safe }}",
    '<a href="{% liquid echo user.x %}">go</a>',
    '<p title="{{ "x\' href=" }}"></p><a href="{{ user.x }}">go</a>',
    "{% tablerow i in (1..2) %}<a href='{{ user.x }}'>go</a>{% endtablerow %}",
]


@pytest.mark.parametrize("template", PLACES)
def test_addresses_from_data(template: str) -> None:
    """http, https and mailto stay as they are. Of others the attribute goes, and what is around it stays."""
    for address in (*GOOD, *BAD):
        written = html_of(template, x=address, y="", z="", html=f'<a href="{address}">go</a>')
        found = [
            a.value
            for t in markup.tokens(written, conditional=True)
            for a in markup.attributes(written, t)
            if a.name in markup._ADDRESSES
        ]
        # What is escaped as a value is no entity any more.
        if address in BAD or (address.startswith("&") and "safe" not in template):
            assert not found, address
        elif "={{" not in template or not set(address) & set(" \t"):
            # Without quotes, white space ends an address.
            assert found, address
        assert ("go" in written) == ("go" in template or "safe" in template)


@pytest.mark.parametrize(
    "html",
    [
        '<a href="tel:+49123">',
        '<a href="#top">',
        '<a href="/help">',
        '<img src="cid:logo">',
        '<a href="myapp://x">',
        '<a href="tel:{{ user.n }}">',
        '<a href="/u/{{ user.n }}">',
        '<a href="https://{{ user.n }}.acme.dev">',
        '<a href="?u={{ user.n }}">',
        '<p style="margin:{% if user.n %}1{% else %}2{% endif %}px" title="{{ user.n }}">{{ user.n }}</p>',
    ],
)
@pytest.mark.parametrize("more", ["", '<a href="{{ user.bad }}">', "{{ user.n | safe }}", "{% cycle 'a' %}"])
def test_addresses_of_the_template_itself(html: str, more: str) -> None:
    """Their scheme is the author's, even where something else in the mail has to be taken out."""
    expected = html_of(html, n="12", bad="javascript:x")
    assert expected == html.replace("{{ user.n }}", "12").replace("{% if user.n %}1{% else %}2{% endif %}", "1")
    assert html_of(html + more, n="12", bad="javascript:x").startswith(expected)


def test_an_unquoted_attribute_from_data() -> None:
    assert html_of("<b title={{ user.x }}>go</b>", x="a href=javascript:x") == "<b title=a>go</b>"


def test_the_text_follows() -> None:
    variables = render.variables_of({}, {"x": "javascript:x", "y": "https://a.de"}, "first", None, None)
    source = render.Source("s", '<a href="{{ user.x }}">one</a> <a href="{{ user.y }}">two</a>', None)
    assert render.render(source, variables).text == "one two (https://a.de)"


@pytest.mark.parametrize("name", render.BUILT_IN)
def test_the_built_in_templates_need_no_look(name: str) -> None:
    """Nothing is read again after rendering, as long as their addresses are plain."""
    source = render.built_in(name)
    assert source and source.html
    links = render._parsed(source.html, True).links
    assert links and links.proven and len(links.outputs) == 2


DATA = st.text(alphabet=st.sampled_from(list("javscript:htps/&#58;\t\"'<>= x")), max_size=20) | st.sampled_from(
    BAD + GOOD
)


@given(
    st.lists(
        st.sampled_from(
            [
                '<a href="',
                "<a href='",
                '"',
                "'",
                ">",
                "</a>",
                "{{ user.x }}",
                "{% if user.x %}",
                "{% endif %}",
                "{% else %}",
                '<b title="',
                " ",
                "<!--",
                "-->",
                "<title>",
                "</title>",
                "https:",
                "x",
                "{% for i in (1..2) %}",
                "{% endfor %}",
                "<img src=",
                "<p>",
                "{{ 'it' }}",
                '{{ "it\'s" }}',
                "<",
                "</",
                "<!",
                "--",
                "a",
                "title",
                "{{ user.x | safe }}",
            ]
        ),
        max_size=12,
    ),
    DATA,
)
def test_what_is_proven(parts: list[str], data: str) -> None:
    """Where nothing is read again after rendering, reading it again would find nothing."""
    text = "".join(parts)
    try:
        template = render._parsed(text, True)
    except Exception:
        return
    written = html_of(text, x=data)
    links = template.links
    assert links is None or markup.without_odd_links(written, links) == written
