"""The tab Edit: its form, the mask painter, and how a picture puts what it was made with into it."""
