"""Tests of raftkv's core."""
