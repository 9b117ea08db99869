"""Distributed distillation of rankers into learned sparse retrievers (SPLADE)."""

__version__ = "0.1.0"
