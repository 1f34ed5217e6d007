"""What is told of a trained model beside its evaluation, under the names that a log's users know.

Calculators work in the worker that trains; ``luthier.evaluation.calculators`` has them.
"""

from __future__ import annotations

from luthier.evaluation.calculators import (
    DistanceShift,
    MetricCalculator,
    MetricValue,
    ScoredInputs,
)

__all__ = ["DistanceShift", "MetricCalculator", "MetricValue", "ScoredInputs"]
