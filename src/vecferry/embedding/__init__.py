"""Embedding: spaces, providers, chains and alternatives, the cache, the budget, the stage of a stream."""

from vecferry.contrib.router import EmbeddingRouter
from vecferry.embedding.base import BaseEmbedder, Listener, LocalStateError, Part, TextsRejected
from vecferry.embedding.budget import Budget, Ledger, MeteredEmbedder, Spent
from vecferry.embedding.cache import EmbeddingCache, RedisCache, SqliteCache, open_cache
from vecferry.embedding.cached import CachedEmbedder
from vecferry.embedding.callables import CallableEmbedder
from vecferry.embedding.chain import Choice, EmbedderChain, Switch, choose_alternative
from vecferry.embedding.hub import LocalModel, fetch_model
from vecferry.embedding.llamaindex import LlamaIndexEmbedder
from vecferry.embedding.models import (
    ModelBench,
    ModelScore,
    Question,
    bench_models,
    plot_costs,
    sample_texts,
)
from vecferry.embedding.ollama import OllamaEmbedder
from vecferry.embedding.openai import AzureEmbedder, OpenAIEmbedder
from vecferry.embedding.prices import PriceTable
from vecferry.embedding.reports import EmbedReport, Estimate, Survey
from vecferry.embedding.resolve import resolve
from vecferry.embedding.sentence_transformers import SentenceTransformersEmbedder
from vecferry.embedding.spaces import SampleCheck, canonical, check_sample, check_source, declared_space
from vecferry.embedding.stage import EmbedStage

__all__ = [
    "AzureEmbedder",
    "BaseEmbedder",
    "Budget",
    "CachedEmbedder",
    "CallableEmbedder",
    "Choice",
    "EmbedReport",
    "EmbedStage",
    "EmbedderChain",
    "EmbeddingCache",
    "EmbeddingRouter",
    "Estimate",
    "Ledger",
    "Listener",
    "LlamaIndexEmbedder",
    "LocalModel",
    "LocalStateError",
    "MeteredEmbedder",
    "ModelBench",
    "ModelScore",
    "OllamaEmbedder",
    "OpenAIEmbedder",
    "Part",
    "PriceTable",
    "Question",
    "RedisCache",
    "SampleCheck",
    "SentenceTransformersEmbedder",
    "Spent",
    "SqliteCache",
    "Survey",
    "Switch",
    "TextsRejected",
    "bench_models",
    "canonical",
    "check_sample",
    "check_source",
    "choose_alternative",
    "declared_space",
    "fetch_model",
    "open_cache",
    "plot_costs",
    "resolve",
    "sample_texts",
]
