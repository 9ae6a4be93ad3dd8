"""A loop's definition as a document: checked, completed with every default, in one canonical shape. Pure.

What only the database can judge (tables, columns, intervals, queries, templates) is judged in SQL afterwards.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from activation.errors import Refusal
from activation.mail.lines import LINE_BREAK

Document = dict[str, Any]

_TOP: Document = {
    "type": "activation",
    "opinion": None,
    "trigger": None,
    "steps": None,
    "goal": None,
    "recovery": None,
    "reentry": "once",
    "enroll": "new",
    "per_hour": None,
    "users": None,
    "topic": None,
    "transactional": False,
    "priority": 0,
    "over_cap": "wait",
    "holdout": 0,
    "send_window": None,
}
_SHORT = ("condition", "action", "otherwise")
_STEP = ("name", "delay", "condition", "action", "otherwise", "on_timeout")
#: What a trigger of each type may hold; `type` itself aside.
_TRIGGERS: dict[str, Document] = {
    "database": {"table": None, "event": None, "columns": None, "user_key": None, "filter": None},
    "event": {"event": None},
    "schedule": {"cron": None, "query": None},
}
_WINDOW: Document = {"days": None, "opens": None, "closes": None, "otherwise": "next"}
_CONDITION: Document = {"type": "query", "query": None, "timeout": None, "every": None, "watch": None}
_ACTION: Document = {
    "type": "email",
    "provider": "resend",
    "template": None,
    "personalization": {},
    "subject": None,
    "sender": None,
    "reply_to": None,
    "resend_template": None,
}
_RECOVERY: Document = {"retries": 3, "backoff": "exponential", "initial": "30 seconds", "max": "1 hour"}
#: Steps of a loop.
MOST_STEPS = 1_000
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


class _Checker:
    """Walks a document of one named loop; every refusal names the loop and the place in it."""

    def __init__(self, loop: str) -> None:
        self.loop = loop

    def refuse(self, problem: str, *, hint: str, detail: str = "", code: str = "22023") -> NoReturn:
        raise Refusal(f'loop "{self.loop}": {problem}', hint=hint, detail=detail, code=code)

    def not_yet(self, argument: str, hint: str) -> NoReturn:
        self.refuse(f"argument {argument} is not supported yet", hint=hint, code="0A000")

    def mapping(self, value: object, where: str) -> Document:
        if not isinstance(value, dict):
            self.refuse(
                f"{where} is not an object", hint=f"Write {where} as a JSON object, or use the builder function."
            )
        return {snake(str(key)): item for key, item in value.items()}

    def known(self, document: Document, keys: Iterable[str], where: str) -> None:
        names = list(keys)
        for key in document:
            if key not in names:
                self.refuse(
                    f'unknown key "{key}" in {where}',
                    hint=f"{near(key, names)}Known keys are {', '.join(names)}.",
                )

    def text(self, value: object, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{where} is missing or not a text", hint=f"Give {where} as a text.")
        return value

    def one_of(self, value: object, choices: Iterable[str], where: str) -> str:
        names = list(choices)
        if value not in names:
            self.refuse(
                f"unknown {where} {_shown(value)}", hint=f"{near(value, names)}It is one of {', '.join(names)}."
            )
        return str(value)

    def whole(self, value: object, where: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(f"{where} is {_shown(value)}", hint=f"Give a whole number from {low} to {high}.")
        return value


def normalise(name: str | None, document: object) -> Document:
    """The canonical definition of a loop.

    name: the loop's name. document: what define_loop() was given, or a document for import_loop(); its trigger may
    stand at the top or in the first step, its keys may be camelCase. Raises Refusal.
    """
    check_name(name)
    check = _Checker(str(name))
    given = check.mapping(document, "the definition")
    check.known(given, (*_TOP, *_SHORT), "the definition")
    result: Document = {key: given.get(key) if given.get(key) is not None else default for key, default in _TOP.items()}

    steps = _steps(check, given)
    trigger = given.get("trigger")
    if "trigger" in steps[0]:
        if trigger is not None:
            check.refuse("has two triggers", hint="Give the trigger at the top or in the first step, not in both.")
        trigger = steps[0].pop("trigger")
    if trigger is None:
        check.refuse("has no trigger", hint="Say what starts it: trigger => activation.on_insert('users').")
    result["trigger"] = fragment(str(name), "trigger", trigger)
    result["steps"] = [_step(check, step, number) for number, step in enumerate(steps, 1)]
    names: set[str] = set()
    for step in result["steps"]:
        if step["name"] in names:
            check.refuse(f'has two steps named "{step["name"]}"', hint="Give every step a name of its own.")
        names.add(step["name"])
    if "goal" in names:
        check.refuse('has a step named "goal"', hint="That is what its goal is called; choose another name.")
    result["recovery"] = fragment(str(name), "recovery", given.get("recovery") or {})
    _check_top(check, result)
    _check_enroll(check, result)
    return result


def check_name(name: str | None) -> None:
    """Refuses a loop's name that is empty, NULL, over 63 bytes or holds a control character."""
    if name is None or not name.strip():
        raise Refusal(
            "a loop needs a name", hint="Give it as the first argument: activation.define_loop('first_project', …)."
        )
    if len(name.encode()) > 63:
        raise Refusal(
            f'the name of loop "{name}" is too long',
            detail=f"It has {len(name.encode())} bytes.",
            hint="Use at most 63 bytes.",
        )
    if re.search(r"[\x00-\x1f\x7f]", name):
        raise Refusal("the name of a loop holds a control character", hint="Use letters, digits and signs only.")


def fragment(loop: str, kind: str, value: object) -> Document:
    """One part of a definition, checked and completed.

    kind: trigger, condition, goal, action, otherwise, recovery or send_window. Raises Refusal.
    """
    check = _Checker(loop)
    given = check.mapping(value, kind)
    match kind:
        case "trigger":
            return _trigger(check, given)
        case "condition" | "goal":
            return _condition(check, given, kind)
        case "recovery":
            return _recovery(check, given)
        case "send_window":
            return _window(check, given)
        case _:
            return _action(check, given, kind)


def _steps(check: _Checker, given: Document) -> list[Document]:
    short = [key for key in _SHORT if given.get(key) is not None]
    steps = given.get("steps")
    if steps is None:
        if not short:
            check.refuse(
                "has nothing to do",
                hint="Give it a condition and an action, or steps => ARRAY[activation.step(…)].",
            )
        return [{key: given[key] for key in short}]
    if short:
        check.refuse(
            f"has steps and also {' and '.join(short)}",
            hint="Put them into the steps: activation.step('name', condition => …, action => …).",
        )
    if not isinstance(steps, list) or not steps:
        check.refuse("has no steps", hint="Give at least one: steps => ARRAY[activation.step(…)].")
    if len(steps) > MOST_STEPS:
        check.refuse(f"has {len(steps)} steps", hint=f"Give at most {MOST_STEPS}, or make several loops of them.")
    return [check.mapping(step, f"steps[{number}]") for number, step in enumerate(steps)]


def _step(check: _Checker, step: Document, number: int) -> Document:
    where = f"steps[{number - 1}]"
    check.known(step, _STEP, where)
    name = step.get("name")
    if name is not None:
        check.text(name, f"{where}.name")
    result: Document = {
        "name": name or f"step{number}",
        "delay": step.get("delay") or "00:00:00",
        "condition": None,
        "action": None,
        "otherwise": None,
        "on_timeout": check.one_of(step.get("on_timeout") or "continue", ("continue", "exit"), "on_timeout"),
    }
    for key in _SHORT:
        if step.get(key) is not None:
            result[key] = fragment(check.loop, key, step[key])
    if result["action"] is None and result["otherwise"] is None:
        check.refuse(
            f'step "{result["name"]}" sends nothing', hint="Give it an action => activation.email(…), or an otherwise."
        )
    if result["otherwise"] is not None and (result["condition"] is None or result["condition"]["timeout"] is None):
        check.refuse(
            f'step "{result["name"]}" has an otherwise that can never come',
            hint="Otherwise is sent when the condition is still false at its timeout: "
            "condition => activation.query('…', timeout => '3 days').",
        )
    return result


def _trigger(check: _Checker, given: Document) -> Document:
    kind = check.one_of(given.get("type") or "database", _TRIGGERS, "trigger type")
    check.known(given, ("type", *_TRIGGERS[kind]), "the trigger")
    result = {**_TRIGGERS[kind], **given, "type": kind}
    if kind == "event":
        check.text(result["event"], "trigger.event")
        return result
    if kind == "schedule":
        check_cron(check.loop, check.text(result["cron"], "trigger.cron"))
        check.text(result["query"], "trigger.query")
        return result
    event = check.one_of(result["event"], ("insert", "update", "delete"), "event")
    check.text(result["table"], "trigger.table")
    for key in ("user_key", "filter"):
        if result[key] is not None:
            check.text(result[key], f"trigger.{key}")
    columns = result["columns"]
    if event == "update":
        if not isinstance(columns, list) or not columns or not all(isinstance(c, str) and c for c in columns):
            check.refuse(
                "trigger.columns is missing or not a list of columns",
                hint="Name the columns whose change counts: activation.on_update('users', columns => '{plan}').",
            )
        result["columns"] = list(dict.fromkeys(columns))
    elif columns is not None:
        check.refuse("trigger.columns goes with updates only", hint="Leave it out, or use a filter over NEW.")
    return result


def check_cron(loop: str, expression: str) -> None:
    """Refuses what is not a cron expression of five fields."""
    from activation.authoring import cron

    try:
        cron.check(expression)
    except ValueError as error:
        _Checker(loop).refuse(
            f'"{expression}" is not a cron expression',
            detail=str(error),
            hint="Write minute, hour, day, month and weekday: '0 9 * * Mon' is Mondays at nine.",
        )


def _window(check: _Checker, given: Document) -> Document:
    check.known(given, _WINDOW, "the send window")
    result = {**_WINDOW, **{key: value for key, value in given.items() if value is not None}}
    result["days"] = ",".join(_weekdays(check, check.text(result["days"], "send_window.days")))
    for key in ("opens", "closes"):
        result[key] = _time_of_day(check, check.text(result[key], f"send_window.{key}"), f"send_window.{key}")
    if result["opens"] == result["closes"]:
        check.refuse(
            f"its send window opens and closes at {result['opens']}: it would never open",
            hint="Give two times; a whole day is '00:00' to '24:00'.",
        )
    if result["opens"] == "24:00":
        check.refuse("its send window opens at 24:00: it would never open", hint="Midnight is '00:00'.")
    check.one_of(result["otherwise"], ("next", "skip"), "send_window.otherwise")
    return result


def _weekdays(check: _Checker, days: str) -> list[str]:
    """The days of `Mon-Fri, Sun` in the order of the week; a range may go over the week's end."""
    found: set[int] = set()
    for part in days.split(","):
        first, *last = (_weekday(check, name, days) for name in part.split("-", maxsplit=1))
        length = (last[0] - first) % 7 if last else 0
        found.update((first + offset) % 7 for offset in range(length + 1))
    return [day for number, day in enumerate(_DAYS) if number in found]


def _weekday(check: _Checker, name: str, days: str) -> int:
    short = name.strip().capitalize()[:3]
    full = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    if short not in _DAYS or not full[_DAYS.index(short)].startswith(name.strip().lower()):
        check.refuse(
            f'unknown day "{name.strip()}" in send_window.days "{days}"',
            hint=f"Days are {', '.join(_DAYS)}, one by one or as in 'Mon-Fri'.",
        )
    return _DAYS.index(short)


def _time_of_day(check: _Checker, text: str, where: str) -> str:
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})(?::00)?", text.strip())
    if not match or not ((int(match[1]) < 24 and int(match[2]) < 60) or match[0].startswith("24:00")):
        check.refuse(f'{where} is "{text}"', hint="Write a time of day as hours and minutes: '09:00'.")
    return f"{int(match[1]):02}:{match[2]}"


def _condition(check: _Checker, given: Document, where: str) -> Document:
    check.known(given, _CONDITION, f"the {where}")
    check.one_of(given.get("type") or "query", ("query",), f"{where} type")
    query = check.text(given.get("query"), f"{where}.query")
    watch = given.get("watch")
    if watch is not None and not (
        isinstance(watch, dict) and all(column is None or isinstance(column, str) for column in watch.values())
    ):
        check.refuse(
            f"{where}.watch is not an object of table and column",
            hint='Write it as {"table": "column of the user\'s key"}, or null for a table that is to carry no trigger.',
        )
    return {**_CONDITION, **given, "type": "query", "query": query}


def _action(check: _Checker, given: Document, where: str) -> Document:
    check.known(given, _ACTION, f"the {where}")
    check.one_of(given.get("type") or "email", ("email",), f"{where} type")
    check.one_of(given.get("provider") or "resend", ("resend",), "provider")
    if given.get("resend_template") is not None:
        check.not_yet("resend_template", "Use a template of this database: activation.set_template(…).")
    template = check.text(given.get("template"), f"{where}.template")
    given = {**given, **_mailboxes(check, given, where)}
    if given.get("subject") is not None and LINE_BREAK.search(check.text(given["subject"], f"{where}.subject")):
        check.refuse(f"{where}.subject holds a line break", hint="A header is one line.")
    personalization = given.get("personalization")
    if personalization is None:
        personalization = {}
    if not isinstance(personalization, dict):
        check.refuse(f"{where}.personalization is not an object", hint='Write it as {"name": "{{user.name}}"}.')
    for key, value in personalization.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            check.refuse(f'personalization key "{key}" is not a name', hint="Use letters, digits and _.")
        if key in ("user", "loop", "enrollment", "unsubscribe_url"):
            check.refuse(
                f'personalization key "{key}" is taken', hint=f"Templates know {key} already; choose another name."
            )
        if isinstance(value, dict | list):
            check.refuse(f'personalization key "{key}" is not a text', hint='Write a text, such as "{{user.name}}".')
    return {
        **_ACTION,
        **given,
        "type": "email",
        "provider": "resend",
        "template": template,
        "personalization": personalization,
    }


def _mailboxes(check: _Checker, given: Document, where: str) -> Document:
    keys = [key for key in ("sender", "reply_to") if given.get(key) is not None]
    if not keys:
        return {}
    # It takes the mail parser of the standard library, which a detector does without.
    from activation.mail.mailbox import mailbox

    return {
        key: mailbox(f'loop "{check.loop}": {where}.{key}', check.text(given[key], f"{where}.{key}")) for key in keys
    }


def _recovery(check: _Checker, given: Document) -> Document:
    check.known(given, _RECOVERY, "recovery")
    result = {**_RECOVERY, **{key: value for key, value in given.items() if value is not None}}
    check.whole(result["retries"], "retries", 0, 20)
    check.one_of(result["backoff"], ("fixed", "exponential"), "backoff")
    return result


def _check_top(check: _Checker, result: Document) -> None:
    check.one_of(result["type"], ("activation", "retention"), "type")
    for key in ("opinion", "topic"):
        if result[key] is not None:
            check.text(result[key], key)
    holdout = result["holdout"]
    if isinstance(holdout, bool) or not isinstance(holdout, int | float) or not 0 <= holdout <= 0.9:
        check.refuse(f"holdout is {_shown(holdout)}", hint="Give the share of users to leave out, from 0 to 0.9.")
    check.one_of(result["enroll"], ("new", "existing", "both"), "enroll")
    check.one_of(result["over_cap"], ("wait", "skip"), "over_cap")
    if not isinstance(result["transactional"], bool):
        check.refuse("transactional is not true or false", hint="Give true or false.")
    check.whole(result["priority"], "priority", -1000, 1000)
    check.text(result["reentry"], "reentry")
    if result["per_hour"] is not None:
        check.whole(result["per_hour"], "per_hour", 1, 10_000_000)
        if result["enroll"] == "new":
            check.refuse(
                "has per_hour, which is for existing users",
                hint="It says how many existing users are enrolled in an hour: add enroll => 'existing' or 'both'.",
            )
    if result["goal"] is not None:
        result["goal"] = fragment(check.loop, "goal", result["goal"])
        if result["goal"]["timeout"] is not None:
            check.refuse(
                "its goal has a timeout", hint="A goal is watched for ever. Give the timeout to a step's condition."
            )
    if result["send_window"] is not None:
        result["send_window"] = fragment(check.loop, "send_window", result["send_window"])


def _check_enroll(check: _Checker, result: Document) -> None:
    trigger = result["trigger"]
    if result["enroll"] != "new" and not (trigger["type"] == "database" and trigger["event"] == "insert"):
        check.refuse(
            f"enroll => '{result['enroll']}' goes with activation.on_insert only",
            hint="Existing users are those whose rows are in the trigger's table. For others, use "
            "activation.on_schedule(cron, query), or activation.enroll(user_id, loop).",
        )


def near(value: object, names: Iterable[str]) -> str:
    """The beginning of a hint: which of the names may have been meant."""
    found = difflib.get_close_matches(value, names, n=1, cutoff=0.5) if isinstance(value, str) else []
    return f'Did you mean "{found[0]}"? ' if found else ""


def snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match.group(1).lower(), key)


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
