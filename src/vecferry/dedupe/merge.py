"""``merge="union"``: what the removed records knew and the kept one did not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def union(kept: Mapping[str, Any], removed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata of the kept record, completed. Its own values stay; lists are joined without repeats.

    >>> union({"lang": "en", "tags": ["a"]}, [{"lang": "de", "tags": ["b", "a"], "page": 3}])
    {'lang': 'en', 'tags': ['a', 'b'], 'page': 3}
    """
    result = dict(kept)
    for other in removed:
        for key, value in other.items():
            have = result.get(key)
            if isinstance(have, list) and isinstance(value, list):
                result[key] = joined = list(have)
                for item in value:
                    if item not in joined:
                        joined.append(item)
            elif have is None:
                result[key] = value
    return result
