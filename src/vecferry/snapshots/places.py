"""From a URL to the objects behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vecferry.errors import ConfigurationError
from vecferry.ports import ShouldStop, StoreURL
from vecferry.snapshots.local import LocalObjects
from vecferry.snapshots.objects import Objects
from vecferry.snapshots.s3 import S3Objects


def objects_at(url: StoreURL, given: Mapping[str, str | None], should_stop: ShouldStop) -> Objects:
    """Where a store's URL leads: a bucket or a folder.

    Raises:
        ConfigurationError: for anything else, or an option that is not known.
    """
    if url.scheme == "file":
        path = f"/{url.path}" if url.netloc else url.path
        if not path:
            raise ConfigurationError("write file:PATH, such as file:./snapshots")
        return LocalObjects(Path(path).expanduser().absolute())
    if url.scheme != "s3" or not url.host:
        raise ConfigurationError("snapshots lie in s3://BUCKET/PREFIX or file:PATH")
    if url.user or url.password:
        raise ConfigurationError(
            "s3:// takes no login; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    options = {name: value or url.options.get(name) for name, value in given.items()}
    unknown = set(url.options) - set(given)
    if unknown:
        raise ConfigurationError(f"s3: has no option {sorted(unknown)[0]!r}; there are {', '.join(given)}")
    return S3Objects(
        url.host,
        url.path,
        endpoint_url=options["endpoint_url"],
        region=options["region"],
        profile=options["profile"],
        should_stop=should_stop,
    )
