"""Tests of raftkv's storage."""
