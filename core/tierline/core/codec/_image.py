"""What the image codecs share: images of a batch as files, each behind its length.

Every node loads every codec as it joins, few code images: Pillow is imported where it is used.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np

from tierline.core.codec._check import check_between, check_head, result
from tierline.core.errors import CodecError, CorruptPayload, ShapeMismatch
from tierline.core.types import Array, Payload, TensorSpec

DTYPES = ("uint8",)
_PREFIX = struct.Struct("<I")
_MODES = {1: "L", 3: "RGB"}
_FILE_BYTES = 1024
"""Above what headers and tables of one file take."""
_BYTES_PER_SAMPLE = 4
"""Above what an encoder spends on a pixel's channel, the image filled up to whole blocks of 16."""

Head = tuple[int, int, int]
"""Channels (0: the format does not say), height and width that a file states."""


def check_image(spec: TensorSpec, codec: str) -> tuple[int, int, int]:
    """(C, H, W) of a spec. Raises ShapeMismatch unless it is an image that the file formats can hold."""
    shape = spec.shape
    is_image = len(shape) == 3 and shape[0] in _MODES and 0 < min(shape) <= max(shape) < 16384
    if spec.dtype not in DTYPES or not is_image:
        raise ShapeMismatch(
            f"{codec}: takes batches of uint8 images [B, C, H, W] with 1 or 3 channels and sides from 1 to 16383, "
            f"got rows of {spec.dtype}{list(shape)}; cast them or use raw"
        )
    return shape[0], shape[1], shape[2]


def size_bounds(spec: TensorSpec, num_rows: int, codec: str) -> tuple[int, int]:
    """What `encode_files` keeps to."""
    num_channels, height, width = check_image(spec, codec)
    num_samples = num_channels * (-(-height // 16) * 16) * (-(-width // 16) * 16)
    return num_rows * (_PREFIX.size + 20), num_rows * (_PREFIX.size + _FILE_BYTES + _BYTES_PER_SAMPLE * num_samples)


def encode_files(x_B: Array, codec: str, form: str, **options: object) -> Payload:
    """Files of a batch of images. Raises ShapeMismatch for other arrays, CodecError where the library fails."""
    from PIL import Image

    if x_B.ndim == 0:
        raise ShapeMismatch(f"{codec}: takes batches of images, got a scalar")
    spec = TensorSpec(str(x_B.dtype), x_B.shape[1:])
    _, largest = size_bounds(spec, 1, codec)
    parts: list[bytes] = []
    for image_CHW in x_B:
        pixels = image_CHW[0] if len(image_CHW) == 1 else image_CHW.transpose(1, 2, 0)
        file = io.BytesIO()
        try:
            Image.fromarray(np.ascontiguousarray(pixels)).save(file, form, **options)
        except (OSError, ValueError) as error:
            raise CodecError(f"{codec}: {error}") from None
        data = file.getvalue()
        if len(data) + _PREFIX.size > largest:
            raise CodecError(f"{codec}: an image took {len(data)} bytes, over the bound of {largest}; use raw")
        parts += [_PREFIX.pack(len(data)), data]
    return Payload(codec, "uint8", x_B.shape, b"".join(parts))


def decode_files(
    payload: Payload,
    codec: str,
    form: str,
    read_head: Callable[[bytes], Head],
    limit: TensorSpec,
    max_rows: int,
    out: Array | None,
) -> Array:
    """Images of a payload; what their files state is compared with `limit` before a pixel is decoded.

    `read_head` raises ValueError, IndexError or struct.error for a file that is not whole or not of the one kind taken.
    """
    num_rows = check_head(payload, codec, DTYPES, limit, max_rows)
    try:
        check_between(payload, *size_bounds(limit, num_rows, codec))
    except ShapeMismatch as error:
        raise CorruptPayload(str(error)) from None
    files = _split(payload, codec, num_rows)
    for file in files:
        _check_file(file, codec, read_head, limit)
    x_B = result(out, num_rows, limit)
    for image_CHW, file in zip(x_B, files, strict=True):
        image_CHW[...] = _pixels(file, codec, form, limit)
    return x_B


def _split(payload: Payload, codec: str, num_rows: int) -> list[bytes]:
    files: list[bytes] = []
    at, data = 0, payload.data
    for _ in range(num_rows):
        if at + _PREFIX.size > len(data):
            raise CorruptPayload(f"{codec}: data ends before image {len(files)} of {num_rows}")
        (num_bytes,) = _PREFIX.unpack_from(data, at)
        at += _PREFIX.size
        if num_bytes > len(data) - at:
            raise CorruptPayload(f"{codec}: image {len(files)} has {len(data) - at} bytes, {num_bytes} are stated")
        files.append(data[at : at + num_bytes])
        at += num_bytes
    if at != len(data):
        raise CorruptPayload(f"{codec}: {len(data) - at} bytes after the last image")
    return files


def _check_file(file: bytes, codec: str, read_head: Callable[[bytes], Head], limit: TensorSpec) -> None:
    try:
        num_channels, height, width = read_head(file)
    except (ValueError, IndexError, struct.error) as error:
        raise CorruptPayload(f"{codec}: no file that an encoder here writes: {error}") from None
    stated = (num_channels or limit.shape[0], height, width)
    if stated != limit.shape:
        raise CorruptPayload(f"{codec}: an image of {list(stated)} where {list(limit.shape)} was agreed")


def _pixels(file: bytes, codec: str, form: str, limit: TensorSpec) -> Array:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=(form,)) as image:
            if image.size != (limit.shape[2], limit.shape[1]):
                raise ValueError(f"{image.size} pixels")
            pixels = np.asarray(image.convert(_MODES[limit.shape[0]]))
    except Exception as error:  # parsers of hostile files raise nearly anything: OSError, SyntaxError, IndexError
        raise CorruptPayload(f"{codec}: no image: {error}") from None
    return pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
