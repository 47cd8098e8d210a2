"""Disk seam, write-ahead log and snapshot files."""
