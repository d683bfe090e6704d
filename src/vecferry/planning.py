"""Its place until 0.2: see `vecferry.pipeline`."""

from vecferry.core.moved import moved

__getattr__ = moved(
    __name__,
    {
        "CallOptions": "vecferry.pipeline.settings:CallOptions",
        "Options": "vecferry.pipeline.settings:Options",
        "Plan": "vecferry.pipeline.plan:Plan",
        "Settings": "vecferry.pipeline.settings:Settings",
    },
)
