"""The import stage: a source to text stores and judgements."""
