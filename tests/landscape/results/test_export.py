"""Exported files, read back by other programs: csv, NumPy, xarray, an XML parser."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import xarray
from result_samples import curvature, eigen, every, sharpness, surface

from landscape.cli import main
from landscape.results import store
from landscape.results.export import export, merge


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for result in every():
        store.save(tmp_path / "run.h5", result)
    return tmp_path / "run.h5"


def test_csv_has_a_row_for_every_point(run: Path) -> None:
    before = run.read_bytes()
    files = {p.name: p for p in export(run, "csv")}
    assert all(p.parent == run.with_name("run-csv") for p in files.values())
    rows = list(csv.DictReader(files["surfaces-filter-x.csv"].read_text().splitlines()))
    held = store.load(run, "surfaces/filter")
    assert len(rows) == held.loss.size
    for i, row in enumerate(rows):
        j, k = divmod(i, held.loss.shape[1])
        assert (float(row["y"]), float(row["x"])) == (held.y[j], held.x[k])
        np.testing.assert_array_equal(float(row["loss"]), held.loss[j, k])
    assert run.read_bytes() == before


def test_npz_has_every_array_and_no_pickle(run: Path) -> None:
    (file,) = export(run, "npz")
    with np.load(file, allow_pickle=False) as found:
        np.testing.assert_array_equal(found["surfaces/filter/loss"], store.load(run, "surfaces/filter").loss)
        assert found["traces/gradients/layer"].tolist() == list(store.load(run, "traces/gradients").layers)
        about = json.loads(str(found["attributes"]))
    assert about["hessian/trace"]["method"] == "hutch++" and about[""]["schema_version"] == 2


def test_netcdf_opens_in_xarray(run: Path) -> None:
    (file,) = export(run, "netcdf")
    tree = xarray.open_datatree(file, engine="h5netcdf")
    np.testing.assert_array_equal(tree["surfaces/filter/loss"].values, store.load(run, "surfaces/filter").loss)
    tree.close()


def test_vtp_is_a_mesh_of_the_points_that_have_numbers(tmp_path: Path) -> None:
    x, y = np.linspace(-1, 1, 4), np.linspace(-0.3, 1, 3)
    loss = 2 + np.add.outer(y, x**2)
    loss[0, 0] = np.nan
    held = surface("a <b>", 3, 4, loss=loss, accuracy=loss, stderr=loss)
    store.save(tmp_path / "run.h5", held)
    (file,) = export(tmp_path / "run.h5", "vtp", tmp_path / "meshes")
    piece = ElementTree.parse(file).getroot().find("PolyData/Piece")
    assert piece is not None
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfPolys")) == ("11", "5")
    arrays = {a.get("Name"): np.array((a.text or "").split(), dtype=float) for a in piece.iter("DataArray")}
    points, cells = arrays["Points"].reshape(-1, 3), arrays["connectivity"].astype(int).reshape(-1, 4)
    np.testing.assert_allclose(points[:, 2], 2 + points[:, 1] + np.interp(points[:, 0], held.x, held.x**2))
    for cell in points[cells]:
        assert np.ptp(cell[:, 0]) == pytest.approx(2 / 3) and np.ptp(cell[:, 1]) == pytest.approx(0.65)
    np.testing.assert_allclose(arrays["log10_loss"], np.log10(points[:, 2]))


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


def test_merged_files_hold_everything_once(tmp_path: Path) -> None:
    a, b, out = (tmp_path / name for name in ("a.h5", "b.h5", "out.h5"))
    store.save(a, eigen())
    store.save(a, surface())
    store.save(b, eigen())
    store.save(b, sharpness())
    store.save(b, curvature())
    assert merge([a, b], out) == ["hessian/eigen", "surfaces/filter", "traces/curvature", "sharpness/m_sharpness_rho0.05_m16"]
    assert merge([a, b], out) == []
    assert sorted(store.open(out).groups()) == sorted({*store.open(a).groups(), *store.open(b).groups()})
    store.save(b, eigen(k=2))
    with pytest.raises(ValueError, match="hold different results named hessian/eigen"):
        merge([b], out)


def test_the_commands(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "npz"]) == 0
    assert capsys.readouterr().out.strip() == str(run.with_name("run.npz"))
    assert main(["merge", str(run), str(run), "--out", str(run.with_name("all.h5"))]) == 0
    assert main(["export", str(run.with_name("no.h5")), "--to", "csv"]) == 2
