"""How good a student is, beside BM25, its teachers and its own start, and what it costs."""
