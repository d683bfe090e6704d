"""Embedding: spaces, providers, chains and alternatives, the cache, the budget, the stage of a stream."""

from __future__ import annotations

from vecferry.core.moved import moved
from vecferry.embedding.base import BaseEmbedder, Listener, Part, TextsRejected
from vecferry.embedding.budget import Budget, Ledger, MeteredEmbedder, PriceTable, Spent
from vecferry.embedding.cache import CachedEmbedder, EmbeddingCache, RedisCache, SqliteCache, open_cache
from vecferry.embedding.chain import Choice, EmbedderChain, Switch, choose_alternative
from vecferry.embedding.forecast import CostForecast, forecast_costs
from vecferry.embedding.hub import LocalModel, fetch_model, list_models, remove_model
from vecferry.embedding.providers.azure import AzureEmbedder
from vecferry.embedding.providers.callables import CallableEmbedder, LlamaIndexEmbedder
from vecferry.embedding.providers.ollama import OllamaEmbedder
from vecferry.embedding.providers.openai import OpenAIEmbedder
from vecferry.embedding.providers.sentence_transformers import SentenceTransformersEmbedder
from vecferry.embedding.query import QueryEmbedder, QueryFigures
from vecferry.embedding.resolve import resolve
from vecferry.embedding.router import EmbeddingRouter
from vecferry.embedding.space import SampleCheck, canonical, check_sample, check_source, declared_space
from vecferry.embedding.stage import EmbedReport, EmbedStage, Estimate, SampleCounts
from vecferry.errors import LocalStateError

Survey = SampleCounts
"""The former name of `SampleCounts`."""

__all__ = [
    "AzureEmbedder",
    "BaseEmbedder",
    "Budget",
    "CachedEmbedder",
    "CallableEmbedder",
    "Choice",
    "CostForecast",
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
    "OllamaEmbedder",
    "OpenAIEmbedder",
    "Part",
    "PriceTable",
    "QueryEmbedder",
    "QueryFigures",
    "RedisCache",
    "SampleCheck",
    "SampleCounts",
    "SentenceTransformersEmbedder",
    "Spent",
    "SqliteCache",
    "Survey",
    "Switch",
    "TextsRejected",
    "canonical",
    "check_sample",
    "check_source",
    "choose_alternative",
    "declared_space",
    "fetch_model",
    "forecast_costs",
    "list_models",
    "open_cache",
    "remove_model",
    "resolve",
]

_BENCH = ("ModelBench", "ModelScore", "Question", "bench_models", "plot_costs", "sample_texts")
__getattr__ = moved(__name__, {name: f"vecferry.contrib.model_bench:{name}" for name in _BENCH})
