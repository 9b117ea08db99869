"""Sparse representations and the products on them."""
