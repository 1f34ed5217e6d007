"""Trackers: listeners that report a run elsewhere. They tell, and never decide."""

from luthier.trackers.tracker import Tracker, make_tracker

__all__ = ["Tracker", "make_tracker"]
