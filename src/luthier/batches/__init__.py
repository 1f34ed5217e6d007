"""Batches are arithmetic: the rows of a step are a function of (data, seed, epoch, step)."""

from luthier.batches.plan import Plan, make_plan

__all__ = ["Plan", "make_plan"]
