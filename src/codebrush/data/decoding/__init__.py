"""Opens and decodes picture files: which formats are read, orientation, frames, sizes, and what PNG files say."""
