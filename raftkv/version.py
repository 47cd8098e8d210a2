"""The version, in one place, free of imports so that setup.cfg can read it."""

__version__ = "0.1.0"
