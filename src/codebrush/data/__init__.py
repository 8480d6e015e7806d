"""Pictures and their captions: read from any source, drawn by rule, decoded once and kept."""
