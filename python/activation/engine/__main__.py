"""`python -m activation.engine --dsn ADDRESS`: detects and delivers outside of the server, for tests and profiling."""

from __future__ import annotations

import argparse
import logging
import signal
import sys


def main() -> int:
    """Run until interrupted, or once."""
    parser = argparse.ArgumentParser(prog="python -m activation.engine", description=__doc__)
    parser.add_argument("--dsn", required=True, help="the database's address or connection string, of a superuser")
    parser.add_argument("--slot", type=int, default=1, help="the slot of its detector and its deliverer (default: 1)")
    parser.add_argument("--once", action="store_true", help="do all that is due now, and end")
    given = parser.parse_args()
    try:
        from activation.engine import outside
    except ImportError as error:
        print(f"{error}: pip install 'psycopg[binary]'", file=sys.stderr)
        return 1
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if given.once:
        outside.once(given.dsn)
        return 0
    engine = outside.Engine(given.dsn, given.slot)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: engine.stop())
    engine.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
