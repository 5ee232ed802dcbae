"""Install in place: ``pip install -e .`` (metadata in pyproject.toml)."""

from setuptools import setup

setup()
