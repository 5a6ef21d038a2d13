"""Procedural stuff: one function per noun paints a TILE x TILE patch (float RGB, 0 to 255) from a random
generator.

Every texture is made of the same few parts: smooth noise, sums of octaves of it, and lines. The names are
the nouns'.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

TILE = 192
_Y, _X = np.mgrid[0:TILE, 0:TILE].astype(np.float32)
Rng = np.random.Generator


def noise(rng: Rng, height: int, width: int) -> np.ndarray:
    """Standard normal values on a height x width lattice, interpolated to the tile."""
    lattice = rng.standard_normal((height, width)).astype(np.float32)
    return np.asarray(Image.fromarray(lattice).resize((TILE, TILE), Image.Resampling.BICUBIC))


def octaves(rng: Rng, base: int = 3, count: int = 4, decay: float = 0.55) -> np.ndarray:
    """Fractal noise of deviation 1: each octave twice as fine as the last, `decay` times as strong."""
    total = sum(decay**i * noise(rng, base * 2**i + 1, base * 2**i + 1) for i in range(count))
    return total / (total.std() + 1e-6)


def _colour(rng: Rng, rgb: tuple[float, float, float], spread: float = 12) -> np.ndarray:
    return np.array(rgb, np.float32) + rng.normal(0, spread, 3).astype(np.float32)


def _paint(brightness: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return colour + brightness[..., None]


def grass(rng: Rng) -> np.ndarray:
    blades = octaves(rng) * 8 + noise(rng, TILE // 6, TILE // 2) * 18 + noise(rng, TILE // 3, TILE) * 10
    return _paint(blades, _colour(rng, (72, 140, 50))) * (1, 1, 0.85)


def sand(rng: Rng) -> np.ndarray:
    ripples = np.sin(_Y * rng.uniform(0.12, 0.3) + octaves(rng, 2, 3) * 1.6) * rng.uniform(2, 9)
    return _paint(ripples + noise(rng, TILE, TILE) * 7 + octaves(rng) * 5, _colour(rng, (222, 194, 140), 9))


def water(rng: Rng) -> np.ndarray:
    waves = np.sin(_Y * rng.uniform(0.2, 0.4) + octaves(rng, 3, 3) * 2 + noise(rng, TILE // 4, 8) * 0.8)
    glints = np.clip(waves - 0.75, 0, 1) * 130
    return _paint(waves * 14 + glints + octaves(rng) * 7, _colour(rng, (36, 110, 180)))


def sky(rng: Rng) -> np.ndarray:
    air = _paint((_Y / TILE - 0.5) * rng.uniform(20, 60), _colour(rng, (125, 185, 238), 9))
    cloud = np.clip(octaves(rng, 2, 5) - rng.uniform(0.2, 1.2), 0, 1.3)[..., None] / 1.3
    return air * (1 - cloud) + cloud * (250, 250, 252)


def snow(rng: Rng) -> np.ndarray:
    drifts = octaves(rng, 2, 4) * 6 + noise(rng, TILE, TILE) * 3
    sparkle = (rng.random((TILE, TILE)) > 0.992) * 26
    return _paint(drifts - sparkle, _colour(rng, (236, 241, 248), 4))


def brick(rng: Rng) -> np.ndarray:
    height = int(rng.integers(12, 19))
    width = int(height * rng.uniform(1.9, 2.5))
    row = (_Y // height).astype(int)
    shifted = _X + (row % 2) * width / 2
    tint = rng.normal(0, 14, (40, 40)).astype(np.float32)[row % 40, (shifted // width).astype(int)]
    bricks = _paint(tint + noise(rng, TILE, TILE) * 5, _colour(rng, (168, 74, 56)))
    mortar = (_Y % height < 2.2) | (shifted % width < 2.2)
    return np.where(mortar[..., None], _paint(tint * 0.2, _colour(rng, (205, 195, 185), 8)), bricks)


def wood(rng: Rng) -> np.ndarray:
    plank = int(rng.integers(20, 40))
    vertical = rng.random() < 0.5
    across = _X if vertical else _Y
    index = (across // plank).astype(int)
    tint = rng.normal(0, 11, 40).astype(np.float32)[index]
    fibre = noise(rng, 6, 60) if vertical else noise(rng, 60, 6)
    grain = np.sin(across * 0.7 + fibre * 2.5 + index * 2) * 8 + fibre * 6
    boards = _paint(tint + grain, _colour(rng, (158, 108, 62)))
    gap = (across % plank < 1.6)[..., None]
    return np.where(gap, boards * 0.55, boards) * (1, 1, 0.9)


def road(rng: Rng) -> np.ndarray:
    grey = np.full(3, rng.uniform(70, 105), np.float32) + rng.normal(0, 3, 3)
    asphalt = _paint(noise(rng, TILE, TILE) * 9 + octaves(rng) * 5, grey)
    if rng.random() >= 0.6:
        return asphalt
    paint = np.array((235, 235, 230) if rng.random() < 0.5 else (235, 195, 60))
    centre = rng.uniform(0.2, 0.8) * TILE + (_X - TILE / 2) * rng.uniform(-0.3, 0.3)
    dash = (np.abs(_Y - centre) < 3.5) & ((_X + rng.uniform(0, 40)) % 44 < 26)
    return np.where(dash[..., None], paint, asphalt)


PAINTERS: dict[str, Callable[[Rng], np.ndarray]] = {
    painter.__name__: painter for painter in (grass, sand, water, sky, snow, brick, wood, road)
}
