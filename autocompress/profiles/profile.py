"""A hardware profile: prices a plan's kernels on one device, saved as text and fitted again when loaded."""

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import environ, pathsep
from pathlib import Path
from statistics import median

from autocompress.devices import Device, open_device
from autocompress.devices.fake import FakeDevice
from autocompress.profiles import files
from autocompress.profiles.files import Description, KernelRow, ModelRow, Role, Tables
from autocompress.profiles.kernel_times import KernelTimes, RooflineTimes, SiteTimes
from autocompress.profiles.predictor import Observation, Prediction, Predictor
from autocompress.profiles.sites import Site, sites
from autocompress.vocabulary.errors import DeviceError, ProfileError, nearest
from autocompress.vocabulary.formats import TRAINED_IN, mildest
from autocompress.vocabulary.workload import Capabilities, Kernel, Kernels, Latency

UNCALIBRATED = 3.0
"""A roofline bounds a kernel's time from below; that real ones take at most this many times as long is an assumption,
stated as the interval of a profile that nothing was measured for."""

SEARCH_PATH_VARIABLE = "AUTOCOMPRESS_PROFILES"


class ProfileWarning(UserWarning):
    """A profile is used in a way that makes its numbers doubtful."""


@dataclass(frozen=True)
class Profile:
    """Latencies of one device and runtime, as ratios to a reference model that takes `reference_s` seconds.

    Wherever kernels are taken, a mapping is a plan's kernels (as from `plan_kernels`), a sequence is already lowered.
    """

    description: Description
    kernels: dict[Site, KernelRow]
    models: tuple[ModelRow, ...]

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def device(self) -> str:
        return self.description.device

    @property
    def reference_s(self) -> float:
        return self.description.reference_s

    @property
    def capabilities(self) -> Capabilities:
        return self.description.capabilities()

    @property
    def calibrated(self) -> bool:
        """Whether any of it stands on a measurement."""
        return bool(self.models)

    def open_device(self) -> Device:
        """The device that the profile is of; a datasheet's is a roofline. Raises DeviceError where it can't be used."""
        rates = self.description.rates
        if rates is None:
            return open_device(self.device)
        return FakeDevice(rates, self.device, self.description.environment.get("processor", self.name))

    def predict(self, kernels: Kernels | Sequence[Kernel]) -> Latency:
        """Seconds at batch size 1, with an interval that covers 90 % of models like the held-out ones; what can't be
        faster than a roofline is stated to take at most UNCALIBRATED times as long."""
        return self._latency(self._predictor.predict(list(self._sites(kernels).values())))

    def predict_all(self, plans: Iterable[Kernels | Sequence[Kernel]]) -> list[Latency]:
        """`predict` of many plans, whose kernels are priced at once."""
        where = [list(self._sites(kernels).values()) for kernels in plans]
        self._predictor.warm(site for each in where for site in each)
        return [self._latency(self._predictor.predict(each)) for each in where]

    def ratio(self, where: Sequence[Site]) -> float:
        """The predicted ratio to the reference of a model with kernels at these sites."""
        return self._predictor.predict(where).ratio

    def score(self, where: Sequence[Site], ratio: float) -> float:
        """How many predicted standard deviations a measured ratio lies off."""
        return self._predictor.score(Observation(tuple(where), ratio))

    def breakdown(self, kernels: Kernels | Sequence[Kernel]) -> dict[str, float]:
        """Seconds of each lowered kernel; they add up to the prediction but for a constant per model."""
        where = self._sites(kernels)
        prices = self._predictor.prices(list(where.values())) * self.reference_s
        return dict(zip(where, prices.tolist(), strict=True))

    def guessed(self, kernels: Kernels | Sequence[Kernel]) -> frozenset[str]:
        """Names of the lowered kernels that are priced by their bytes and multiplications alone: of no such operation
        was anything measured."""
        return frozenset(name for name, site in self._sites(kernels).items() if self._predictor.guessed(site))

    def warm(self, plans: Iterable[Kernels | Sequence[Kernel]]) -> None:
        """Price the kernels of many plans at once, so that predicting them is only adding up."""
        self._predictor.warm(site for kernels in plans for site in self._sites(kernels).values())

    def with_measurements(self, measured: Sequence[tuple[Kernels | Sequence[Kernel], float]]) -> "Profile":
        """The same profile, corrected by measured models: pairs of kernels and ratio to the reference.

        How far each was off before widens or narrows the interval, as for held-out models.
        """
        count = len(self.models)
        rows = [self._search_row(f"search-{count + i}", k, ratio) for i, (k, ratio) in enumerate(measured)]
        updated = Profile(self.description, self.kernels, (*self.models, *rows))
        if self.kernels:
            updated.__dict__["_times"] = self._times
        return updated

    def without_search(self) -> "Profile":
        """The same profile as it was before any search corrected it."""
        rows = tuple(row for row in self.models if row.role is not Role.SEARCH)
        return self if len(rows) == len(self.models) else Profile(self.description, self.kernels, rows)

    def held_out(self) -> list[tuple[ModelRow, Latency]]:
        """Whole models, each as predicted by what was fitted without them."""
        rows = [row for row in self.models if row.role is Role.HELD_OUT]
        return [(row, self._latency(self._judge.predict(row.sites))) for row in rows]

    def typical_interval(self) -> float:
        """Half the interval's width as a share of the prediction, of the median of the profile's models."""
        found = [self._latency(self._predictor.predict(row.sites)) for row in self.models]
        return median((latency.high - latency.low) / 2 / latency.seconds for latency in found)

    def save(self, folder: Path) -> None:
        """Write profile.toml, kernels.csv and models.csv. Raises StorageError."""
        files.write(folder, Tables(description=self.description, kernels=self.kernels, models=self.models))

    @cached_property
    def _times(self) -> SiteTimes:
        measured = {
            site: (row.time_s / self.reference_s, row.samples)
            for site, row in self.kernels.items()
            if row.time_s is not None
        }
        if self.description.rates is not None and not measured:
            return RooflineTimes(self.description.rates, (site for row in self.models for site in row.sites))
        return KernelTimes(measured)

    @cached_property
    def _judge(self) -> Predictor:
        """The predictor that the held-out models are unknown to. All that any fit needs is estimated at once first."""
        self._times.times([site for row in self.models for site in row.sites])
        return Predictor(self._times, self._observed(Role.FIT, Role.SEARCH))

    @cached_property
    def _predictor(self) -> Predictor:
        """Corrected by all models, with an interval that the held-out ones calibrated before they were fitted to as
        well: having seen them only makes it better than the predictor that they calibrated."""
        scores = [self._judge.score(held_out) for held_out in self._observed(Role.HELD_OUT)]
        scores += [row.score for row in self.models if row.score is not None]
        return Predictor(self._times, self._observed(*Role), scores)

    def _sites(self, kernels: Kernels | Sequence[Kernel]) -> dict[str, Site]:
        """On hardware that has no fp32, what a plan leaves in it is priced in the mildest format there is."""
        if isinstance(kernels, Mapping) and TRAINED_IN not in self.description.dtypes:
            kernels = _converted(kernels, self.description.dtypes)
        return sites(kernels)

    def _observed(self, *roles: Role) -> list[Observation]:
        return [Observation(row.sites, row.ratio) for row in self.models if row.role in roles]

    def _latency(self, prediction: Prediction) -> Latency:
        half = self._predictor.factor * prediction.deviation
        low, high = max(prediction.ratio - half, 0.0), prediction.ratio + half
        if not self.calibrated:
            low, high = prediction.ratio, UNCALIBRATED * prediction.ratio
        seconds, low, high = (self.reference_s * ratio for ratio in (prediction.ratio, low, high))
        origin = "estimate" if self.description.estimate else "predicted"
        fraction = 0.0 if self.description.learnt_from else prediction.measured_fraction
        return Latency(seconds, low, high, fraction, origin)

    def _search_row(self, name: str, kernels: Kernels | Sequence[Kernel], ratio: float) -> ModelRow:
        where = tuple(self._sites(kernels).values())
        score = self.score(where, ratio)
        return ModelRow(id=name, role=Role.SEARCH, ratio=ratio, low=ratio, high=ratio, score=score, sites=where)


def load(name_or_path: str | Path) -> Profile:
    """The profile in a folder, or of a name on the search path; warns when the installed runtime is another version.

    The path: folders in AUTOCOMPRESS_PROFILES, ./hardware_profiles, and what ships with the package. Raises
    ProfileError.
    """
    tables = files.read(_find(name_or_path))
    profile = Profile(tables.description, tables.kernels, tables.models)
    _check_runtime(profile.description)
    return profile


def list_profiles() -> dict[str, Path]:
    """Profiles on the search path by name; the first folder wins."""
    found: dict[str, Path] = {}
    for folder in _search_path():
        for file in sorted(folder.glob("*/profile.toml")):
            found.setdefault(file.parent.name, file.parent)
    return found


def descriptions() -> dict[str, Description]:
    """What every profile on the search path says of itself, by name. Raises ProfileError for a damaged one."""
    return {name: files.read_description(path) for name, path in list_profiles().items()}


def profile_of(device: str) -> Profile | None:
    """The first measured profile on the search path that is of this device, if any."""
    names = (name for name, found in descriptions().items() if found.device == device and found.rates is None)
    return next((load(name) for name in names), None)


def _converted(kernels: Kernels, dtypes: Collection[str]) -> Kernels:
    """With the decisions made; what moves or combines results follows by itself."""
    return {name: _in_mildest(kernel, dtypes) for name, kernel in kernels.items()}


def _in_mildest(kernel: Kernel, dtypes: Collection[str]) -> Kernel:
    row = mildest(dtypes, kernel.workload.op) if kernel.workload.dtype == TRAINED_IN else None
    return kernel if row is None else kernel.with_workload(dtype=row.name)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_dir():
        return path
    known = list_profiles()
    if str(name_or_path) not in known:
        raise ProfileError(
            f"no profile {str(name_or_path)!r}, neither as a folder nor by name: {nearest(str(name_or_path), known)}; "
            "make one with `autocompress profile DEVICE --task TASK --out DIR`"
        )
    return known[str(name_or_path)]


def _search_path() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    own = [Path(part) for part in environ.get(SEARCH_PATH_VARIABLE, "").split(pathsep) if part]
    return [*own, Path("hardware_profiles"), package / "hardware_profiles", package.parent / "hardware_profiles"]


def _check_runtime(description: Description) -> None:
    if description.rates is not None:
        return
    try:
        runtime = open_device(description.device).runtime
    except DeviceError:
        return
    if runtime != description.runtime:
        warnings.warn(
            f"profile {description.name!r} was made with {description.runtime}, installed is {runtime}: "
            f"calibrate again with `autocompress profile {description.device}`",
            ProfileWarning,
            stacklevel=3,
        )
