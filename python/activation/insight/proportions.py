"""The statistics of suggest(): two proportions compared, and many comparisons at once. Pure; nothing but the standard
library, since it runs inside the server.

Checked against scipy and statsmodels in test/insight/test_statistics.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

#: The quantile for two-sided intervals of 95 %.
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Table:
    """A table of two by two: of those who did something, how many stayed; and of the others."""

    did: int
    did_stayed: int
    other: int
    other_stayed: int

    @property
    def n(self) -> int:
        return self.did + self.other

    @property
    def rate_with(self) -> float:
        return self.did_stayed / self.did if self.did else math.nan

    @property
    def rate_without(self) -> float:
        return self.other_stayed / self.other if self.other else math.nan

    @property
    def difference(self) -> float:
        return self.rate_with - self.rate_without

    @property
    def phi(self) -> float:
        """The correlation of the two; 0 where one of them does not vary."""
        stayed = self.did_stayed + self.other_stayed
        spread = self.did * self.other * stayed * (self.n - stayed)
        if not spread:
            return 0.0
        return (
            self.did_stayed * (self.other - self.other_stayed) - (self.did - self.did_stayed) * self.other_stayed
        ) / (math.sqrt(spread))

    @property
    def p(self) -> float:
        """Two-sided, of Pearson's chi-square test without correction, that they have nothing to do with each other."""
        return math.erfc(math.sqrt(self.n * self.phi**2 / 2))

    def __add__(self, other: Table) -> Table:
        return Table(
            self.did + other.did,
            self.did_stayed + other.did_stayed,
            self.other + other.other,
            self.other_stayed + other.other_stayed,
        )


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval (1927) at 95 % for a proportion of n > 0."""
    p, z2 = successes / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return middle - half, middle + half


def newcombe(table: Table) -> tuple[float, float]:
    """The interval at 95 % of the difference of two proportions: Newcombe's hybrid score method (1998, method 10)."""
    low_with, high_with = wilson(table.did_stayed, table.did)
    low_without, high_without = wilson(table.other_stayed, table.other)
    below = math.hypot(table.rate_with - low_with, high_without - table.rate_without)
    above = math.hypot(high_with - table.rate_with, table.rate_without - low_without)
    return table.difference - below, table.difference + above


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """The q of each p: the share of false discoveries among all that are as small (Benjamini and Hochberg, 1995)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i], reverse=True)
    found, smallest = [1.0] * len(p_values), 1.0
    for place, i in enumerate(order):
        smallest = min(smallest, p_values[i] * len(p_values) / (len(p_values) - place))
        found[i] = smallest
    return found
