"""Tests of deploy/: files, images, alerts, machines."""
