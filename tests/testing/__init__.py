"""Tests of raftkv's testing."""
