"""Distilling teacher scores into a student: the cached step, the DeepSpeed engine, the loop, resume, preemption."""
