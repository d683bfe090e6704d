"""OpenAI's models on Azure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vecferry.embedding.providers.openai import HttpEnd, OpenAIEmbedder, _End, environment_headers
from vecferry.embedding.space import canonical, known
from vecferry.errors import ConfigurationError

if TYPE_CHECKING:
    import httpx


class AzureEmbedder(OpenAIEmbedder):
    """``"azure:DEPLOYMENT?model=text-embedding-3-small"``: OpenAI's models on Azure.

    Args:
        name: the deployment.
        model: the model behind it, since a deployment may have any name.
        endpoint: else ``AZURE_OPENAI_ENDPOINT``.
        api_key: else ``AZURE_OPENAI_API_KEY``; or ``token``, a function that returns an Entra ID token, or
            ``AZURE_OPENAI_AD_TOKEN``.
        api_version: else ``OPENAI_API_VERSION``, else ``2024-10-21``.
        options: as for `OpenAIEmbedder`.
    """

    provider = "azure"

    def __init__(
        self,
        name: str,
        *,
        model: str | None = None,
        endpoint: str | None = None,
        api_key: str | None = None,
        token: Callable[[], str] | None = None,
        api_version: str | None = None,
        **options: Any,
    ) -> None:
        if options.get("space") is None and known(model or name) is None:
            raise ConfigurationError(
                f"azure: which model is behind the deployment {name!r}? Add ?model=text-embedding-3-small"
            )
        self._model = model or name
        self._token = token
        self._api_version = api_version or os.environ.get("OPENAI_API_VERSION") or "2024-10-21"
        base = endpoint or os.environ.get("AZURE_OPENAI_ENDPOINT")
        if not base and options.get("client") is None:
            raise ConfigurationError("azure: needs an address: set AZURE_OPENAI_ENDPOINT")
        super().__init__(name, api_key=api_key, base_url=base, **options)

    @property
    def model(self) -> str:
        return canonical(self._model)

    def _own_end(
        self,
        api_key: str | None,
        base_url: str | None,
        timeout: float,
        headers: Mapping[str, str],
        http_client: httpx.Client | None,
    ) -> _End:
        token, fixed = self._token, os.environ.get("AZURE_OPENAI_AD_TOKEN")
        key = api_key or (None if token else os.environ.get("AZURE_OPENAI_API_KEY"))
        if not key and token is None and not fixed:
            raise ConfigurationError(
                "azure: needs a key or a token: set AZURE_OPENAI_API_KEY or AZURE_OPENAI_AD_TOKEN"
            )

        def every_header() -> dict[str, str]:
            bearer = {} if key else {"Authorization": f"Bearer {token() if token else fixed}"}
            return {**({"api-key": key} if key else bearer), **environment_headers(), **headers}

        return HttpEnd(
            base_url or "",
            f"/openai/deployments/{self.name}/embeddings?api-version={self._api_version}",
            every_header,
            who=f"azure deployment {self.name!r}",
            timeout=timeout,
            key="the API key; check AZURE_OPENAI_API_KEY"
            if key
            else "the token; sign in again, or set AZURE_OPENAI_API_KEY",
            http_client=http_client,
        )


__all__ = ["AzureEmbedder"]
