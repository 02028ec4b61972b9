"""Hosts: the only rooms that import a detector framework, each lazily."""
