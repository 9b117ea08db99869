"""The Arrow formats, one module each."""
