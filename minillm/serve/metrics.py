"""What dashboards read, under the names that they know from vLLM with a prefix of our own (`--metrics-prefix`)."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

import minillm
from minillm.serve.answering import Job
from minillm.serve.models.catalog import Catalog

SHORT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
LONG = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
COUNTS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))
SECONDS = {
    "time_to_first_token_seconds": ("from the arrival of a request to its first token", SHORT),
    "inter_token_latency_seconds": ("between tokens", SHORT),
    "request_time_per_output_token_seconds": ("per token of a request, after the first", SHORT),
    "e2e_request_latency_seconds": ("from arrival to end", LONG),
    "request_queue_time_seconds": ("until a request is begun", LONG),
    "request_prefill_time_seconds": ("from its beginning to the first token", LONG),
    "request_decode_time_seconds": ("from the first token to the last", LONG),
    "request_inference_time_seconds": ("from its beginning to the last token", LONG),
    "request_prompt_tokens": ("tokens of a prompt", COUNTS),
    "request_generation_tokens": ("tokens of an answer", COUNTS),
    "request_params_n": ("answers asked for", COUNTS),
    "request_params_max_tokens": ("tokens that may be written", COUNTS),
}
TOTALS = {
    "prompt_tokens": "tokens of prompts",
    "prompt_tokens_cached": "of these, found in the cache",
    "prefix_cache_queries": "tokens of prompts that were looked for in the cache",
    "prefix_cache_hits": "of these, found",
    "generation_tokens": "tokens written",
    "num_preemptions": "requests that gave up their place in the cache",
}
STATES = {
    "running": ("num_requests_running", "requests under way"),
    "waiting": ("num_requests_waiting", "requests that wait"),
    "usage": ("kv_cache_usage_perc", "share of the cache in use, 0 to 1"),
}


class Metrics:
    """Counters of one server."""

    def __init__(self, models: Catalog, prefix: str):
        self.models, self.registry, names = models, CollectorRegistry(), ["model_name"]
        common: dict[str, Any] = {"registry": self.registry}
        self.seconds = {
            name: Histogram(f"{prefix}:{name}", text, names, buckets=buckets, **common)
            for name, (text, buckets) in SECONDS.items()
        }
        self.totals = {name: Counter(f"{prefix}:{name}", text, names, **common) for name, text in TOTALS.items()}
        finished = [*names, "finished_reason"]
        self.success = Counter(f"{prefix}:request_success", "requests that came to their end", finished, **common)
        self.rejected = Counter(f"{prefix}:admission_rejections", "requests refused", ["reason"], **common)
        self.states = {key: Gauge(f"{prefix}:{name}", text, names, **common) for key, (name, text) in STATES.items()}
        self.loaded = Gauge(f"{prefix}:model_loaded", "whether a model is in memory, 0 or 1", names, **common)
        Gauge(f"{prefix}:info", "what is running", ["version"], **common).labels(minillm.__version__).set(1)

    def text(self) -> bytes:
        loaded = self.models.loaded
        for model in self.models.all:
            self.loaded.labels(model.card.name).set(any(each.name == model.card.name for each in loaded))
        for each in (*self.seconds.values(), *self.totals.values()):  # a rate needs the 0 that a series begins with
            for served in loaded:
                each.labels(served.name)
        for key, gauge in self.states.items():
            gauge.clear()
            for served in (each for each in loaded if each.parent is None):  # whose engine its adapters share
                gauge.labels(served.name).set(state(served.engine)[key])
        return bytes(generate_latest(self.registry))

    def count(self, job: Job) -> None:
        """A job that has ended, in whatever way."""
        model, asked = job.served.name, job.asked
        self._add("request_params_n", model, asked.n)
        if asked.most is not None:
            self._add("request_params_max_tokens", model, asked.most)
        for choice in job.choices:
            request, row = choice.ticket.request, choice.row
            self.success.labels(model, choice.finish or "abort").inc()
            self.totals["generation_tokens"].labels(model).inc(len(row.token_ids))
            self.totals["num_preemptions"].labels(model).inc(request.preempted)
            self._add("request_generation_tokens", model, len(row.token_ids))
            self._times(model, choice.times, len(row.token_ids))
            for seconds in choice.gaps:
                self._add("inter_token_latency_seconds", model, seconds)
        for prompt, cached in job.prompts():
            self._add("request_prompt_tokens", model, prompt)
            for name, count in (("prompt_tokens", prompt), ("prefix_cache_queries", prompt)):
                self.totals[name].labels(model).inc(count)
            for name in ("prompt_tokens_cached", "prefix_cache_hits"):
                self.totals[name].labels(model).inc(cached)

    def _times(self, model: str, times: tuple[float | None, ...], tokens: int) -> None:
        arrived, started, first, last = times
        if arrived is None or started is None or first is None:
            return
        last = last if last is not None else time.monotonic()
        self._add("time_to_first_token_seconds", model, first - arrived)
        self._add("request_queue_time_seconds", model, started - arrived)
        self._add("request_prefill_time_seconds", model, first - started)
        self._add("request_decode_time_seconds", model, last - first)
        self._add("request_inference_time_seconds", model, last - started)
        self._add("e2e_request_latency_seconds", model, last - arrived)
        if tokens > 1:
            self._add("request_time_per_output_token_seconds", model, (last - first) / (tokens - 1))

    def _add(self, name: str, model: str, value: float) -> None:
        self.seconds[name].labels(model).observe(value)


def state(engine: minillm.Engine) -> dict[str, float]:
    """How much an engine has to do."""
    health = engine.health()
    shares = [1 - blocks.free / max(1, blocks.count) for blocks in engine.engine.store.groups.values()]
    return {"running": health["running"], "waiting": health["waiting"], "usage": max(shares, default=0.0)}
