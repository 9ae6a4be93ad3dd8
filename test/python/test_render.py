"""Rendering: what a user's row or a template may hold, nothing but a RenderError comes of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation import render
from activation.errors import Refusal, RenderError


def rendered(
    text: str,
    subject: str = "s",
    html: str | None = None,
    personalization: dict[str, object] | None = None,
    **user: object,
) -> render.Rendered:
    variables = render.variables_of(personalization or {}, user, "first", {"plan": "pro"}, None)
    return render.render(render.Source(subject, html, text), variables)


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
@pytest.mark.parametrize("name", ["a%0ab", "a\nb", "a%00b", "a\x00b", "a\x1bb", ""])
def test_subjects(subject: str, name: str) -> None:
    """One line of something; never what the database or a mail header cannot hold."""
    try:
        assert rendered("t", subject=subject, name=name).subject == "a%0ab" or "%" in name
    except RenderError as error:
        assert "subject: " in str(error)


@given(st.text(alphabet=st.sampled_from(list("<>!/[]-=\"' abCDATAscript&#;0x\n")), max_size=60))
def test_text_of_any_html(html: str) -> None:
    try:
        render.text_of(html)
    except RenderError as error:
        assert str(error).startswith("html: ")


def test_text_of_html() -> None:
    html = """<html><head><title>no</title><style>p { no: no }</style></head><body>
        <h1>Hello</h1><p>one<br>two &amp; three</p><ul><li>a</li><li>b</li></ul>
        <a href="https://acme.dev/?a=1&amp;b=2">go</a><a>nowhere</a><!-- no --></body></html>"""
    assert render.text_of(html).split() == (
        ["Hello", "one", "two", "&", "three", "-", "a", "-", "b", "go", "(https://acme.dev/?a=1&b=2)nowhere"]
    )


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
