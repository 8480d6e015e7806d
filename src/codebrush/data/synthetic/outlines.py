"""The palette of the drawn scenes and the outlines of their shapes."""

import math

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 30),
    "green": (30, 150, 60),
    "blue": (30, 80, 220),
    "purple": (130, 40, 170),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "cross")
RING_HOLE = 0.5  # of the ring's diameter


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of one of SHAPES in a square from -1 to 1, y downwards; of a ring the outer edge."""
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0, -0.95), (1, 0.85), (-1, 0.85)]
    if shape == "diamond":
        return [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)]
    if shape == "cross":
        arm = 0.32
        return [
            *((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)),
            *((arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)),
        ]
    if shape == "star":
        points = [(step * math.pi / 5, 0.43 if step % 2 else 1.05) for step in range(10)]
        return [(radius * math.sin(angle), 0.08 - radius * math.cos(angle)) for angle, radius in points]
    angles = [step * math.pi / 32 for step in range(64)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]
