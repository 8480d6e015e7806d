"""One file a model: its recipe, its task and its stage, with the losses beside it."""
