"""The tab Understand, and the HTML of what a picture shows."""
