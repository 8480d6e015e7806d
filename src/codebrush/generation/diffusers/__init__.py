"""Flows of ours in the pipelines of diffusers, and our CLIP as a guide of pipelines that others trained."""
