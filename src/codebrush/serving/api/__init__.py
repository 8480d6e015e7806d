"""The HTTP API: `app` with one file of routes for each group of endpoints, and what the routes share."""
