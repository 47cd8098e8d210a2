"""Tests of raftkv's status."""
