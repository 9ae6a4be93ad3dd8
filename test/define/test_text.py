"""The pure parts: an author's SQL as tokens, references to secrets, coverage of a plan, and templates."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from activation.authoring import coverage, definition, sqltext
from activation.errors import KeyUnavailable, Refusal, RenderError
from activation.mail import render
from activation.resend import credentials
from activation.server import entry


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT 1;", "SELECT 1"),
        ("SELECT 1 ; ; -- done;\n /* ; /* ; */ */ ", "SELECT 1 "),
        ("SELECT ';'", "SELECT ';'"),
        ("SELECT E'\\';' -- ;", "SELECT E'\\';' -- ;"),
        ("SELECT $a$;$a$;", "SELECT $a$;$a$"),
        ('SELECT ";"', 'SELECT ";"'),
    ],
)
def test_terminators(sql: str, expected: str) -> None:
    assert sqltext.without_terminator(sql) == expected


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT * FROM a WHERE b = $1", "SELECT   FROM a WHERE b = $1"),
        ("select/*x*/ *\nfrom a", "select/*x*/  \nfrom a"),
        ("SELECT * FROM a UNION SELECT * FROM b", None),
        ("SELECT * FROM (SELECT 1 UNION SELECT 2) x", "SELECT   FROM (SELECT 1 UNION SELECT 2) x"),
        ("select*from a", "select from a"),
        ("SELECT a.* FROM a", None),
        ("SELECT 1 * 2 FROM a", None),
    ],
)
def test_stars(sql: str, expected: str | None) -> None:
    assert sqltext.without_star(sql) == expected


def test_parameters() -> None:
    assert sqltext.with_parameter("a = $1 AND b = '$1' AND $10 = $$ $1 $$ --$1", "K") == (
        "a = K AND b = '$1' AND $10 = $$ $1 $$ --$1"
    )


def test_row_columns() -> None:
    columns = ["plan", "Age", "id"]
    assert sqltext.row_columns("NEW.plan = 'NEW.id' AND new.\"Age\" > 1", "new", columns) == ["plan", "Age"]
    assert sqltext.row_columns("to_jsonb(NEW) ? 'x'", "new", columns) == columns
    assert sqltext.row_columns("x.new = 1", "new", columns) == []


def test_references(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert credentials.is_reference("env:RESEND_API_KEY") and credentials.is_reference("file:/etc/key")
    for text in ("re_123", "file:key", ""):
        assert not credentials.is_reference(text), text
    monkeypatch.setitem(os.environ, "A_KEY", " re_1\n")
    assert credentials.resolve("env:A_KEY", lambda _: None) == "re_1"
    assert credentials.resolve("secret:x", {"x": "re_2"}.get) == "re_2"
    file = tmp_path / "key"
    file.write_bytes(b"re_3\n")
    assert credentials.resolve(f"file:{file}", lambda _: None) == "re_3"
    for reference, content in (("env:NOT_SET", None), ("secret:y", None), (f"file:{tmp_path}", None), (None, None)):
        with pytest.raises(KeyUnavailable):
            credentials.resolve(reference, lambda _, content=content: content)
    file.write_bytes(b"re_4\nre_5")
    with pytest.raises(KeyUnavailable) as caught:
        credentials.resolve(f"file:{file}", lambda _: None)
    assert "re_" not in str(caught.value)


def plan(**node: Any) -> list[dict[str, Any]]:
    return [{"Plan": {"Node Type": "Seq Scan", "Schema": "public", "Relation Name": "a", **node}}]


@pytest.mark.parametrize(
    ("condition", "covered"),
    [
        ("(a.user_id = K)", True),
        ("((a.user_id = K) AND (a.what = 'x) AND (y'::text))", True),
        ("((a.user_id = K) OR (a.what = 'x'::text))", False),
        ("(((a.user_id = K) OR (a.b = 1)) AND (a.c = 2))", False),
        ('(a."userId" = K)', True),
        ("((a.user_id)::text = (K)::text)", True),
        ("(a.user_id > K)", False),
        ("(upper(a.user_id) = K)", False),
    ],
)
def test_coverage(condition: str, covered: bool) -> None:
    found = coverage.coverage(plan(Filter=condition), ["K"])
    assert bool(found.covered) is covered and bool(found.uncovered) is not covered


def rendered(html: str, **user: object) -> render.Rendered:
    source = render.Source("Hi {{ user.name }}", html, None)
    return render.render(source, render.variables_of({}, user, "loop", None, None))


def test_escaping_and_text() -> None:
    mail = rendered('<p>{{ user.name }}</p><a href="https://x.test/">go</a><script>no</script>', name="<b>&")
    assert mail.subject == "Hi <b>&"
    assert "<p>&lt;b&gt;&amp;</p>" in str(mail.html)
    assert "<b>&" in mail.text and "go (https://x.test/)" in mail.text and "no" not in mail.text


@pytest.mark.parametrize("name", ["a\r\nBcc: b@c.de", "a\nBcc: b@c.de", "a\u2028 Bcc: b@c.de"])
def test_headers_cannot_be_injected(name: str) -> None:
    assert rendered("x", name=name).subject == "Hi a Bcc: b@c.de"


@pytest.mark.parametrize(
    "html",
    [
        "{% for i in (1..1000000) %}x{% endfor %}",
        "{% for i in (1..15000) %}{{ user.name }}{% endfor %}",
        "{{ user.missing }}",
    ],
)
def test_runaways_and_missing_values(html: str) -> None:
    with pytest.raises(RenderError):
        rendered(html, name="y" * 1000)


def test_null_renders_as_nothing() -> None:
    assert rendered("[{{ user.name }}]", name=None).html == "[]"


@pytest.mark.parametrize("name", render.BUILT_IN)
def test_built_in_templates(name: str) -> None:
    """Valid on any users table; small; with a button only where there is a link."""
    source = render.built_in(name)
    assert source
    render.check(source, {}, ["id", "email"], name)
    bare = render.render(source, render.variables_of({}, {"id": 1}, "loop", None, None))
    assert "Hi there," in bare.text and "Hi there," in str(bare.html)
    personal = {"name": "{{user.name}}", "activationLink": "https://acme.dev/go", "count": "10"}
    full = render.render(source, render.variables_of(personal, {"name": "Ada"}, "loop", None, "https://acme.dev/bye"))
    for part in (full.text, str(full.html)):
        assert "Hi Ada," in part and "https://acme.dev/go" in part and "https://acme.dev/bye" in part
    assert len(str(full.html)) < 10_000


def test_subjects_differ() -> None:
    assert len({str(render.built_in(name) and render.built_in(name).subject) for name in render.BUILT_IN}) == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "greeted"),
    [
        ("Ada", "Ada"),
        ("J. R. Hartley", "J. R. Hartley"),
        ("win at evil.com", "there"),
        ("a@b.de", "there"),
        ("x" * 41, "there"),
        ("x" * 10_000_000, "there"),
        ("Ada\r\n Lovelace\u2028", "Ada Lovelace"),
        ("\u202eadA\u2066\x00", "adA"),
        ("e\u200bvil.\u200bcom", "there"),
        ("evil\uff0ecom", "there"),
        ("evil\u3002com", "there"),
        ("a\uff20b", "there"),
        ("Zo\u00eb \u0645\u06cc\u200c\u0646\u0627", "Zo\u00eb \u0645\u06cc\u200c\u0646\u0627"),
        (["Ada"], "there"),
        (True, "True"),
    ],
)
def test_who_is_greeted(name: object, greeted: str) -> None:
    source = render.Source("s", None, "Hi {{ user.name | greeting | default: 'there' }},")
    assert render.render(source, {"user": {"name": name}}).text == f"Hi {greeted},"


def test_camel_case_and_defaults() -> None:
    action = {"type": "email", "template": "x", "replyTo": "a@b.de"}
    made = definition.normalise("l", {"trigger": {"table": "t", "event": "insert"}, "action": action})
    assert made["steps"][0]["action"]["reply_to"] == "a@b.de"
    assert definition.normalise("l", made) == made
    with pytest.raises(Refusal, match='unknown key "tempalte"'):
        definition.normalise("l", {"trigger": {"table": "t", "event": "insert"}, "action": {"tempalte": "x"}})


@pytest.mark.parametrize(
    "expression", ["0 0 9 * * Mon", "9 * * *", "0 0 31 2 *", "1-0 * * * *", "\u0661 * * * *", "9" * 5000 + " * * * *"]
)
def test_no_cron_expressions(expression: str) -> None:
    with pytest.raises(Refusal) as caught:
        definition.check_cron("x", expression)
    assert "is not a cron expression" in caught.value.message or caught.value.message.endswith("…")


def _loop(**parts: object) -> dict[str, object]:
    return {"trigger": {"table": "users", "event": "insert"}, "action": {"template": "x"}, **parts}


def test_documents_that_python_cannot_read() -> None:
    """The server takes jsonb of more levels and digits."""
    for value, problem in (("[" * 3000 + "]" * 3000, "nested too deeply"), ("9" * 5000, "a number that is too long")):
        document = json.dumps(_loop(opinion="X")).replace('"X"', value)
        for answer in (
            entry.normalise("first", document),
            entry.fragment("goal", document),
            entry.check_template('loop "first"', "x", "x", None, document, ["id"]),
        ):
            error = json.loads(answer)["error"]
            assert problem in error["message"] and error["code"] == "22023" and 'loop "' in error["message"]


def test_long_values_are_not_repeated() -> None:
    for document in (_loop(type="x" * 10**6), _loop(**{"k" * 10**6: 1}), _loop(type=["x"] * 10**5)):
        error = json.loads(entry.normalise("first", json.dumps(document)))["error"]
        assert error["message"].startswith('loop "first": unknown ') and sum(map(len, error.values())) < 5_000


def test_many_steps() -> None:
    steps = [{"name": f"s{n}", "action": {"template": "x"}} for n in range(1_001)]
    document = {"trigger": {"table": "users", "event": "insert"}, "steps": steps}
    with pytest.raises(Refusal, match="has 1001 steps"):
        definition.normalise("first", document)
    steps.pop()
    assert len(definition.normalise("first", document)["steps"]) == 1_000
    steps[-1]["name"] = "s1"
    with pytest.raises(Refusal, match='two steps named "s1"'):
        definition.normalise("first", document)


def test_long_days() -> None:
    """They took a square of their length: half a minute for these."""
    window = {"days": "Mon" + " " * 200_000 + "- Fri , Sun", "opens": "9:00", "closes": "17:00"}
    assert definition.normalise("first", _loop(send_window=window))["send_window"]["days"] == "Mon,Tue,Wed,Thu,Fri,Sun"
