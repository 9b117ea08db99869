"""Effectiveness and cost of a student, compared with BM25, its teachers and the untrained student."""
