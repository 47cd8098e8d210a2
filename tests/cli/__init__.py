"""Tests of raftkv's cli."""
