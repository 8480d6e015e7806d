"""Embedding, indexing and curation by workers on Ray: the same work as in one process, and nothing of its own."""
