"""Two short storms; `make chaos` is the long one."""

from __future__ import annotations

import pytest

from run import run_seed


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_lost_and_nothing_is_sent_twice(seed: int) -> None:
    result = run_seed(seed, 40)
    assert result.users > 500 and result.emails > 500 and sum(result.faults.values()) > 20
    assert result.offences == [], f"make chaos SEED={seed} MINUTES=0.67; what was found is in {result.kept}"
