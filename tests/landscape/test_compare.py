"""compare() against the single measurements, its paired differences against what they are made of, and what a killed job goes on to."""

import copy
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape.comparison.costs import Costs
from landscape.comparison.differences import paired_traces
from landscape.comparison.examples import number_of_examples, take
from landscape.comparison.plan import Shape, estimate, parts_of, planned
from landscape.comparison.sizes import in_words, seconds_of
from landscape.plots import RunReport
from landscape.results import store

FEW = ("m_sharpness", "gradient_norm", "average_case")
SIZES = landscape.Sizes(
    eigenpairs=2, points=5, between=3, shards=(1, 7, 100), density_probes=1, density_steps=6, surface_examples=10, trace_tol=0.2, draws=3,
    measures=FEW,
)  # fmt: skip
SMALL = landscape.Sizes(**{**vars(SIZES), "points": 0, "between": 0, "density_probes": 0, "measures": ("gradient_norm",)})


def given() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(20, 4, generator=g).double(), torch.randint(0, 3, (20,), generator=g)


def two_models() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    second = copy.deepcopy(first)
    with torch.no_grad():
        second[0].weight.mul_(1.5)
    return {"sgd": first, "a/b <script>": second}


data, models = pytest.fixture(given), pytest.fixture(two_models)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[landscape.Comparison, Path]:
    folder = tmp_path_factory.mktemp("compared")
    return landscape.compare(two_models(), F.cross_entropy, given(), out=folder, sizes=SIZES, test_data=given()), folder


def test_each_number_is_that_of_the_single_call(compared, models, data) -> None:
    found, folder = compared
    for name, model in models.items():
        run, objective = found.runs[name], landscape.Objective(model, F.cross_entropy, data)
        np.testing.assert_allclose(run.eigen.values, landscape.top_eigenpairs(objective, k=2, tol=1e-3).values, rtol=1e-6)
        assert run.sharpness[7].value == pytest.approx(landscape.m_sharpness(objective, m=7).value, rel=1e-6)
        assert list(run.sharpness) == [1, 7, 20]  # m = 100 is more than there are
        assert [r.measure for r in found.sharpness[name]] == ["m_sharpness"] * 3 + ["gradient_norm", "average_case"]
        assert run.attributes["test_accuracy"] == pytest.approx(float(objective.evaluate().accuracy))
        assert landscape.open(found.files[name]).eigen.values.tolist() == run.eigen.values.tolist()
        small = landscape.Objective(model, F.cross_entropy, tuple(t[::2] for t in data))
        assert run.surfaces["plane"].loss[2, 2] == pytest.approx(small.loss(), rel=1e-6)
    planes = [run.surfaces["plane"].plane["direction_sha256"] for run in found.runs.values()]
    assert planes[0] == planes[1], "all models lie on planes of the same directions"
    line = found.paths["sgd", "a/b <script>"]
    straight = landscape.linear_path(small, *models.values(), points=3)
    np.testing.assert_allclose(line.loss, straight.loss, rtol=1e-6)
    assert "sgd" in found.table() and repr(found) == found.table()
    page = found.report(folder / "report.html").read_text()
    assert "a/b &lt;script&gt;" in page and "a/b <script>" not in page and "difference ± error" in page
    assert {p.parent for p in found.files.values()} == {folder}


def test_differences_of_losses_are_those_of_single_examples(compared, models, data) -> None:
    found = compared[0].differences()
    each = [F.cross_entropy(model(data[0]), data[1], reduction="none").double() for model in models.values()]
    d = (each[1] - each[0]).detach().numpy()
    assert (found["train loss"].one, found["train loss"].other) == ("a/b <script>", "sgd")
    assert found["train loss"].value == pytest.approx(d.mean(), rel=1e-5)
    widened = student.ppf(0.975, len(d) - 1) / student.ppf(0.975, np.inf)
    assert found["train loss"].error == pytest.approx(widened * d.std(ddof=1) / np.sqrt(len(d)), rel=1e-5)
    unpaired = np.hypot(*(e.detach().numpy().std(ddof=1) / np.sqrt(len(d)) for e in each))
    assert found["train loss"].error < unpaired  # hard examples are hard for both


def test_differences_of_sharpness_are_those_of_shards(compared, models, data) -> None:
    found = compared[0].differences()
    a, b = (landscape.m_sharpness(landscape.Objective(model, F.cross_entropy, data), m=7) for model in models.values())
    d, w = b.per_shard - a.per_shard, np.array([7.0, 7.0, 6.0])
    mean = (w * d).sum() / w.sum()
    assert found["m-sharpness, m = 7"].value == pytest.approx(mean, rel=1e-4)
    assert found["m-sharpness, m = 7"].error == pytest.approx(landscape.paired_difference(b, a).stderr, rel=1e-4)
    assert "m-sharpness, m = 7" in repr(found)
    kept = landscape.open(compared[1] / "pairs" / f"sgd--{store.file_name('a/b <script>')}.h5").subsampled[
        "difference of m-sharpness, m = 7"
    ]
    assert (
        kept.values[0] == found["m-sharpness, m = 7"].value
        and kept.per_part[:, 0].tolist() == found["m-sharpness, m = 7"].per_part.tolist()
    )


def test_traces_are_of_the_same_probes_as_dense_hessians_show() -> None:
    sizes = landscape.Sizes(**{**vars(SMALL), "trace_tol": 0.9, "measures": ()})
    found = landscape.compare(two_models(), F.cross_entropy, given(), sizes=sizes)
    probes, generator, samples = [], torch.Generator().manual_seed(0), []
    for model in two_models().values():
        shapes = {n: p.shape for n, p in model.named_parameters()}
        start = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

        def loss(w: torch.Tensor, model: nn.Module = model, shapes: dict = shapes) -> torch.Tensor:
            parts = torch.split(w, [s.numel() for s in shapes.values()])
            params = {n: v.view(s) for (n, s), v in zip(shapes.items(), parts, strict=True)}
            return F.cross_entropy(torch.func.functional_call(model, params, (given()[0],)), given()[1])

        h = torch.autograd.functional.hessian(loss, start)
        values, vectors = torch.linalg.eigh(h)
        top = values.abs().argsort(descending=True)[:2]
        rest = torch.eye(len(h), dtype=h.dtype) - vectors[:, top] @ vectors[:, top].T
        if not probes:
            probes = [torch.randint(0, 2, (len(h),), generator=generator, dtype=torch.int8).double() * 2 - 1 for _ in range(16)]
        samples.append(np.array([float(z @ rest @ h @ rest @ z + values[top].sum()) for z in probes]))
    for run, expected in zip(found.runs.values(), samples, strict=True):
        np.testing.assert_allclose(run.trace.samples[:16], expected, atol=2e-3 * abs(expected).max())
    d = samples[1] - samples[0]
    difference = found.differences()["trace"]
    assert difference.value == pytest.approx(d.mean(), abs=2e-3 * abs(samples[0]).max())
    assert difference.paired and difference.error >= d.std(ddof=1) / 4


@pytest.mark.parametrize(("m", "n"), [(24, 24), (40, 18), (16, 33)])
def test_paired_traces_cover(m: int, n: int) -> None:
    g = np.random.default_rng(m)
    hits, closer = 0, 0
    for _ in range(400):
        common, own = g.normal(size=max(m, n)), g.normal(size=(2, max(m, n)))
        a, b = (3 + 2 * common + 0.5 * own[0])[:m], (1 + 1.6 * common + 0.5 * own[1])[:n]
        each, error = paired_traces(a, b)
        hits += abs(a.mean() - b.mean() - 2) <= 1.96 * error
        closer += error < np.hypot(a.std(ddof=1) / m**0.5, b.std(ddof=1) / n**0.5)
        assert len(each) == min(m, n)
    assert 0.93 <= hits / 400 <= 0.995
    assert closer > 300 or m != n, "what both probes share cancels"


def test_what_is_there_is_not_measured_again_but_another_question_is(compared, models, data) -> None:
    once, folder = compared
    again = landscape.compare(models, F.cross_entropy, data, out=folder, sizes=SIZES, test_data=data)
    for name, run in again.runs.items():
        before = once.runs[name]
        assert run.eigen.provenance.created_at == before.eigen.provenance.created_at and run.eigen.cost == before.eigen.cost
        assert run.surfaces["plane"].cost == before.surfaces["plane"].cost
        assert [r.cost for r in again.sharpness[name]] == [r.cost for r in once.sharpness[name]]
    assert [d.value for d in again.differences()] == [d.value for d in once.differences()]


def test_other_sizes_replace_what_does_not_fit(models, data, tmp_path: Path) -> None:
    one = {"sgd": models["sgd"]}
    sizes = {**vars(SMALL), "points": 5}
    once = landscape.compare(one, F.cross_entropy, data, out=tmp_path, sizes=landscape.Sizes(**sizes))
    more = landscape.compare(one, F.cross_entropy, data, out=tmp_path, sizes=landscape.Sizes(**{**sizes, "eigenpairs": 3, "points": 7}))
    assert len(more.runs["sgd"].eigen.values) == 3 and len(more.runs["sgd"].surfaces["plane"].x) == 7
    assert more.runs["sgd"].trace.cost == once.runs["sgd"].trace.cost, "what fits is kept"


def test_another_loss_is_another_question(models, data, tmp_path: Path) -> None:
    one = {"sgd": models["sgd"]}
    once = landscape.compare(one, lambda o, t: 1 * F.cross_entropy(o, t), data, out=tmp_path / "a", sizes=SMALL)
    before = (tmp_path / "a" / "sgd.h5").read_bytes()
    with pytest.raises(ValueError, match="another loss: choose another folder"):
        landscape.compare(one, lambda o, t: 3 * F.cross_entropy(o, t), data, out=tmp_path / "a", sizes=SMALL)
    fresh = landscape.compare(one, lambda o, t: 3 * F.cross_entropy(o, t), data, out=tmp_path / "b", sizes=SMALL)
    assert fresh.runs["sgd"].eigen.values[0] == pytest.approx(3 * once.runs["sgd"].eigen.values[0], rel=1e-4)
    assert (tmp_path / "a" / "sgd.h5").read_bytes() == before
    with pytest.raises(ValueError, match="with another model: choose another folder"):
        landscape.compare({"sgd": models["a/b <script>"]}, F.cross_entropy, data, out=tmp_path / "a", sizes=SMALL)


def test_other_examples_of_the_same_number_are_another_question_and_fewer_are_not(models, data, tmp_path: Path) -> None:
    one = {"sgd": models["sgd"]}
    x = torch.cat([data[0]] * 4)
    few = landscape.Sizes(**{**vars(SMALL), "examples": 40})
    landscape.compare(one, F.cross_entropy, (x, data[1].repeat(4)), out=tmp_path, sizes=few)
    changed = x.clone()
    changed[2] += 1e-3  # none of those that are looked at first
    before = (tmp_path / "sgd.h5").read_bytes()
    with pytest.raises(ValueError, match="another data set: choose another folder"):
        landscape.compare(one, F.cross_entropy, (changed, data[1].repeat(4)), out=tmp_path, sizes=few)
    assert (tmp_path / "sgd.h5").read_bytes() == before
    said: list[str] = []
    landscape.compare(one, F.cross_entropy, (x, data[1].repeat(4)), out=tmp_path, sizes=few, say=said.append)
    assert said[0].startswith("going on")
    landscape.compare(one, F.cross_entropy, (x, data[1].repeat(4)), out=tmp_path, sizes=few, say=(new := []).append, dtype=torch.float32)
    assert not new[0].startswith("going on")
    found = landscape.compare(one, F.cross_entropy, (changed, data[1].repeat(4)), out=tmp_path, sizes=SMALL)
    assert found.runs["sgd"].eigen.provenance.examples == 80


def test_the_other_order_and_the_same_model_twice(models, data) -> None:
    sizes = landscape.Sizes(**{**vars(SMALL), "measures": FEW})
    names = list(models)
    there = landscape.compare({n: models[n] for n in names}, F.cross_entropy, data, sizes=sizes).differences()
    back = landscape.compare({n: models[n] for n in names[::-1]}, F.cross_entropy, data, sizes=sizes).differences()
    for one, other in zip(there, back, strict=True):
        assert one.measure == other.measure and one.value == pytest.approx(-other.value, rel=1e-6, abs=1e-12)
        assert one.error == pytest.approx(other.error, rel=1e-4, abs=1e-12) or np.isnan(one.error)
    same = landscape.compare({"a": models["sgd"], "b": copy.deepcopy(models["sgd"])}, F.cross_entropy, data, sizes=sizes).differences()
    assert not any(d.clear for d in same) and max(abs(d.value) for d in same) < 1e-9


def test_negative_eigenvalues_are_not_called_the_largest() -> None:
    x = torch.eye(3)
    nets = {"a": nn.Linear(3, 1, bias=False), "b": nn.Linear(3, 1, bias=False)}
    sizes = landscape.Sizes(**{**vars(SMALL), "eigenpairs": 1, "measures": ()})
    for sign, label, shown in ((-1.0, "λ of largest magnitude", "≤ 6"), (1.0, "λ_max", "6")):

        def loss(model: nn.Module, batch: torch.Tensor, sign: float = sign) -> torch.Tensor:
            return (sign * torch.tensor([9.0, 1.0, 1.0]) * model(batch).flatten() ** 2).mean()  # eigenvalues 6, 2/3, 2/3

        found = landscape.compare(nets, loss, [x], sizes=sizes)
        assert found.differences()[label].values == pytest.approx((6 * sign, 6 * sign), rel=1e-4)
        assert next(line for line in found.table().splitlines() if line.startswith("a ")).split(maxsplit=1)[1].startswith(shown)


def test_the_barrier_has_an_error_where_no_batch_size_was_asked_for(models, data) -> None:
    sizes = landscape.Sizes(**{**vars(SMALL), "points": 3, "between": 3})
    for given_size in ({}, {"batch_size": None}):
        found = landscape.compare(models, F.cross_entropy, data, sizes=sizes, **given_size)
        stderr = found.paths["sgd", "a/b <script>"].barrier_stderr
        assert stderr is not None and np.isfinite(stderr)


def in_a_process(folder: Path) -> None:
    landscape.compare(two_models(), F.cross_entropy, given(), out=folder, sizes=SIZES, test_data=given())


@pytest.mark.slow  # four jobs
def test_a_job_that_is_killed_three_times_goes_on_to_the_same_numbers(compared, tmp_path: Path) -> None:
    once, file = compared[0], tmp_path / "sgd.h5"
    held: dict[str, str] = {}
    for reached in (file.exists, lambda: "hessian/trace" in store.groups(file), (tmp_path / "pairs").exists):
        process = multiprocessing.get_context("fork").Process(target=in_a_process, args=(tmp_path,))
        process.start()
        deadline = time.monotonic() + 60
        while process.is_alive() and not reached() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was not done yet"
        for group in [g for g in store.groups(file) if not g.startswith("partial/")]:
            result = store.load(file, group)
            told = str(result.provenance) + repr(result.cost)
            assert held.setdefault(group, told) == told, "what is there is not measured again"
    assert len(held) > 4
    again = landscape.compare(two_models(), F.cross_entropy, given(), out=tmp_path, sizes=SIZES, test_data=given())
    for group, before in held.items():
        assert str(store.load(file, group).provenance) + repr(store.load(file, group).cost) == before
    # Matrix products may end in other bits where their numbers lie elsewhere in memory.
    for name, run in again.runs.items():
        before = once.runs[name]
        np.testing.assert_allclose(run.eigen.values, before.eigen.values, rtol=1e-5)
        np.testing.assert_allclose(run.trace.samples, before.trace.samples, rtol=1e-4)
        for one, other in zip(again.sharpness[name], once.sharpness[name], strict=True):
            np.testing.assert_allclose(one.per_shard, other.per_shard, rtol=1e-4, atol=1e-6)
        for kind in ("line", "plane"):
            np.testing.assert_allclose(run.surfaces[kind].loss, before.surfaces[kind].loss, rtol=1e-5)
    assert [d.measure for d in again.differences()] == [d.measure for d in once.differences()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"": nn.Linear(4, 3).double()}}, "not blank"),
        ({"models": {"a\nb": nn.Linear(4, 3).double()}}, "on one line"),
        ({"models": {3: nn.Linear(4, 3).double()}}, "not blank, got 3"),
        ({"reference": "x"}, "reference must be one of 'a', got 'x'"),
        ({"commands": {"x": "y"}}, "commands has 'x'"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": 2**64}, "seed must be a whole number from 0"),
        ({"budget": "soon"}, "budget must be a time such as 90s, 5m or 1h, got 'soon'"),
        ({"models": {"a": nn.Linear(4, 3).double(), "b": nn.Linear(4, 3).double().requires_grad_(False)}}, "model 'b': every parameter"),
        ({"models": {"a": nn.Sequential(nn.Linear(4, 3).double(), nn.Threshold(1e9, float("inf")))}}, "model 'a': the loss is"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(data, change: dict, words: str, tmp_path: Path) -> None:
    arguments = {"models": {"a": nn.Linear(4, 3).double()}} | change
    with pytest.raises(ValueError, match=words):
        landscape.compare(arguments.pop("models"), F.cross_entropy, data, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points", 1), ("span", 0.0), ("shards", (0,)), ("rho", -1.0), ("trace_tol", 0.0), ("eigenpairs", 0), ("measures", ("sharp",)),
        ("draws", 2), ("examples", 0), ("tolerance", 1.0), ("between", 1),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        landscape.Sizes(**{name: value})


def test_batch_statistics_leave_per_example_sharpness_out_and_models_as_they_were(data) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)).double().train()
    before, mode, state = copy.deepcopy(net.state_dict()), net[1].training, torch.get_rng_state()
    sizes = landscape.Sizes(**{**vars(SMALL), "measures": ("m_sharpness",)})
    found = landscape.compare({"a": net}, F.cross_entropy, data, sizes=sizes, batch_norm="batch", batch_size=10)
    assert isinstance(found.runs["a"], RunReport) and list(found.runs["a"].sharpness) == [7, 20]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net[1].training is mode and torch.equal(torch.get_rng_state(), state)
    assert not len(found.differences()) and "at least two" in repr(found.differences())


def test_models_of_other_shapes_share_neither_plane_nor_line_and_that_is_said(models, data) -> None:
    wide = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    found = landscape.compare({"sgd": models["sgd"], "wide": wide}, F.cross_entropy, data, sizes=SIZES)
    planes = [run.surfaces["plane"].plane["direction_sha256"] for run in found.runs.values()]
    assert planes[0] != planes[1] and not found.paths
    differences = found.differences()
    assert {d.measure for d in differences} >= {"train loss", "λ_max", "trace", "m-sharpness, m = 7"}
    assert not differences["trace"].paired and "share no plane" in repr(differences)


def test_what_a_model_does_not_have_is_left_out_with_the_reason(data) -> None:
    sizes = landscape.Sizes(**{**vars(SMALL), "measures": ("gradient_norm", "fisher_trace")})
    found = landscape.compare(two_models(), lambda o, t: F.cross_entropy(o, t), data, sizes=sizes)
    assert list(found.left_out) == ["fisher_trace"] and "labels='model'" in found.left_out["fisher_trace"]
    assert "left out: sgd: labels='model'" in found.chosen.text()
    assert [r.measure for r in found.sharpness["sgd"]] == ["gradient_norm"]


COSTS = Costs(2e-4, 2e-5, 5e-4, 6e-5, 1.2e-4, 1e-3, 2e-5, 1e-3, 128, "plain", 20_000)


@pytest.mark.parametrize("costs", [COSTS, Costs(**{**COSTS.as_dict(), "product_each": 4e-2, "gradient_each": 2e-2, "forward_each": 6e-3})])
def test_a_plan_fits_its_budget_and_forgets_nothing(costs: Costs) -> None:
    shape, asked, examples = Shape({"a": costs, "b": costs}, 50_000, 10_000, 1, "a"), landscape.Sizes(), []
    for budget in (5, 20, 60, 300, 1200, 3600, 40_000):
        plan = planned(shape, asked, budget)
        total = sum(estimate(shape, plan.sizes).values())
        least = plan.sizes.examples == 32
        assert total <= 0.8 * budget or least
        assert set(parts_of(asked)) == set(parts_of(plan.sizes)) | set(plan.left_out)
        assert all("did not fit into the budget" in reason for reason in plan.left_out.values())
        examples.append(plan.sizes.examples or 50_000)
    assert planned(shape, asked, None).sizes == asked
    assert examples[0] < examples[-1] and not planned(shape, asked, 1e7).left_out


def test_a_budget_is_kept(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30_000, 64, generator=g), torch.randint(0, 10, (30_000,), generator=g)
    nets = {name: nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)) for name in "ab"}
    said: list[str] = []
    started = time.process_time()
    found = landscape.compare(nets, F.cross_entropy, (x, y), out=tmp_path, budget="2s", say=said.append)
    assert time.process_time() - started < 6  # in full it takes minutes
    assert found.runs["a"].eigen.provenance.examples < 30_000
    done = {r.measure for r in found.sharpness["a"]} | set(found.left_out)
    assert {"m_sharpness", "worst_case", "low_pass", "relative_flatness"} <= done
    assert any("of a budget of 2.0 s" in line for line in said)
    again = landscape.compare(nets, F.cross_entropy, (x, y), out=tmp_path, budget="2s")
    assert again.runs["a"].eigen.cost == found.runs["a"].eigen.cost, "the sizes that were chosen then"


def test_fewer_examples_are_the_same_ones_spread_over_any_data() -> None:
    x, y = torch.arange(20.0)[:, None], torch.arange(20)
    wanted = [0, 2, 5, 8, 11, 14, 17]
    state = torch.get_rng_state()
    batches = [(x[i : i + 6], y[i : i + 6]) for i in range(0, 20, 6)]
    loader = DataLoader(TensorDataset(x, y), batch_size=6)
    for data in ((x, y), TensorDataset(x, y), loader):
        assert number_of_examples(data) == 20
        found = take(data, 7)
        labels = torch.cat([batch[1] for batch in found]) if isinstance(found, list) else found[1]
        assert labels.tolist() == wanted
    assert take({"x": x, "y": y}, 7)["y"].tolist() == wanted
    assert [b[1].tolist() for b in take(batches, 7)] == [[0, 1], [6, 7], [12, 13], [18]]
    assert take((x, y), 20)[0] is x and take((x, y), None)[0] is x
    shuffled = DataLoader(TensorDataset(x, y), batch_size=6, shuffle=True, drop_last=True)
    assert number_of_examples(shuffled) == 18 and sum(len(b[1]) for b in take(shuffled, 7)) == 7
    assert torch.equal(torch.get_rng_state(), state)


def test_times_are_read_as_people_write_them() -> None:
    assert [seconds_of(t) for t in ("90s", "5m", "1h", "1h30m", "45", 12, "1.5 min")] == [90, 300, 3600, 5400, 45, 12, 90]
    assert [in_words(t) for t in (0.4, 42, 200, 7500)] == ["0.4 s", "42 s", "3 min 20 s", "2 h 5 min"]
    for wrong in ("", "5x", "-3s", "0", "nan", True, None, "m", float("inf")):
        with pytest.raises(ValueError, match="budget must be a time"):
            seconds_of(wrong)
