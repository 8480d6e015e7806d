"""Published checkpoints in their origins' layouts, read as our modules and written back."""
