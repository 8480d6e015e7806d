"""Text: tokenizers, the distilled token table, and the syntax of prompts."""
