"""suggest(): from counts of what people did in their first days to the actions that go with staying. Pure.

An action is a row in a table, or one with a certain value in a column; its variants are at least so many of them within
so many days. What is counted: for each action, how many people of the earlier and of the later half of all signups did
it so often, and stayed or not. The earlier half is where actions are found: of each the variant with the greatest phi,
and q over all variants tried. The later half is where they have to hold: the interval of the difference must lie above
zero there, too. So what only looks good because many things were tried is left behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from activation.insight.proportions import Table, benjamini_hochberg, newcombe
from activation.text import dollar_quoted, literal

AT_LEAST = (1, 2, 3, 5, 10)
#: What fewer or more of all people do tells nobody apart.
RAREST, COMMONEST = 0.05, 0.95
#: How small q has to be; and how small where the later half does not bear it out, to be worth showing all the same.
SMALL, VERY_SMALL = 0.05, 0.001
#: A column with more values than this is not one of kinds.
MOST_VALUES = 20

#: Which half, whether they stayed by anything at all, whether by anything but the action itself, how many times within
#: each number of days (none more than 10), and how many such people there are.
_Row = list[Any]


@dataclass(frozen=True)
class _Variant:
    """At least so many of an action within so many days, in both halves."""

    at_least: int
    days: int
    early: Table
    late: Table

    @property
    def both(self) -> Table:
        return self.early + self.late


def _tables(
    rows: Iterable[_Row], totals: dict[tuple[bool, bool], int], place: int, at_least: int
) -> tuple[Table, Table]:
    found = []
    rows = list(rows)
    for late in (False, True):
        did = did_stayed = seen_stayed = other = other_stayed = 0
        for half, stayed_by_others, stayed, *counts, people in rows:
            if bool(half) is not late:
                continue
            # Who has no such row at all is in the totals only; who has some is taken from them.
            seen_stayed += people * stayed_by_others
            other += people
            if counts[place] >= at_least:
                did += people
                did_stayed += people * stayed
            else:
                other_stayed += people * stayed
        all_stayed = totals.get((late, True), 0)
        everybody = all_stayed + totals.get((late, False), 0)
        found.append(Table(did, did_stayed, everybody - did, all_stayed - seen_stayed + other_stayed))
    return found[0], found[1]


def variants(rows: list[_Row], totals: dict[tuple[bool, bool], int], days: list[int]) -> list[_Variant]:
    """All variants of an action that enough people do, and not nearly all."""
    found = []
    for place, within in enumerate(days):
        for at_least in AT_LEAST:
            early, late = _tables(rows, totals, place, at_least)
            share = (early + late).did / max((early + late).n, 1)
            if RAREST <= share <= COMMONEST and min(early.did, early.other, late.did, late.other) > 0:
                found.append(_Variant(at_least, within, early, late))
    return found


def rank(plan: dict[str, Any], counted: list[dict[str, Any]], totals: list[list[Any]]) -> dict[str, Any]:
    """What suggest() returns: {"found": its rows, "tried": how many variants, "actions": of how many actions}.

    plan: as _suggest_plan() makes it. counted: for each action its place in the plan, its value, and the rows counted.
    totals: half, stayed, people.
    """
    everybody = {(late, stayed): people for late, stayed, people in totals}
    days = plan["days"]
    tried: list[tuple[dict[str, Any], _Variant]] = []
    for action in counted:
        tried += [(action, variant) for variant in variants(action["rows"], everybody, days)]
    q_values = benjamini_hochberg([variant.early.p for _, variant in tried])
    best: dict[tuple[int, str | None, str | None], tuple[dict[str, Any], _Variant, float]] = {}
    for (action, variant), q in zip(tried, q_values, strict=True):
        key = (action["table"], action["column"], action["value"])
        if variant.early.phi > 0 and (key not in best or variant.early.phi > best[key][1].early.phi):
            best[key] = (action, variant, q)
    found = []
    for (table, _, value), (action, variant, q) in best.items():
        # A kind of row that tells no more than any row of that table is not worth a line.
        whole = best.get((table, None, None))
        if value is not None and whole is not None and whole[1].both.phi >= variant.both.phi:
            continue
        holds = newcombe(variant.late)[0] > 0
        if q <= (SMALL if holds else VERY_SMALL):
            found.append(_shown(plan, action, variant, q, holds))
    found.sort(key=lambda row: (not row["holds_later"], -row["phi"]))
    return {"found": found, "tried": len(tried), "actions": len(counted)}


def _shown(plan: dict[str, Any], action: dict[str, Any], variant: _Variant, q: float, holds: bool) -> dict[str, Any]:
    table, both = plan["tables"][action["table"]], variant.both
    low, high = newcombe(both)
    words = _words(table["relname"], action["column"], action["value"], variant.at_least)
    period = "day" if variant.days == 1 else f"{variant.days} days"
    often = (
        f"stay {both.rate_with / both.rate_without:.1f} times as often"
        if both.rate_without
        else "stay, and others do not"
    )
    summary = (
        f"people who {words} in their first {period} {often}: {_percent(both.rate_with)} against"
        f" {_percent(both.rate_without)}"
        + ("" if holds else "; it did not hold for those who signed up later")
        + " (a marker, not proof of cause)"
    )
    return {
        "action": f"{words} within {variant.days} {'day' if variant.days == 1 else 'days'}",
        "table_name": table["table"],
        "column_name": action["column"],
        "value": action["value"],
        "at_least": variant.at_least,
        "within": f"{variant.days} days",
        "n": both.n,
        "did": both.did,
        "rate_with": round(both.rate_with, 4),
        "rate_without": round(both.rate_without, 4),
        "difference": round(both.difference, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "phi": round(both.phi, 4),
        "ppv": round(both.rate_with, 4),
        "q": float(f"{q:.3g}"),
        "holds_later": holds,
        "summary": summary,
        "loop": _loop(plan, table, action, variant),
    }


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _words(relname: str, column: str | None, value: str | None, at_least: int) -> str:
    many = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", relname).replace("_", " ").strip().lower() or relname
    if many.endswith("ies"):
        single = many[:-3] + "y"
    elif re.search(r"(s|x|z|ch|sh)es$", many):
        single = many[:-2]
    elif many.endswith("s") and not many.endswith("ss"):
        single = many[:-1]
    else:
        single, many = many, f"{many} rows"
    article = "an" if single[:1] in "aeiou" else "a"
    thing = f"{article} {single}" if at_least == 1 else f"{at_least} or more {many}"
    of_value = "" if value is None else f' whose {column} is "{value}"'
    return f"create {thing}{of_value}"


def _loop(plan: dict[str, Any], table: dict[str, Any], action: dict[str, Any], variant: _Variant) -> str:
    """A define_loop() that nudges one half of those who have not done it, and leaves the other half alone."""
    condition = f"SELECT 1 FROM {table['from']} WHERE {table['key']} = $1"
    if action["value"] is not None:
        condition += f" AND t.{action['quoted']} = {literal(action['value'])}"
    if variant.at_least > 1:
        condition += f" HAVING count(*) >= {variant.at_least}"
    value = "" if action["value"] is None else f"_{action['value']}"
    often = "" if variant.at_least == 1 else f"_{variant.at_least}"
    name = re.sub(r"[^A-Za-z0-9]+", "_", f"{table['relname']}{value}{often}_in_{variant.days}d").strip("_").lower()
    return (
        f"SELECT activation.define_loop({literal(name[:60])},\n"
        f"  trigger   => activation.on_insert({literal(plan['users'])}),\n"
        f"  condition => activation.query({dollar_quoted(condition)}, timeout => '{variant.days} days'),\n"
        "  otherwise => activation.email('activation_nudge'),\n"
        "  holdout   => 0.5);"
    )
