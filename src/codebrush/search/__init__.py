"""A database of embedded pictures: searched by text, picture or caption, and for near-duplicates."""
