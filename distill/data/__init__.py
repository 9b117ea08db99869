"""Readers -> stores (texts, tokens) -> candidates -> scores -> labels -> batches.

Row number in a store is identity inside the system. Everything on disk is uncompressed Arrow IPC, memory-mapped
when it is opened, and counts as existing only when the `manifest.json` of its folder says so. No torch in here.
"""
