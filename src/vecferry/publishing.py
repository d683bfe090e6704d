"""Its place until 0.2: see `vecferry.api.jobs`."""

from vecferry.core.moved import moved

__getattr__ = moved(
    __name__,
    {
        "new_tag": "vecferry.pipeline.publish:new_tag",
        "prune": "vecferry.api.jobs:prune",
        "publishable": "vecferry.pipeline.publish:publishable",
        "rollback": "vecferry.api.jobs:rollback",
        "versions": "vecferry.api.jobs:versions",
    },
)
