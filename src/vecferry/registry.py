"""Its place until 0.2: see `vecferry.connecting` and `vecferry.core.registry`."""

from vecferry.core.moved import moved

__getattr__ = moved(
    __name__,
    {
        "connect": "vecferry.connecting:connect",
        "borrowed": "vecferry.connecting:borrowed",
        "find": "vecferry.core.registry:find",
        "STORES": "vecferry.core.registry:STORES",
        "EMBEDDERS": "vecferry.core.registry:EMBEDDERS",
    },
)
