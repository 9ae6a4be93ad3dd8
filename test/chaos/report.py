"""The report: what was done to the engine, and what came of it."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import activation
from check import NAMES
from harness import programs

if TYPE_CHECKING:
    from run import Result


#: How soon the engine should go on after a fault (seconds): by pg_cron or not.
TARGETS = {False: 5, True: 65}


def line(result: Result) -> str:
    """One seed in one line."""
    recovery = max(result.recoveries, default=(0.0, "none"))
    return (
        f"seed {result.seed}: {sum(result.faults.values())} faults, {result.users} users, {result.emails} emails,"
        f" {len(result.offences)} violations, longest recovery {recovery[0]:.1f} s ({recovery[1]}),"
        f" quiet after {result.quiet_after:.1f} s"
    )


def text(results: Sequence[Result], jobs: int) -> str:
    """The whole report, in Markdown."""
    faults: Counter[str] = sum((result.faults for result in results), Counter())
    violations = Counter(offence.invariant for result in results for offence in result.offences)
    states: Counter[str] = sum((result.states for result in results), Counter())
    remarks: Counter[str] = sum((result.remarks for result in results), Counter())
    ends = ", ".join(f"{state} {count:,}" for state, count in states.most_common())
    lines = [
        "# Chaos",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores, {_memory()}, {platform.system()}"
        f" {_kernel()}, {_postgres()}, Python {platform.python_version()},"
        f" activation {activation.__version__}, fsync on.",
        "",
        f"{len(results)} seeds, {jobs} at a time, {sum(r.seconds for r in results) / 60:g} minutes,"
        f" {sum(faults.values()):,} faults,"
        f" {sum(r.users for r in results):,} users, {sum(r.emails for r in results):,} emails.",
        "",
        "| must not be | count |",
        "|---|---:|",
        *(f"| {name} | {violations[name]:,} |" for name in NAMES),
        "",
        "| workers started anew | recoveries | longest | after | target | beyond it |",
        "|---|---:|---:|---|---:|---:|",
        *_recovery_rows(results),
        "",
        "Recovery is the time from the end of a fault until somebody was enrolled and a request was sent. A crash ends"
        " when it happens, so that the server's own recovery is part of it.",
        "",
        "| fault | times |",
        "|---|---:|",
        *(f"| {name.replace('_', ' ')} | {faults[name]:,} |" for name in sorted(faults)),
        "",
        "| seed | workers | rate | minutes | faults | users | emails | violations | longest recovery | quiet after |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(result) for result in results),
        "",
        f"Messages ended as {ends}. failed: an address that is refused, or every try answered by an error. unknown:"
        " such errors after tries without an answer. cancelled: nudges of those who had acted meanwhile.",
    ]
    if remarks:
        lines += ["", "Besides:", "", *(f"- {what}: {count:,} times" for what, count in remarks.most_common())]
    return "\n".join(lines)


def _recovery_rows(results: Sequence[Result]) -> list[str]:
    rows = []
    for cron, who in ((False, "at once"), (True, "by pg_cron")):
        found = [recovery for result in results if result.cron == cron for recovery in result.recoveries]
        if found:
            seconds, name = max(found)
            fault, beyond = name.partition(" ")[0].replace("_", " "), sum(s > TARGETS[cron] for s, _ in found)
            rows.append(f"| {who} | {len(found)} | {seconds:.1f} s | {fault} | {TARGETS[cron]} s | {beyond} |")
    return rows


def _row(result: Result) -> str:
    recovery = max(result.recoveries, default=(0.0, ""))[0]
    cells = [
        result.seed,
        "pg_cron" if result.cron else "supervisor",
        result.rate,
        f"{result.seconds / 60:g}",
        sum(result.faults.values()),
        f"{result.users:,}",
        f"{result.emails:,}",
        len(result.offences),
        f"{recovery:.1f} s",
        f"{result.quiet_after:.1f} s",
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _postgres() -> str:
    version = subprocess.run([programs() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return version.replace("postgres (PostgreSQL)", "PostgreSQL").strip()


def _kernel() -> str:
    return platform.release().partition("-")[0]


def _memory() -> str:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"{pages / 2**30:.0f} GB"
