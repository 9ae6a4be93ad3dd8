"""From what activation.overview() returns to what the dashboard's template shows: words, percents, lengths of bars."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

_MODES = {
    "live": "Live: mail goes to real people",
    "redirect": "Redirect: mail goes to one address only",
    "capture": "Capture: nothing leaves this server",
    "disarmed": "Disarmed: nothing is sent",
}
_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def shown(overview: Mapping[str, Any]) -> dict[str, Any]:
    """The template's values."""
    zone = _zone(overview["timezone"])
    mode, *rest = overview["status"]
    return {
        "database": overview["database"],
        "version": overview["version"],
        "at": _time(overview["at"], zone),
        "numbers_at": _time(overview["numbers_at"], zone) if age(overview) > 30 else None,
        "timezone": overview["timezone"],
        "mode": {"state": mode["state"], "heading": _MODES[mode["state"]], "detail": mode["detail"]},
        "machine": [row for row in rest if not row["component"].startswith("loop ")],
        "loops": [_loop(loop, overview["status"], zone) for loop in overview["loops"]],
        "trouble": [{**item, "at": _time(item["at"], zone)} for item in overview["trouble"]],
        "mail": [{**row, "rate": percent(row["rate"])} for row in overview["mail"]],
    }


def age(overview: Mapping[str, Any]) -> float:
    """How many seconds ago people and mails were counted."""
    at, numbers_at = (datetime.fromisoformat(overview[key]) for key in ("at", "numbers_at"))
    return (at - numbers_at).total_seconds()


def _loop(loop: Mapping[str, Any], status: list[dict[str, str]], zone: tzinfo) -> dict[str, Any]:
    definition = loop["definition"]
    state = next((row for row in status if row["component"] == f"loop {loop['name']}"), {"state": "ok", "detail": ""})
    stages = [_stage(stage) for stage in loop.get("funnel") or []]
    goal = definition.get("goal")
    return {
        "name": loop["name"],
        "state": state["state"],
        "detail": state["detail"],
        "type": definition["type"],
        "opinion": definition.get("opinion"),
        "holdout": percent(definition["holdout"]) if definition["holdout"] else None,
        "trigger": trigger(definition["trigger"]),
        "goal": goal["query"] if goal else None,
        "steps": [_step(step) for step in definition["steps"]],
        "stages": stages,
        "enrolled": stages[0]["people"] if stages else 0,
        "activated": stages[-1] if stages and stages[-1]["stage"] == "activated" else None,
        "version": loop["version"],
        "funnel_version": loop.get("funnel_version"),
        "in_other_versions": loop.get("in_other_versions") or 0,
        "waiting": [
            {**item, "next": _time(item["next"], zone) if item["next"] else None} for item in loop.get("waiting") or []
        ],
        "cohorts": [
            {**week, "rate": percent(week["rate"]), "bar": bar(week["rate"])} for week in loop.get("cohorts") or []
        ],
        "time": _time_to_activate(loop.get("time_to_activate")),
        "lift": _lift(loop.get("lift")),
    }


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    label = {"enrolled": "Enrolled", "activated": "Activated"}.get(stage["stage"]) or f"Began {stage['step']}"
    return {**stage, "label": label, "percent": percent(stage["share"]), "bar": bar(stage["share"])}


def _step(step: Mapping[str, Any]) -> dict[str, Any]:
    condition = step["condition"]
    return {
        "name": step["name"],
        "delay": duration(step["delay"]) if step["delay"] != "00:00:00" else None,
        "condition": condition["query"] if condition else None,
        "timeout": duration(condition["timeout"]) if condition and condition["timeout"] else None,
        "action": _mail(step["action"]),
        "otherwise": _mail(step["otherwise"]),
        "ends": step["on_timeout"] != "continue",
    }


def _mail(email: Mapping[str, Any] | None) -> str | None:
    return None if email is None else email.get("template")


def _time_to_activate(times: Mapping[str, Any] | None) -> str | None:
    if times is None or times["activated"] == 0:
        return None
    if times["median"] is None:
        return f"{times['activated']} of {times['people']} have activated: fewer than half, so there is no median yet"
    text = f"Half activate within {seconds(times['median'])}"
    return text if times["p90"] is None else f"{text}, nine in ten within {seconds(times['p90'])}"


def _lift(lift: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """low, high: the ends of the interval, as percents of a scale that reaches as far to both sides of zero."""
    if lift is None:
        return None
    if lift["low"] is None or lift["high"] is None:
        return {"summary": lift["summary"]}
    reach = max(abs(lift["low"]), abs(lift["high"]), 0.05) * 1.1
    low, high, at = (50 + 50 * lift[key] / reach for key in ("low", "high", "difference"))
    return {
        "summary": lift["summary"],
        "from": f"{low:.1f}",
        "length": f"{max(high - low, 0.5):.1f}",
        "at": f"{at:.1f}",
        "reach": f"{reach * 100:.0f}",
    }


def trigger(document: Mapping[str, Any]) -> str:
    """A trigger in words."""
    if document["type"] == "schedule":
        return f"On schedule {document['cron']}"
    if document["type"] == "event":
        return f"Event {document['event']}"
    columns = " of " + ", ".join(document["columns"]) if document.get("columns") else ""
    where = "into" if document["event"] == "insert" else "in"
    return f"{document['event'].capitalize()}{columns} {where} {document['table']}"


def percent(share: float | None) -> str | None:
    """A share between 0 and 1 as people write it."""
    return None if share is None else f"{share * 100:.1f}".removesuffix(".0") + " %"


def bar(share: float | None) -> str:
    """The length of a bar, in percent of the whole."""
    return f"{max(min(share or 0, 1), 0) * 100:.1f}"


def seconds(count: float) -> str:
    """A time in its two largest units: "2 days 3 hours"."""
    parts, left = [], round(count)
    for unit, size in _UNITS:
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}{'s' if number > 1 else ''}")
        if len(parts) == 2 or (parts and unit == "minute"):
            break
    return " ".join(parts) or "0 seconds"


def duration(interval: str) -> str:
    """An interval of PostgreSQL's as people write it: "1 day 02:00:00" is "1 day 2 hours"."""
    match = re.fullmatch(r"(.*?)\s*(\d+):(\d\d):(\d\d)(?:\.\d+)?", interval)
    if match is None:
        return interval
    days, hours, minutes, rest = match.groups()
    clock = int(hours) * 3600 + int(minutes) * 60 + int(rest)
    return " ".join(filter(None, (days, seconds(clock) if clock or not days else "")))


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError):
        # PostgreSQL knows zones that this machine may not.
        return UTC


def _time(instant: str, zone: tzinfo) -> dict[str, str]:
    """iso: for machines; text: for people, in the time zone of configure()."""
    at = datetime.fromisoformat(instant)
    return {"iso": instant, "text": at.astimezone(zone).strftime("%Y-%m-%d %H:%M")}
