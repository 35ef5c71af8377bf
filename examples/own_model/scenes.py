"""Small scenes with objects in known places: circles, squares and triangles before a noisy ground, some hard to see."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")
SIDE = 64
_CORNERS = {"square": 4, "triangle": 3}

Pixels = npt.NDArray[np.uint8]


@dataclass
class Thing:
    """One object: its class, middle, radius and angle, and how far its colour is from the ground's."""

    index: int
    x: float
    y: float
    radius: float
    angle: float
    contrast: float
    colour: npt.NDArray[np.float64]

    def outline(self) -> list[tuple[float, float]]:
        """Corners in pixels; of a circle, many."""
        num = _CORNERS.get(CLASSES[self.index], 24)
        turns = [self.angle + 2 * math.pi * k / num for k in range(num)]
        return [(self.x + self.radius * math.cos(t), self.y + self.radius * math.sin(t)) for t in turns]

    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom as shares of the image."""
        points = self.outline()
        xs, ys = [x for x, _ in points], [y for _, y in points]
        edges = (min(xs), min(ys), max(xs), max(ys))
        left, top, right, bottom = (min(max(edge / SIDE, 0.0), 1.0) for edge in edges)
        return left, top, right, bottom


def draw_things(rng: np.random.Generator, most: int = 4) -> list[Thing]:
    """Objects that do not lie on one another."""
    things: list[Thing] = []
    for _ in range(rng.integers(0, most + 1)):
        radius = rng.uniform(5, 13)
        x, y = rng.uniform(radius, SIDE - radius, 2)
        if all(math.hypot(x - t.x, y - t.y) > radius + t.radius for t in things):
            colour = rng.normal(size=3)
            index, angle, contrast = int(rng.integers(len(CLASSES))), rng.uniform(0, 2 * math.pi), rng.uniform(25, 150)
            things.append(Thing(index, x, y, radius, angle, contrast, colour / np.abs(colour).max()))
    return things


def paint(things: list[Thing], rng: np.random.Generator) -> Pixels:
    """uint8 (SIDE, SIDE, 3): a sloping ground, the objects, noise over both."""
    slope = rng.normal(0, 0.5, (2, 3))
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    ground = 127 + rows[..., None] * slope[0] + columns[..., None] * slope[1]
    for thing in things:
        mask = Image.new("L", (SIDE, SIDE))
        ImageDraw.Draw(mask).polygon(thing.outline(), fill=255)
        share = np.asarray(mask)[..., None] / 255
        ground = ground * (1 - share) + share * (127 + thing.contrast * thing.colour)
    noisy = ground + rng.normal(0, rng.uniform(2, 25), ground.shape)
    return np.asarray(np.clip(noisy, 0, 255), np.uint8)


def moving(num_frames: int, rng: np.random.Generator) -> list[Pixels]:
    """A film of a few objects that drift and turn, and bounce off the edges."""
    things = draw_things(rng, 4)
    while len(things) < 2:
        things = draw_things(rng, 4)
    speeds = rng.normal(0, 1.2, (len(things), 2))
    frames = []
    for _ in range(num_frames):
        frames.append(paint(things, rng))
        for thing, speed in zip(things, speeds, strict=True):
            thing.x, thing.y, thing.angle = thing.x + speed[0], thing.y + speed[1], thing.angle + 0.05
            for axis, at in enumerate((thing.x, thing.y)):
                if not thing.radius < at < SIDE - thing.radius:
                    speed[axis] = -speed[axis]
    return frames
