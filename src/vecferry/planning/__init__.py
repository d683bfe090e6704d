"""Before the first write: settings, census of the source, mapping to the target, losses, the plan."""

from vecferry.planning.census import Census, find_duplicates, take_census
from vecferry.planning.mapping import field_names, find_losses, fit_names, target_field
from vecferry.planning.plan import Plan
from vecferry.planning.settings import CallOptions, Options, Settings, read_settings

__all__ = [
    "CallOptions",
    "Census",
    "Options",
    "Plan",
    "Settings",
    "field_names",
    "find_duplicates",
    "find_losses",
    "fit_names",
    "read_settings",
    "take_census",
    "target_field",
]
