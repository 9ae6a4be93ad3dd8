"""A short run, the same each time; `make fuzz` is the long one."""

from __future__ import annotations
