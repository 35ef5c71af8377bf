"""Makes what a user brings: ONNX files of networks trained here, folders of images, and a video.

    python examples/own_model/export.py build/own

writes into that folder, in some minutes on one core:

- `mobile.onnx`: a MobileNet-style classifier of handwritten digits, and `digits/CLASS/NAME.png`, which it never saw;
- `small.onnx`, `large.onnx`: two YOLO-style detectors, and `scenes/`, images with boxes that they never saw;
- `film.mjpeg`: a video of such objects on the move (JPEG pictures one after the other, which ffmpeg plays).
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import numpy as np
import torch
from detector import Detector, to_tensor, train
from PIL import Image
from scenes import CLASSES, SIDE, draw_things, moving, paint
from torch.nn.functional import cross_entropy

from tierline.core import catalog
from tierline.models.data.load import load
from tierline.models.torch_export import export

DIGIT_SIDE = 16
MEAN, STD = 0.3, 0.35
"""Of the digits' pixels, about."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=12, help="of all networks")
    parser.add_argument("--scenes", type=int, default=3000, help="to train on")
    parser.add_argument("--images", type=int, default=300, help="to try the networks on")
    parser.add_argument("--frames", type=int, default=120, help="of the video")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {line}", flush=True)

    say("classifier of digits")
    make_classifier(folder, options.epochs, options.images, options.seed)
    for name, width, depth, passes in (("small", 8, 1, 2), ("large", 16, 4, 1)):
        say(f"detector {name}")
        net = Detector(width, depth)
        train(net, options.scenes, passes * options.epochs, options.seed, say)
        (folder / f"{name}.onnx").write_bytes(export(net, (3, SIDE, SIDE)))
    write_scenes(folder / "scenes", options.images, options.seed + 1)
    write_film(folder / "film.mjpeg", options.frames, options.seed + 2)
    say(f"all written to {folder}")


def make_classifier(folder: Path, epochs: int, num_images: int, seed: int) -> None:
    """Train on scikit-learn's digits; export the network, and write held-out images as a folder of classes."""
    dataset = load("digits", seed, None)
    net = catalog.make("model", "mobile", input_shape=(1, DIGIT_SIDE, DIGIT_SIDE), num_classes=10, reduction=3)
    images, labels = _enlarged(dataset.train.images), torch.from_numpy(dataset.train.labels)
    pixels = (to_tensor(images) - MEAN) / STD
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=generator).split(64):
            if len(rows) > 1:
                loss = cross_entropy(net(pixels[rows])["logits"], labels[rows])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    (folder / "mobile.onnx").write_bytes(export(net, (1, DIGIT_SIDE, DIGIT_SIDE)))
    test = dataset.test
    for index, (image, label) in enumerate(zip(_enlarged(test.images[:num_images]), test.labels, strict=False)):
        path = folder / "digits" / str(label) / f"{index:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def write_scenes(folder: Path, num: int, seed: int) -> None:
    """`images/NAME.png`, `labels/NAME.txt` with a line `class x y w h` for each object, and `classes.txt`."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES), "utf-8")
    for index in range(num):
        things = draw_things(rng)
        Image.fromarray(paint(things, rng)).save(folder / "images" / f"{index:04}.png")
        lines = []
        for thing in things:
            left, top, right, bottom = thing.box()
            numbers = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
            lines.append(" ".join([str(thing.index), *(f"{x:.5f}" for x in numbers)]) + "\n")
        (folder / "labels" / f"{index:04}.txt").write_text("".join(lines), "utf-8")


def write_film(path: Path, num_frames: int, seed: int) -> None:
    """Motion JPEG: one picture after the other."""
    with path.open("wb") as file:
        for frame in moving(num_frames, np.random.default_rng(seed)):
            picture = io.BytesIO()
            Image.fromarray(frame).save(picture, "JPEG", quality=95)
            file.write(picture.getvalue())


def _enlarged(images: np.ndarray) -> list[np.ndarray]:
    """Digits of 8x8 pixels as uint8 (16, 16, 1) each."""
    grey = images if images.ndim == 3 else images[..., 0]
    side = (DIGIT_SIDE, DIGIT_SIDE)
    return [np.asarray(Image.fromarray(x).resize(side, Image.Resampling.BILINEAR))[..., None] for x in grey]


if __name__ == "__main__":
    main()
