"""Migrations of the tables of clicks, beside those of runs and in the same database."""
