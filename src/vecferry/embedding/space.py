"""Known models and canonical names: what a model's vectors are, before it is loaded or asked.

Sources: the OpenAI embeddings guide (dimensions, 8,192 tokens an input) and the model cards of the
Hugging Face models (dimension, maximum sequence length, prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from vecferry.errors import ConfigurationError, SpaceMismatchError
from vecferry.model import DenseColumn, EmbeddingSpace, RecordBatch
from vecferry.model.vectors import Array
from vecferry.ports import Embedder

PROBE = "The quick brown fox jumps over the lazy dog."
"""The text whose vector tells two models apart that go by one name; embedded as a document."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """What is fixed for a published model.

    Attributes:
        name: the canonical name, as it stands in `EmbeddingSpace.model`.
        dim: components at full length.
        max_tokens: longest input; what follows is cut or refused.
        normalized: whether vectors have unit length.
        shortens: whether the provider accepts ``dimensions=``.
        prompt, query_prompt: what the model was trained to see before documents and questions.
        tokenizer: the tiktoken encoding, for models that use one.
    """

    name: str
    dim: int
    max_tokens: int
    normalized: bool = True
    shortens: bool = False
    prompt: str = ""
    query_prompt: str = ""
    tokenizer: str | None = None


_E5: dict[str, Any] = {"prompt": "passage: ", "query_prompt": "query: "}
_BGE: dict[str, Any] = {"query_prompt": "Represent this sentence for searching relevant passages: "}
_NOMIC: dict[str, Any] = {"prompt": "search_document: ", "query_prompt": "search_query: "}
_OPENAI: dict[str, Any] = {"tokenizer": "cl100k_base"}
_MODELS = (
    KnownModel("text-embedding-3-small", 1536, 8192, shortens=True, **_OPENAI),
    KnownModel("text-embedding-3-large", 3072, 8192, shortens=True, **_OPENAI),
    KnownModel("text-embedding-ada-002", 1536, 8192, **_OPENAI),
    KnownModel("sentence-transformers/all-MiniLM-L6-v2", 384, 256),
    KnownModel("sentence-transformers/all-MiniLM-L12-v2", 384, 128),
    KnownModel("sentence-transformers/all-mpnet-base-v2", 768, 384),
    KnownModel("sentence-transformers/multi-qa-MiniLM-L6-cos-v1", 384, 512),
    KnownModel("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", 384, 128, normalized=False),
    KnownModel("sentence-transformers/paraphrase-multilingual-mpnet-base-v2", 768, 128, normalized=False),
    KnownModel("intfloat/e5-small-v2", 384, 512, **_E5),
    KnownModel("intfloat/e5-base-v2", 768, 512, **_E5),
    KnownModel("intfloat/e5-large-v2", 1024, 512, **_E5),
    KnownModel("intfloat/multilingual-e5-small", 384, 512, **_E5),
    KnownModel("intfloat/multilingual-e5-base", 768, 512, **_E5),
    KnownModel("intfloat/multilingual-e5-large", 1024, 512, **_E5),
    KnownModel("BAAI/bge-small-en-v1.5", 384, 512, **_BGE),
    KnownModel("BAAI/bge-base-en-v1.5", 768, 512, **_BGE),
    KnownModel("BAAI/bge-large-en-v1.5", 1024, 512, **_BGE),
    KnownModel("BAAI/bge-m3", 1024, 8192),
    KnownModel("nomic-ai/nomic-embed-text-v1.5", 768, 8192, normalized=False, **_NOMIC),
    KnownModel("ollama/nomic-embed-text", 768, 2048, **_NOMIC),
    KnownModel("ollama/mxbai-embed-large", 1024, 512, **_BGE),
    KnownModel("ollama/all-minilm", 384, 256),
)
KNOWN = {model.name: model for model in _MODELS}

KNOWN_WEIGHTS = {
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db": (
        "sentence-transformers/all-MiniLM-L6-v2"
    ),
}
"""SHA-256 of ``model.safetensors`` → canonical name, so that a copied folder is recognised."""


def canonical(model: str) -> str:
    """The one name of a model, whoever serves it.

    >>> canonical("all-MiniLM-L6-v2")
    'sentence-transformers/all-MiniLM-L6-v2'
    >>> canonical("openai/text-embedding-3-small")
    'text-embedding-3-small'
    """
    name = model.strip().removeprefix("openai/")
    own = f"sentence-transformers/{name}"
    return own if own in KNOWN else name


def known(model: str) -> KnownModel | None:
    """What is known of ``model``, under any of its names."""
    return KNOWN.get(canonical(model))


def split_name(text: str) -> tuple[str, str, dict[str, str]]:
    """``"provider:model?option=value"`` as (provider, model, options).

    Raises:
        ConfigurationError: if there is no provider or no model.
    """
    provider, colon, rest = text.partition(":")
    model, _, query = rest.partition("?")
    if not colon or not provider or not model:
        raise ConfigurationError(
            f"{text[:80]!r} names no model; write PROVIDER:MODEL, such as openai:text-embedding-3-small"
        )
    return provider, model, dict(parse_qsl(query, keep_blank_values=True))


def declared_space(declaration: str | EmbeddingSpace, dim: int | None = None) -> EmbeddingSpace:
    """The space a user says vectors are of, such as ``"openai:text-embedding-ada-002"``.

    Options refine it: ``?dimensions=256``, ``?normalized=false``, ``?revision=…``, ``?prompt=…``.

    Args:
        declaration: a space, or ``"provider:model"``.
        dim: the dimension the vectors have; needed for models that are not known here.

    Raises:
        ConfigurationError: if the model is unknown and so is its dimension.
        SpaceMismatchError: if the model cannot have vectors of ``dim``.
    """
    if isinstance(declaration, EmbeddingSpace):
        return _fitting(declaration, dim)
    provider, model, options = split_name(declaration)
    name = model_name(provider, model)
    info = KNOWN.get(name)
    wanted = options.get("dimensions") or options.get("dim")
    if info and info.shortens and dim and not wanted:
        wanted = str(min(dim, info.dim))
    if wanted and not wanted.isdecimal():
        raise ConfigurationError(f"{declaration}: {wanted!r} is no dimension")
    size = int(wanted) if wanted else info.dim if info else dim
    if not size:
        raise ConfigurationError(f"{name} is not a known model: add its dimension, {declaration}?dim=768")
    prompt = options.get("prompt", info.prompt if info else "")
    usual = "true" if info is None or info.normalized else "false"
    space = EmbeddingSpace(
        model=name,
        dim=size,
        normalized=options.get("normalized", usual).lower() not in ("false", "0", "no"),
        revision=options.get("revision"),
        prompt=prompt or None,
    )
    return _fitting(space, dim)


def model_name(provider: str, model: str) -> str:
    """The canonical name of a provider's model. Ollama's conversions count as models of their own."""
    if provider != "ollama":
        return canonical(model)
    return "ollama/" + model.removeprefix("ollama/").removesuffix(":latest")


def _fitting(space: EmbeddingSpace, dim: int | None) -> EmbeddingSpace:
    if dim is not None and space.dim != dim:
        raise SpaceMismatchError(f"{space} was declared, but the vectors have {dim} dimensions")
    return space


def check_same_space(first: EmbeddingSpace, second: EmbeddingSpace, why: str) -> None:
    """Refuse to treat two spaces as one; ``why`` opens the message.

    Raises:
        SpaceMismatchError: saying in what they differ.
    """
    if first.same_as(second):
        return
    left, right = (space.model_dump(exclude={"probe"}) for space in (first, second))
    differing = [f"{key} ({left[key]!r} and {right[key]!r})" for key in left if left[key] != right[key]]
    differing = differing or ["their vectors of a probe text: two models go by one name"]
    raise SpaceMismatchError(f"{why}: {first} and {second} differ in {', '.join(differing)}")


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """How stored vectors compare with fresh ones of the same texts.

    ``cosines`` holds one similarity a text; ``agrees`` says that all are at least 0.99, ``detail`` why not.
    """

    cosines: tuple[float, ...]
    agrees: bool
    detail: str


def check_source(
    embedder: Embedder, batch: RecordBatch, field: str = "", count: int = 8
) -> SampleCheck | None:
    """`check_sample` with the first ``count`` records of a batch that have a text and a vector.

    ``None`` if there are none, so that nothing can be said.
    """
    column = batch.vectors.get(field)
    if not isinstance(column, DenseColumn):
        return None
    texts = batch.text_list
    rows = [row for row in np.flatnonzero(column.present).tolist() if (texts[row] or "").strip()][:count]
    if not rows:
        return None
    return check_sample(embedder, [texts[row] or "" for row in rows], column.values[rows])


def check_sample(
    embedder: Embedder, texts: Sequence[str], vectors: Array, *, least: float = 0.99
) -> SampleCheck:
    """Embed a few texts again and compare: is the declared space the real one?

    `check_source` takes the texts from a batch.

    Args:
        embedder: serves the declared space.
        texts: the stored texts, about 8 of them.
        vectors: ``(len(texts), dim)``, as stored, of any length.
        least: the cosine from which on a pair counts as equal (providers differ by about 1e-4
            between runs and hosts; two models hardly reach 0.1).
    """
    stored = np.asarray(vectors, dtype=np.float32)
    if stored.shape[1] != embedder.space.dim:
        detail = f"{stored.shape[1]} dimensions, but {embedder.space} has {embedder.space.dim}"
        return SampleCheck((), False, detail)
    fresh = embedder.embed(list(texts))
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
    products = np.einsum("ij,ij->i", stored, fresh)
    cosines = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    low = float(cosines.min(initial=1.0))
    agrees = bool(low >= least)
    detail = f"{len(fresh)} texts embedded again: cosine {low:.4f} or more"
    if not agrees:
        detail += "; another model, or another text (a template, metadata, a prompt), was embedded"
    return SampleCheck(tuple(float(c) for c in cosines), agrees, detail)
