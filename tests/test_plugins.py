"""Plug-ins of other packages: found by their entry points, loaded when asked for, loud where they fail."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compression import methods as registry
from autocompress.compression.build import build, plan_kernels
from autocompress.compression.methods.quantize import Quantize
from autocompress.compression.plan import Plan, Step
from autocompress.devices import open_device
from autocompress.devices.ort import OrtDevice
from autocompress.devices.roofline import Rates, roofline
from autocompress.export.onnx import to_onnx
from autocompress.graph import trace
from autocompress.profiles import calibrate, load
from autocompress.search.space import find_space
from autocompress.vocabulary import formats as table
from autocompress.vocabulary import plugins
from autocompress.vocabulary.errors import BuildError, DeviceError, PluginError
from autocompress.vocabulary.formats import Format
from tests import third_party

_TASK = """
import torch
import autocompress as ac
from tests.zoo import make

model, inputs = make("mobilenet")
images = torch.randn(32, *inputs.shape[1:], generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    batches = [(images, model(images).argmax(1))]
task = ac.Task(model=model, example_inputs=inputs, calibration=batches, validation=batches)
"""

Installer = Callable[[str, str, Mapping[str, str]], None]

GROUPS = (plugins.DEVICES, plugins.IMPORTANCES, plugins.METHODS)


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    """What is declared is looked up anew."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    plugins._declared.cache_clear()
    plugins.load.cache_clear()
    for found in (registry.methods, registry._by_config, registry._by_name, table.formats, table.format_of):
        found.cache_clear()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    """Installs a package of that name which declares the entries of a group."""

    def install(name: str, group: str, entries: Mapping[str, str]) -> None:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.syspath_prepend(str(third_party.install(folder, third_party.declaring(name, group, entries))))

    return install


@pytest.mark.parametrize("group", GROUPS)
def test_a_plug_in_that_fails_is_told_in_one_line(group: str, installed: Installer) -> None:
    installed("acme-broken", group, {"broken": "acme_no_such_module:thing"})
    assert "broken" in plugins.names(group), "a name needs no import"
    with pytest.raises(PluginError) as caught:
        plugins.load(group, "broken")
    line = str(caught.value)
    for said in ("acme-broken 2.5", group, "'broken'", "acme_no_such_module:thing", "ModuleNotFoundError"):
        assert said in line
    assert "\n" not in line and isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize("group", GROUPS)
def test_a_name_declared_twice_names_both(group: str, installed: Installer) -> None:
    ours = plugins.names(group)[0]
    _forget()
    installed("acme-again", group, {ours: "json"})
    with pytest.raises(PluginError, match=r"(acme-again 2.5.*autocompress|autocompress.*acme-again 2.5)"):
        plugins.names(group)


def test_one_failing_device_leaves_the_others_alone(installed: Installer) -> None:
    installed("acme-broken", plugins.DEVICES, {"broken": "acme_no_such_module"})
    assert open_device("ort:cpu").name == "ort:cpu"
    with pytest.raises(PluginError, match="acme-broken"):
        open_device("broken:board")
    with pytest.raises(PluginError, match="acme-broken"):
        open_device("no such device")


@pytest.mark.parametrize("value", ["builtins:dict", "autocompress.compression.methods.prune:PruneMethod"])
def test_a_method_that_is_none_or_has_another_name_is_refused(value: str, installed: Installer) -> None:
    installed("acme-odd", plugins.METHODS, {"odd": value})
    with pytest.raises(PluginError, match=r"acme-odd 2.5 declares .*'odd'.*subclass of Method whose name is 'odd'"):
        registry.methods()


@pytest.mark.parametrize("value", ["builtins:dict", "autocompress.vocabulary.formats:FP32"])
def test_a_number_format_that_is_none_is_refused(value: str, installed: Installer) -> None:
    installed("acme-odd", plugins.FORMATS, {"odd": value})
    with pytest.raises(PluginError, match=r"acme-odd 2.5 declares .*'odd'.*must be a Format of that name"):
        table.formats()


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Format]:
    """A row that a package declares."""
    row = 'Format("w8g64", 8, 32, Mode.WEIGHT_ONLY, group_size=64, layers=frozenset({"linear"}))'
    files = third_party.declaring("acme-eight", plugins.FORMATS, {"w8g64": "acme_eight:ROW"})
    files["acme_eight.py"] = f"from autocompress.vocabulary.formats import Format, Mode\nROW = {row}\n"
    monkeypatch.syspath_prepend(str(third_party.install(tmp_path, files)))
    yield table.format_of("w8g64")
    sys.modules.pop("acme_eight")


def test_a_made_up_format_is_offered_priced_built_and_run(made_up: Format, tmp_path: Path) -> None:
    """By its row alone: no module of ours was told of it."""
    device = OrtDevice()
    graph = trace(nn.Sequential(nn.Linear(80, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(2, 80))
    assert made_up.name in device.capabilities().dtypes
    space = find_space(graph, registry.methods(), device.capabilities())
    plan = space.plan(space.uniform["w8g64"])
    assert Plan.from_json(plan.to_json()) == plan and set(plan.configs(Quantize)) == {"0", "2"}
    priced, plain = plan_kernels(plan, graph), graph.kernels
    rates = Rates(macs_per_s={"fp32": 1e9, "w8g64": 2e9}, launch_s=0, channel_multiple={"fp32": 1, "w8g64": 1})
    for name in ("0", "2"):
        assert roofline(priced[name].workload, rates) < roofline(plain[name].workload, rates)
    built = build(plan, graph)
    artifact, x = to_onnx(built, tmp_path / "model.onnx", plan.key), torch.randn(3, 80)
    with torch.no_grad():
        assert device.open(artifact.path).run(x.numpy()) == pytest.approx(built(x).numpy(), abs=1e-5)
    found = calibrate(device, [(plan.key, priced, artifact.path)], artifact.path, [x[:1].numpy()], holdout=0)
    found.save(tmp_path / "profile")
    again = load(tmp_path / "profile")
    assert "w8g64" in again.capabilities.dtypes and not again.guessed(priced)
    assert again.predict(priced).seconds == pytest.approx(found.predict(priced).seconds)


def test_a_format_that_nothing_simulates_is_refused(
    installed: Installer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "acme_half.py").write_text(
        "from autocompress.vocabulary.formats import Format, Mode\nROW = Format('fp16', 16, 16, Mode.FLOAT)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    installed("acme-half", plugins.FORMATS, {"fp16": "acme_half:ROW"})
    graph = trace(nn.Linear(8, 4), torch.randn(2, 8))
    (layer,) = graph.layers
    with pytest.raises(BuildError, match="nothing simulates number format fp16"):
        build(Plan(graph.fingerprint, (Step(layer, Quantize("fp16")),)), graph)


@pytest.mark.parametrize("group", GROUPS)
def test_an_installation_older_than_its_sources_says_to_install_again(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints())
    with pytest.raises(PluginError, match=r"install it again: pip install -e ") as caught:
        plugins.names(group)
    assert "\n" not in str(caught.value)


def test_a_wheel_has_no_sources_to_compare_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: EntryPoints())
    for text in (None, '[project]\nname = "other"\n[project.entry-points."autocompress.devices"]\nx = "y"\n'):
        monkeypatch.setattr(plugins, "_SOURCES", tmp_path / "pyproject.toml")
        if text:
            plugins._SOURCES.write_text(text)
        assert plugins.names(plugins.DEVICES) == ()
        _forget()


def test_an_unknown_device_is_no_plug_in_s_fault() -> None:
    with pytest.raises(DeviceError, match="did you mean 'ort:cpu'"):
        open_device("orr:cpu")


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package that the document shows is installed."""
    return third_party.install(tmp_path_factory.mktemp("acme"), third_party.shown_package())


def test_names_are_known_before_anything_heavy_is_imported(acme: Path) -> None:
    code = (
        "import sys, json\nfrom autocompress.vocabulary import plugins\n"
        "print(json.dumps([plugins.names(plugins.DEVICES), plugins.names(plugins.IMPORTANCES), sorted(sys.modules)]))"
    )
    devices, importances, modules = json.loads(third_party.python(acme, "-c", code).stdout)
    assert {"acme", "ort", "fake"} <= set(devices) and {"largest", "l1"} <= set(importances)
    assert not {"torch", "optuna", "onnxruntime", "openvino", "tvm", "acme_compress"} & set(modules)


def test_help_starts_without_the_heavy_libraries(acme: Path) -> None:
    found = third_party.python(acme, "-X", "importtime", "-m", "autocompress.cli", "--help")
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert found.returncode == 0 and "typer" in imported
    assert not {"torch", "optuna", "onnxruntime", "numpy"} & imported


def test_devices_lists_it_and_leaves_the_runtimes_alone(acme: Path) -> None:
    found = third_party.python(acme, "-X", "importtime", "-m", "autocompress.cli", "devices", "--json")
    assert "acme:board" in {row["name"] for row in json.loads(found.stdout)}
    imported = {line.rpartition("|")[2].strip() for line in found.stderr.splitlines()}
    assert not {"torch", "optuna", "tvm"} & imported


@pytest.mark.slow
def test_it_keeps_every_contract(acme: Path) -> None:
    """The suites that run over all that is registered, over what the package adds."""
    chosen = ("-k", "acme or largest or crop or w4g32")
    found = third_party.python(acme, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contracts", *chosen)
    assert found.returncode == 0, found.stdout[-3000:]
    assert "passed" in found.stdout


@pytest.mark.slow
def test_a_search_uses_all_three(acme: Path, tmp_path: Path) -> None:
    """Its device times, its method is among the plans, its importance chose the channels that pruning keeps."""
    (tmp_path / "mine.py").write_text(_TASK)
    settings = 'device = "acme:board"\nimportance = "largest"\ntrials = 8\ndecisions = ["crop", "prune"]\n'
    settings += "fine_tuning = { enabled = false }\n"
    (tmp_path / "run.toml").write_text(settings)
    asked = [str(tmp_path / "mine.py:task"), "--config", str(tmp_path / "run.toml"), "--out", str(tmp_path / "run")]
    found = third_party.python(acme, "-m", "autocompress.cli", "search", *asked)
    assert found.returncode == 0, found.stderr
    plans = [json.loads(path.read_text()) for path in (tmp_path / "run" / "plans").glob("*.json")]
    steps = [step for plan in plans for step in plan["steps"]]
    assert {"crop", "prune"} <= {step["method"] for step in steps}
    assert {step["importance"] for step in steps if step["method"] == "prune"} == {"largest"}
    assert 'device = "acme:board"' in (tmp_path / "run" / "run.toml").read_text()
