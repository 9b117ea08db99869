"""SPLADE students: the exact sparse head, models built around it, and checkpoints in and out."""
