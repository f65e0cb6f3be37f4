"""A tokenizer.json as the vocabulary of a GGUF file: what `gguf_vocabulary.py` reads, the other way round.

SentencePiece's joining by score is known by its bytes for unknown letters; a score is the place of a token's merges in
their list. Joining of bytes by a list goes with a rule for splitting texts, which is written by its name
(`gguf_splits.py`). Whatever a file cannot say is refused, but for what llama.cpp's own converter leaves out too:
`vocabulary` returns remarks on that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from minillm.families.gguf.splits import SPLITS, WHOLE, WORDS
from minillm.families.gguf.vocabulary import (
    BYTE,
    CONTROL,
    ENDS,
    LETTERS,
    NORMAL,
    PREFIX,
    ROLES,
    SPACE,
    TURN_ENDS,
    UNUSED,
    USER,
)

PHI3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
BYTES = {f"<0x{i:02X}>" for i in range(256)}
ADVICE = "the file can be written without texts: take tokenizer.json out of the folder"


def vocabulary(words: Mapping[str, Any], size: int) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a tokenizer.json, with `size` tokens as the embedding has, and what it says that is not in it.
    Raises ValueError for one that no file can hold."""
    model, added = words["model"], words.get("added_tokens") or []
    if model.get("type") != "BPE":
        raise ValueError(f"tokenizer.json is of type {model.get('type')!r}; a GGUF file is written of BPE; {ADVICE}")
    tokens, kinds = _tokens(model["vocab"], added, size)
    pairs = [tuple(each.split(" ", 1)) if isinstance(each, str) else tuple(each) for each in model["merges"]]
    make = _by_score if model.get("byte_fallback") else _by_list
    said, remarks = make(words, tokens, kinds, pairs)
    named = {"tokens": tokens, "token_type": np.array(kinds, np.int32), **said}
    if stripping := [each["content"] for each in added if each.get("lstrip") or each.get("rstrip")]:
        remarks.append(f"that {len(stripping)} added tokens take blanks beside them, such as {stripping[0]!r}")
    return {f"{PREFIX}{key}": value for key, value in named.items()}, remarks


def roles(
    ids: Mapping[str, int],
    front: Sequence[int],
    behind: Sequence[int],
    stops: Sequence[int],
    told: Sequence[int],
    model: str = "",
) -> dict[str, Any]:
    """The metadata of special tokens: `ids` by what tokenizer_config.json calls their role, those put in front of a
    text and behind it, and those that end an answer, but for what a token's own text tells (`told`). Raises
    ValueError where there are more than a file can say."""
    if model == LETTERS and not front:
        raise ValueError(f"the tokenizer puts nothing in front of a text; llama.cpp begins every text of such a "
                         f"vocabulary with the bos token; {ADVICE}")  # fmt: skip
    named = {name: ids[role] for name, role in ROLES.items() if role in ids}
    for name, around in (("bos", front), ("eos", behind)):
        if len(around) > 1 or (around and named.get(name, around[0]) != around[0]):
            raise ValueError(f"the tokenizer puts tokens {list(around)} beside a text; a file can say one {name} token")
        named |= {name: around[0]} if around else {}
    left = [each for each in stops if each != named.get("eos") and each not in told]
    if left and "eos" not in named:
        named["eos"] = left.pop(0)
    for name in ENDS[1:]:
        named |= {name: left.pop(0)} if left else {}
    if left:
        raise ValueError(f"answers end at tokens {list(stops)}; a GGUF file can say three of them: leave some out of "
                         "eos_token_id in generation_config.json")  # fmt: skip
    said = {f"{PREFIX}{name}_token_id": each for name, each in named.items()}
    flags = {"add_bos_token": bool(front), "add_eos_token": bool(behind)}
    return {**said, **{f"{PREFIX}{key}": flag for key, flag in flags.items()}}


def title(name: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """What a file calls its model. llama.cpp looks for some tokens where that tells of Phi-3, and ends without them."""
    tells = any(each in name.lower() for each in ("phi-3", "phi3"))
    return {} if tells and not PHI3.issubset(metadata[f"{PREFIX}tokens"]) else {"general.name": name}


def ends_by_text(metadata: Mapping[str, Any]) -> list[int]:
    """The ids of tokens whose text tells that they end a turn."""
    tokens, kinds = metadata[f"{PREFIX}tokens"], metadata[f"{PREFIX}token_type"]
    return [int(i) for i in (kinds == CONTROL).nonzero()[0] if tokens[i] in TURN_ENDS]


def _tokens(vocab: Mapping[str, int], added: Sequence[Mapping[str, Any]], size: int) -> tuple[list[str], list[int]]:
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    known = [(token, i, BYTE if token in BYTES else NORMAL) for token, i in vocab.items()]
    known += [(each["content"], each["id"], CONTROL if each.get("special") else USER) for each in added]
    for token, i, kind in known:
        if not 0 <= i < size:
            raise ValueError(f"the tokenizer has {token[:40]!r} as {i}, the embedding {size} rows; {ADVICE}")
        tokens[i], kinds[i] = token, kind
    if len(set(tokens)) != size:
        twice = next(token for i, token in enumerate(tokens) if token in tokens[:i])
        raise ValueError(f"the tokenizer has {twice[:40]!r} twice, which no GGUF file can; {ADVICE}")
    return tokens, kinds


def _by_score(
    words: Mapping[str, Any], tokens: list[str], kinds: list[int], pairs: Sequence[tuple[str, ...]]
) -> tuple[dict[str, Any], list[str]]:
    """A merge makes a token of every two that it can be made of, so that a list can be told by scores if it has all."""
    rank = dict[str, int]()
    for pair in pairs:
        rank.setdefault("".join(pair), len(rank))
    joined = [rank["".join(pair)] for pair in pairs]
    known = {token for token, kind in zip(tokens, kinds, strict=True) if kind != UNUSED}
    every = {
        (token[:at], token[at:])
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (NORMAL, USER)
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
    }
    if every != set(pairs) or any(a > b for a, b in itertools.pairwise(joined)):
        if not _prefixed(words):
            return _by_letters(pairs)
        raise ValueError(f"the merges of tokenizer.json are not those of scores, as llama.cpp has them; {ADVICE}")
    scores = np.array([-float(rank.get(token, len(rank))) for token in tokens], np.float32)
    said: dict[str, Any] = {"model": "llama", "pre": "default", "scores": scores}
    return said | ({} if _prefixed(words) else {"add_space_prefix": False}), []


def _by_letters(pairs: Sequence[tuple[str, ...]]) -> tuple[dict[str, Any], list[str]]:
    """Letters in the order of the list itself; llama.cpp then cuts texts before and behind line ends."""
    mixed = [joined for pair in pairs if "\n" in (joined := "".join(pair)) and joined.strip("\n")]
    remarks = [f"that {len(mixed)} tokens have line ends beside letters, such as {mixed[0]!r}"] if mixed else []
    return {"model": LETTERS, "merges": [" ".join(pair) for pair in pairs], "add_space_prefix": False}, remarks


def _prefixed(words: Mapping[str, Any]) -> bool:
    """Whether a text gets a blank in front. Raises ValueError where it is changed otherwise too."""
    prefixed, replaced = False, False
    for each in (*_flat(words.get("normalizer"), "normalizers"), *_flat(words.get("pre_tokenizer"), "pretokenizers")):
        if each["type"] == "Prepend" and each.get("prepend") == SPACE:
            prefixed = True
        elif each["type"] == "Replace" and each.get("pattern") == {"String": " "} and each.get("content") == SPACE:
            replaced = True
        elif each["type"] == "Metaspace" and each.get("replacement") == SPACE and not each.get("split"):
            replaced, prefixed = True, each.get("prepend_scheme") != "never"
        elif each["type"] != "Split" or each.get("pattern") != {"String": " "} or not replaced:  # finds none any more
            raise ValueError(f"tokenizer.json changes texts by {each['type']}, which llama.cpp does not; {ADVICE}")
    if not replaced:
        raise ValueError(f"tokenizer.json leaves blanks as they are, llama.cpp makes them {SPACE}; {ADVICE}")
    return prefixed


def _by_list(
    words: Mapping[str, Any], tokens: list[str], kinds: list[int], pairs: Sequence[tuple[str, ...]]
) -> tuple[dict[str, Any], list[str]]:
    remarks = []
    for each in _flat(words.get("normalizer"), "normalizers"):
        if each["type"] != "NFC":
            raise ValueError(f"tokenizer.json changes texts by {each['type']}, which llama.cpp does not; {ADVICE}")
        remarks.append("that texts are brought to Unicode's form NFC")
    merges = [" ".join(pair) for pair in pairs]
    return {"model": "gpt2", "pre": _rule(words), "merges": merges}, remarks


def _rule(words: Mapping[str, Any]) -> str:
    """The name of the rule that splits texts so; of several the first, where they differ in whether a piece that is a
    token stays whole one that agrees, if that makes a difference."""
    splits = _splits(words.get("pre_tokenizer"))
    named = [name for name, known in SPLITS.items() if known == splits]
    if not named:
        raise ValueError(f"tokenizer.json splits texts by {str(splits)[:60]}, a rule that llama.cpp has no name for "
                         f"here; {ADVICE}")  # fmt: skip
    whole = words["model"].get("ignore_merges", False)
    same = [name for name in named if (name in WHOLE) == whole]
    if (named[0] in WHOLE) != whole and (whole or not _all_reached(words)):
        if not same:
            raise ValueError(f"tokenizer.json has ignore_merges {whole}, {named[0]} of llama.cpp has not; {ADVICE}")
        return same[0]
    return named[0]


def _all_reached(words: Mapping[str, Any]) -> bool:
    """Whether merges make every token that has more than a letter: as a piece it is itself, one way or the other."""
    model, added = words["model"], {each["content"] for each in words.get("added_tokens") or []}
    made = {each.replace(" ", "", 1) if isinstance(each, str) else "".join(each) for each in model["merges"]}
    return all(len(token) == 1 or token in made or token in added for token in model["vocab"])


def _splits(part: Any) -> list[str]:
    """The expressions of a pre_tokenizer, as `gguf_splits.py` has them."""
    found, levels = list[str](), 0
    for each in _flat(part, "pretokenizers"):
        regex = (each.get("pattern") or {}).get("Regex")
        isolates = (each.get("behavior"), each.get("invert", False)) in (("Isolated", False), ("Removed", True))
        if each["type"] == "Split" and regex and isolates:
            found.append(regex)
        elif each["type"] == "Digits" and each.get("individual_digits"):
            found.append(r"\p{N}")
        elif each["type"] == "ByteLevel" and not each.get("add_prefix_space"):
            found += [WORDS] if each.get("use_regex", True) else []
            levels += 1
        else:
            raise ValueError(f"tokenizer.json splits texts by {each['type']}, which llama.cpp does not; {ADVICE}")
    if levels != 1:
        raise ValueError(f"tokenizer.json joins letters and not bytes, as llama.cpp does; {ADVICE}")
    return found


def _flat(part: Any, inside: str) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    return [part] if part.get("type") != "Sequence" else [one for each in part[inside] for one in _flat(each, inside)]
