"""Draws a scene with Pillow: textured background, soft shadows, shaded shapes with antialiased edges."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from tfanet.data.scene import Scene, SceneObject

_SUPERSAMPLE = 4


def draw_scene(rng: np.random.Generator, scene: Scene) -> Image.Image:
    """An RGB image of `scene`, `scene.width` x `scene.height` pixels; `rng` chooses the background."""
    image = Image.fromarray(_background(rng, scene.width, scene.height))
    coverages = [_coverage(obj) for obj in scene.objects]
    for coverage, corner in coverages:
        shadow = coverage.filter(ImageFilter.GaussianBlur(1.5)).point(lambda value: value * 0.45)
        image.paste((12, 12, 16), (corner[0] + 2, corner[1] + 2), shadow)
    for obj, (coverage, corner) in zip(scene.objects, coverages, strict=True):
        image.paste(_shading(obj, coverage), corner, coverage)
    return image


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG of quality 95 with full colour resolution (4:4:4)."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _coverage(obj: SceneObject) -> tuple[Image.Image, tuple[int, int]]:
    """Coverage 0..255 of the object in its padded bounding box, and the box's top left corner in pixels."""
    polygon = obj.polygon()
    low = np.floor(polygon.min(axis=0)).astype(int) - 4
    width, height = (int(side) for side in np.ceil(polygon.max(axis=0)).astype(int) + 4 - low)
    canvas = Image.new("L", (width * _SUPERSAMPLE, height * _SUPERSAMPLE))
    corners = (polygon - low) * _SUPERSAMPLE - 0.5
    ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
    return canvas.reduce(_SUPERSAMPLE), (int(low[0]), int(low[1]))


def _shading(obj: SceneObject, coverage: Image.Image) -> Image.Image:
    """The object's colour, lighter towards the top left, with a darker rim one pixel wide."""
    width, height = coverage.size
    down, right = np.mgrid[0:height, 0:width]
    light = 1.08 - 0.18 * (down / height + right / width) / 2
    inside = ImageChops.multiply(coverage, coverage.filter(ImageFilter.MinFilter(3)))
    rim = 0.76 + 0.24 * np.asarray(inside, dtype=np.float32) / 255
    return Image.fromarray(np.clip((light * rim)[..., None] * obj.rgb, 0, 255).astype(np.uint8))


def _background(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Two muted colours blended by a gradient, clouds, waves or tiles, with fine grain; uint8 `[H, W, 3]`."""
    first, second = _muted(rng), _muted(rng)
    pattern = (_gradient, _clouds, _waves, _tiles)[rng.integers(4)]
    blend = pattern(rng, width, height)[..., None]
    grain = rng.normal(0.0, rng.uniform(2.0, 7.0), (height, width, 1))
    grain = grain + rng.normal(0.0, 1.5, (height, width, 3))
    return np.clip(first * (1 - blend) + second * blend + grain, 0, 255).astype(np.uint8)


def _muted(rng: np.random.Generator) -> np.ndarray:
    grey = rng.uniform(52, 150)
    return grey + rng.uniform(-16, 16, 3)


def _gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    down, right = np.mgrid[0:height, 0:width]
    slope = np.cos(angle) * (right / width - 0.5) + np.sin(angle) * (down / height - 0.5)
    return np.clip(slope + 0.5, 0, 1)


def _clouds(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    total = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((3, 0.55), (6, 0.3), (14, 0.15)):
        coarse = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
        total += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(total, 0, 1)


def _waves(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    angle, period = rng.uniform(0, np.pi), rng.uniform(10, 34)
    down, right = np.mgrid[0:height, 0:width]
    phase = 2 * np.pi * (np.cos(angle) * right + np.sin(angle) * down) / period
    return 0.5 + rng.uniform(0.15, 0.4) * np.sin(phase + rng.uniform(0, 6))


def _tiles(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    side = int(rng.integers(12, 30))
    down, right = np.mgrid[0:height, 0:width] // side
    return 0.5 + rng.uniform(0.15, 0.4) * np.where((down + right) % 2 == 0, 1.0, -1.0)
