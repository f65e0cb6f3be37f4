"""What a family goes in with, for each that there is: nothing is forgotten, and what is not there has its reason."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from minillm.config import read
from minillm.families import FAMILIES, resolve
from minillm.families.gguf import architectures, states, written
from minillm.families.refused import REASONS
from minillm.families.shared.licences import terms
from minillm.serve.answers import styles
from tests.conftest import ROOT, shared
from tests.families.test_real_names import COUNTS
from tests.helpers import spaces
from tests.helpers.published import SIZES
from tests.helpers.rows import BASE, ROWS

README = (ROOT / "README.md").read_text()
NAMES = {kind: family.__name__.rpartition(".")[2] for kind, family in FAMILIES.items()}  # the file of a model_type
FILES = sorted(set(NAMES.values()))
OTHERS = {"step3p5": "step3p7", "phi4mm": "phi4_multimodal"}  # the same model as published elsewhere
TESTED = {family for family, _ in ROWS.values()}


def inside(kind: str) -> str:
    """The model_type of the text model that a model which reads images too has in it, or the other way round."""
    others = (kind, f"{kind}_text", f"{kind}_vl", kind.removesuffix("_text"), OTHERS.get(kind))
    return next(each for each in others if each in TESTED)


@pytest.mark.parametrize("kind", FAMILIES)
def test_rows_and_drawn_configurations(kind: str) -> None:
    """Parity with transformers, and from disk in configurations that are drawn."""
    assert inside(kind) in spaces.FAMILIES


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind not in TESTED])
def test_a_name_without_rows_of_its_own(kind: str) -> None:
    """Is the same model under another: the whole with a section for its text, or the text alone."""
    row = next(row for row, (family, _) in ROWS.items() if family == inside(kind))
    values = {**BASE, **ROWS[row][1], "model_type": inside(kind)}
    alone, _, _ = resolve(values)
    if kind == inside(kind).removesuffix("_text"):
        tied = {"tie_word_embeddings": values.get("tie_word_embeddings", alone.tied)}
        values = {"text_config": values, **tied}
    assert resolve({**values, "model_type": kind})[0] == alone


def test_the_table_of_parity() -> None:
    """`parity_report.py` printed a line for each family, of as many variants as there are."""
    lines = re.findall(r"^\| ([\w-]+) \| (\d+) \| [\d.e-]+ \| [\d.]+ \| [\d.]+(?: to [\d.]+)? \|$", README, re.M)
    assert {name: int(count) for name, count in lines} == Counter(family for family, _ in ROWS.values())


@pytest.mark.parametrize("name", FILES)
def test_the_list_of_families(name: str) -> None:
    assert len(re.findall(rf"\[{name}\]\(minillm/families/{name}\.py\)", README)) == 1


def test_the_counts_of_the_readme() -> None:
    """Files of families, their lines, and those of what they are built of."""
    words = " ".join(README.split())
    said = re.search(r"more than (\d+) families\. Each is one file of (\d+) to (\d+) lines", words)
    total = re.search(r"built of take ([\d,]+) lines and the families ([\d,]+),", words)
    assert said is not None
    assert total is not None
    count, shortest, longest = map(int, said.groups())
    built, families = (int(each.replace(",", "")) for each in total.groups())
    lines = [len((ROOT / f"minillm/families/{name}.py").read_text().splitlines()) for name in FILES]
    assert len(FILES) > count
    assert (min(lines), max(lines)) == (shortest, longest)
    assert sum(lines) == pytest.approx(families, rel=0.05)
    model = (ROOT / "minillm/model").rglob("*.py")
    assert sum(len(path.read_text().splitlines()) for path in model) == pytest.approx(built, rel=0.05)


# Families of which no published size can be checked: neither a file nor its figures are at hand.
UNCOUNTED = {"exaone4_5", "gemma4_unified", "plamo", "plamo3"}
UNCOUNTED |= {"bailing_hybrid", "glm5_next", "hy_v4", "inkling", "cohere2_moe", "granitemoe_swa", "granitemoeshared"}
COUNTED_APART = {"gemma3n"}  # in test_published_sizes.py


def test_published_sizes() -> None:
    known = {NAMES[read(shared(f"real-configs/{name}"))["model_type"]] for name in COUNTS}
    known |= {NAMES[family] for family, _, _ in SIZES.values()} | COUNTED_APART
    assert set(FILES) - known == UNCOUNTED


def test_architectures_of_llama_cpp() -> None:
    """docs/gguf.md lists what each is written as, and why others are not."""
    page = (ROOT / "docs/gguf.md").read_text()
    listed = dict(re.findall(r"\*\*([\w-]+)\*\* ([\w, ]+)[;.]", " ".join(page.split())))
    assert listed == {name: ", ".join(kinds.split()) for name, kinds in written.ARCHITECTURES.items()}
    assert {*listed, *states.APART.values()} == set(architectures.ARCHITECTURES)  # which are read
    reasons = dict(re.findall(r"^- ([\w-]+): (.+)$", page, re.M))
    assert set(reasons) == set(FAMILIES) - set(written.FAMILIES)


# The format of calls and reasoning in a family's published chat templates, newest first; "" where they have none.
CALLS = {
    **dict.fromkeys("gemma gemma2 gemma3 gemma3n phi phimoe olmo olmo2 olmoe gpt_neox plamo tanuki".split(), ""),
    **dict.fromkeys("deepseek deepseek_v2 glm dots1 starcoder2 stablelm gptj falcon helium exaone qwen".split(), ""),
    **dict.fromkeys("bamba mamba2 openelm mamba falcon_mamba zamba2 recurrent_gemma".split(), ""),
    **dict.fromkeys("baichuan internlm3 mellum cwm arcee gpt2 gpt_bigcode gpt_neo opt bloom mpt".split(), ""),
    "qwen2_audio": "", "gpt_neox_japanese": "", "dbrx": "",
    **dict.fromkeys("qwen2 qwen3 qwen3_moe qwen2_moe qwen2_vl qwen2_5_vl qwen3_vl qwen3_vl_moe".split(), "tagged"),
    **dict.fromkeys("mimo exaone4 ernie4_5 ernie4_5_moe youtu smollm3 granite granitemoehybrid".split(), "tagged"),
    **dict.fromkeys("qwen3_next qwen3_5 qwen3_5_moe".split(), "functions"),
    **dict.fromkeys("glm4_moe glm4_moe_lite".split(), "pairs"),
    **dict.fromkeys("mistral mistral3 mistral4 ministral ministral3 mixtral llava".split(), "named"),
    **dict.fromkeys("gemma4 gemma4_unified".split(), "quoted"),
    **dict.fromkeys("olmo3 olmo_hybrid".split(), "listed"),
    "llama": "bare", "phi3": "called-array", "gpt_oss": "channels", "plamo3": "requests", "deepseek_v3": "separated",
    "kimi_k25": "counted", "granitemoe": "marked-array", "seed_oss": "prefixed", "solar_open": "parted",
}  # fmt: skip
# Their cards speak of calls, and no template or description of the format was at hand: calls come as text.
UNREAD = {"glm4", "chatglm", "hy_v3", "minimax_m2", "internlm2", "cohere", "cohere2", "apertus", "hunyuan_v1_dense"}
UNREAD |= {"hunyuan_v1_moe", "exaone_moe", "lfm2", "lfm2_moe", "nemotron_h", "falcon_h1"}
UNREAD |= {"jamba"}
UNREAD |= {"laguna", "afmoe", "muse_glimmer", "llama4", "mimo_v2_flash", "nemotron"}
UNREAD |= {"jais2", "flex_olmo", "vaultgemma", "granitemoeshared", "granite_swa", "granitemoe_swa", "step3p7"}
UNREAD |= {"cohere2_moe", "glm5_next", "hy_v4", "inkling", "kimi_linear", "bailing_hybrid", "nemotron_nas", "phi4mm"}
UNREAD |= {"exaone4_5", "lfm3", "minimax_m3", "minicpm", "minicpm3", "deepseek_v32", "glm_moe_dsa", "deepseek_v4"}


@pytest.mark.parametrize("name", FILES)
def test_formats_of_calls(name: str) -> None:
    assert (name in UNREAD) != (name in CALLS)
    assert not CALLS.get(name) or CALLS[name] in styles


# By the id on the model cards, newest first.
LICENCES: dict[str, Any] = {
    **dict.fromkeys("qwen3 qwen3_moe qwen3_next qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe".split(), "apache-2.0"),
    **dict.fromkeys("gemma4 gemma4_unified gpt_oss mistral3 mixtral olmo olmo2 olmo3 olmoe".split(), "apache-2.0"),
    **dict.fromkeys("olmo_hybrid gpt_neox gptj falcon plamo tanuki ernie4_5 ernie4_5_moe".split(), "apache-2.0"),
    **dict.fromkeys("seed_oss mellum internlm3 smollm3 granite granitemoe ministral3".split(), "apache-2.0"),
    **dict.fromkeys("apertus arcee llava qwen2_audio mpt mistral4 afmoe minicpm minicpm3".split(), "apache-2.0"),
    **dict.fromkeys("granitemoehybrid bamba granitemoeshared granite_swa granitemoe_swa".split(), "apache-2.0"),
    **dict.fromkeys("flex_olmo step3p7 mamba jamba zamba2".split(), "apache-2.0"),
    **dict.fromkeys("glm5_next gpt_neox_japanese kimi_linear bailing_hybrid phi4mm".split(), "mit"),
    "ministral": "mrl",
    **dict.fromkeys("phi phi3 phimoe glm4 glm4_moe glm4_moe_lite mimo mimo_v2_flash dots1 gpt2 gpt_neo".split(), "mit"),
    **dict.fromkeys("deepseek_v32 glm_moe_dsa deepseek_v4".split(), "mit"),
    **dict.fromkeys("cohere cohere2".split(), "cc-by-nc-4.0"),
    **dict.fromkeys("starcoder2 gpt_bigcode".split(), "bigcode-openrail-m"),
    **dict.fromkeys("gemma gemma2 gemma3 gemma3n vaultgemma recurrent_gemma".split(), "gemma"),
    **dict.fromkeys("kimi_k25 minimax_m2".split(), "modified-mit"),
    **dict.fromkeys("exaone exaone4 exaone4_5".split(), "exaone"),
    **dict.fromkeys("glm chatglm".split(), "glm-4"),
    "llama": ("llama3.3", "llama3.2", "llama3.1", "llama3", "llama2"),
    "llama4": "llama4",
    "mistral": ("apache-2.0", "mrl", "mnpl"),
    "qwen2": ("apache-2.0", "qwen", "qwen-research"),
    "qwen2_vl": ("apache-2.0", "qwen", "tongyi-qianwen"),
    "qwen2_5_vl": ("apache-2.0", "qwen", "qwen-research"),
    "qwen2_moe": ("apache-2.0", "tongyi-qianwen"),
    "qwen": ("tongyi-qianwen", "tongyi-qianwen-research"),
    "deepseek": "deepseek",
    "deepseek_v2": "deepseek",
    "deepseek_v3": ("mit", "modified-mit", "deepseek"),
    "stablelm": "cc-by-sa-4.0",
    "helium": "cc-by-4.0",
}
# Whose cards name a licence that is not among those of `shared/licences.py`: `plan` says that it is to be read.
UNKNOWN = {"plamo3", "solar_open", "hy_v3", "internlm2", "cwm", "youtu", "baichuan"}
UNKNOWN |= {"bloom", "opt", "hunyuan_v1_dense", "hunyuan_v1_moe", "exaone_moe", "lfm2", "lfm2_moe"}
UNKNOWN |= {"laguna", "muse_glimmer", "nemotron", "minimax_m3", "lfm3"}
UNKNOWN |= {"nemotron_h", "nemotron_nas", "falcon_h1", "mamba2", "openelm", "jais2", "cohere2_moe"}
UNKNOWN |= {"falcon_mamba", "hy_v4", "inkling", "dbrx"}


def test_every_other_family_is_refused_with_a_reason() -> None:
    """Those that people download are one or the other, never both."""
    assert not set(REASONS) & set(FAMILIES)
    for kind, reason in REASONS.items():
        with pytest.raises(ValueError, match=rf"model_type '{kind}' is not supported: {re.escape(reason)}$"):
            resolve({**BASE, "model_type": kind})
    ranking = shared("facts/families.md").read_text().partition("\n## 2.")[0]
    rows = re.findall(r"^\| \d+ \| [^|]+ \| ([^|]+) \| [\d,]+ \|", ranking, re.M)
    kinds = {kind.strip() for row in rows for kind in row.split(",")}
    assert len(kinds) > 100
    assert kinds <= {*FAMILIES, *REASONS}


@pytest.mark.parametrize("name", FILES)
def test_licences(name: str) -> None:
    assert (name in UNKNOWN) != (name in LICENCES)
    stated = LICENCES.get(name, ())
    assert all(terms(each) for each in ([stated] if isinstance(stated, str) else stated))
