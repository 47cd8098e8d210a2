"""How this installation starts processes of its own."""

import sys

PYTHON_M = (sys.executable, "-P", "-m")
"""Runs the module that follows. ``-P``: without it Python looks into the working directory first,
and somebody else's ``uvloop.py`` there would run as the node's user."""
