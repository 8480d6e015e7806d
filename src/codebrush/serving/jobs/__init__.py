"""Jobs: what callers asked for, whose turn it is, where they are kept, and the engine that runs them."""
