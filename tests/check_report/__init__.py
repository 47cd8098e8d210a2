"""Tests of the report of a judged history."""
