"""From prompts to codes and pictures."""
