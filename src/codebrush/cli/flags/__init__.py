"""Flags that several commands share, and the checks of what was given with them."""
