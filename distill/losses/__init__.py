"""Losses on scores, regularisers on sparse representations, and the recipe's sum of them. No models, no I/O."""
