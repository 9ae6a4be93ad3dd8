"""A skene.config.ts as a loop's definition. Pure.

The text is read, never run: what takes running to know, such as a call or an environment variable, is refused. The
grammar is tree-sitter's for TypeScript; only values that a JSON document could hold come out of it.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, NoReturn

from activation.authoring import definition, sqltext
from activation.errors import Path, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tree_sitter import Node, Tree

    from activation.authoring.definition import Document

#: Characters of a config, and of all texts that come out of it. What people write has some thousand.
LONGEST = 200_000
#: Seconds of CPU for the parser. What is TypeScript takes milliseconds; over some broken texts it never ends.
PATIENCE = 0.3
#: Values of a config, those counted again that a constant stands for: doubled often enough, they would never end.
MOST = 50_000

#: What Skene has and a loop cannot say, by where the type stands.
_FOREIGN = {"type": ("freemium",), "trigger": ("api",), "condition": ("usage",), "action": ("block",)}
_FOREIGN_HINT = (
    "activation mails; it neither meters usage nor blocks requests. Keep that in the app and let it tell of it: "
    "activation.track(user_id, 'limit_reached'), with a loop on activation.on_event('limit_reached')."
)
#: What TypeScript puts around a value without changing it.
_WRAPPERS = ("parenthesized_expression", "as_expression", "satisfies_expression", "non_null_expression")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0", "\n": ""}


class _Unreadable(Exception):
    """A value that only running the config would tell."""


class Config:
    """The object that a config exports.

    document: it, as JSON has it. unreadable: (line, text) of what takes running.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.document: Document = {}
        self._line_of: dict[Path, int] = {}
        self.unreadable: list[tuple[int, str]] = []
        if len(text) > LONGEST:
            self.refuse(
                "the config is too long", hint=f"Give the text of a skene.config.ts, of {LONGEST} characters at most."
            )
        text = text.removeprefix("\ufeff").replace("\r\n", "\n")
        self._lines = text.split("\n")
        self._start = 1
        self._left, self._room = MOST, LONGEST
        self._resolving: list[str] = []
        tree = _parse(text)
        if tree is None:
            self.refuse(
                "the config is not TypeScript",
                hint="Look at quotes, commas and brackets; a text with an apostrophe takes double ones.",
                code="42601",
            )
        root = tree.root_node
        self._constants = dict(_constants(root))
        try:
            if root.has_error:
                self._refuse_syntax(root)
            self._read(root)
        except RecursionError:
            self.refuse("the config is nested too deeply", hint="A loop has some three levels of objects.")

    def refuse(self, problem: str, *, hint: str, line: int | None = None, code: str = "22023") -> NoReturn:
        detail = self.shown(line) if line else ""
        raise Refusal(f'loop "{self.name}": {problem}', hint=hint, detail=detail, code=code)

    def refuse_foreign(self, found: Sequence[tuple[int, str]]) -> NoReturn:
        raise Refusal(
            f'loop "{self.name}": a loop cannot express {found[0][1]}',
            detail="\n".join(f"{self.shown(line)} ({what})" for line, what in found),
            hint=_FOREIGN_HINT,
            code="0A000",
        )

    def shown(self, line: int) -> str:
        return f"Line {line}: {self._lines[line - 1].strip()[:120]}"

    def line_of(self, path: Path) -> int:
        """Where a key stands; else the nearest around it that is written here."""
        while path and path not in self._line_of:
            path = path[:-1]
        return self._line_of.get(path, self._start)

    def _refuse_syntax(self, root: Node) -> NoReturn:
        # Published freemium configs have an apostrophe too many: what they are is the better answer.
        foreign = [
            (_line(node), f'type "{value}"')
            for node in _walk(root)
            if node.type == "pair" and _field(node, "key") == "type"
            for value in [(_field(node, "value") or "").strip("'\"`")]
            if any(value in words for words in _FOREIGN.values())
        ]
        if foreign:
            self.refuse_foreign(foreign)
        broken = next(node for node in _walk(root) if node.is_error or node.is_missing)
        self.refuse(
            "the config is not TypeScript",
            line=min(_line(broken), len(self._lines)),
            hint="Look at quotes, commas and brackets from there on; a text with an apostrophe takes double ones.",
            code="42601",
        )

    def _read(self, root: Node) -> None:
        exported = [
            value
            for node in root.named_children
            if node.type == "export_statement" and (value := node.child_by_field_name("value"))
        ]
        self._start = _line(exported[0]) if exported else 1
        argument = self._argument(exported[0]) if exported else None
        document = None if argument is None else self._value(argument, ())
        if not isinstance(document, dict):
            self.refuse(
                "the config exports no loop",
                line=self._start if exported else None,
                hint="It is read from `export default defineLoop({ … })`, one loop a file.",
            )
        self.document = document

    def _argument(self, node: Node) -> Node | None:
        """What defineLoop() is called with."""
        node = self._followed(node)
        called = node.child_by_field_name("function") if node.type == "call_expression" else None
        arguments = node.child_by_field_name("arguments")
        if called is None or arguments is None or _text(called).rpartition(".")[2] != "defineLoop":
            return None
        given = _content(arguments)
        return self._followed(given[0]) if len(given) == 1 else None

    def _followed(self, node: Node) -> Node:
        """A node without what is wrapped around it; of a constant, what it stands for."""
        followed: set[str] = set()
        while True:
            if node.type in _WRAPPERS:
                node = _content(node)[0]
            elif node.type == "identifier" and _text(node) in self._constants and _text(node) not in followed:
                followed.add(_text(node))
                node = self._constants[_text(node)]
            else:
                return node

    def _value(self, node: Node, path: Path) -> Any:
        """A value; None, and a note of it, for what takes running."""
        try:
            return self._evaluated(node, path)
        except _Unreadable:
            self.unreadable.append((_line(node), _text(node)[:80]))
            return None

    def _evaluated(self, node: Node, path: Path) -> Any:
        self._left -= 1
        if node.type in ("string", "template_string"):
            self._room -= node.end_byte - node.start_byte
        if self._left < 0 or self._room < 0:
            self.refuse(
                "the config is too large",
                line=_line(node),
                hint=f"A loop has far fewer than {MOST} values, and {LONGEST} bytes of text.",
            )
        match node.type:
            case "object":
                return self._object(node, path)
            case "array":
                return self._array(node, path)
            case "string":
                return _decoded(node)
            case "template_string":
                return _whole("".join(self._template_part(part, path) for part in node.named_children))
            case "number":
                return _number(_text(node))
            case "true" | "false":
                return node.type == "true"
            case "null" | "undefined":
                return None
            case "unary_expression" if _field(node, "operator") == "-":
                number = self._evaluated(_content(node)[-1], path)
                if isinstance(number, int | float) and not isinstance(number, bool):
                    return -number
            case "binary_expression" if _field(node, "operator") == "+":
                left, right = (self._evaluated(_child(node, side), path) for side in ("left", "right"))
                if isinstance(left, str) and isinstance(right, str):
                    return left + right
            case "identifier" | "shorthand_property_identifier":
                return self._constant(_text(node), path)
            case "member_expression":
                whole = self._evaluated(_child(node, "object"), ("",))
                key = _field(node, "property")
                if isinstance(whole, dict) and key in whole:
                    return whole[key]
            case wrapper if wrapper in _WRAPPERS:
                return self._evaluated(_content(node)[0], path)
        raise _Unreadable

    def _constant(self, name: str, path: Path) -> Any:
        if name not in self._constants or name in self._resolving:
            raise _Unreadable
        self._resolving.append(name)
        try:
            return self._evaluated(self._constants[name], path)
        finally:
            self._resolving.pop()

    def _object(self, node: Node, path: Path) -> Document:
        result: Document = {}
        written: set[str] = set()
        for item in _content(node):
            if item.type == "spread_element":
                spread = self._value(_content(item)[0], path)
                result.update(spread if isinstance(spread, dict) else {})
                continue
            pair = item.type == "pair"
            name, value = (_child(item, "key"), _child(item, "value")) if pair else (item, item)
            if name.type not in ("property_identifier", "string", "number", "shorthand_property_identifier"):
                self.unreadable.append((_line(item), _text(item)[:80]))
                continue
            key = _decoded(name) if name.type == "string" else _text(name)
            if key in written:
                self.refuse(f'key "{key}" stands twice', line=_line(item), hint="Leave one of them out.")
            written.add(key)
            result[key] = self._value(value, (*path, definition.snake(key)))
            # A constant's own keys belong to the document only where the whole of it is used.
            if path[:1] != ("",):
                self._line_of[(*path, definition.snake(key))] = _line(item)
        return result

    def _array(self, node: Node, path: Path) -> list[Any]:
        result = []
        for number, item in enumerate(_content(node)):
            result.append(self._value(item, (*path, number)))
            if path[:1] != ("",):
                self._line_of[(*path, number)] = _line(item)
        return result

    def _template_part(self, node: Node, path: Path) -> str:
        if node.type != "template_substitution":
            return _piece(node)
        value = self._evaluated(_content(node)[0], path)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _Unreadable
        return str(value)


def read(name: str | None, text: str, users: Sequence[Document] = ()) -> Document:
    """What a skene.config.ts says: {"definition", "notices"}, the former for import_loop(). Raises Refusal.

    users: the users tables of the database, {"table", "key"} each, as SQL writes them: a schedule enrolls from one.
    """
    definition.check_name(name)
    loop = str(name)
    config = Config(loop, text)
    foreign = [
        (config.line_of(path), f'{"" if where == "type" else where + " "}type "{kind}"')
        for where, path, kind in _types(config.document)
        if kind in _FOREIGN[where]
    ]
    if foreign:
        config.refuse_foreign(foreign)
    if config.unreadable:
        line, shown = config.unreadable[0]
        config.refuse(
            f"`{shown}` is not a constant",
            line=line,
            hint="The config is read, not run: write texts, numbers, lists and objects, or constants of the same file.",
            code="0A000",
        )
    try:
        document, idle = _with_audience(loop, config.document, users)
        definition.normalise(loop, document)
    except Refusal as refusal:
        refusal.detail = "\n".join(filter(None, (refusal.detail, config.shown(config.line_of(refusal.path)))))
        raise
    notices = [f'loop "{loop}": {key} of the scheduled condition has no effect' for key in idle]
    return {"definition": document, "notices": notices}


def _types(document: Document) -> Iterator[tuple[str, Path, object]]:
    """Where a type stands, and which."""
    yield "type", ("type",), document.get("type")
    steps = document.get("steps")
    places: list[tuple[Path, object]] = [((), document)]
    places += [(("steps", n), step) for n, step in enumerate(steps if isinstance(steps, list) else [])]
    for path, place in places:
        for where in ("trigger", "condition", "action"):
            part = place.get(where) if isinstance(place, dict) else None
            if isinstance(part, dict):
                yield where, (*path, where, "type"), part.get("type")


def _with_audience(loop: str, document: Document, users: Sequence[Document]) -> tuple[Document, list[str]]:
    """The document with the query of a schedule in its trigger, and what of the condition has no effect there.

    Skene asks a scheduled loop's condition for those whom it concerns; here that is the query of the trigger, and
    nobody waits for it.
    """
    steps = document.get("steps")
    first = steps[0] if isinstance(steps, list) and steps and isinstance(steps[0], dict) else document
    if isinstance(document.get("trigger"), dict) and first is not document and "trigger" in first:
        return document, []  # Two triggers, which are refused.
    trigger, condition = document.get("trigger") or first.get("trigger"), first.get("condition")
    if not isinstance(trigger, dict) or not isinstance(condition, dict):
        return document, []
    if trigger.get("type") != "schedule" or trigger.get("query") is not None:
        return document, []
    at: Path = ("condition",) if first is document else ("steps", 0, "condition")
    query = definition.fragment(loop, "condition", condition, at)["query"]
    named = document.get("users")
    fitting = [u for u in users if named is None or u["table"] == named or u["table"].endswith(f".{named}")]
    chosen = fitting[0] if len(fitting) == 1 else {"table": named or "users", "key": "id"}
    asking = {**trigger, "query": audience(query, chosen["table"], chosen["key"])}
    idle = [key for key in ("timeout", "every", "watch") if condition.get(key) is not None]
    # The trigger stays where it stands, at the top or in the first step.
    bare = {key: asking if value is trigger else value for key, value in first.items() if key != "condition"}
    if first is document:
        return bare, idle
    whole = {key: asking if value is trigger else value for key, value in document.items()}
    return {**whole, "steps": [bare, *document["steps"][1:]]}, idle


def audience(query: str, table: str, key: str) -> str:
    """The users' keys for whom a condition is true, as one query of one column. table, key: as SQL writes them."""
    body = sqltext.without_terminator(query)
    words = sqltext.significant(body)
    if any(sqltext.is_parameter(word) for word in words):
        asked = sqltext.with_parameter(body, f'"activation user".{key}')
        return f'SELECT "activation user".{key} FROM {table} AS "activation user" WHERE EXISTS (\n{asked}\n)'
    depth, listed = 0, ""
    for word in words:
        depth += {"(": 1, ")": -1}.get(word.text, 0)
        if depth == 0 and word.text.upper() == "FROM":
            break
        # What is outside of parentheses, from the last SELECT on: a WITH stands before it.
        listed = "" if depth == 0 and word.text.upper() == "SELECT" else listed + (word.text if depth == 0 else "")
    if "*" in listed or "," in listed:
        return f"SELECT due.{key} FROM (\n{body}\n) AS due"
    return body


def _parse(text: str) -> Tree | None:
    """The text as a tree; None where that takes too long."""
    # 25 ms, which nobody else pays.
    import tree_sitter
    import tree_sitter_typescript

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_typescript.language_typescript()))
    whole, end = text.encode(), time.thread_time() + PATIENCE
    try:
        # Only what reads piece by piece asks whether to go on.
        return parser.parse(lambda at, _: whole[at : at + 1000], progress_callback=lambda *_: time.thread_time() > end)
    except ValueError:
        return None


def _constants(root: Node) -> Iterator[tuple[str, Node]]:
    """The constants of the file, and what they are."""
    for node in root.named_children:
        inner = node.child_by_field_name("declaration") if node.type == "export_statement" else node
        if inner is not None and inner.type == "lexical_declaration" and _field(inner, "kind") == "const":
            for item in inner.named_children:
                value = item.child_by_field_name("value")
                if item.type == "variable_declarator" and value is not None:
                    yield _field(item, "name") or "", value


def _walk(root: Node) -> Iterator[Node]:
    """All nodes, in the order of the text."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _line(node: Node) -> int:
    return node.start_point[0] + 1


def _child(node: Node, field: str) -> Node:
    child = node.child_by_field_name(field)
    if child is None:
        raise _Unreadable
    return child


def _field(node: Node, field: str) -> str | None:
    child = node.child_by_field_name(field)
    return None if child is None else _text(child)


def _content(node: Node) -> list[Node]:
    return [child for child in node.named_children if child.type != "comment"]


def _number(text: str) -> int | float:
    plain = text.replace("_", "")
    try:
        number: int | float = int(plain, 0)
    except ValueError:
        try:
            number = float(plain)
        except ValueError:
            raise _Unreadable from None
    # Of more than 308 digits: no number to JavaScript, nor in JSON.
    if not abs(number) < 10**308:
        raise _Unreadable
    return number


def _decoded(node: Node) -> str:
    return _whole("".join(_piece(part) for part in node.named_children))


def _piece(node: Node) -> str:
    """A piece of a text, or the character that an escape stands for."""
    text = _text(node)
    if node.type != "escape_sequence":
        return text
    code = re.fullmatch(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|u\{([0-9a-fA-F]+)\})", text)
    if code:
        point = int(code[1] or code[2] or code[3], 16)
        if point > 0x10FFFF:
            raise _Unreadable
        return chr(point)
    return _ESCAPES.get(text[1:], text[1:])


def _whole(text: str) -> str:
    """Pairs of surrogates as the characters they are; what the database cannot hold is refused."""
    try:
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise _Unreadable from None
    if "\0" in joined:
        raise _Unreadable
    return joined
