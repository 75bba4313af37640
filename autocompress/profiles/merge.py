"""One profile of a device from several, each calibrated on another model."""

from collections.abc import Mapping
from dataclasses import dataclass

from autocompress.profiles.files import KernelRow, ModelRow
from autocompress.profiles.profile import Profile
from autocompress.profiles.sites import Site
from autocompress.vocabulary.errors import ProfileError


@dataclass(frozen=True, slots=True)
class _Sum:
    """Times of one site in several profiles, weighted by how often each was seen."""

    time_s: float = 0.0
    samples: int = 0

    def plus(self, row: KernelRow) -> "_Sum":
        if row.time_s is None:
            return self
        samples = self.samples + row.samples
        return _Sum((self.time_s * self.samples + row.time_s * row.samples) / samples, samples)


def merge(name: str, profiles: Mapping[str, Profile], source: str = "") -> Profile:
    """A profile that knows all that the given ones do, in units of the first one's reference.

    Keys of `profiles` say which model each was calibrated on. Raises ProfileError for profiles of different devices or
    runtimes, whose times don't add up.
    """
    first, *others = profiles.values()
    for other in others:
        for key in ("device", "runtime", "dtypes", "channel_multiple"):
            mine, found = getattr(first.description, key), getattr(other.description, key)
            if mine != found:
                raise ProfileError(
                    f"profiles of one device can be merged; {key} is {mine!r} in one, {found!r} in another"
                )
    description = first.description.model_copy(update={"name": name, "source": source or first.description.source})
    sums: dict[Site, _Sum] = {}
    models: list[ModelRow] = []
    for net, profile in profiles.items():
        for site, row in profile.kernels.items():
            sums[site] = sums.get(site, _Sum()).plus(row)
        unit = profile.reference_s / first.reference_s
        models += [_in_units(row, f"{net}/{row.id}", unit) for row in profile.models]
    kernels = {
        site: KernelRow(time_s=found.time_s, samples=found.samples) if found.samples else KernelRow()
        for site, found in sums.items()
    }
    return Profile(description, kernels, tuple(models))


def _in_units(row: ModelRow, name: str, unit: float) -> ModelRow:
    scaled = {key: unit * getattr(row, key) for key in ("ratio", "low", "high")}
    return ModelRow(**{**dict(row), "id": name, **scaled})
