"""OpenAI's API and ours: one file of routes for each group of endpoints, and what the routes share."""
