# ruff: noqa: E501
"""How often suggest() puts the one true action first, and finds nothing in noise: `make bench-seeds`.

Each seed is an app of its own: a planted action among forty decoys (goes with another one, made by the signup, rare,
everybody's), and the same without it.
"""

from __future__ import annotations

import argparse

from common import say

from decoys import app
from harness import Cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--people", type=int, default=20_000)
    options = parser.parse_args()
    first = silent = 0
    with Cluster(settings={"shared_buffers": "512MB", "fsync": "off"}) as cluster:
        for number in range(options.seeds):
            for planted in (True, False):
                db = cluster.create_database()
                app(db, (number + 1) / (options.seeds + 2), planted, decoys=40, people=options.people)
                found = db.sql("SELECT table_name, summary, q, holds_later FROM activation.suggest()")
                db.drop()
                if planted:
                    first += bool(found) and found[0][0] == "public.projects"
                else:
                    silent += not found
                say(f"seed {number + 1}, {'planted' if planted else 'noise'}: {found[:1]}")
    print(
        f"{options.people:,} users, 40 decoys: first in {first} of {options.seeds}; nothing found in noise {silent} of {options.seeds}"
    )


if __name__ == "__main__":
    main()
