"""How much a detector takes in one round."""

from __future__ import annotations

from typing import cast

import pytest

from activation.database import Database
from activation.detection import FIRST_BATCH, LARGEST_BATCH, SMALLEST_BATCH, Detector


@pytest.fixture
def detector() -> Detector:
    return Detector(cast(Database, None), 1)


def test_slow_rounds_become_smaller(detector: Detector) -> None:
    sizes = []
    for _ in range(10):
        detector.adapt(detector.batch, 2.0)
        sizes.append(detector.batch)
    assert sizes[0] == FIRST_BATCH // 2 and sizes[-1] == SMALLEST_BATCH


def test_quick_rounds_become_larger_if_they_were_full(detector: Detector) -> None:
    detector.adapt(FIRST_BATCH - 1, 0.01)
    assert detector.batch == FIRST_BATCH
    for _ in range(10):
        detector.adapt(detector.batch, 0.01)
    assert detector.batch == LARGEST_BATCH
    detector.adapt(detector.batch, 0.2)
    assert detector.batch == LARGEST_BATCH
