"""Downloads pictures from a list of URLs, politely and safely."""
