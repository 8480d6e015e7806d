"""Drawn scenes of coloured shapes, with captions and questions that are exactly true."""
