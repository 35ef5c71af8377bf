from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tierline.core.errors import ConfigError, DataError
from tierline.models.data import download, mnist
from tierline.models.data.cifar10 import _PlainUnpickler
from tierline.models.data.dataset import Dataset
from tierline.models.data.idx import read_idx
from tierline.models.data.load import load
from tierline.models.make import write_samples
from tierline.models.views import grid_for, patch_side, prepare, preprocess_for

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TIERLINE_DATA_DIR, an empty cache, and no network."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("TIERLINE_DATA_DIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def no_network(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return folder


def sizes(data: Dataset) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def write_mnist(path: Path, num: int = 50, **changes: np.ndarray) -> None:
    arrays = {
        "x_train": RNG.integers(0, 256, (num, 28, 28)).astype(np.uint8),
        "y_train": np.arange(num, dtype=np.uint8) % 10,
        "x_test": np.zeros((20, 28, 28), np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]


def test_digits_are_real_disjoint_and_seeded() -> None:
    first, second = load("digits", 0), load("digits", 1)
    assert sum(sizes(first)) == 1797
    assert first.train.images.shape[1:] == (8, 8) and first.train.images.max() == 255
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert not np.array_equal(first.validation.images, second.validation.images)
    np.testing.assert_array_equal(first.train.images, load("digits", 0).train.images)
    assert sorted(set(first.test.labels)) == list(range(10))


def test_mnist_and_fashion_come_from_npz(data_dir: Path) -> None:
    for name in ("mnist", "fashion_mnist"):
        write_mnist(data_dir / f"{name}.npz")
        data = load(name, 0)
        assert sizes(data) == (45, 5, 20)
        assert len(data.labels) == 10
        assert data.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((50, 28, 28), np.float32)}, "uint8 images"),
        ({"y_train": np.zeros(49, np.uint8)}, "50 images"),
        ({"y_test": np.full(20, 10, np.uint8)}, "0 to 9"),
    ],
)
def test_malformed_npz_is_refused(data_dir: Path, changes: dict[str, np.ndarray], message: str) -> None:
    write_mnist(data_dir / "mnist.npz", **changes)
    with pytest.raises(DataError, match=message):
        load("mnist")


def test_npz_without_an_array_or_damaged_is_refused(data_dir: Path) -> None:
    np.savez(data_dir / "mnist.npz", x_train=np.zeros(1))
    with pytest.raises(DataError, match="no array 'y_train'"):
        load("mnist")
    write_mnist(data_dir / "mnist.npz")
    whole = (data_dir / "mnist.npz").read_bytes()
    np.savez(data_dir / "objects.npz", **{key: np.array([None]) for key in ("x_train", "y_train", "x_test", "y_test")})  # type: ignore[arg-type]
    with (data_dir / "array").open("wb") as file:
        np.save(file, np.zeros(3))
    with zipfile.ZipFile(data_dir / "texts", "w") as archive:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{key}.npy", "words")
    rubbish = [(data_dir / name).read_bytes() for name in ("objects.npz", "array", "texts")]
    for raw in (b"", b"not a zip", whole[: len(whole) // 2], whole[:500] + b"x" * 50 + whole[550:], *rubbish):
        (data_dir / "mnist.npz").write_bytes(raw)
        with pytest.raises(
            DataError, match=r"mnist\.npz: not a data set archive; .*replace or remove the file$"
        ) as caught:
            load("mnist")
        assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)
    (data_dir / "mnist.npz").unlink()
    (data_dir / "mnist.npz").mkdir()
    with pytest.raises(DataError, match=r"mnist\.npz: cannot be read"):
        load("mnist")


def test_no_network_says_what_to_put_where() -> None:
    for name in ("mnist", "fashion_mnist", "cifar10", "mvmc"):
        with pytest.raises(DataError, match=rf"put {name}\.(npz|zip).* into TIERLINE_DATA_DIR") as caught:
            load(name)
        assert "http" not in str(caught.value) and len(str(caught.value)) < 150


class _Answer:
    def __init__(self, raw: bytes) -> None:
        self.headers = {"Content-Length": str(len(raw))}
        self._raw = raw

    def __enter__(self) -> _Answer:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self, num: int) -> bytes:
        chunk, self._raw = self._raw[:num], self._raw[num:]
        return chunk


def test_downloads_are_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, calls, seen = b"x" * 200_000, [], []

    def answer(url: str, timeout: float) -> _Answer:
        calls.append(url)
        return _Answer(raw if "good" in url else b"damaged")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    digest = "sha256:ab3d4a2e7a6a3c0d".ljust(71, "0")
    with pytest.raises(DataError, match="expected sha256"):
        download.fetch(download.Remote(("http://bad/f.gz",), digest), "set", "set.npz")
    (tmp_path / "like").write_bytes(raw)
    digest = download._digest(tmp_path / "like", "md5:")
    remote = download.Remote(("http://bad/f.gz", "http://good/f.gz"), digest)
    path = download.fetch(remote, "set", "set.npz", lambda what, share: seen.append(share))
    assert path.read_bytes() == raw and seen[-1] == 1.0
    assert download.fetch(remote, "set", "set.npz") == path
    assert calls == ["http://bad/f.gz", "http://bad/f.gz", "http://good/f.gz"]
    assert [file.name for file in path.parent.iterdir()] == ["f.gz"]


def test_original_files_are_told_apart_by_digest(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, (file, _) in list(mnist._FILES.items()):
        values = np.zeros((20, 28, 28), np.uint8) if key[0] == "x" else np.arange(20, dtype=np.uint8) % 10
        header = b"\x00\x00\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
        raw = gzip.compress(header + values.tobytes())
        (data_dir / file).write_bytes(raw)
        monkeypatch.setitem(mnist._FILES, key, (file, f"md5:{hashlib.md5(raw).hexdigest()}"))
    assert sizes(load("mnist")) == (18, 2, 20)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: digest is md5"):
        load("fashion_mnist")
    bad = data_dir / "bad.gz"
    for raw in (b"plain", gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x05abc"), gzip.compress(b"\x00\x00\x0d\x01")):
        bad.write_bytes(raw)
        with pytest.raises(DataError, match=r"bad\.gz"):
            read_idx(bad)


def write_images(root: Path, folders: list[str], num: int = 10, size: tuple[int, int] = (12, 9)) -> None:
    for value, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for i in range(num):
            Image.new("RGB", size, (value * 20, i, 7)).save(root / folder / f"{i:02}.png")


def test_image_folder_with_and_without_a_test_part(tmp_path: Path) -> None:
    write_images(tmp_path / "plain", ["cat", "dog"])
    data = load(tmp_path / "plain", 0)
    assert (data.name, data.labels, sizes(data)) == ("plain", ["cat", "dog"], (14, 2, 4))
    assert data.train.images.shape[1:] == (9, 12, 3)
    np.testing.assert_array_equal(data.train.images[:, 0, 0, 0], data.train.labels * 20)
    write_images(tmp_path / "parted", ["train/cat", "train/dog", "test/cat", "test/dog"])
    data = load(tmp_path / "parted", 0)
    assert sizes(data) == (18, 2, 20)
    assert sorted(set(data.test.images[:, 0, 0, 0])) == [40, 60]  # the colours of test/cat and test/dog


def test_zip_with_a_top_folder_equals_the_folder(tmp_path: Path, data_dir: Path) -> None:
    write_images(tmp_path / "c" / "cifar10", ["train/a", "train/b", "test/a", "test/b"])
    with zipfile.ZipFile(data_dir / "cifar10.zip", "w") as archive:
        for file in (tmp_path / "c").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path / "c"))
    zipped, plain = load("cifar10", 3), load(tmp_path / "c", 3)
    np.testing.assert_array_equal(zipped.train.images, plain.train.images)
    np.testing.assert_array_equal(zipped.test.labels, plain.test.labels)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", ["cat"])
    write_images(tmp_path / "mixed", ["cat", "dog"])
    (tmp_path / "mixed" / "dog" / "99.png").write_bytes(b"no picture")
    write_images(tmp_path / "loose", ["cat", "dog"])
    (tmp_path / "loose" / "cat" / "00.png").rename(tmp_path / "loose" / "00.png")
    (tmp_path / "file").write_bytes(b"no zip")
    for name, message in (
        ("empty", "no images"),
        ("one", "one class only"),
        ("mixed", "dog/99.png is no readable image"),
        ("loose", "00.png lies in no class folder"),
        ("file", "zip of one"),
        ("nowhere", "neither a data set nor an existing path"),
    ):
        with pytest.raises(DataError, match=message):
            load(tmp_path / name)
    with pytest.raises(DataError, match='nearest is "mnist"'):
        load("mnits")


def test_original_cifar10_batches(data_dir: Path) -> None:
    folder = data_dir / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        planes = np.zeros((4, 3, 1024), np.uint8)
        planes[:, 1, 34] = 200  # green at row 1, column 2
        batch = {b"data": planes.reshape(4, 3072), b"labels": [0, 1, 2, 9]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    data = load("cifar10")
    assert sizes(data) == (18, 2, 4)
    assert data.test.images[0, 1, 2].tolist() == [0, 200, 0] and data.test.images.sum() == 4 * 200
    assert data.labels[9] == "truck"
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": print}, protocol=2))
    with pytest.raises(DataError, match="not allowed here"):
        load("cifar10")
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="test_batch"):
        load("cifar10")


def test_pickles_cannot_name_functions(tmp_path: Path) -> None:
    for value in (print, Path.unlink, np.load):
        with pytest.raises(pickle.UnpicklingError):
            _PlainUnpickler(io.BytesIO(pickle.dumps(value))).load()


def write_mvmc(path: Path, num: int = 60) -> np.ndarray:
    label = RNG.integers(0, 3, num)
    y = np.tile(label[:, None], (1, 6)).astype(np.int32)
    y[RNG.random((num, 6)) < 0.4] = 3
    y[y.min(1) == 3, 0] = 0
    x = RNG.random((num, 6, 3, 32, 32)).astype(np.float32)
    x[:, :, 1, 4, 9] = 1.0  # green at row 4, column 9
    x[y == 3] = 0
    np.savez(path, X=x, y=y)
    return y


def test_mvmc_keeps_cameras_apart_and_absence(data_dir: Path, tmp_path: Path) -> None:
    y = write_mvmc(data_dir / "mvmc.npz")
    data = load("mvmc")
    assert data.labels == ["car", "bus", "person"] and data.num_views == 6
    assert sum(sizes(data)) == 60 and sizes(data)[2] == round(60 * 171 / 851)
    assert data.train.images.shape[1:] == (6, 32, 32, 3) and data.train.images.dtype == np.uint8
    assert data.train.view_labels is not None
    total = sum(int((s.view_labels < 0).sum()) for s in (data.train, data.validation, data.test))  # type: ignore[operator]
    assert total == (y == 3).sum()
    assert (data.train.images[:, :, 4, 9, 1] == np.where(data.train.view_labels >= 0, 255, 0)).all()
    np.testing.assert_array_equal(data.train.view_labels.max(1), data.train.labels)
    prepared = prepare(data.test, preprocess_for(data, 6))
    assert prepared.images.shape == (6, len(data.test), 3, 32, 32)
    np.testing.assert_array_equal(prepared.present.T, data.test.view_labels >= 0)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="6 views of its own"):
        preprocess_for(data, 4)
    write_samples(tmp_path / "s" / "samples.npz", data, 10)
    with np.load(tmp_path / "s" / "samples.npz") as samples:
        assert samples["views"].shape == (10, 6, 32, 32, 3)
        np.testing.assert_array_equal(samples["present"], prepared.present.T[:10])


def test_mvmc_of_another_layout_is_refused(data_dir: Path) -> None:
    np.savez(data_dir / "mvmc.npz", X=np.zeros((4, 6, 3, 32, 32), np.float32), y=np.zeros((4, 5), np.int32))
    with pytest.raises(DataError, match="expected X float"):
        load("mvmc")


def test_samples_file_holds_the_test_split(tmp_path: Path) -> None:
    data = load("digits")
    write_samples(tmp_path / "samples.npz", data)
    with np.load(tmp_path / "samples.npz") as samples:
        assert sorted(samples.files) == ["images", "labels"]
        np.testing.assert_array_equal(samples["images"], data.test.images)
        np.testing.assert_array_equal(samples["labels"], data.test.labels)


def test_grids_divide_resized_images() -> None:
    assert [grid_for(n) for n in (1, 2, 3, 4, 5, 6, 9, 12)] == [
        (1, 1), (1, 2), (1, 3), (2, 2), (1, 5), (2, 3), (3, 3), (3, 4),
    ]  # fmt: skip
    assert [patch_side(28, 2), patch_side(28, 3), patch_side(8, 3), patch_side(32, 1)] == [14, 10, 8, 32]
    data = load("digits")
    for num in (1, 2, 6):
        preprocess = preprocess_for(data, num)
        views = prepare(data.test, preprocess)
        assert views.images.shape[0] == num and min(views.images.shape[3:]) >= 8
        assert abs(views.images.mean()) < 0.2 and 0.7 < views.images.std() < 1.2
    with pytest.raises(ConfigError, match="devices = 0"):
        grid_for(0)
