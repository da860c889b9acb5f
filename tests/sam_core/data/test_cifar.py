"""Oracles: small files written byte by byte, the pixels of the real set, pickles that try to run something."""

import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sam_core import data

SHARED = Path(os.environ.get("LANDSCAPE_DATA", Path(__file__).parents[4] / "shared" / "data"))
RNG = np.random.default_rng(0)


def records(n: int, classes: int = 10, coarse: bool = False) -> tuple[bytes, np.ndarray, np.ndarray]:
    labels = np.arange(n, dtype=np.uint8) % classes
    images = RNG.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
    first = b"\x07" if coarse else b""
    return b"".join(first + bytes([y]) + x.tobytes() for x, y in zip(images, labels, strict=True)), images, labels


def write_cifar10(folder: Path, n: int = 4) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = [], []
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        raw, x, y = records(n)
        (folder / name).write_bytes(raw)
        images.append(x)
        labels.append(y)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_binary_cifar10_comes_back_byte_by_byte(tmp_path: Path, inner: str) -> None:
    images, labels = write_cifar10(tmp_path / inner)
    cifar = data.load("cifar10", tmp_path)
    assert torch.equal(torch.cat([cifar.train.inputs, cifar.test.inputs]), torch.from_numpy(images))
    assert torch.equal(torch.cat([cifar.train.targets, cifar.test.targets]), torch.from_numpy(labels).long())
    assert (len(cifar.train), len(cifar.test), cifar.num_classes, cifar.in_channels, cifar.image_size) == (20, 4, 10, 3, 32)


def test_normalisation_is_per_channel_with_pixels_in_0_1(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    cifar = data.load("cifar10", tmp_path)
    raw = cifar.train.inputs[3].double() / 255
    expected = torch.stack([(raw[0] - 0.4914) / 0.2470, (raw[1] - 0.4822) / 0.2435, (raw[2] - 0.4465) / 0.2616])
    torch.testing.assert_close(cifar.train.tensors()[0][3].double(), expected, atol=1e-5, rtol=1e-5)


def test_binary_cifar100_has_fine_labels(tmp_path: Path) -> None:
    raw, images, labels = records(120, classes=100, coarse=True)
    (tmp_path / "train.bin").write_bytes(raw)
    (tmp_path / "test.bin").write_bytes(records(3, classes=100, coarse=True)[0])
    cifar = data.load("cifar100", tmp_path)
    assert cifar.num_classes == 100 and torch.equal(cifar.train.inputs, torch.from_numpy(images))
    assert torch.equal(cifar.train.targets, torch.from_numpy(labels).long())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_pickled_batches_give_the_same_as_binary_ones(tmp_path: Path, protocol: int, keys: type) -> None:
    binary, pickled = tmp_path / "bin", tmp_path / "py" / "cifar-10-batches-py"
    images, labels = write_cifar10(binary)
    pickled.mkdir(parents=True)
    for i, name in enumerate([f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]):
        part = slice(4 * i, 4 * i + 4)
        batch = {"data": images[part].reshape(4, -1), "labels": labels[part].tolist(), "batch_label": "a", "filenames": ["b"] * 4}
        (pickled / name).write_bytes(pickle.dumps({keys(k): v for k, v in batch.items()}, protocol=protocol))
    one, other = data.load("cifar10", binary), data.load("cifar10", tmp_path / "py")
    for part in ("train", "test"):
        assert getattr(one, part).sha256() == getattr(other, part).sha256()


def test_a_batch_pickled_by_python_2_is_read(tmp_path: Path) -> None:
    # What Python 2's cPickle wrote at protocol 2: byte strings are BINSTRINGs, the array's state is one of them.
    raw = bytes(range(256)) * 12
    text = lambda s: b"U" + bytes([len(s)]) + s  # noqa: E731
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R(K\x01K\x01M\x00\x0c\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"
    )
    stream = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"]K\x03au."
    assert np.array_equal(pickle.loads(stream, encoding="bytes")[b"data"], np.frombuffer(raw, np.uint8).reshape(1, -1)), "our own stream"
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(stream)
    cifar = data.load("cifar10", tmp_path)
    assert cifar.test.inputs.flatten().numpy().tobytes() == raw and int(cifar.test.targets) == 3


class Run:
    def __init__(self, call, *arguments) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def _hostile(marker: Path) -> list[bytes]:
    command = f"touch {marker}"
    dtype_with_flags = np.dtype("O")
    return [
        pickle.dumps(Run(os.system, command)),
        pickle.dumps({"data": Run(eval, f"__import__('os').system('{command}')"), "labels": []}),
        pickle.dumps({"data": Run(np.fromfile, "/etc/hostname"), "labels": []}),
        b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        b"cnumpy\ndtype.__class__\n.",
        pickle.dumps({"data": np.array([1, "x"], dtype=dtype_with_flags), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8)}),
        pickle.dumps({"data": np.zeros((1, 3000), np.uint8), "labels": [1]}),
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [1]})[:-200],
        b"",
        b"\xff\xd8 no pickle",
    ]


@pytest.mark.parametrize("number", range(len(_hostile(Path()))))
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, number: int) -> None:
    marker = tmp_path / "executed"
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]:
        (tmp_path / name).write_bytes(_hostile(marker)[number])
    with pytest.raises(ValueError, match="data_batch_1 is no pickled CIFAR batch") as caught:
        data.load("cifar10", tmp_path)
    assert "\n" not in str(caught.value) and not marker.exists()


def test_wrong_folders_say_what_was_found_and_what_is_expected(tmp_path: Path) -> None:
    def said(folder: Path, name: str = "cifar10") -> str:
        with pytest.raises(ValueError) as caught:
            data.load(name, folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist; cifar10 needs a folder that holds cifar-10-batches-bin/" in said(tmp_path / "nowhere")
    (tmp_path / "text").mkdir()
    assert "found nothing; expected cifar-10-batches-bin/ with data_batch_1.bin" in said(tmp_path / "text")
    for i in range(12):
        (tmp_path / "text" / f"note{i:02}.txt").write_text("no data")
    (tmp_path / "text" / "cifar-10-binary.tar.gz").write_bytes(b"")
    message = said(tmp_path / "text")
    assert "note00.txt" in message and "and 5 more" in message and "unpack cifar-10-binary.tar.gz first" in message
    assert "is a file" in said(tmp_path / "text" / "note00.txt")
    write_cifar10(tmp_path / "part")
    (tmp_path / "part" / "data_batch_4.bin").unlink()
    assert "lacks data_batch_4.bin" in said(tmp_path / "part")
    assert "train.bin, test.bin" in said(tmp_path / "part", "cifar100")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has 0 bytes, which is no whole number of records of 3,073 bytes"),
        (records(2)[0][:-1], "has 6,145 bytes"),
        (records(11, classes=11)[0], "the label of record 10 is 10, allowed are 0 to 9"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(ValueError, match="data_batch_3.bin.*" + said):
        data.load("cifar10", tmp_path)


def test_crops_and_mirrors_are_windows_of_the_padded_image() -> None:
    images = torch.randint(1, 256, (64, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    out = data.crop_and_flip(images, torch.Generator().manual_seed(1), padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    found = []
    for image, result in zip(padded, out, strict=True):
        windows = [(y, x, flip) for y in range(5) for x in range(5) for flip in (False, True)]
        matches = [
            (y, x, flip)
            for y, x, flip in windows
            if torch.equal(image[:, y : y + 8, x : x + 8].flip(-1) if flip else image[:, y : y + 8, x : x + 8], result)
        ]
        assert len(matches) == 1
        found += matches
    ys, xs, flips = zip(*found, strict=True)
    assert set(ys) == set(xs) == set(range(5)) and 16 < sum(flips) < 48
    assert torch.equal(out, data.crop_and_flip(images, torch.Generator().manual_seed(1), padding=2))


def test_the_two_shifts_are_drawn_apart() -> None:
    image = torch.arange(1.0, 65.0).reshape(1, 1, 8, 8).expand(300, -1, -1, -1)
    out = data.crop_and_flip(image, torch.Generator().manual_seed(0), padding=2)
    # the pixel in the middle tells where the window was, mirrored or not
    rows = (out[:, 0, 4, 4] - 1) // 8 - 4
    columns = ((out[:, 0, 4, 4] - 1) % 8 - 4, (out[:, 0, 4, 3] - 1) % 8 - 4)
    mirrored = out[:, 0, 4, 4] < out[:, 0, 4, 3]
    pairs = set(zip(rows.tolist(), torch.where(mirrored, columns[1], columns[0]).tolist(), strict=True))
    assert len(pairs) == 25, "every shift down with every shift to the right"


def test_a_batch_cut_between_two_records_is_noticed(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(records(3)[0])
    with pytest.raises(ValueError, match=r"equally many records, one is cut off: data_batch_1.bin 4, .*data_batch_3.bin 3"):
        data.load("cifar10", tmp_path)


def test_a_folder_that_is_no_path() -> None:
    with pytest.raises(TypeError, match="data_dir must be a path, not 5"):
        data.cifar10(5)  # type: ignore[arg-type]


def test_real_images_keep_their_statistics(tmp_path: Path) -> None:
    archive = SHARED / "cifar10-jpeg.tar.xz"
    if not archive.exists():
        pytest.skip(f"no CIFAR-10 images: {archive} is missing (set LANDSCAPE_DATA)")
    image = pytest.importorskip("PIL.Image")
    rows = []
    with tarfile.open(archive) as tar:
        while len(rows) < 600 and (member := tar.next()) is not None:
            if member.isfile():
                pixels = np.asarray(image.open(tar.extractfile(member)).convert("RGB"))
                rows.append(b"\x00" + pixels.transpose(2, 0, 1).tobytes())
    for i, name in enumerate([f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]):
        (tmp_path / name).write_bytes(b"".join(rows[100 * i : 100 * i + 100]))
    inputs = data.load("cifar10", tmp_path).train.tensors()[0]
    assert bool((inputs.mean((0, 2, 3)).abs() < 0.6).all()) and bool(((inputs.std((0, 2, 3)) - 1).abs() < 0.3).all())
    neighbours = (inputs.diff(dim=2).square().mean() + inputs.diff(dim=3).square().mean()) / inputs.var()
    assert float(neighbours) < 0.5, "in an image that is not scrambled neighbouring pixels are alike (scrambled: 4)"
