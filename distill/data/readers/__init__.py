"""One module per kind of source; each yields a `Collection` of record batches, in constant memory."""
