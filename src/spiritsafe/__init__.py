"""Spiritsafe: distil a teacher you may use, guard one you serve, prove where a model came from."""

__version__ = "0.1.0"
