"""Hard negatives for training, and the candidates that teachers rerank: BM25, a dense model, a SPLADE checkpoint."""
