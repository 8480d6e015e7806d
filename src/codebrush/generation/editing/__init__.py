"""Pictures from pictures: filled holes, variations, other styles, interpolation, enlarging."""
