"""From what a user writes in ``embed=`` to an `Embedder`."""

from __future__ import annotations

import re
from typing import Any

from vecferry.core.redaction import clean
from vecferry.core.registry import find
from vecferry.embedding.providers.callables import CallableEmbedder, LlamaIndexEmbedder, from_langchain
from vecferry.embedding.space import split_name
from vecferry.errors import ConfigurationError
from vecferry.ports import Embedder


def resolve(embed: Any, **options: Any) -> Embedder:
    """One embedder.

    Args:
        embed: ``"provider:model?option=value"``, an `Embedder`, a LlamaIndex ``BaseEmbedding``, a
            LangChain ``Embeddings``, or a function from texts to vectors.
        options: for the provider; they win over those of the text.

    Raises:
        UnknownSchemeError: naming the closest provider there is.
        ConfigurationError: for a malformed name, an unknown option, or a list (see `choose_alternative`).
        MissingDependencyError: naming the pip extra.

    >>> resolve("openai:text-embedding-3-small", api_key="…").space.dim
    1536
    """
    if isinstance(embed, str):
        return _from_text(embed, options)
    if hasattr(embed, "embed") and hasattr(embed, "space"):
        return embed  # type: ignore[no-any-return]
    if hasattr(embed, "get_text_embedding_batch"):
        return LlamaIndexEmbedder(embed, **options)
    if hasattr(embed, "embed_documents"):
        return from_langchain(embed, **options)
    if hasattr(embed, "encode"):
        raise ConfigurationError("give a sentence-transformers model by name: 'sentence-transformers:NAME'")
    if callable(embed):
        return CallableEmbedder(embed, **options)
    raise ConfigurationError(
        f"embed= takes 'provider:model', an embedder or a function, not {type(embed).__name__}"
    )


def _from_text(text: str, options: dict[str, Any]) -> Embedder:
    provider, model, own = split_name(text)
    embedder = find("vecferry.embedders", provider)
    try:
        return embedder(model, **{**own, **options})  # type: ignore[no-any-return]
    except ValueError as error:
        raise ConfigurationError(f"{provider}: an option has no usable value: {clean(error)}") from error
    except TypeError as error:
        if not re.search("unexpected keyword argument|multiple values for", str(error)):
            raise
        name = str(error).rsplit("'", 2)[-2]
        raise ConfigurationError(
            f"{provider}: has no option {name!r}; see the page on embedding"
        ) from error
