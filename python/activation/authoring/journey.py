"""The milestones of a journey.yaml, as `skene analyse-journey` writes it. Pure.

Which of them the database can tell of, and by which column, is found out in SQL afterwards.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NoReturn

from activation.authoring import definition
from activation.errors import Refusal
from activation.text import near

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yaml.events import Event
    from yaml.nodes import Node

#: Characters of a journey, and how deep it may be nested.
LONGEST = 200_000
DEEPEST = 50

_JOURNEY = ("product", "layers", "stages", "connectors")
_STAGE = ("id", "order", "name", "subtitle", "milestones", "kpis")
_MILESTONE = ("id", "order", "name", "description", "evidence", "tracked_event", "confidence")
_EVIDENCE = ("source", "reason", "path", "table")


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: set[int] = set()

    def refuse(self, problem: str, *, hint: str, line: int | None = None, code: str = "22023") -> NoReturn:
        raise Refusal(f'loop "{self.name}": {problem}', hint=hint, detail=f"Line {line}" if line else "", code=code)

    def mapping(self, node: Node, where: str, keys: tuple[str, ...]) -> dict[str, Node]:
        import yaml

        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self.refuse(f"{where} is not an object", line=line, hint=f"It holds {', '.join(keys)}.")
        if id(node) in self._seen:
            self.refuse(f"{where} is an alias", line=line, hint="Write it out.", code="0A000")
        self._seen.add(id(node))
        result: dict[str, Node] = {}
        for key, value in node.value:
            # A key may be anything, even aliases of aliases that no memory could hold as a text.
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            if name not in keys:
                self.refuse(
                    f'unknown key "{name}" in {where}',
                    line=key.start_mark.line + 1,
                    hint=f"{near(name, keys)}Known keys are {', '.join(keys)}.",
                )
            result[name] = value
        return result

    def items(self, given: dict[str, Node], key: str, where: str, line: int) -> list[Node]:
        import yaml

        node = given.get(key)
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.refuse(f"{where} has no {key}", line=line, hint=f"Give it a list of {key}.")
        return list(node.value)

    def text(self, given: dict[str, Node], key: str) -> str | None:
        import yaml

        node = given.get(key)
        if node is None or (isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null")):
            return None
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip() or "\0" in node.value:
            self.refuse(
                f"{key} is not a text", line=node.start_mark.line + 1, hint=f"Give {key} as a text, or leave it out."
            )
        return str(node.value)

    def required(self, given: dict[str, Node], key: str, where: str, line: int) -> str:
        value = self.text(given, key)
        if value is None:
            self.refuse(f"{where} has no {key}", line=line, hint=f"Give it {'an' if key == 'id' else 'a'} {key}.")
        return value

    def order(self, given: dict[str, Node], position: int) -> float:
        try:
            number = float(self.text(given, "order") or position)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.refuse("order is not a number", line=given["order"].start_mark.line + 1, hint="Give a whole number.")
        return number


def read(name: str | None, text: str) -> dict[str, Any]:
    """What a journey.yaml says: {"product", "milestones"}. Raises Refusal.

    The milestones come in order, each with "ref" (stage.milestone), "name", "stage", "tables", "event" and "line".
    """
    # 25 ms, which nobody else pays.
    import yaml

    definition.check_name(name)
    reader = _Reader(str(name))
    if len(text) > LONGEST:
        reader.refuse(
            "the journey is too long", hint=f"Give the text of a journey.yaml, of {LONGEST} characters at most."
        )
    # The one in C takes a hundredth of the time.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        # Composing takes a stack, or an alias of itself, for what it is; its events are one after the other.
        if _depth(yaml.parse(text, Loader=loader)) > DEEPEST:
            reader.refuse("the journey is nested too deeply", hint="Give the text of a journey.yaml.")
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        # At the end of a text it may name the line behind it.
        line = min(error.problem_mark.line, text.count("\n")) + 1 if error.problem_mark else None
        reader.refuse(f"the journey is not YAML: {error.problem}", line=line, hint="Correct it there.", code="42601")
    except yaml.YAMLError as error:
        reader.refuse(f"the journey is not YAML: {error}", hint="Give the text of a journey.yaml.", code="42601")
    except (ValueError, OverflowError) as error:
        # The loader in Python, of an escape that is no character.
        reader.refuse(f"the journey is not YAML: {error}", hint="Give the text of a journey.yaml.", code="42601")
    if root is None:
        reader.refuse("the journey is empty", hint="Give the text of a journey.yaml.")

    journey = reader.mapping(root, "the journey", _JOURNEY)
    found: list[tuple[float, float, dict[str, Any]]] = []
    refs: set[str] = set()
    for position, node in enumerate(reader.items(journey, "stages", "the journey", 1), 1):
        stage = reader.mapping(node, "the stage", _STAGE)
        line = node.start_mark.line + 1
        stage_id = reader.required(stage, "id", "the stage", line)
        for place, item in enumerate(reader.items(stage, "milestones", f'stage "{stage_id}"', line), 1):
            milestone = _milestone(reader, stage_id, item)
            if milestone["ref"] in refs:
                reader.refuse(
                    f'two milestones are "{milestone["ref"]}"',
                    line=milestone["line"],
                    hint="Give each an id of its own.",
                )
            refs.add(milestone["ref"])
            order = milestone.pop("order")
            found.append((reader.order(stage, position), place if order is None else order, milestone))
    found.sort(key=lambda entry: entry[:2])
    return {"product": _product(reader, journey), "milestones": [milestone for _, _, milestone in found]}


def _depth(events: Iterable[Event]) -> int:
    """How deep they go, or that it is deeper than a journey may."""
    import yaml

    depth = deepest = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        deepest = max(deepest, depth)
        if deepest > DEEPEST:
            break
    return deepest


def _milestone(reader: _Reader, stage_id: str, node: Node) -> dict[str, Any]:
    line = node.start_mark.line + 1
    given = reader.mapping(node, "the milestone", _MILESTONE)
    where = f'a milestone of stage "{stage_id}"'
    ref = f"{stage_id}.{reader.required(given, 'id', where, line)}"
    tables = []
    for item in reader.items(given, "evidence", f'milestone "{ref}"', line) if "evidence" in given else []:
        table = reader.text(reader.mapping(item, "the evidence", _EVIDENCE), "table")
        tables += [table] if table else []
    return {
        "ref": ref,
        "order": reader.order(given, 0) if "order" in given else None,
        "stage": stage_id,
        "name": reader.required(given, "name", f'milestone "{ref}"', line),
        "tables": list(dict.fromkeys(tables)),
        "event": reader.text(given, "tracked_event"),
        "line": line,
    }


def _product(reader: _Reader, journey: dict[str, Node]) -> str | None:
    """The product's name, if it is told; what else there is of the product may be anything."""
    import yaml

    product = journey.get("product")
    for key, value in product.value if isinstance(product, yaml.MappingNode) else []:
        if isinstance(key, yaml.ScalarNode) and key.value == "name" and isinstance(value, yaml.ScalarNode):
            return reader.text({"name": value}, "name")
    return None
