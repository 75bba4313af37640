"""Hardware profiles: measured once per device, then a plan's latency is a sum over its kernels."""

from autocompress.profiles.calibration import Planned, calibrate, describe, measure_in_turns, measured_before, slug
from autocompress.profiles.profile import Profile, ProfileWarning, descriptions, list_profiles, load, profile_of

__all__ = [
    "Planned",
    "Profile",
    "ProfileWarning",
    "calibrate",
    "describe",
    "descriptions",
    "list_profiles",
    "load",
    "measure_in_turns",
    "measured_before",
    "profile_of",
    "slug",
]
