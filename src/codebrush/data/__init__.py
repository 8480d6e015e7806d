"""Pictures and captions to train on: reading any source, drawing, downloading, choosing, and caches on disk."""
