"""Tests of raftkv's client."""
