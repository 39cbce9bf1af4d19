from __future__ import annotations

from statistics import median
from typing import Final

#: What stands for a figure that there is none of.
NONE: Final = "–"
#: The name of what tells how fast the machine was.
CALIBRATION: Final = "calibration"


class Results:
    """Figures by scenario, one value for each round. A figure's name ends in its unit."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, scenario: str, **figures: float) -> None:
        """Keep the figures of one round."""
        for figure, value in figures.items():
            self._values.setdefault((scenario, figure), []).append(value)

    def median(self, scenario: str, figure: str) -> float | None:
        """The middle of the rounds; None where it was not measured."""
        values = self._values.get((scenario, figure))
        return median(values) if values else None

    def range(self, scenario: str, figure: str) -> tuple[float, float] | None:
        """The least and the greatest of the rounds; None where it was not measured."""
        values = self._values.get((scenario, figure))
        return (min(values), max(values)) if values else None

    def shown(self, scenario: str, figure: str, form: str) -> str:
        """The median as text."""
        value = self.median(scenario, figure)
        return NONE if value is None else format(value, form)
