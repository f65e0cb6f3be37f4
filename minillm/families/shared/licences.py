"""What the licences of published checkpoints ask for, in a few words each. No legal advice: the licence itself counts.

By the id that a model card gives as `license`, or as `license_name` where that is "other". Sources: the licence texts
themselves, Meta's FAQ on what outputs may be used for, and DeepSeek's on its model licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Terms(NamedTuple):
    title: str
    asks: tuple[str, ...]


_PERMISSIVE = "any use, commercial too"
_NON_COMMERCIAL = "no commercial use"
_USERS = "a licence from Meta of its own above 700 million monthly users at the version's release"
_POLICY = "keep to the acceptable use policy"
_RESTRICTED = "keep to the list of prohibited uses and pass it on with copies and derivatives"
_COPY = "pass on the licence and its notice with copies"
_BUILT = 'show "Built with Llama"; names of derived models begin with "Llama"'
_RAIL = Terms("an OpenRAIL licence", (_PERMISSIVE + " outside the prohibited ones", _RESTRICTED))
_APACHE = Terms("Apache License 2.0", (_PERMISSIVE, "keep licence, notices and a note of changes", "patent grant"))
_BSD = Terms("BSD licence", (_PERMISSIVE, "keep the copyright notice"))
_LLAMA_3_1 = (_USERS, _BUILT, _COPY, _POLICY, "outputs may train other models, which are then named so too")
_NOT_TO_TRAIN = "outputs may train no other language model"
_QWEN = (
    "a licence from Alibaba Cloud of its own above 100 million monthly users",
    _COPY,
    'show "Built with Qwen" or "Improved using Qwen" with models trained on it or its outputs',
)
_NO_OTHER_MODEL = "neither the model nor its outputs may be used to improve another language model"
_QWEN_RESEARCH = (_NON_COMMERCIAL + " without a licence of its own", *_QWEN[1:])

TERMS: Mapping[str, Terms] = MappingProxyType(
    {
        "apache-2.0": _APACHE,
        "mit": Terms("MIT licence", (_PERMISSIVE, "keep the copyright notice")),
        "modified-mit": Terms("a modified MIT licence", (_PERMISSIVE, "conditions for very large services: read it")),
        "bsd": _BSD,
        "bsd-2-clause": _BSD,
        "bsd-3-clause": _BSD,
        "cc0-1.0": Terms("Creative Commons Zero", ("any use, without conditions",)),
        "cc-by-4.0": Terms("Creative Commons Attribution 4.0", (_PERMISSIVE, "name the authors")),
        "cc-by-sa-4.0": Terms(
            "Creative Commons Attribution-ShareAlike 4.0",
            (_PERMISSIVE, "name the authors", "derivatives under the same licence"),
        ),
        "cc-by-nc-4.0": Terms(
            "Creative Commons Attribution-NonCommercial 4.0", (_NON_COMMERCIAL, "name the authors")
        ),
        "cc-by-nc-sa-4.0": Terms(
            "Creative Commons Attribution-NonCommercial-ShareAlike 4.0",
            (_NON_COMMERCIAL, "name the authors", "derivatives under the same licence"),
        ),
        "openrail": _RAIL,
        "openrail++": _RAIL,
        "bigscience-openrail-m": _RAIL,
        "bigcode-openrail-m": _RAIL,
        "creativeml-openrail-m": _RAIL,
        "llama2": Terms("Llama 2 Community License", (_USERS, _COPY, _POLICY, _NOT_TO_TRAIN)),
        "llama3": Terms(
            "Llama 3 Community License",
            (_USERS, 'show "Built with Meta Llama 3"; names of derived models begin with "Llama 3"', _COPY, _POLICY,
             _NOT_TO_TRAIN),
        ),
        "llama3.1": Terms("Llama 3.1 Community License", _LLAMA_3_1),
        "llama3.2": Terms(
            "Llama 3.2 Community License", (*_LLAMA_3_1, "the models that see: no licence for residents of the EU")
        ),
        "llama4": Terms(
            "Llama 4 Community License", (*_LLAMA_3_1, "the models that see: no licence for residents of the EU")
        ),
        "llama3.3": Terms("Llama 3.3 Community License", _LLAMA_3_1),
        "gemma": Terms(
            "Gemma Terms of Use",
            (_PERMISSIVE + " outside the prohibited ones", _RESTRICTED, _COPY, "models trained on outputs to be alike "
             "count as derivatives"),
        ),
        "qwen": Terms("Qwen License", _QWEN),
        "tongyi-qianwen": Terms("Tongyi Qianwen License", (*_QWEN[:2], _NO_OTHER_MODEL)),
        "qwen-research": Terms("Qwen Research License", _QWEN_RESEARCH),
        "tongyi-qianwen-research": Terms("Tongyi Qianwen Research License", _QWEN_RESEARCH[:2]),
        "deepseek": Terms("DeepSeek Model License", (_PERMISSIVE + " outside the prohibited ones", _RESTRICTED, _COPY)),
        "mrl": Terms("Mistral AI Research License", (_NON_COMMERCIAL + " without a licence of its own", _COPY)),
        "exaone": Terms(
            "EXAONE AI Model License Agreement - NC",
            (_NON_COMMERCIAL + " without a licence of its own", _COPY, 'names of derived models begin with "EXAONE"'),
        ),
        "glm-4": Terms(
            "GLM-4 License",
            ("research, and commercial use behind a registration", _COPY,
             'show "Built with glm-4"; names of derived models begin with "glm-4"'),
        ),
        "mnpl": Terms("Mistral AI Non-Production License", ("research and tests only, no production", _COPY)),
    }
)  # fmt: skip
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "deepseek-license": "deepseek",
        "deepseek-license-agreement": "deepseek",
        "mistral-ai-research-licence": "mrl",
        "mistral-ai-research-license": "mrl",
        "mnpl-0.1": "mnpl",
        "mrl-0.1": "mrl",
        "qwen-license": "qwen",
        "llama-3": "llama3",
        "llama-2": "llama2",
    }
)


def terms(name: str) -> Terms | None:
    """What a licence of this id asks for; None where it is none of these."""
    plain = name.strip().lower()
    return TERMS.get(ALIASES.get(plain, plain))
