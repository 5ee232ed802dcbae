"""Base policies that need no model hub."""
