"""A checkpoint as a model of EleutherAI's lm-evaluation-harness, which knows it as `minillm`.

The harness brings tasks, prompts and metrics, and asks three things of a model: how likely continuations are, how
likely a whole text is, and what follows a prompt. The answers are meant to be those of its own backend for transformers
(`hf`), so that scores can be compared: the same BOS, the same cuts from the left, the same windows.

This module needs lm_eval; `minillm.harness` says so where it is absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string

from minillm import cli
from minillm.engine.batching.room import MAX_ROWS
from minillm.engine.scoring import score
from minillm.guard.screen import note
from minillm.llm import LLM
from minillm.loading import load
from minillm.text import chat

DEFAULT_NEW_TOKENS = 256  # where a task does not say, as in hf
FLAGS = ("add_bos_token", "enable_thinking", "keep_quantized", "symmetric")  # True, False, or None for the default
THEIR_DEVICE = "cuda:0"  # what the harness's command line passes on where nobody asked for a device
DEFAULT_FLAGS = (None, THEIR_DEVICE, 1, "1")  # of its flags of the same names as arguments


@register_model("minillm")
class HarnessLM(TemplateLM):  # the registry takes nothing but subclasses
    """`--model_args`: `weights` and the other options of `loading.load`, and those below.

    `max_length` tokens at most are read at once (default: the checkpoint's context). `add_bos_token` puts a BOS before
    each text, or with False nothing (default: what the tokenizer does). `prefix_token_id` stands before a text without
    context (default: BOS, else EOS). `enable_thinking` is handed to the chat template; what a model writes up to its
    last `think_end_token`, a text, is left out of the answer.

    `batch_size` is the most rows that go through the model together; "auto" leaves it to the engine, with
    `max_batch_size` rows at most. Raises ValueError for whatever cannot be, unknown arguments included.
    """

    def __init__(
        self,
        weights: str | None = None,
        device: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        **options: Any,
    ):
        super().__init__()
        _refuse_unknown(options)
        _refuse_words({"add_bos_token": add_bos_token, "enable_thinking": enable_thinking, **options})
        _refuse_no_text(think_end_token)
        self.rows = _rows(batch_size, max_batch_size)
        options = {name: value for name, value in options.items() if name not in FLAGS or value is not None}
        path = None if weights is None else str(weights)  # the harness makes numbers of what looks like one
        self.llm = load(path, device=_device(device), progress=cli.progress_bar("loading"), **options)
        if self.llm.tokenizer is None:
            raise ValueError(f"{self.llm.folder}: no tokenizer.json or tokenizer.model; the harness asks in texts")
        self.tokenizer = self.llm.tokenizer
        self.max_length = self.llm.spec.context if max_length is None else max_length
        if not isinstance(self.max_length, int) or not 2 <= self.max_length <= self.llm.spec.context:
            raise ValueError(f"max_length is {max_length!r}, this model takes from 2 to {self.llm.spec.context}")
        if add_bos_token and self.tokenizer.bos_id is None:
            raise ValueError(f"add_bos_token: the tokenizer of {self.llm.folder} names no BOS; leave it out")
        self.add_bos_token, self.think_end_token = add_bos_token, think_end_token
        self.variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._eot, self._prefix = _ends(self.llm, prefix_token_id)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> HarnessLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: dict[str, Any] | None = None
    ) -> HarnessLM:
        """From `--model_args` and the flags that the harness has for the same, such as `--device`."""
        return cls(**_together(arg_dict, additional_config or {}))

    @property
    def eot_token_id(self) -> int:
        return self._eot

    @property
    def prefix_token_id(self) -> int:
        return self._prefix

    @property
    def device(self) -> torch.device:
        return self.llm.device

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the scores."""
        size = sum(parameter.nbytes for parameter in self.llm.model.parameters())
        return {"model_dtype": str(self.llm.model.dtype), "model_parameter_bytes": size}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Ids of a text, with what the tokenizer puts around it unless `add_special_tokens` or `add_bos_token` says
        otherwise; a BOS that the text already begins with is not doubled."""
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        ids = self.tokenizer.encode(string, special=wanted is not False)
        bos = self.tokenizer.bos_id
        if add_special_tokens is None and self.add_bos_token and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **options: Any,
    ) -> list[tuple[float, bool]]:
        """What the base class asks for once it has made ids of the texts: (texts, context, continuation) each."""
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        scores = self._score(pairs, "loglikelihood", disable_tqdm)
        for (texts, _, _), found in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, found)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each text, every token predicted once. Windows of `max_length` tokens follow each
        other without overlap, but for the last, which reaches back to be as long."""
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            found = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
            windows += [make_disjoint_window(window) for window in found]
            owners += [owner] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(windows, "rolling", disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each prompt up to one of its `until` texts, a stop token of the checkpoint, or the limit."""
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        progress = _progress("generate_until", disable_tqdm)
        done = 0
        for indices in alike.values():
            size = self.rows or MAX_ROWS
            for start in range(0, len(indices), size):
                some = indices[start : start + size]
                contexts = [requests[index].args[0] for index in some]
                for index, text in zip(some, self._generate(contexts, requests[some[0]].args[1]), strict=True):
                    texts[index] = text
                    self.cache_hook.add_partial("generate_until", requests[index].args, text)
                done += len(some)
                progress(done, len(requests))
        return texts

    def _generate(self, contexts: list[str], asked: Mapping[str, Any]) -> list[str]:
        options = dict(normalize_gen_kwargs(dict(asked), DEFAULT_NEW_TOKENS))
        stops = handle_stop_sequences(options.pop("until"), self.tokenizer.decode([self._eot], skip_special=False))
        stops = [stop for stop in stops if stop]
        limit = options.pop("max_gen_toks")
        if limit >= self.max_length:
            raise ValueError(f"max_gen_toks is {limit}, which leaves no room for a prompt in {self.max_length} tokens")
        if (beams := options.pop("num_beams", 1)) != 1:
            raise ValueError(f"num_beams is {beams!r}: there is no beam search here; leave it out, or make it 1")
        if not options.pop("do_sample"):
            options["temperature"] = 0.0
        room = self.max_length - limit
        prompts = [(self.tok_encode(context) or [self._prefix])[-room:] for context in contexts]
        results = self.llm.generate(prompt_ids=prompts, max_new_tokens=limit, stop=stops, **options)
        assert isinstance(results, list)
        return [postprocess_generated_text(result.text, stops, self.think_end_token) for result in results]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text. Without a generation prompt its last message is left open, to be gone on with."""
        template = self.llm.chat_template()
        return template.render(
            chat_history,
            add_generation_prompt,
            variables=self.variables,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the checkpoint's template, for the harness's records; None where none is wanted."""
        if chat_template in (False, None):
            return None
        if chat_template not in (True, "default"):
            raise ValueError(f"chat template {chat_template!r}: only the checkpoint's default one can be chosen")
        self.llm.chat_template()  # says so where there is none
        return chat.find(self.llm.folder, self.tokenizer.config)

    @property
    def tokenizer_name(self) -> str:
        """What tells prompts of one checkpoint from those of another in the harness's cache of requests."""
        return str(self.llm.folder).replace("/", "__")

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """A pair without what the model cannot read: the last token is only predicted, and the first ones go."""
        if len(continuation) > self.max_length:
            raise ValueError(f"a continuation has {len(continuation)} tokens, the model takes {self.max_length}")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def _score(self, pairs: Sequence[tuple[list[int], list[int]]], label: str, quiet: bool) -> list[tuple[float, bool]]:
        return score(self.llm.model, pairs, self.rows, _progress(label, quiet))


def _progress(label: str, quiet: bool) -> Any:
    return (lambda done, total: None) if quiet else cli.progress_bar(label, unit=" requests")


def _together(arguments: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """What is named in both counts as an argument; the flag must be left alone, or say the same."""
    for name in arguments.keys() & flags.keys():
        if flags[name] not in DEFAULT_FLAGS and str(flags[name]) != str(arguments[name]):
            raise ValueError(f"{name} is {arguments[name]!r} in --model_args and {flags[name]!r} in --{name}; give one")
    if "self" in arguments:
        _refuse_unknown({"self": arguments["self"]})
    return {**{name: value for name, value in flags.items() if value is not None}, **arguments}


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    known = ("dtype", "kernels", "keep_quantized", "quantize", "group_size", "symmetric")
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"unknown model argument {', '.join(unknown)}; there are weights, {', '.join(known)}, "
                         "max_length, add_bos_token, prefix_token_id, enable_thinking and think_end_token")  # fmt: skip


def _refuse_words(options: Mapping[str, Any]) -> None:
    """The harness makes values of true, false and none only: no or off stay texts, which would count as true."""
    for name in FLAGS:
        value = options.get(name)
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, it must be True or False, or left out for the default")


def _refuse_no_text(think_end_token: Any) -> None:
    if think_end_token is not None and not isinstance(think_end_token, str):
        raise ValueError(f"think_end_token is {think_end_token!r}, it must be a text such as </think>, not an id; "
                         "quote a text that looks like a number")  # fmt: skip


def _rows(batch_size: int | str, max_batch_size: int | None) -> int | None:
    """The most rows at a time; None: as many as pay."""
    most = None if max_batch_size is None else _count("max_batch_size", max_batch_size, "")
    if str(batch_size).partition(":")[0] == "auto":
        return most
    return _count("batch_size", batch_size, "auto or ")


def _count(name: str, value: int | str, other: str) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise ValueError(f"{name} is {value!r}, it must be {other}a whole number of at least 1")
    return int(value)


def _device(device: str) -> str:
    if device == THEIR_DEVICE and not torch.cuda.is_available():
        note(f"no GPU is here for {device}, the harness's default: running on the CPU")
        return "cpu"
    return device


def _ends(llm: LLM, prefix: int | None) -> tuple[int, int]:
    """The id that ends a text, and the one that stands before a text without context."""
    assert llm.tokenizer is not None
    eos = llm.tokenizer.eos_id if llm.tokenizer.eos_id is not None else min(llm.stop_ids, default=None)
    bos = eos if llm.tokenizer.bos_id is None else llm.tokenizer.bos_id
    if eos is None or bos is None:
        raise ValueError(f"{llm.folder}: neither its tokenizer nor its configs name an EOS, which the harness asks for")
    size = llm.spec.vocab_size
    if prefix is not None and (type(prefix) is not int or not 0 <= prefix < size):
        raise ValueError(
            f"prefix_token_id is {prefix!r}, it must be an id below {size}: the vocabulary has {size} tokens"
        )
    return eos, bos if prefix is None else prefix
