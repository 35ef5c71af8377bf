"""MNIST (LeCun et al.): 60,000 + 10,000 handwritten digits, 28x28 grey.

Read from `mnist.npz` in TIERLINE_DATA_DIR, else from the original four files.
"""

from __future__ import annotations

from tierline.models.data.dataset import Dataset, Report
from tierline.models.data.download import Remote
from tierline.models.data.idx import read_npz_or_idx

_HOSTS = ("https://storage.googleapis.com/cvdf-datasets/mnist/", "https://ossci-datasets.s3.amazonaws.com/mnist/")
_FILES = {
    "x_train": ("train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
    "y_train": ("train-labels-idx1-ubyte.gz", "md5:d53e105ee54ea40749a09fcbcd1e9432"),
    "x_test": ("t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3"),
    "y_test": ("t10k-labels-idx1-ubyte.gz", "md5:ec29112dd5afa0611ce80d1b7f02629c"),
}
_LABELS = [str(i) for i in range(10)]


def read(seed: int, report: Report | None = None) -> Dataset:
    """Read MNIST; `seed` draws the validation split of 10 % from the training images."""
    remotes = {key: Remote(tuple(host + file for host in _HOSTS), digest) for key, (file, digest) in _FILES.items()}
    return read_npz_or_idx("mnist", remotes, _LABELS, seed, report)
