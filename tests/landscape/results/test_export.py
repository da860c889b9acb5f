"""Exported files, read back by other programs: csv, NumPy, xarray, an XML parser."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray
from result_samples import eigen, every, surface

from landscape.cli import main
from landscape.results import encode, store
from landscape.results.export import export
from landscape.results.values import Group

HOSTILE = ["../../x", "a/b", "a-b", "=cmd|' /C calc'!A0", "<script>", "x" * 255, "ä ö"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.h5"
    for result in [*every(), *(surface(name, nx=3 + i) for i, name in enumerate(HOSTILE))]:
        store.save(path, result)
    return path


@pytest.fixture(scope="module")
def groups(run: Path) -> list[Group]:
    found = []
    for group in store.groups(run):
        result = store.load(run, group)
        named = any(hasattr(result, key) for key in ("name", "measure"))
        found.append(encode.pack(result, group.partition("/")[2] if named else None))
    return found


def same(found: np.ndarray, expected: object) -> None:
    """Fail where numbers differ in a bit (text that says nan tells no payloads) or texts in a letter."""
    expected = np.asarray(expected, dtype=str) if isinstance(expected, list) else np.asarray(expected)
    np.testing.assert_array_equal(found, expected)
    if expected.dtype.kind == "f":
        np.testing.assert_array_equal(np.signbit(found[~np.isnan(expected)]), np.signbit(expected[~np.isnan(expected)]))


def test_csv_has_every_number_of_every_result(run: Path, groups: list[Group], tmp_path: Path) -> None:
    before, out = run.read_bytes(), tmp_path / "csv"
    files = export(run, "csv", out)
    assert len(files) == len(set(files)) and all(out in p.resolve().parents and p.is_file() for p in files)
    read: dict[Path, list[dict[str, str]]] = {}
    for group in groups:
        assert json.loads((out / group.path / "attributes.json").read_text()) == {
            k: v for k, v in group.attributes.items() if k != "checksums"
        }
        for name, dataset in group.datasets.items():
            file = out / group.path / f"{'-'.join(dataset.dims) or 'numbers'}.csv"
            if file not in read:
                with file.open(newline="") as lines:
                    read[file] = list(csv.DictReader(lines))
            column = [row[name] for row in read[file]]
            if not isinstance(dataset.values, list):
                values = np.array(column, dtype=dataset.values.dtype).reshape(dataset.values.shape)
                same(values, dataset.values)
                for dim in dataset.dims:  # the coordinates of every row
                    axis = group.datasets[dim]
                    where = [slice(None) if d == dim else 0 for d in dataset.dims]
                    told = np.array([row[dim] for row in read[file]]).reshape(dataset.values.shape)[tuple(where)].tolist()
                    assert told == axis.values if isinstance(axis.values, list) else [float(v) for v in told] == axis.values.tolist()
            else:
                assert column == dataset.values
    assert set(files) == {*read, *(out / group.path / "attributes.json" for group in groups)} and run.read_bytes() == before


def test_npz_has_every_array_and_no_pickle(run: Path, groups: list[Group], tmp_path: Path) -> None:
    (file,) = export(run, "npz", tmp_path / "run.npz")
    with np.load(file, allow_pickle=False) as found:
        assert set(found.files) == {"attributes", *(f"{group.path}/{name}" for group in groups for name in group.datasets)}
        assert not [name for name in found.files if ".." in name.split("/")], "unpacked as a ZIP archive it stays in its folder"
        for group in groups:
            for name, dataset in group.datasets.items():
                same(found[f"{group.path}/{name}"], dataset.values)
        about = json.loads(str(found["attributes"]))
    assert about["hessian/trace"]["method"] == "hutch++" and about[""]["schema_version"] == 2


def test_netcdf_opens_in_xarray(run: Path, groups: list[Group], tmp_path: Path) -> None:
    (file,) = export(run, "netcdf", tmp_path / "run.nc")
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        for group in groups:
            for name, dataset in group.datasets.items():
                same(tree[f"{group.path}/{name}"].values.astype(str if isinstance(dataset.values, list) else None), dataset.values)


def mesh(file: Path) -> tuple[ElementTree.Element, dict[str | None, np.ndarray]]:
    root = ElementTree.parse(file).getroot()
    piece = root.find("PolyData/Piece")
    assert piece is not None and root.get("type") == "PolyData"
    return piece, {a.get("Name"): np.array((a.text or "").split(), dtype=float) for a in piece.iter("DataArray")}


def test_vtp_is_a_mesh_of_the_points_that_have_numbers(tmp_path: Path) -> None:
    x, y = np.linspace(-1, 1, 4), np.linspace(-0.3, 1, 3)
    loss = 2 + np.add.outer(y, x**2)
    loss[0, 0] = np.nan
    held = surface("a <b>", 3, 4, loss=loss, accuracy=loss, stderr=loss)
    store.save(tmp_path / "run.h5", held)
    (file,) = export(tmp_path / "run.h5", "vtp", tmp_path / "meshes")
    piece, arrays = mesh(file)
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfPolys")) == ("11", "5")
    points, cells = arrays["Points"].reshape(-1, 3), arrays["connectivity"].astype(int).reshape(-1, 4)
    np.testing.assert_allclose(points[:, 2], 2 + points[:, 1] + np.interp(points[:, 0], held.x, held.x**2))
    assert arrays["offsets"].tolist() == [4, 8, 12, 16, 20]
    for cell in points[cells]:
        assert np.ptp(cell[:, 0]) == pytest.approx(2 / 3) and np.ptp(cell[:, 1]) == pytest.approx(0.65)
    np.testing.assert_allclose(arrays["log10_loss"], np.log10(points[:, 2]))


def test_vtp_has_a_mesh_for_every_plane_whatever_its_name(run: Path, tmp_path: Path) -> None:
    files = export(run, "vtp", tmp_path / "meshes")
    assert len(set(files)) == len(HOSTILE) + 2 and all(p.parent == tmp_path / "meshes" for p in files)
    planes = [store.load(run, group) for group in store.groups(run) if group.startswith("surfaces/") and group != "surfaces/line"]
    for file, plane in zip(files, planes, strict=True):
        fine = np.isfinite(plane.loss)  # type: ignore[attr-defined]
        cells = (fine[1:, 1:] & fine[1:, :-1] & fine[:-1, 1:] & fine[:-1, :-1]).sum()
        piece, arrays = mesh(file)
        assert (int(piece.get("NumberOfPoints", -1)), int(piece.get("NumberOfPolys", -1))) == (fine.sum(), cells)
        same(arrays["loss"], plane.loss[fine])  # type: ignore[attr-defined]
        assert len(arrays["connectivity"]) == 4 * cells and (arrays["connectivity"] < fine.sum()).all()


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="to must be one of csv, npz, netcdf, vtp, not 'xls'"):
        export(run, "xls")
    with pytest.raises(ValueError, match="the result file itself"):
        export(run, "netcdf", run)
    store.save(tmp_path / "none.h5", eigen())
    with pytest.raises(ValueError, match="no surface on a plane"):
        export(tmp_path / "none.h5", "vtp")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match="text.h5"):
        export(tmp_path / "text.h5", "netcdf")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run.h5"
    for result in (eigen(), surface("a/b\x1b[31m")):
        store.save(run, result)
    assert main(["export", str(run), "--to", "npz"]) == 0
    assert capsys.readouterr().out.strip() == str(run.with_name("run.npz"))
    assert main(["merge", str(run), str(run), "--out", str(run.with_name("all.h5"))]) == 0
    assert capsys.readouterr().out.strip() == f"{run.with_name('all.h5')}: hessian/eigen, surfaces/a/b\\x1b[31m"
    assert main(["export", str(run.with_name("no.h5")), "--to", "csv"]) == 2
    run.write_bytes(b"")
    for command in (["export", "--to", "csv"], ["inspect"]):
        assert main([command[0], str(run), *command[1:]]) == 2
        assert "is empty" in capsys.readouterr().err
