"""The version of this package; between releases that of the next one with .dev0 (UPGRADING.md)."""

__version__ = "0.3.0.dev0"
