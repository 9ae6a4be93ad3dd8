"""A loop's definition as a document: checked, completed with every default, in one canonical shape. Pure.

Which keys there are, with their kinds, defaults and limits, is said by activation.schema. What only the database can
judge (tables, columns, intervals, queries, templates) is judged in SQL afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from activation import schema
from activation.errors import Path, Refusal, spelled
from activation.mail.lines import LINE_BREAK
from activation.schema import Key, Part
from activation.text import near

Document = dict[str, Any]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: What templates know already.
_TAKEN = ("user", "loop", "enrollment", "unsubscribe_url")


@dataclass(frozen=True)
class _Place:
    """A place in the document of one loop. What is refused there names the loop, and says the place."""

    loop: str
    path: Path = ()

    def at(self, *keys: str | int) -> _Place:
        return _Place(self.loop, (*self.path, *keys))

    def __str__(self) -> str:
        return spelled(self.path) or "the definition"

    def refuse(self, problem: str, *, hint: str, detail: str = "", code: str = "22023") -> NoReturn:
        raise Refusal(f'loop "{self.loop}": {problem}', hint=hint, detail=detail, code=code, path=self.path)

    def mapping(self, value: object) -> Document:
        if not isinstance(value, dict):
            self.refuse(f"{self} is not an object", hint=f"Write {self} as a JSON object, or use the builder function.")
        return {snake(str(key)): item for key, item in value.items()}

    def known(self, given: Document, names: Iterable[str]) -> None:
        names = list(names)
        for key in given:
            if key not in names:
                self.at(key).refuse(
                    f'unknown key "{key}" in {self}', hint=f"{near(key, names)}Known keys are {', '.join(names)}."
                )

    def filled(self, part: Part, given: Document) -> Document:
        """Every key of a part: as it is given, checked, or with its default."""
        self.known(given, part.names)
        return {key.name: self.at(key.name).value(key, given.get(key.name)) for key in part.keys}

    def value(self, key: Key, value: Any) -> Any:
        """What is given for a key at this place, checked and completed; its default if that is nothing."""
        if value is None and not key.required:
            return dict(key.default) if isinstance(key.default, dict) else key.default
        match key.kind:
            case "choice":
                return self.one_of(key.choices, value)
            case "whole" | "share":
                return self.number(key, value)
            case "boolean":
                if not isinstance(value, bool):
                    self.refuse(f"{self} is not true or false", hint="Give true or false.")
                return value
            case "duration" | "users":
                return value
            case "trigger":
                return _trigger(self, self.mapping(value))
            case "condition" | "email" | "recovery":
                return self.filled(schema.PARTS[key.kind], self.mapping(value))
            case "send_window":
                return _send_window(self, self.filled(schema.SEND_WINDOW, self.mapping(value)))
            case "columns":
                return _columns(self, value)
            case "watch":
                return _watch(self, value)
            case "variables":
                return _variables(self, value)
        text = self.text(value)
        match key.kind:
            case "line" if LINE_BREAK.search(text):
                self.refuse(f"{self} holds a line break", hint="A header is one line.")
            case "mailbox":
                return _mailbox(self, text)
            case "cron":
                _check_cron(self, text)
            case "days":
                return ",".join(_weekdays(self, text))
            case "time":
                return _time_of_day(self, text)
        return text

    def text(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(f"{self} is missing or not a text", hint=f"Give {self} as a text.")
        return value

    def one_of(self, choices: Sequence[str], value: object) -> str:
        if value not in choices:
            *parents, name = self.path
            what = f"{spelled(tuple(parents))} type" if parents and name == "type" else str(self)
            self.refuse(
                f"unknown {what} {_shown(value)}", hint=f"{near(value, choices)}It is one of {', '.join(choices)}."
            )
        return str(value)

    def number(self, key: Key, value: Any) -> Any:
        kinds = (int,) if key.kind == "whole" else (int, float)
        low, high = key.limits or (0, 0)
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            self.refuse(f"{self} is {_shown(value)}", hint=f"Give {key.described}.")
        return value


def normalise(name: str | None, document: object) -> Document:
    """The canonical definition of a loop.

    name: the loop's name. document: what define_loop() was given, or a document for import_loop(); its trigger may
    stand at the top or in the first step, its keys may be camelCase. Raises Refusal.
    """
    check_name(name)
    top = _Place(str(name))
    given = top.mapping(document)
    top.known(given, schema.LOOP.names)
    steps = _steps(top, given)
    first_place, first = steps[0]
    trigger_place, trigger = top.at("trigger"), given.get("trigger")
    if "trigger" in first:
        if trigger is not None:
            first_place.at("trigger").refuse(
                "has two triggers", hint="Give the trigger at the top or in the first step, not in both."
            )
        trigger_place, trigger = first_place.at("trigger"), first.pop("trigger")
    if trigger is None:
        top.refuse("has no trigger", hint="Say what starts it: trigger => activation.on_insert('users').")
    result: Document = {
        "trigger": trigger_place.value(schema.LOOP["trigger"], trigger),
        "steps": [_step(place, step, number) for number, (place, step) in enumerate(steps, 1)],
    }
    _check_step_names(steps, result["steps"])
    for key in schema.LOOP.keys:
        if key.name not in (*schema.SHORT, *result):
            result[key.name] = top.at(key.name).value(key, given.get(key.name))
    if result["recovery"] is None:
        result["recovery"] = top.at("recovery").filled(schema.RECOVERY, {})
    if result["goal"] is not None and result["goal"]["timeout"] is not None:
        top.at("goal", "timeout").refuse(
            "its goal has a timeout", hint="A goal is watched for ever. Give the timeout to a step's condition."
        )
    _check_enroll(top, result)
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


def fragment(loop: str, kind: str, value: object, path: Path | None = None) -> Document:
    """One part of a definition, checked and completed.

    kind: trigger, condition, goal, action, otherwise, recovery or send_window. path: where it stands in the
    definition, by default under that key. Raises Refusal.
    """
    place = _Place(loop, (kind,) if path is None else path)
    return dict(place.value(schema.LOOP[kind], place.mapping(value)))


def _steps(top: _Place, given: Document) -> list[tuple[_Place, Document]]:
    """The steps, each with the place where it stands: that of the only one in short is the top."""
    short = [key for key in schema.SHORT if given.get(key) is not None]
    steps = given.get("steps")
    if steps is None:
        if not short:
            top.refuse(
                "has nothing to do",
                hint="Give it a condition and an action, or steps => ARRAY[activation.step(…)].",
            )
        return [(top, {key: given[key] for key in short})]
    place = top.at("steps")
    if short:
        top.at(short[0]).refuse(
            f"has steps and also {' and '.join(short)}",
            hint="Put them into the steps: activation.step('name', condition => …, action => …).",
        )
    if not isinstance(steps, list) or not steps:
        place.refuse("has no steps", hint="Give at least one: steps => ARRAY[activation.step(…)].")
    if len(steps) > schema.MOST_STEPS:
        place.refuse(
            f"has {len(steps)} steps", hint=f"Give at most {schema.MOST_STEPS}, or make several loops of them."
        )
    places = [place.at(number) for number in range(len(steps))]
    return [(place, place.mapping(step)) for place, step in zip(places, steps, strict=True)]


def _step(place: _Place, step: Document, number: int) -> Document:
    result = place.filled(schema.STEP, step)
    if result["name"] is None:
        result["name"] = f"step{number}"
    if result["action"] is None and result["otherwise"] is None:
        place.refuse(
            f'step "{result["name"]}" sends nothing', hint="Give it an action => activation.email(…), or an otherwise."
        )
    if result["otherwise"] is not None and (result["condition"] is None or result["condition"]["timeout"] is None):
        place.at("otherwise").refuse(
            f'step "{result["name"]}" has an otherwise that can never come',
            hint="Otherwise is sent when the condition is still false at its timeout: "
            "condition => activation.query('…', timeout => '3 days').",
        )
    return result


def _check_step_names(given: list[tuple[_Place, Document]], steps: list[Document]) -> None:
    names: set[str] = set()
    for (place, _), step in zip(given, steps, strict=True):
        name = step["name"]
        if name in names:
            place.at("name").refuse(f'has two steps named "{name}"', hint="Give every step a name of its own.")
        if name == "goal":
            place.at("name").refuse(
                'has a step named "goal"', hint="That is what its goal is called; choose another name."
            )
        names.add(name)


def _trigger(place: _Place, given: Document) -> Document:
    kind = place.at("type").value(schema.TRIGGER_TYPE, given.pop("type", None))
    part = schema.TRIGGERS[kind]
    place.known(given, ("type", *part.names))
    result = {"type": kind, **place.filled(part, given)}
    if kind == "database":
        columns = place.at("columns")
        if result["event"] == "update" and result["columns"] is None:
            _columns(columns, None)
        if result["event"] != "update" and result["columns"] is not None:
            columns.refuse(f"{columns} goes with updates only", hint="Leave it out, or use a filter over NEW.")
    return result


def _columns(place: _Place, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(column, str) and column for column in value):
        place.refuse(
            f"{place} is missing or not a list of columns",
            hint="Name the columns whose change counts: activation.on_update('users', columns => '{plan}').",
        )
    return list(dict.fromkeys(value))


def check_cron(loop: str, expression: str) -> None:
    """Refuses what is not a cron expression of five fields."""
    _check_cron(_Place(loop), expression)


def _check_cron(place: _Place, expression: str) -> None:
    from activation.authoring import cron

    try:
        cron.check(expression)
    except ValueError as error:
        place.refuse(
            f'"{expression}" is not a cron expression',
            detail=str(error),
            hint="Write minute, hour, day, month and weekday: '0 9 * * Mon' is Mondays at nine.",
        )


def _send_window(place: _Place, window: Document) -> Document:
    if window["opens"] == window["closes"]:
        place.refuse(
            f"its send window opens and closes at {window['opens']}: it would never open",
            hint="Give two times; a whole day is '00:00' to '24:00'.",
        )
    if window["opens"] == "24:00":
        place.at("opens").refuse("its send window opens at 24:00: it would never open", hint="Midnight is '00:00'.")
    return window


def _weekdays(place: _Place, days: str) -> list[str]:
    """The days of `Mon-Fri, Sun` in the order of the week; a range may go over the week's end."""
    found: set[int] = set()
    for part in days.split(","):
        first, *last = (_weekday(place, name, days) for name in part.split("-", maxsplit=1))
        length = (last[0] - first) % 7 if last else 0
        found.update((first + offset) % 7 for offset in range(length + 1))
    return [day for number, day in enumerate(_DAYS) if number in found]


def _weekday(place: _Place, name: str, days: str) -> int:
    short = name.strip().capitalize()[:3]
    full = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
    if short not in _DAYS or not full[_DAYS.index(short)].startswith(name.strip().lower()):
        place.refuse(
            f'unknown day "{name.strip()}" in {place} "{days}"',
            hint=f"Days are {', '.join(_DAYS)}, one by one or as in 'Mon-Fri'.",
        )
    return _DAYS.index(short)


def _time_of_day(place: _Place, text: str) -> str:
    match = re.fullmatch(r"([0-9]{1,2}):([0-9]{2})(?::00)?", text.strip())
    if not match or not ((int(match[1]) < 24 and int(match[2]) < 60) or match[0].startswith("24:00")):
        place.refuse(f'{place} is "{text}"', hint="Write a time of day as hours and minutes: '09:00'.")
    return f"{int(match[1]):02}:{match[2]}"


def _watch(place: _Place, value: Any) -> Any:
    if not isinstance(value, dict) or not all(column is None or isinstance(column, str) for column in value.values()):
        place.refuse(
            f"{place} is not an object of table and column",
            hint='Write it as {"table": "column of the user\'s key"}, or null for a table that is to carry no trigger.',
        )
    return value


def _variables(place: _Place, value: Any) -> Any:
    if not isinstance(value, dict):
        place.refuse(f"{place} is not an object", hint='Write it as {"name": "{{user.name}}"}.')
    for key, item in value.items():
        at, what = place.at(key), f'personalization key "{key}"'
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            at.refuse(f"{what} is not a name", hint="Use letters, digits and _.")
        if key in _TAKEN:
            at.refuse(f"{what} is taken", hint=f"Templates know {key} already; choose another name.")
        if isinstance(item, dict | list):
            at.refuse(f"{what} is not a text", hint='Write a text, such as "{{user.name}}".')
    return value


def _mailbox(place: _Place, text: str) -> str:
    # It takes the mail parser of the standard library, which a detector does without.
    from activation.mail.mailbox import mailbox

    try:
        return mailbox(f'loop "{place.loop}": {place}', text)
    except Refusal as refusal:
        refusal.path = place.path
        raise


def _check_enroll(top: _Place, result: Document) -> None:
    enroll, trigger = result["enroll"], result["trigger"]
    if result["per_hour"] is not None and enroll == "new":
        top.at("per_hour").refuse(
            "has per_hour, which is for existing users",
            hint="It says how many existing users are enrolled in an hour: add enroll => 'existing' or 'both'.",
        )
    if enroll != "new" and not (trigger["type"] == "database" and trigger["event"] == "insert"):
        top.at("enroll").refuse(
            f"enroll => '{enroll}' goes with activation.on_insert only",
            hint="Existing users are those whose rows are in the trigger's table. For others, use "
            "activation.on_schedule(cron, query), or activation.enroll(user_id, loop).",
        )


def snake(key: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda match: "_" + match.group(1).lower(), key)


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
