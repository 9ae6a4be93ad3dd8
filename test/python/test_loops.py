"""Definitions as Python values: how they are written in SQL. What the server makes of that is in test/cluster/test_alembic.py."""

from __future__ import annotations

import dataclasses
import datetime
from decimal import Decimal
from typing import Any

import pytest

from activation.loops import (
    define_loop,
    email,
    on_insert,
    on_update,
    query,
    retry,
    send_window,
    set_template,
    statement,
    step,
    to_sql,
)


def test_one_statement_with_bound_parameters() -> None:
    loop = define_loop("it's", trigger=on_insert("users"), action=email("milestone"), priority=5)
    assert statement(loop) == (
        "SELECT activation.define_loop(name => CAST(%(p1)s AS text),"
        " trigger => activation.on_insert(table_name => CAST(CAST(%(p2)s AS text) AS regclass)),"
        " action => activation.email(template => CAST(%(p3)s AS text)),"
        " priority => CAST(CAST(%(p4)s AS text) AS integer))",
        {"p1": "it's", "p2": "users", "p3": "milestone", "p4": "5"},
    )


def test_nothing_that_is_given_is_part_of_the_statement() -> None:
    text = "x'); DROP TABLE users; -- %s :p1 $1"
    given = define_loop(text, trigger=on_update(text, [text], text, text), steps=[step(text, condition=query(text, watch={text: None}))])
    sql, parameters = statement(given, ":{}".format)
    assert "DROP" not in sql
    assert [value for value in parameters.values() if text not in value and "DROP" not in value] == []


def test_as_text() -> None:
    loop = define_loop("it's", trigger=on_insert("users"), action=email("milestone", {"count": "\\1"}))
    assert to_sql(loop) == (
        "SELECT activation.define_loop(name => 'it''s',\n"
        "  trigger => activation.on_insert(table_name => 'users'),\n"
        """  action => activation.email(template => 'milestone', personalization =>  E'{"count": "\\\\\\\\1"}'))"""
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (query("SELECT 1", timeout=datetime.timedelta(days=3, milliseconds=5)), "timeout => '3 days 0.005000 seconds'"),
        (query("SELECT 1", watch={"app.done": None}), """watch => '{"app.done": null}'"""),
        (send_window("Mon", datetime.time(9), "24:00"), "opens => '09:00:00', closes => '24:00'"),
        (retry(0), "retries => '0'"),
        (define_loop("x", holdout=Decimal("0.1"), transactional=True), "transactional => 'True',\n  holdout => '0.1'"),
        (define_loop("x", steps=[]), "steps => CAST(ARRAY[] AS jsonb[])"),
        (define_loop("x", send_window=None, type="retention"), "type => 'retention'"),
        (on_update("users", ("a", "b")), "columns => CAST(ARRAY['a', 'b'] AS name[])"),
        (retry(backoff=None), "backoff => NULL"),  # type: ignore[arg-type]
        (set_template("x", "Hi", body_text="\t%"), "body_text => '\t%'"),
    ],
)  # fmt: skip
def test_values(given: Any, text: str) -> None:
    sql = to_sql(given)
    assert text in sql or text.replace(",\n  ", ", ") in sql.replace(",\n  ", ", ")


def test_what_is_as_by_default_is_left_out() -> None:
    assert to_sql(define_loop("x", recovery=retry(3, "exponential"), steps=None, holdout=0)) == (
        "SELECT activation.define_loop(name => 'x',\n  recovery => activation.retry())"
    )


def test_values_are_values() -> None:
    loop = define_loop("x", trigger=on_insert("users"), action=email("milestone"))
    assert loop == define_loop("x", on_insert("users"), action=email("milestone"))
    assert dataclasses.replace(loop, priority=1).priority == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        loop.name = "y"  # type: ignore[misc]


def test_a_list_is_a_list() -> None:
    with pytest.raises(TypeError, match="columns is 'plan'"):
        to_sql(on_update("users", "plan"))


def test_a_zero_byte() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        to_sql(on_insert("a\0"))
