"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 60,000 + 10,000 pictures of clothes, 28x28 grey.

Read from `fashion_mnist.npz` in TIERLINE_DATA_DIR, else from the original four files.
"""

from __future__ import annotations

from tierline.models.data.dataset import Dataset, Report
from tierline.models.data.download import Remote
from tierline.models.data.idx import read_npz_or_idx

_HOST = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FILES = {
    "x_train": ("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "y_train": ("train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe"),
    "x_test": ("t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79"),
    "y_test": ("t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310"),
}
_LABELS = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]


def read(seed: int, report: Report | None = None) -> Dataset:
    """Read Fashion-MNIST; `seed` draws the validation split of 10 % from the training images."""
    remotes = {key: Remote((_HOST + file,), digest) for key, (file, digest) in _FILES.items()}
    return read_npz_or_idx("fashion_mnist", remotes, _LABELS, seed, report)
