"""Tests of raftkv's chaos."""
