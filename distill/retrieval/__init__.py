"""Indexes, encoding and search."""
