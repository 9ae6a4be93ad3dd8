"""Cron expressions: what is one, and when it is due next."""

from __future__ import annotations

import datetime
import zoneinfo

from cronsim import CronSim, CronSimError

_ANY = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def check(expression: str) -> None:
    """Raises ValueError, saying why, for what is not a cron expression of five fields or is never due."""
    if len(expression.split()) != 5:
        raise ValueError("it has no five fields")  # CronSim takes a sixth, of seconds.
    try:
        next(CronSim(expression, _ANY))
    except CronSimError as error:
        raise ValueError(str(error)) from None
    except StopIteration:
        raise ValueError("it is never due") from None


def next_after(expression: str, timezone: str, after: datetime.datetime) -> datetime.datetime:
    """When it is due next after an aware time, on the clock of a time zone; where that clock is set, as Debian's cron
    does it: a job of the skipped hour runs right after it, one of the repeated hour once."""
    found = next(CronSim(expression, after.astimezone(zoneinfo.ZoneInfo(timezone))))
    return found.astimezone(datetime.UTC)
