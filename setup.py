"""Entry point for pip and setuptools; everything is declared in setup.cfg."""

from setuptools import setup

setup()
