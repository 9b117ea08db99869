"""Who scores query-passage pairs: cross-encoders, LLM rerankers, bi-encoders, SPLADE, BM25, own classes."""
