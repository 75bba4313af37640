"""Hardware profiles: measured once per device, then a plan's latency is a sum over its kernels."""

from autocompress.profiles.calibration import Planned, calibrate
from autocompress.profiles.profile import Profile, ProfileWarning, list_profiles, load

__all__ = ["Planned", "Profile", "ProfileWarning", "calibrate", "list_profiles", "load"]
