"""What requests to the API hold and its replies say; FastAPI makes the OpenAPI document of it."""
