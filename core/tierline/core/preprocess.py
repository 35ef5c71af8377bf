"""From a raw image to a Section's input. Training and agents call the same code, so both see the same numbers.

Order: colour, resize of the whole image, cut of one patch, scaling to [0, 1], normalisation. Every step treats rows
independently and in float32, so a batch equals its single images bit for bit.

Shapes: B batch, N views, H W of the raw image, C channels, h w of one patch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tierline.core.bundle import Preprocess
from tierline.core.errors import BundleError, MissingDependency, ShapeMismatch
from tierline.core.types import Array, TensorSpec

_LUMA = (19595, 38470, 7471)
"""ITU-R BT.601 weights for red, green and blue in units of 2^-16, rounded: what Pillow's mode `L` computes."""


class Preprocessor:
    """Preprocessing of one Bundle. Raises BundleError where the specification contradicts itself."""

    def __init__(self, spec: Preprocess) -> None:
        rows, columns = spec.grid
        height, width = spec.size
        if rows < 1 or columns < 1 or height < 1 or width < 1 or height % rows or width % columns:
            raise BundleError(f"preprocess: size {height}x{width} cannot be cut into {rows}x{columns} patches")
        if len(spec.mean) != spec.channels or len(spec.std) != spec.channels or min(spec.std) <= 0.0:
            raise BundleError(f"preprocess: mean and std need {spec.channels} values each, and every std must be > 0")
        self.spec = spec
        self.output = TensorSpec("float32", (spec.channels, height // rows, width // columns))
        mean = np.asarray(spec.mean, np.float64)[:, None, None]
        std = np.asarray(spec.std, np.float64)[:, None, None]
        self._scale = (1.0 / (255.0 * std)).astype(np.float32)
        self._offset = (-mean / std).astype(np.float32)

    def __call__(self, image: Array, view_index: int = 0) -> npt.NDArray[np.float32]:
        """One image, HWC or HW uint8, to float32 Chw. Raises ShapeMismatch for another rank or dtype."""
        if image.ndim not in (2, 3):
            raise ShapeMismatch(f"image: expected uint8 HW or HWC, got {image.dtype}{list(image.shape)}")
        row: npt.NDArray[np.float32] = self.many(image[None], view_index)[0]
        return row

    def many(self, images: Array, view_index: int = 0) -> npt.NDArray[np.float32]:
        """Images of one size, BHWC or BHW uint8, to float32 BChw: patch `view_index` (whole if grid is 1x1)."""
        return self._normalise(self._cut(self._whole(images), view_index))

    def views(self, images: Array) -> npt.NDArray[np.float32]:
        """Every patch of the grid, float32 NBChw: the images are resized once only."""
        whole_BHWC = self._whole(images)
        rows, columns = self.spec.grid
        return np.stack([self._normalise(self._cut(whole_BHWC, index)) for index in range(rows * columns)])

    def _whole(self, images: Array) -> npt.NDArray[np.uint8]:
        """Colour and size of the whole images, uint8 BHWC."""
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or 0 in images.shape[1:]:
            raise ShapeMismatch(f"image: expected uint8 HW or HWC, got {images.dtype}{list(images.shape[1:])}")
        images_BHWC = images[..., None] if images.ndim == 3 else images
        coloured = self._colour(images_BHWC)
        return coloured if coloured.shape[1:3] == self.spec.size else _resize(coloured, self.spec.size)

    def _colour(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        found = images_BHWC.shape[3]
        if found not in (1, 3, 4):
            raise ShapeMismatch(f"image: expected 1 (grey), 3 (RGB) or 4 (RGBA) channels, got {found}")
        if found == 4:  # opacity says nothing about the scene
            images_BHWC = images_BHWC[..., :3]
        if images_BHWC.shape[3] == self.spec.channels:
            return images_BHWC
        if self.spec.channels == 3:
            return np.repeat(images_BHWC, 3, axis=3)
        wide = images_BHWC.astype(np.uint32)
        luma = wide[..., 0] * _LUMA[0] + wide[..., 1] * _LUMA[1] + wide[..., 2] * _LUMA[2]
        return ((luma + 0x8000) >> 16).astype(np.uint8)[..., None]

    def _cut(self, whole_BHWC: npt.NDArray[np.uint8], view_index: int) -> npt.NDArray[np.uint8]:
        rows, columns = self.spec.grid
        if (rows, columns) == (1, 1):
            return whole_BHWC
        if not 0 <= view_index < rows * columns:
            raise ShapeMismatch(f"view {view_index}: a grid of {rows}x{columns} has views 0 to {rows * columns - 1}")
        _, height, width = self.output.shape
        top, left = view_index // columns * height, view_index % columns * width
        return whole_BHWC[:, top : top + height, left : left + width]

    def pixels(self, x_BCHW: Array) -> npt.NDArray[np.uint8]:
        """The pixels that a Section's input was made of: the inverse of `normalise`."""
        whole: Array = np.rint((x_BCHW - self._offset) / self._scale)
        return np.asarray(np.clip(whole, 0, 255), np.uint8)

    def normalise(self, pixels_BCHW: Array) -> npt.NDArray[np.float32]:
        """A Section's input from pixels of its size."""
        planes = np.array(pixels_BCHW, dtype=np.float32, order="C")
        planes *= self._scale
        planes += self._offset
        return planes

    def _normalise(self, patch_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return self.normalise(patch_BHWC.transpose(0, 3, 1, 2))


def _resize(images_BHWC: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Bilinear, with Pillow's anti-aliasing support when shrinking."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise MissingDependency("resizing images needs Pillow: pip install pillow") from error
    height, width = size
    out = np.empty((len(images_BHWC), height, width, images_BHWC.shape[3]), np.uint8)
    for row, image in enumerate(images_BHWC):
        source = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
        resized = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))
        out[row] = resized.reshape(height, width, -1)
    return out
