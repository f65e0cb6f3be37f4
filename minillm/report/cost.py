"""What a run has cost, for people and for programs."""

from __future__ import annotations

import dataclasses
from typing import Any

from minillm.engine.completion import Result, Timings
from minillm.llm import LLM
from minillm.ops.cpu import usable
from minillm.report.measure import copy_bandwidth, peak_memory


def measured(llm: LLM, timings: Timings, draft: LLM | None, quick: bool) -> dict[str, float | None]:
    """Speed, and its share of the bandwidth measured now; None for the latter when `quick`, or where it fails, and for
    the share of accepted tokens where none were drafted."""

    def rate(count: float, seconds: float) -> float:
        return count / seconds if seconds > 0 else 0.0

    peak = peak_memory(llm.device)  # before the copies that measure the bandwidth
    read = timings.decode_steps * llm.bytes_per_step + timings.draft_steps * (draft.bytes_per_step if draft else 0)
    achieved = rate(read, timings.decode_seconds)
    try:
        possible = None if quick else copy_bandwidth(llm.device)
    except KeyboardInterrupt:  # the text is there: only this figure is given up
        possible = None
    return {
        **dataclasses.asdict(timings),
        "prompt_tokens_per_second": rate(timings.prompt_tokens, timings.prompt_seconds),
        "decode_tokens_per_second": rate(timings.decode_tokens, timings.decode_seconds),
        "tokens_per_step": rate(timings.decode_tokens, timings.decode_steps),
        "acceptance_rate": timings.accepted_tokens / timings.drafted_tokens if timings.drafted_tokens else None,
        "achieved_gb_per_second": achieved / 1e9,
        "copy_gb_per_second": possible and possible / 1e9,
        "bandwidth_share": possible and achieved / possible,
        "peak_memory_bytes": peak,
    }


def line(report: dict[str, Any]) -> str:
    """What `measured` found, to be read."""
    share = ""
    if report["copy_gb_per_second"]:
        share = f" = {report['bandwidth_share']:.0%} of the {report['copy_gb_per_second']:.1f} GB/s this machine copies"
    drafted = ""
    if report["acceptance_rate"] is not None:
        drafted = (
            f"{report['accepted_tokens']} of {report['drafted_tokens']} drafted tokens accepted "
            f"({report['acceptance_rate']:.0%}), {report['tokens_per_step']:.2f} tokens per step; "
        )
    meanwhile = "in plain PyTorch, until loops were compiled; " if usable.beside and usable.beside.asked else ""
    return (
        f"prompt {report['prompt_tokens']} tokens, {report['prompt_tokens_per_second']:.1f} tok/s; "
        f"decode {report['decode_tokens']} tokens, {report['decode_tokens_per_second']:.1f} tok/s, "
        f"{report['achieved_gb_per_second']:.2f} GB/s{share}; {drafted}{meanwhile}"
        f"peak memory {report['peak_memory_bytes'] / 1e6:.0f} MB"
    )


def as_json(result: Result, report: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "text": result.text,
        **({"reasoning": result.reasoning} if result.reasoning else {}),
        "token_ids": result.token_ids,
        "prompt_token_ids": result.prompt_token_ids,
        "finish_reason": result.finish_reason,
        "timings": report,
    }
