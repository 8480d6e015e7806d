"""Lists, downloads, verifies and installs published models and packs."""
