"""Tests of raftkv's sim."""
