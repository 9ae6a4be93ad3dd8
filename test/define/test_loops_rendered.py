# ruff: noqa: E501
"""Loops as Python, without a server: what they render to. test_loops_as_code.py runs it."""

from __future__ import annotations

import inspect
import re
from datetime import time, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activation import loops, schema
from activation.loops import Loop, Template, email, on_event, on_insert, on_update, query, retry, send_window, step
from activation.text import dollar_quoted, literal

FIRST = Loop(
    "first_project",
    trigger=on_insert("users"),
    condition=query("SELECT 1 FROM projects WHERE owner_id = $1", timeout="5m"),
    action=email("activation_welcome", personalization={"name": "{{user.name}}"}),
    recovery=retry(3, "exponential"),
)
LONG = Loop(
    "onboarding",
    trigger=on_update("users", ["plan", "Role"], filter="NEW.plan = 'it''s'"),
    steps=[
        step("welcome", action=email("activation_welcome", subject="100 % yours: it's {{user.name}}")),
        step(
            "next",
            delay=timedelta(hours=36),
            condition=query("SELECT $1", every=timedelta(minutes=5)),
            on_timeout="exit",
        ),
    ],
    send_window=send_window("Mon-Fri", time(9, 30), "24:00"),
    holdout=Decimal("0.1"),
    transactional=True,
    priority=-10,
)


def test_one_statement_with_its_values_bound() -> None:
    assert FIRST.statement() == (
        'SELECT activation.define_loop("name" => CAST(%(p1)s AS text),'
        ' "trigger" => activation.on_insert("table_name" => CAST(CAST(%(p2)s AS text) AS regclass)),'
        ' "condition" => activation.query("sql" => CAST(%(p3)s AS text), "timeout" => CAST(CAST(%(p4)s AS text) AS interval)),'
        ' "action" => activation.email("template" => CAST(%(p5)s AS text),'
        ' "personalization" => CAST(CAST(%(p6)s AS text) AS jsonb)),'
        ' "recovery" => activation.retry())',
        {
            "p1": "first_project",
            "p2": "users",
            "p3": "SELECT 1 FROM projects WHERE owner_id = $1",
            "p4": "5m",
            "p5": "activation_welcome",
            "p6": '{"name": "{{user.name}}"}',
        },
    )


def test_other_placeholders() -> None:
    loop = Loop("a", trigger=on_event("b"))
    assert loop.statement(":{}")[0] == (
        'SELECT activation.define_loop("name" => CAST(:p1 AS text),'
        ' "trigger" => activation.on_event("event" => CAST(:p2 AS text)))'
    )
    assert loop.numbered() == (loop.statement(":{}")[0].replace(":p", "$"), ["a", "b"])


def test_what_is_bound_stands_nowhere_in_the_statement() -> None:
    statement, values = LONG.statement()
    assert not any(text in statement for text in ("onboarding", "yours", "it's", "Role"))
    assert {"0.1", "true", "-10", "1 days 43200 seconds 0 microseconds", "09:30:00", "24:00", "plan", "Role"} <= set(
        values.values()
    )


def test_literals() -> None:
    assert Template("a", "it's", body_text="\\n\t: %s {} %% $1").sql() == (
        "SELECT activation.set_template(\"name\" => CAST('a' AS text), \"subject\" => CAST('it''s' AS text),"
        " \"body_text\" => CAST(E'\\\\n\t: %s {} %% $1' AS text))"
    )
    with pytest.raises(ValueError, match="NUL"):
        Template("a", "b\0").sql()


@given(st.text(alphabet=st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))))
def test_no_text_leaves_its_literal(text: str) -> None:
    written = literal(text)
    assert written.startswith(("E'", "'")) and written.endswith("'")
    inner = written.removeprefix("E")[1:-1].replace("''", "'")
    assert (inner.replace("\\\\", "\\") if written.startswith("E") else inner) == text


@given(st.text(alphabet="$q_a\n"), st.sampled_from(["", "loop"]))
def test_nor_its_dollar_quotes(text: str, tag: str) -> None:
    written = dollar_quoted(text, tag)
    quote = written[: written.index("$", 1) + 1]
    assert re.fullmatch(r"\$([a-z_]*)\$", quote)
    # The server reads up to the first that stands like the opening one.
    assert written[len(quote) :].partition(quote) == (text, quote, "")


@pytest.mark.parametrize("loop", [FIRST, LONG])
def test_shown_as_it_is_written(loop: Loop) -> None:
    names: dict[str, Any] = {name: getattr(loops, name) for name in ("Loop", *loop.functions())}
    import datetime

    again = eval(repr(loop), {**names, "datetime": datetime, "Decimal": Decimal})
    assert again == loop and hash(again) == hash(loop)
    assert again.statement() == loop.statement()


def test_defaults_are_left_out() -> None:
    assert on_insert("users", user_key=None) == on_insert("users")
    assert retry(3, max="1 hour") == retry() and retry(4) != retry()
    assert email("a", {}) == email("a") == email("a", None)
    assert repr(Loop("a", reentry="once", holdout=0)) == "Loop('a')"


def test_columns_are_a_list() -> None:
    with pytest.raises(TypeError, match="give a list of names"):
        on_update("users", "plan")


def test_a_document_cannot_be_changed_afterwards() -> None:
    given = {"name": "x"}
    made = email("a", given)
    given["name"] = "y"
    assert made == email("a", {"name": "x"})


@pytest.mark.parametrize("function", schema.BUILDERS)
def test_every_builder_is_a_function_of_these_arguments(function: str) -> None:
    parameters = inspect.signature(getattr(loops, function)).parameters
    assert list(parameters) == list(schema.BUILDERS[function])
    for name, (_, default) in schema.BUILDERS[function].items():
        written = parameters[name].default
        # A mutable default is written as None.
        assert (default is schema.REQUIRED) == (written is inspect.Parameter.empty)
        assert default is schema.REQUIRED or written == (default or None)


@pytest.mark.parametrize(("kind", "signature"), [(Loop, schema.DEFINE_LOOP), (Template, loops.TEMPLATE)])
def test_so_are_loops_and_templates(kind: type, signature: dict[str, tuple[str, Any]]) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == list(signature)
    for name, (_, default) in signature.items():
        assert parameters[name].default == (inspect.Parameter.empty if default is schema.REQUIRED else default)
