"""Tests of raftkv's engine."""
