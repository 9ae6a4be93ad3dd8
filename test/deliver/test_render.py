"""Rendering: what a user's row or a template may hold, nothing but a RenderError comes of it."""

from __future__ import annotations

import json
import unicodedata
from time import monotonic

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation.errors import Refusal, RenderError
from activation.mail import liquid_limits, render


def rendered(
    text: str,
    subject: str = "s",
    html: str | None = None,
    personalization: dict[str, object] | None = None,
    **user: object,
) -> render.Rendered:
    # Its own two seconds are looked at below; here a loaded machine makes no difference.
    until = monotonic() + 60
    variables = render.variables_of(personalization or {}, user, "first", {"plan": "pro"}, None, until)
    return render.render(render.Source(subject, html, text), variables, until)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{{ user.name | ceil }}", "1e400"),
        ("{{ user.name | floor }}", "nan"),
        ("{{ user.name | base64_decode }}", "9999"),
        ("{{ user.name | date: '%Y' }}", "99999999999999999999"),
        ("{{ user.name | divided_by: 0 }}", "1"),
        ("{% include 'x' %}", ""),
        ("{{ user.name.first.second }}", "a"),
    ],
)
def test_a_value_that_a_filter_cannot_work_on(text: str, name: str) -> None:
    with pytest.raises(RenderError, match="text: "):
        rendered(text, name=name)


FILTERS = sorted(render._environment(False).filters)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers(), max_size=3),
    st.sampled_from(["1e400", "nan", "-1", "%00", "now", "99999999999999999999", "{{ user }}", "0x1"]),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)  # fmt: skip


@given(st.sampled_from(FILTERS), VALUES, st.lists(VALUES, max_size=2))
def test_no_filter_gets_out(name: str, value: object, arguments: list[object]) -> None:
    """A mail, which can be written as JSON, or a RenderError: one user's row never stops the others' mail."""
    names = [f"user.a{i}" for i in range(len(arguments))]
    text = f"{{{{ user.value | {name}{': ' if names else ''}{', '.join(names)} }}}}"
    user = {"value": value} | {f"a{i}": argument for i, argument in enumerate(arguments)}
    for html in (None, text):
        try:
            mail = rendered(text, subject=f"s {text}", html=html, **user)
        except RenderError as error:
            assert str(error)
        else:
            assert "\n" not in mail.subject and "\x00" not in mail.subject
            json.dumps([mail.subject, mail.html, mail.text])


@pytest.mark.parametrize("subject", ["{{ user.name }}", "{{ user.name | url_decode }}"])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a%0ab", "a b"), ("a\r\n\tb", "a b"), ("a\u2028b", "a b"), ("a\u2029b", "a b"), ("a\x85b", "a b"),
        ("a\xa0\xa0 b", "a b"), ("a\xa0b", "a\xa0b"), (" a  b ", "a b"),
        ("a%00b", "ab"), ("a\x00b", "ab"), ("a\x1bb", "ab"), ("a\x9fb", "ab"),
        ("\u202eadA\u2069\u200f\u061c", "adA"), ("a\u200bb\ufeff", "ab"), ("a\ud800b", "a\ufffdb"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),
    ],
)  # fmt: skip
def test_subjects(subject: str, name: str, expected: str) -> None:
    """One line of what can be seen, whatever a name holds."""
    try:
        assert rendered("t", subject=subject, name=name).subject in (expected, name if "%" in name else expected)
    except RenderError as error:
        # What is not UTF-8 cannot be percent-encoded.
        assert "url_decode" in subject and "surrogate" in str(error)


@pytest.mark.parametrize("name", ["", " \r\n", "\x00", "\u202e\u200b"])
def test_an_empty_subject(name: str) -> None:
    with pytest.raises(RenderError, match="subject: is empty"):
        rendered("t", subject="{{ user.name }}", name=name)


@given(st.text())
def test_any_name(name: str) -> None:
    mail = rendered("{{ user.name }}", subject="Hi {{ user.name }}!", html="<p>{{ user.name }}</p>", name=name)
    assert len(mail.subject.splitlines()) == 1 and "\x00" not in mail.text + str(mail.html)
    assert not any(
        unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "PDF", "RLI", "LRI", "FSI", "PDI")
        for c in mail.subject
    )
    json.dumps([mail.subject, mail.html, mail.text], ensure_ascii=False).encode()


# -- limits ----------------------------------------

MEGABYTE = 1_000_000
HUGE: dict[str, object] = {
    "n": 10**12, "full": "a" * MEGABYTE, "over": "a" * (MEGABYTE + 1), "half": "b" + "a" * (MEGABYTE // 3),
    "digits": "9" * MEGABYTE, "int": 10**3990, "list": [str(i) for i in range(20_000)], "long": list(range(20_001)),
    "markup": "<a " * (MEGABYTE // 3), "lines": "\n" * MEGABYTE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% assign r = (1..user.n) %}{{ r | sum }}", "a range of more than 20,000 items"),
        ("{{ user.list | concat: user.list | size }}", "a list of more than 20,000 items"),
        ("{% for i in (1..user.n) %}x{% endfor %}", "a range of"),
        ("{% for i in (1..user.n) reversed %}x{% endfor %}", "a range of"),
        ("{% for i in (1..user.n) limit: 1 offset: 999999999 %}x{% endfor %}", "a range of"),
        ("{% tablerow i in (1..user.n) %}x{% endtablerow %}", "a range of"),
        ("{% if user.n %}{% unless (1..user.n) contains 'a' %}{% endunless %}{% endif %}", "a range of"),
        ("{% case user.n %}{% when (1..user.n) %}x{% endcase %}", "a range of"),
        ("{{ user.list | concat: (1..user.n) | size }}", "a range of"),
        ("{% cycle (1..user.n), 'a' %}", "a range of"),
        ("{% capture x %}{% echo (1..user.n) %}{% endcapture %}", "a range of"),
        ("{% liquid assign r = (1..user.n) %}", "a range of"),
        ("{% assign s = 'aa' %}" + "{% assign s = s | replace: 'a', 'aa' %}" * 40, "a text of more than 1,000,000"),
        ("{% assign s = 'aa' %}" + "{% assign s = s | append: s %}" * 40, "a text of"),
        ("{% assign s = 'aa' %}" + "{% assign s = s | prepend: s %}" * 40, "a text of"),
        ("{{ user.full | replace: '', user.full | size }}", "a text of"),
        ("{{ user.list | join: user.half | size }}", "a text of"),
        ("{{ user.lines | newline_to_br | size }}", "a text of"),
        ("{{ user.over | strip | size }}", "a text of"),
        ("{{ user.half | split: '' | size }}", "a list of"),
        ("{{ user.half | split: 'a' | size }}", "a list of"),
        ("{{ user.long | first | size }}{{ user.long | sort | size }}", "a list of"),
        ("{% assign i = 9 %}" + "{% assign i = i | times: i %}" * 40, "a number of more than 4,000 digits"),
        ("{{ user.list | map: user.int | size }}", "a key of"),
        ("{{ user.half | date: '%c' }}", "a date of"),
        ("{{ 'now' | date: user.half }}", "a date of"),
        ("{{ user.full | remove_last: user.half }}", "a (long )?text"),
        ("{{ user.half | replace_last: user.half, '' }}", "a long text"),
        ("{% assign l = user.full | split: 'b' %}" + "{% assign l = l | concat: l %}" * 20, "a text of"),
        ("{% cycle user.full, user.full %}", "a text of"),
        ("{% capture c %}x{% endcapture %}" + "{% capture c %}{{ c }}{{ c }}{% endcapture %}" * 40, "writes more than"),
        ("{% capture c %}{% for i in (1..20000) %}" + "y" * 1000 + "{% endfor %}{% endcapture %}", "writes more than"),
        ("{{ user.full }}" * 2, "writes more than 1,000,000"),
        ("{{ user.full }}" * 200, "writes more than"),
        ("{{ user.list }}" * 20, "writes more than"),
        ("{% for i in (1..200) %}{% for j in (1..200) %}x{% endfor %}{% endfor %}", "loop iteration limit"),
    ],
)  # fmt: skip
def test_what_grows(template: str, reason: str) -> None:
    for html in (False, True):
        with pytest.raises(RenderError, match=reason):
            rendered("t" if html else template, html=template if html else None, **HUGE)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in (1..20000) %}{% endfor %}",
        "{% for i in user.list %}{{ i }}{% endfor %}",
        "{% tablerow i in user.list %}{% endtablerow %}",
        "{{ user.half | strip | size }}",
        "{{ user.list | uniq | size }}",
        "{{ user.list | default: 'x' | size }}",
        "{% assign x = 'a' %}",
        "{% if user.full contains 'b' %}{% endif %}",
        "{% case user.n %}{% when user.int %}{% endcase %}",
        "{% capture x %}{{ user.n }}{% endcapture %}",
        "{% cycle user.n, user.int %}",
    ],
)
def test_everything_looks_at_the_clock(template: str) -> None:
    """Whatever could be repeated in a template ends when the mail's time is up."""
    variables = render.variables_of({}, HUGE, "first", None, None)
    for source in (
        render.Source("s", None, template),
        render.Source("s", template, "t"),
        render.Source(template, "", ""),
    ):
        with pytest.raises(RenderError, match="takes longer than 2 seconds"):
            render.render(source, variables, monotonic() - 1)
    with pytest.raises(RenderError, match="personalization x: rendering takes longer"):
        render.variables_of({"x": template}, HUGE, "first", None, None, monotonic() - 1)


def test_every_filter_is_limited() -> None:
    """But for those that look at their value without reading all of it, and give back nothing larger."""
    for html in (False, True):
        for name, function in render._environment(html).filters.items():
            assert (function.__name__ == "limited") == (name not in liquid_limits.UNLIMITED), name
    assert set(FILTERS) >= liquid_limits.UNLIMITED


@pytest.mark.parametrize(
    "text",
    [
        "{{" * 300_000, "{% raw %}" * 100_000, "{% doc %}" * 100_000, "{" * MEGABYTE, "{{ a }}" * 20_000,
        "{% if" + " " * 5_000 + "%}", "{{ " + "(" * 100_000 + " }}", "{% cycle " + "a," * 100_000 + "%}",
        "a" * (MEGABYTE + 1),
    ],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_would_take_long_to_parse(text: str) -> None:
    with pytest.raises(Refusal, match=r"not valid Liquid: .*(expected|without|more than|longer)") as caught:
        render.check_syntax(source(text), "it")
    assert caught.value.code == "42601"


@pytest.mark.parametrize(
    "text", ["{% raw %}{{ {% {% raw %}{% endraw %}", "{% comment %}{% endcomment %}", "a } b", "{ {"]
)
def test_what_is_no_liquid(text: str) -> None:
    render.check_syntax(source(text), "it")


# -- the user's row ----------------------------------------


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ('{"x": 12.50}', "12.50"),
        ('{"x": 1e+20}', "1e+20"),
        ('{"x": 0.1000000000000000055511151231257827}', "0.1000000000000000055511151231257827"),
        ('{"x": 9007199254740993}', "9007199254740993"),
        (f'{{"x": {"9" * 5001}}}', "9" * 5001),
        ('{"x": "a\\u0000b"}', "ab"),
        ('{"x": "a\\ud800b"}', "a\ufffdb"),
    ],
    ids=lambda text: text[:20],
)
def test_values_of_a_row(row: str, shown: str) -> None:
    for template in ("{{ user.x }}", "{{ user.x | default: 'none' }}"):
        variables = render.variables_of({}, render.read(row, "the user's row"), "first", None, None)
        mail = render.render(render.Source("s {{ user.x }}", f"<b>{template}</b>", template), variables)
        assert mail == render.Rendered(f"s {shown}", f"<b>{shown}</b>", shown)


def test_numbers_can_be_reckoned_with() -> None:
    user = render.read('{"x": 12.50, "n": 3}', "the user's row")
    text = (
        "{{ user.x | times: user.n }} {% if user.x > 12 %}more{% endif %} {{ user.x | plus: 0.1 }} {{ user.x | ceil }}"
    )
    assert rendered(text, **user).text == "37.5 more 12.6 13"


@pytest.mark.parametrize(
    "row", ["[" * 3_000 + "]" * 3_000, '{"x":' * 3_000 + "1" + "}" * 3_000, "[" + "1," * 15_000_000 + "1]", "{", ""]
)
def test_rows_that_cannot_be_read(row: str) -> None:
    with pytest.raises(RenderError, match="the user's row cannot be read: "):
        render.read(row, "the user's row")


def test_a_reason_can_be_stored() -> None:
    with pytest.raises(RenderError) as caught:
        rendered("{{ 1 | plus: 1 }}{{ user.x[user.name] }}", x={}, name="\x00\ud800" + "n" * MEGABYTE)
    assert len(str(caught.value)) < 600 and "\x00" not in str(caught.value)
    str(caught.value).encode()


def test_variables() -> None:
    """Personalization is filled from the row first; what comes to nothing is absent."""
    mail = rendered(
        "{{ name }}|{{ link | default: 'none' }}|{{ count }}|{{ loop.name }}|{{ enrollment.context.plan }}",
        personalization={"name": "{{user.first}} {{user.last}}", "link": "{{ user.link }}", "count": 3},
        first="Ada",
        last="L",
        link=None,
    )
    assert mail.text == "Ada L|none|3|first|pro"


def test_personalization_cannot_stand_for_ours() -> None:
    assert rendered("{{ user.name }}", personalization={"user": "x"}, name="Ada").text == "Ada"


def test_a_users_text_is_no_template() -> None:
    personalization: dict[str, object] = {"name": "{{user.name}}"}
    mail = rendered("{{ name }}", html="{{ name }}", personalization=personalization, name="{{ loop.name }}<i>")
    assert (mail.text, mail.html) == ("{{ loop.name }}<i>", "{{ loop.name }}&lt;i&gt;")


def source(text: str) -> render.Source:
    return render.Source("s", None, text)


@pytest.mark.parametrize(
    "text",
    [
        "{{ user.id }} {{ user.name | default: 'x' }} {{ given }}",
        "{% if user.plan %}{{ user.id }}{% endif %}",
        "{{ user.missing | default: 'x' }}{% if missing %}{% endif %}",
        "{{ user.id | date: '%Y' }}{{ user.id | plus: 1 }}{{ user.name | ceil }}",
        "{% if unsubscribe_url %}{{ unsubscribe_url }}{% endif %}{{ loop.name }}",
        "{% for i in user.name %}{{ i }}{% endfor %}",
    ],
)
def test_templates_that_fit(text: str) -> None:
    render.check(source(text), {"given": "{{ user.id }}"}, ["id", "name"], "it")


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("{{ user.plan }}", "42703", "plan"),
        ("{{ plan }}", "22023", "plan"),
        ("{% if user.name %}{% else %}{{ user.plan }}{% endif %}", "42703", "plan"),
        ("{% if user.name %}{{ user.plan }}{% endif %}", "42703", "plan"),
        ("{{ user.id ", "42601", "it: body_text"),
        ("{% if %}", "42601", "it: body_text"),
        ("{% for %}", "42601", "it: body_text"),
        ("{{ user.id | nosuch }}", "42601", "it: body_text"),
        ("{% if user.id %}" * 3000, "42601", "it: body_text"),
    ],
)
def test_templates_that_do_not(text: str, code: str, named: str) -> None:
    with pytest.raises(Refusal) as caught:
        render.check(source(text), {}, ["id", "name"], "it")
    refusal = caught.value
    assert refusal.code == code and refusal.hint
    assert named in refusal.message + refusal.detail
