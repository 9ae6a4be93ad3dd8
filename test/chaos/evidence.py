"""What is kept of a seed that failed: whom it concerns, what happened to them, and all data."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from faults import Record
from world import World

if TYPE_CHECKING:
    from run import Result

SHOWN = 5


def keep(result: Result, world: World, log: list[Record]) -> Path:
    """Writes it all to a directory, prints the heart of it, and returns the directory."""
    folder = Path(os.environ["ACTIVATION_CACHE"], f"chaos-{result.seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "server.log").write_text(world.cluster.log, encoding="utf-8")
    (folder / "sandbox.json").write_text(json.dumps([entry.as_json() for entry in world.sandbox.log], indent=0))
    (folder / "complaints.txt").write_text("\n".join(f"{c.at:.3f} {c.who}: {c.text}" for c in world.ledger.complaints))
    faults = [_line(record) for record in sorted(log, key=lambda record: record.began)]
    (folder / "faults.txt").write_text("\n".join(faults))
    world.cluster.run("pg_dump", "--format=custom", f"--file={folder / 'database.dump'}")
    story = _story(result, world)
    story += ["The last faults:", *faults[-20:], "The end of the server's log:", *world.cluster.log.splitlines()[-20:]]
    story.append(f"All of it is in {folder}. Again: make chaos SEED={result.seed} MINUTES={result.seconds / 60:g}")
    (folder / "story.txt").write_text("\n".join(story))
    print("\n".join(story), file=sys.stderr, flush=True)
    return folder


def _line(record: Record) -> str:
    ended = f"{record.ended - record.began:6.2f} s"
    return f"{record.began:.3f} {ended} {record.name} {record.detail}{'' if record.applied else ' (not applied)'}"


def _story(result: Result, world: World) -> list[str]:
    story = [f"Seed {result.seed}: {len(result.offences)} violations. The longest recoveries:"]
    story += [f"  {seconds:.1f} s after {name}" for seconds, name in sorted(result.recoveries, reverse=True)[:SHOWN]]
    names = dict.fromkeys(offence.invariant for offence in result.offences)
    with world.cluster.connect() as session:
        for name in names:
            offences = [offence for offence in result.offences if offence.invariant == name]
            story.append(f"{name}: {len(offences)}")
            for offence in offences[:SHOWN]:
                whose = f"user {offence.user_id}, message {offence.message_id}: " if offence.user_id else ""
                story.append(f"  {whose}{offence.detail}")
                if offence.user_id is not None:
                    for row in session.execute("SELECT * FROM activation.why(%s)", [offence.user_id]).fetchall():
                        story.append("    " + " | ".join(str(value) for value in row))
    return story
