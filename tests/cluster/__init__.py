"""Tests of real clusters of processes."""
