"""From captioned pictures to weights: one loop, one recipe a model."""
