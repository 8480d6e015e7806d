"""How good a pack is, in the figures that others use."""
