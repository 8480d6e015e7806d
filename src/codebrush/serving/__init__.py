"""Serves packs to many callers: a queue of jobs, and an HTTP API on it."""
