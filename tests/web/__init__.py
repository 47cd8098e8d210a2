"""Tests of raftkv's web."""
