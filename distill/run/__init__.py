"""A run on disk: layout, atomic files, manifests, fingerprints, logs."""
