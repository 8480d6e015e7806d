"""Words in, token ids and weighted prompts out: tokenizers, the token table, and the prompt syntax."""
