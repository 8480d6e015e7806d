"""Pictures from a prompt by the code transformer, reranked by CLIP."""
