"""Image data sets from files on this machine: nothing is downloaded. Every error names the file and the remedy."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import io
import math
import os
import pathlib
import pickle
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from experiments.harness import UserError, console

FASHION_MNIST_FOLDER = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Images(NamedTuple):
    """Images in [0, 1]: [n, height, width, channels], labels: int32 [n], with a held-out test split."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: tuple[str, ...]


def load(name: str, folder: pathlib.Path | None, size: int = 32) -> Images:
    """The data set of that name. size: height and width to which a person's own images are brought; others have theirs."""
    if name == "folder":
        return own_images(folder, size)
    return {"animals": animals, "fashion-mnist": fashion_mnist, "digits": digits, "cifar-10": cifar_10}[name](folder)


def animals(folder: pathlib.Path | None = None, test_share: float = 0.2) -> Images:
    """Silhouettes of ten animals (PyPI animal-shape-mnist). Exact duplicates are dropped before a split that is fixed."""
    if folder is None:
        package = importlib.util.find_spec("animal_shape_mnist")
        if package is None or not package.submodule_search_locations:
            raise UserError("the animal images are not installed. Install them with: pip install animal-shape-mnist")
        folder = pathlib.Path(package.submodule_search_locations[0]) / "data" / "Animal Shape"
    x = read_pickled_array(folder / "animal_data_version_3.gz")
    y = read_pickled_array(folder / "animal_label_version_3.gz")
    if x.ndim != 3 or len(x) != len(y):
        raise UserError(
            f"{folder}: expected images [n, height, width] and n labels, but found {x.shape} and {y.shape}. "
            "Install the data again."
        )
    _, first = np.unique(x, axis=0, return_index=True)
    first = np.sort(first)
    order = first[np.random.default_rng(0).permutation(len(first))]
    test, train = np.split(order, [int(test_share * len(order))])
    classes = ("bear", "bird", "cat", "cow", "dog", "elephant", "giraffe", "horse", "sheep", "zebra")
    return prepared(x[train], y[train], x[test], y[test], classes, folder)


def fashion_mnist(folder: pathlib.Path | None = None) -> Images:
    """Zalando's articles of clothing (Xiao et al. 2017), from the IDX files of Debian's dataset-fashion-mnist."""
    folder = folder or FASHION_MNIST_FOLDER
    names = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}. Install the data with: apt-get install dataset-fashion-mnist, or name the folder "
            "of the IDX files with --data-folder."
        )
    arrays = [read_idx(folder / f"{name}.gz") for name in names]
    classes = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    train_x, train_y, test_x, test_y = arrays
    return prepared(train_x, train_y, test_x, test_y, classes, folder)


def digits(folder: pathlib.Path | None = None) -> Images:
    """Handwritten digits of 8x8 pixels, from scikit-learn."""
    from sklearn import datasets

    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), y
    order = np.random.default_rng(0).permutation(len(x))
    test, train = np.split(order, [len(x) // 5])
    return prepared(x[train], y[train], x[test], y[test], tuple("0123456789"), pathlib.Path("scikit-learn"))


def cifar_10(folder: pathlib.Path | None = None) -> Images:
    """Small photographs of ten kinds (Krizhevsky 2009), as Hugging Face's `datasets` has them stored on this machine."""
    arrays = []
    for split in "train", "test":
        rows = stored(str(folder or "uoft-cs/cifar10"), None, split, ("img", "label"))
        arrays += [np.stack([np.asarray(row["img"]) for row in rows]), np.array([row["label"] for row in rows])]
    train_x, train_y, test_x, test_y = arrays
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return prepared(train_x, train_y, test_x, test_y, classes, pathlib.Path("cifar-10"))


def own_images(folder: pathlib.Path | None, size: int, test_share: float = 0.2) -> Images:
    """A person's own images, in a folder for each class. Exact duplicates count once; what cannot be read is named and left
    out; which images are held out for the test depends on their content alone."""
    if folder is None or not folder.is_dir():
        raise UserError(f"--data folder needs --data-folder with a folder of images for each class, not {folder}.")
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        raise UserError(f"{folder} holds {len(classes)} folders. Make one for each of at least two classes of images.")
    parts: dict[bool, list[tuple[Image.Image, int]]] = {True: [], False: []}
    for label, name in enumerate(classes):
        files = {path.read_bytes(): path for path in sorted((folder / name).rglob("*"), reverse=True) if path.is_file()}
        readable = [
            (zlib.crc32(content), image) for content, path in files.items() if (image := picture(path, content))
        ]
        ordered = [image for _, image in sorted(readable, key=lambda pair: pair[0])]
        if len(ordered) < 2:
            raise UserError(
                f"{folder / name}: {len(ordered)} images can be read, and one for the test and one more are needed."
            )
        held = max(1, int(test_share * len(ordered)))
        parts[True] += [(image, label) for image in ordered[:held]]
        parts[False] += [(image, label) for image in ordered[held:]]
    is_grey = all(image.mode in ("1", "L", "LA", "I;16") for part in parts.values() for image, _ in part)
    arrays = []
    for part in parts[False], parts[True]:
        arrays += [
            np.stack([pixels(image, size, is_grey) for image, _ in part]),
            np.array([label for _, label in part]),
        ]
    train_x, train_y, test_x, test_y = arrays
    return prepared(train_x, train_y, test_x, test_y, classes, folder)


def picture(path: pathlib.Path, content: bytes) -> Image.Image | None:
    """The image of a file with that content; None, and a line that says why, if it is none."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(repr(content), "").split(" <_io")[0]
        console.print(f"left out: {path} ({reason})", markup=False, soft_wrap=True)
        return None
    return image


def pixels(image: Image.Image, size: int, is_grey: bool) -> np.ndarray:
    """uint8 [size, size, channels]: the middle square of an image."""
    square = ImageOps.fit(ImageOps.exif_transpose(image).convert("L" if is_grey else "RGB"), (size, size))
    return np.asarray(square).reshape(size, size, -1)


def stored(name: str, part: str | None, split: str, columns: tuple[str, ...]) -> Any:
    """The rows of a data set that Hugging Face's `datasets` has stored on this machine."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the library is imported
    try:
        library: Any = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{name} is read by Hugging Face's library. Install it with: pip install datasets") from None
    try:
        rows = library.load_dataset(name, part, split=split)
        if not {*columns} <= {*rows.column_names}:
            raise ValueError(f"it has the columns {', '.join(rows.column_names)}")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} is not on this machine, or has no columns {', '.join(columns)} ({error}). Nothing is downloaded unasked; "
            f'this does it: python -c "import datasets; datasets.load_dataset({name!r}, {part!r})"'
        ) from None
    return rows


def prepared(train_x, train_y, test_x, test_y, classes, source: pathlib.Path) -> Images:
    """As `Images`, after the checks that every source needs."""
    for part, x, y in ("training", train_x, train_y), ("test", test_x, test_y):
        if not len(x):
            raise UserError(f"{source}: there are no {part} images. Install the data again.")
        if len(x) != len(y):
            raise UserError(f"{source}: {len(x)} {part} images, but {len(y)} labels. Install the data again.")
        wrong = np.flatnonzero((y < 0) | (y >= len(classes)))
        if wrong.size:
            raise UserError(
                f"{source}: label {y[wrong[0]]} of {part} image {wrong[0]} is not in [0, {len(classes)}); {wrong.size} of "
                f"{len(y)} labels are out of range. The classes are {', '.join(classes)}. Install the data again."
            )
    images = [(x if x.ndim == 4 else x[..., None]).astype(np.float32) / 255 for x in (train_x, test_x)]
    return Images(images[0], train_y.astype(np.int32), images[1], test_y.astype(np.int32), classes)


def read_idx(path: pathlib.Path) -> np.ndarray:
    """An array in the IDX format: two zero bytes, the type (8 is uint8), the number of axes, their sizes, the data."""
    content = _unzip(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(
            f"{path} is not an IDX file of bytes: it begins with {content[:4]!r}. Fetch or install it again."
        )
    axes = content[3]
    if len(content) < 4 + 4 * axes:
        raise UserError(f"{path} is truncated: it ends within its header. Fetch or install it again.")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if data.size != math.prod(shape):
        raise UserError(
            f"{path} is truncated: its header promises {math.prod(shape)} bytes of data, {shape}, and {data.size} are there. "
            "Fetch or install it again."
        )
    return data.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """A pickle can run any program. This reader admits the constructors of numpy arrays and nothing else."""

    _ALLOWED = frozenset(
        (module, name)
        for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("ndarray", "dtype", "_reconstruct")
    )

    def find_class(self, module, name):
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, and only numpy arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickled_array(path: pathlib.Path) -> np.ndarray:
    """The numpy array in a gzipped pickle, read without running what else a pickle might hold."""
    content = _unzip(path)
    try:
        array = _ArraysOnly(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} does not hold a numpy array: {error}. Install the data again.") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} holds a {type(array).__name__}, not a numpy array. Install the data again.")
    return array


def _unzip(path: pathlib.Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else None
        found = (
            "the folder does not exist" if there is None else f"the folder holds {', '.join(there[:5]) or 'nothing'}"
        )
        raise UserError(
            f"there is no {path}: {found}. Install the data, or name its folder with --data-folder."
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is damaged or truncated: {error}. Fetch or install it again.") from None
