"""Serves packs to many callers: a queue of jobs, and an HTTP API on it."""

KEY_VARIABLE = "CODEBRUSH_API_KEY"  # of the environment: one key, or several with commas between
