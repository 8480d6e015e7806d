"""The tab Paint: its form, and how a picture puts what it was made with into it."""
