"""Seeded bugs, which must be caught."""
