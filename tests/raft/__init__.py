"""Tests of raftkv's raft."""
