"""What networks are made of: attention, transformer blocks, convolutions, pooling."""
