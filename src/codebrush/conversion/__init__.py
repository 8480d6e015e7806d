"""Reads checkpoints in the layouts that other projects publish, and writes CLIPs back in them."""
