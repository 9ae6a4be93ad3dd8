"""How much a detector takes, and asks a loop, at once."""

from __future__ import annotations

from activation.engine.detect import FIRST_BATCH
from activation.engine.guard import LARGEST_BATCH, SMALLEST_BATCH, adapted


def test_what_took_long_becomes_smaller() -> None:
    sizes = [FIRST_BATCH]
    for _ in range(10):
        sizes.append(adapted(sizes[-1], sizes[-1], 2.0))
    assert sizes[1] == FIRST_BATCH // 2 and sizes[-1] == SMALLEST_BATCH


def test_what_was_quick_becomes_larger_if_it_was_full() -> None:
    assert adapted(FIRST_BATCH, FIRST_BATCH - 1, 0.01) == FIRST_BATCH
    size = FIRST_BATCH
    for _ in range(10):
        size = adapted(size, size, 0.01)
    assert size == LARGEST_BATCH
    assert adapted(size, size, 0.2) == LARGEST_BATCH
