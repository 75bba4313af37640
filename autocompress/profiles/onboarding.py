"""Onboarding: a profile of a new device from other devices' profiles and a few models measured on it.

The known profiles price many plans of the space to search; `Transfer` says what these would take on the new device, and
a profile is fitted to that as if they had been measured, around the kernel times of the known device most like it. The
models that were measured correct it, and calibrate its interval by how far each lay off what was learnt without it.
"""

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from autocompress.profiles.features import Floats, terms
from autocompress.profiles.files import Description, KernelRow, ModelRow, Role
from autocompress.profiles.kernel_times import kernel_class
from autocompress.profiles.predictor import NOMINAL_COVERAGE
from autocompress.profiles.profile import Profile
from autocompress.profiles.sites import Site, sites
from autocompress.profiles.transfer import Transfer
from autocompress.vocabulary.errors import ProfileError
from autocompress.vocabulary.workload import Kernel, Kernels

MIN_MODELS = 3
"""Measured models: one is left out in turn, and a transfer takes two."""

Plans = Sequence[Kernels | Sequence[Kernel]]


def choose_models(known: Sequence[Profile], plans: Plans, count: int) -> list[int]:
    """Which of the plans to measure on a new device: those that tell most about the others. Raises ProfileError."""
    return _Space(known, plans).transfer.choose(count)


def onboard(description: Description, known: Sequence[Profile], plans: Plans, measured: Mapping[int, float]) -> Profile:
    """A profile of the device in `description`, of which these plans were measured (index → ratio to the reference).

    It prices as any other and can be saved, but no kernel of it was measured: `measured_fraction` is 0. Raises
    ProfileError without known profiles, or with fewer than 3 measured models or a ratio that is not positive.
    """
    space = _Space(known, plans)
    if len(measured) < MIN_MODELS:
        raise ProfileError(
            f"models measured on {description.device!r}: {len(measured)}, but it takes at least {MIN_MODELS}, better 10"
        )
    description = description.model_copy(update={"learnt_from": tuple(profile.name for profile in known)})
    rows = []
    for index, ratio in measured.items():
        rest = {i: r for i, r in measured.items() if i != index}
        score = space.profile(description, rest, []).score(space.plans[index], ratio)
        rows.append(
            _model(f"measured-{index}", Role.SEARCH, ratio, space.plans[index], score * _stretch(len(measured)))
        )
    return space.profile(description, measured, rows)


def _stretch(count: int) -> float:
    """What the largest of so few scores is to be multiplied by to stand for NOMINAL_COVERAGE.

    The largest of n scores covers n / (n + 1) (Lei et al., JASA 2018, section 2.2); beyond, tails are Gaussian.
    """
    normal = NormalDist()
    reached = min(count / (count + 1), NOMINAL_COVERAGE)
    return normal.inv_cdf((1 + NOMINAL_COVERAGE) / 2) / normal.inv_cdf((1 + reached) / 2)


class _Space:
    """Plans as the known profiles price them."""

    def __init__(self, known: Sequence[Profile], plans: Plans) -> None:
        if not known:
            raise ProfileError(
                "a device is learnt from others' profiles, got none: measure it with `autocompress profile`"
            )
        self.known = known
        self.plans = [tuple(sites(plan).values()) for plan in plans]
        self._priced = np.array([[profile.ratio(where) for profile in known] for where in self.plans])
        features, summary = _features(self.plans), _summary(self.plans)
        self.transfer = Transfer(features, self._priced, summary=summary, known=self._priced)

    def profile(self, description: Description, measured: Mapping[int, float], rows: Sequence[ModelRow]) -> Profile:
        """Fitted to what the plans would take on the device, and to measured rows."""
        forecast = self.transfer.onboard(list(measured.items())).predict()
        expected = [
            _model(f"expected-{i}", Role.FIT, float(forecast.latency[i]), where) for i, where in enumerate(self.plans)
        ]
        return Profile(description, self._kernels(description, measured), (*expected, *rows))

    def _kernels(self, description: Description, measured: Mapping[int, float]) -> dict[Site, KernelRow]:
        """Of the known profiles, each scaled to the device; where several know a kernel, the one most like it."""
        off = np.log(list(measured.values()))[:, None] - np.log(self._priced[list(measured)])
        rows: dict[Site, KernelRow] = {}
        for i in np.argsort(-off.std(0), kind="stable"):
            profile = self.known[i]
            scale = float(np.exp(np.median(off[:, i]))) * description.reference_s / profile.reference_s
            rows |= {site: _scaled(row, scale) for site, row in profile.kernels.items() if row.time_s is not None}
        return rows


def _scaled(row: KernelRow, scale: float) -> KernelRow:
    return KernelRow(time_s=(row.time_s or 0.0) * scale, samples=row.samples)


def _model(name: str, role: Role, ratio: float, where: tuple[Site, ...], score: float | None = None) -> ModelRow:
    return ModelRow(id=name, role=role, ratio=ratio, low=ratio, high=ratio, score=score, sites=where)


def _features(plans: Sequence[tuple[Site, ...]]) -> Floats:
    """Logarithms of the physical terms of each operation and format, summed over a plan."""
    return _summed(plans, kernel_class)


def _summary(plans: Sequence[tuple[Site, ...]]) -> Floats:
    """The same of each format, over all operations."""
    return _summed(plans, lambda site: kernel_class(site)[1])


def _summed(plans: Sequence[tuple[Site, ...]], kind: Callable[[Site], object]) -> Floats:
    kinds = {name: i for i, name in enumerate(dict.fromkeys(kind(site) for where in plans for site in where))}
    found = []
    for where in plans:
        rows = terms(where)
        summed = np.zeros((len(kinds), rows.shape[1]))
        np.add.at(summed, [kinds[kind(site)] for site in where], rows)
        found.append(summed.ravel())
    return np.log1p(np.array(found))
