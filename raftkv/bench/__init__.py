"""Measures a real cluster of processes on this machine."""
