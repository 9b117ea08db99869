"""Stage 6: the training loop (`trainer`), the cached step (`step`), the DeepSpeed engine, resume, preemption."""
