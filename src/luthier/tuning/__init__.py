"""Continual learning: models that are updated when new data arrives."""
