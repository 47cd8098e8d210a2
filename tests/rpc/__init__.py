"""Tests of raftkv's rpc."""
