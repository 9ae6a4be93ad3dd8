"""The statistics of suggest() against scipy and statsmodels."""

from __future__ import annotations

import math
import random

import pytest

from activation.insight.proportions import Table, benjamini_hochberg, newcombe, wilson

TABLES = [
    Table(10, 3, 20, 4),
    Table(1, 1, 1, 0),
    Table(5, 0, 7, 7),
    Table(1000, 410, 5000, 950),
    Table(3, 3, 900, 900),
    Table(40, 0, 60, 0),
]


@pytest.mark.parametrize("table", TABLES)
def test_intervals(table: Table) -> None:
    from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

    assert wilson(table.did_stayed, table.did) == pytest.approx(
        proportion_confint(table.did_stayed, table.did, method="wilson"), abs=1e-9
    )
    expected = confint_proportions_2indep(
        table.did_stayed, table.did, table.other_stayed, table.other, method="newcomb", compare="diff"
    )
    assert newcombe(table) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("table", TABLES)
def test_phi_and_p(table: Table) -> None:
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import association

    cells = [
        [table.did_stayed, table.did - table.did_stayed],
        [table.other_stayed, table.other - table.other_stayed],
    ]
    if 0 in (sum(column) for column in zip(*cells, strict=True)):
        assert (table.phi, table.p) == (0, 1), "where nothing varies, nothing goes together"
        return
    assert table.p == pytest.approx(chi2_contingency(cells, correction=False).pvalue, rel=1e-9)
    assert abs(table.phi) == pytest.approx(association(cells, method="cramer"), abs=1e-9)
    assert math.copysign(1, table.phi) == math.copysign(1, table.difference)


@pytest.mark.parametrize("number", [1, 2, 50])
def test_q(number: int) -> None:
    from scipy.stats import false_discovery_control

    chance = random.Random(number)
    p_values = [chance.random() ** 3 for _ in range(number)] + [0.5, 0.5]
    assert benjamini_hochberg(p_values) == pytest.approx(list(false_discovery_control(p_values)), abs=1e-12)
    assert benjamini_hochberg([]) == []
