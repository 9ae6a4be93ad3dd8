# ruff: noqa: RUF001
"""The benchmark: `make bench`, or `make bench QUICK=1`. A report on standard output, progress on the other.

Every figure is a median, and every price a ratio to the same work without us in slices before and after, in this run:
the machine may be noisy, the ratio is not. The cluster is a throwaway one with fsync on.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import charts
import detection
import drain
import feedback
import insight
import journeys
import latency
import pages
import signup
import watched
from common import Effort, Figure, say

from harness import Cluster

PARTS: dict[str, tuple[str, Callable[[Cluster, Effort, str], list[Figure]]]] = {
    "signup": ("What a signup pays", signup.measure),
    "watched": ("What a table pays that conditions read", lambda cluster, effort, _: watched.measure(cluster, effort)),
    "detection": ("Detection", lambda cluster, effort, _: detection.measure(cluster, effort)),
    "journeys": ("Journeys", lambda cluster, effort, _: journeys.measure(cluster, effort)),
    "drain": ("The drain", lambda cluster, effort, _: drain.measure(cluster, effort)),
    "insight": ("Numbers", lambda cluster, effort, _: insight.measure(cluster, effort)),
    "pages": ("Pages", lambda cluster, effort, _: pages.measure(cluster, effort)),
    "feedback": ("Feedback and rights", feedback.measure),
    "latency": ("From commit to request, and idle", latency.measure),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter slices, fewer people")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    parser.add_argument("--into", type=Path, help="a directory for the report, its charts and its figures as JSON")
    options = parser.parse_args()
    effort = Effort(options.quick)
    load = os.getloadavg()[0]
    results: dict[str, list[Figure]] = {}
    begin = time.time()
    settings = {"shared_buffers": "1GB", "max_wal_size": "8GB"}
    environment = {"RESEND_API_KEY": "re_bench"}
    with (
        latency.sandbox() as url,
        Cluster(cron=True, fsync=True, settings=settings, environment=environment) as cluster,
    ):
        for name in options.only:
            results[name] = PARTS[name][1](cluster, effort, url)
            say(f"… {name} done after {time.time() - begin:.0f} s")
        version = cluster.value("SELECT version()").split(" on ")[0]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, load average {load:.1f} at the start"
    about = {
        "command": f"make bench{' QUICK=1' if options.quick else ''}",
        "date": str(datetime.date.today()),
        "server": f"{version}; fsync on; {', '.join(f'{name} {value}' for name, value in settings.items())}",
        "machine": machine,
        "minutes": round((time.time() - begin) / 60),
    }
    report = _report(about, results)
    print(report)
    if options.into:
        options.into.mkdir(parents=True, exist_ok=True)
        charts.draw([figure for figures in results.values() for figure in figures], options.into)
        (options.into / "RESULTS.md").write_text(report + "\n")
        raw = {name: [dataclasses.asdict(figure) for figure in figures] for name, figures in results.items()}
        (options.into / "results.json").write_text(json.dumps({**about, "figures": raw}, indent=1) + "\n")


def _report(about: dict[str, object], results: dict[str, list[Figure]]) -> str:
    lines = [
        "# Results",
        "",
        "`{command}`, {date}; {server}; {machine}; {minutes} minutes.".format(**about),
        "Medians (lowest–highest); how each is measured is in the program of its part. ✗: the target was not reached.",
    ]
    for name, figures in results.items():
        lines += ["", f"## {PARTS[name][0]}", "", "| what | target | measured |", "|---|---|---|"]
        for figure in figures:
            missed = " ✗" if figure.reached is False else ""
            lines.append(f"| {figure.what} | {figure.target} | {figure.shown}{missed} |")
        for chart in sorted({figure.chart for figure in figures} - {""}):
            lines += ["", f"![{charts.TITLES[chart]}]({chart}.svg)"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
