"""Hostile inputs: what is good, mutated by a seeded random, with the pieces that have broken parsers before."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from random import Random
from typing import Any

#: Characters and runs of them that mean something to one of the parsers, or are nothing to it.
PIECES: Sequence[str] = [
    *"'\"`\\/*-+=<>(){}[]|&%$#@!?:;,. \n\r\t\v\f\x00\x01\x1b\x1c\x7f\x85\u00a0\u2003\u2028\u202e\ufeff\ufffd",
    *"ß\u017f\u212aé𝄞0129aZ_",
    *("''", '""', "--", "/*", "*/", "//", "$$", "$1", "${", "}", "{{", "}}", "{%", "%}", "{{user.name}}", "<script>"),
    *("\\0", "\\x00", "\\u0000", "\\ud800", "\\u{110000}", "\\u{1F600}", "\\UFFFFFFFF", "\\N", "%00", "&lt;", "&#0;"),
    *(
        "null",
        "true",
        "Infinity",
        "NaN",
        "-1",
        "1e999",
        "0x" + "f" * 20,
        "9" * 30,
        "9" * 5000,
        "1_0",
        "0.1",
        "undefined",
    ),
    *(
        "&a ",
        "*a",
        "<<",
        "? ",
        "- ",
        ": ",
        "!!python/object ",
        "!!binary ",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "|2\n",
        ">-\n",
    ),
    *("const a = ", "export default ", "defineLoop", "...a", "as const", "=> ", "a.b", "a + a", "(a)", "[a]", "`${a}`"),
    *("SELECT ", "FROM ", "WHERE ", "UNION ", "::", "E'\\'", "U&'", "$a$", "pg_sleep(9)", "\\set", ";"),
]

#: Texts that something other than a text may be mistaken for, or that are hard to show.
TEXTS: Sequence[str] = [
    *("", " ", "\t", "\u00a0", "a", "users", "0", "-0", "null", "true", "{}", "[]", "''", "x" * 64, "é" * 40, "𝄞" * 16),
    *(
        "a\nb",
        "a\rb",
        "a\x1bb",
        "a\u2028b",
        "a\u0085b",
        "\u202eabc",
        "{{ user.name }}",
        "{% raw %}",
        "%s %I",
        "$1",
        "\\",
    ),
    *(
        "insert",
        "update",
        "delete",
        "5m",
        "-1 day",
        "1e999 days",
        "infinity",
        "24:00",
        "99:99",
        "Mon-Fri",
        "Mon-",
        ",,",
    ),
    *(
        "* * * * *",
        "0 0 31 2 *",
        "0 0 29 2 1#5",
        "*/0 * * * *",
        "0 9 * * Mon",
        "0 0 0 * * *",
        "1-0 * * * *",
        "L * * * *",
    ),
    *("a@b.c", "a, b@c.d", "<a@b.c>", "once", "every 1 day", "always", "activation_welcome", "pg_catalog.pg_class"),
]

NUMBERS: Sequence[Any] = [0, -0.0, 1, -1, 0.5, 2, 99, 2**31, 2**63, -(2**63) - 1, 10**40, 1e308, -1e-308, True, False]


def text(rng: Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(TEXTS)
    return "".join(rng.choices(PIECES, k=rng.randrange(1, 6)))


def repeated(rng: Random, longest: int) -> str:
    """One piece many times: what takes a parser a square of its length, or its stack."""
    piece = rng.choice(PIECES) if rng.random() < 0.7 else rng.choice(PIECES) + rng.choice(PIECES)
    return piece * rng.randrange(1, max(2, longest // len(piece)))


def mutated(rng: Random, given: str, others: Sequence[str], longest: int = 2_000) -> str:
    """A text with some of its parts taken out, doubled, exchanged or replaced; seldom with one piece many times."""
    if rng.random() < 0.002:
        longest *= 50
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        a, b = sorted((rng.randrange(len(given) + 1), rng.randrange(len(given) + 1)))
        b = min(b, a + rng.choice((0, 1, 2, 8, 40, 400)))
        match rng.randrange(9):
            case 0:
                given = given[:a] + given[b:]
            case 1:
                given = given[:b] + given[a:b] + given[b:]
            case 2 | 3 | 4:
                given = given[:a] + rng.choice(PIECES) + given[a:]
            case 5 | 6:
                given = given[:a] + rng.choice(PIECES) + given[b:]
            case 7:
                other = rng.choice(others)
                c = rng.randrange(len(other) + 1)
                given = given[:a] + other[c : c + rng.choice((4, 20, 100, 1000))] + given[b:]
            case 8 if rng.random() < 0.2:
                given = given[:a] + repeated(rng, longest) + given[a:]
    return given


def value(rng: Random, depth: int = 0) -> Any:
    """A JSON value."""
    match rng.randrange(12):
        case 0:
            return None
        case 1 | 2:
            return rng.choice(NUMBERS)
        case 3 if depth < 3:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        case 4 if depth < 3:
            return {text(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
        case 5 if depth == 0 and rng.random() < 0.02:
            return nested(rng, rng.choice((50, 300, 900, 2000)))
        case 6 if depth == 0 and rng.random() < 0.02:
            return [value(rng, 3) for _ in range(5000)]
        case 7 if depth == 0 and rng.random() < 0.02:
            return repeated(rng, 100_000)
        case _:
            return text(rng)


class Raw(str):
    """JSON, written already."""


def nested(rng: Random, depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth if rng.random() < 0.5 else '{"a":' * depth + "1" + "}" * depth)


def written(document: Any) -> str:
    """A document as JSON; what is written already stands in it as it is."""
    parts: dict[str, str] = {}

    def marked(given: Any) -> Any:
        if isinstance(given, Raw):
            mark = f"\ue000{len(parts)}\ue000"
            parts[json.dumps(mark)] = given
            return mark
        if isinstance(given, dict):
            return {key: marked(item) for key, item in given.items()}
        return [marked(item) for item in given] if isinstance(given, list) else given

    result = json.dumps(marked(document))
    for mark, part in parts.items():
        result = result.replace(mark, part)
    # The server takes no jsonb with it.
    return result.replace("\\u0000", "")


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in it."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            waiting.append(node[key])
    return found


def mutated_document(rng: Random, given: Any, keys: Sequence[str], others: Sequence[str]) -> Any:
    """A JSON document with some of its values and keys exchanged."""
    document = json.loads(json.dumps(given))
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 6))):
        places = _places(document)
        if not places:
            return value(rng)
        node, key = rng.choice(places)
        match rng.randrange(8):
            case 0 | 1 | 2:
                node[key] = value(rng)
            case 3 if isinstance(node[key], str):
                node[key] = mutated(rng, node[key], others)
            case 4:
                del node[key]
            case 5:
                other, there = rng.choice(places)
                if isinstance(other, dict) and there not in other:
                    continue
                if isinstance(other, list) and there >= len(other):
                    continue
                node[key] = copy.deepcopy(other[there])
            case 6 if isinstance(node, dict):
                node[rng.choice(keys) if rng.random() < 0.7 else text(rng)] = node.pop(key)
            case 7 if isinstance(node, list):
                node.extend(copy.deepcopy(node) * rng.choice((1, 1, 1, 2, 50)))
            case _ if isinstance(node, dict):
                node[rng.choice(keys)] = value(rng)
    return document if rng.random() > 0.005 else value(rng)
