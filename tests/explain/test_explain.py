"""explain: everything about a checkpoint without its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from minillm import generate
from minillm.config import read
from minillm.explain import __main__ as explain
from minillm.explain.equations import equations
from minillm.families import resolve
from minillm.hub import DEMO
from tests.conftest import ROOT, shared
from tests.helpers import tiny
from tests.helpers.oracles import build
from tests.helpers.oracles_plamo import WRITE
from tests.helpers.rows import BASE, ROWS


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert explain.main([*arguments]) == 0
    return capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(run(capsys, "--weights", str(DEMO), "--json"))
    assert report["model_type"] == "llama"
    assert report["parameter_count"] == sum(t.numel() for t in load_file(DEMO / "model.safetensors").values())
    for key in ("unclaimed_tensors", "unfilled_parameters", "dropped_tensors", "misshapen_tensors", "other_faults"):
        assert report[key] == []
    assert report["spec"]["kind"] == "Decoder"
    assert report["spec"]["layers"][0]["attention"]["kind"] == "GQA"
    assert len(report["spec"]["layers"]) == 4


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys)
    assert "layers 0 to 3:" in out
    assert "GQA(num_heads=4, num_kv_heads=2, head_dim=32, rope=Rope(dim=32" in out
    assert "unclaimed tensors: 0" in out


def test_text_leaves_out_what_is_as_in_llama(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/google__gemma-2-2b-it")
    out = run(capsys, "--weights", str(folder))
    assert "window=4096, scores=Scores(scale=0.0625, softcap=50.0))" in out
    assert "post_attention_norm Norm(eps=1e-06, offset=1.0, cast=after_weight)" in out
    assert "embedding             Embedding(scale=48.0)" in out
    assert "qkv_bias" not in out
    assert "106,496" not in out
    assert "a token takes 53,248 values in the cache, 106.5 kB in bfloat16" in out  # 26 layers of 2 x 4 heads of 256


EQUATIONS = {
    "openai__gpt-oss-20b": [
        "a_i = W[2880 x 4096] sum over i - 128 < j <= i of softmax_j(0.125 q_i k_j) v_j + b, "
        "and a learned sink that only counts in the softmax",
        "p = (W[32 x 2880] u + b) in fp32; e: the 4 best; weights softmax over them",
    ],
    "meta-llama__Llama-3.1-8B": [
        "u = n(x)",
        "q = W[4096 x 4096] u, k, v = W[1024 x 4096] u: 32 and 8 heads of 128, each kv head for 4 of q",
        "q, k: each head rotated by position, base 500000, scaled: Llama3",
        "a_i = W[4096 x 4096] sum over j <= i of softmax_j(0.08839 q_i k_j) v_j",
        "h = x + a",
        "u = n(h)",
        "f = W[4096 x 14336] (silu(W[14336 x 4096] u) * (W[14336 x 4096] u))",
        "y = h + f",
        "n: w x / sqrt(mean x² + 1e-05)",
    ],
    "google__gemma-2-2b-it": [
        "a_i = W[2304 x 2048] sum over i - 4096 < j <= i of softmax_j(50 tanh(0.0625 q_i k_j / 50)) v_j",
        "h = x + n(a)",
        "y = h + n(f)",
        "n: (1 + w) x / sqrt(mean x² + 1e-06)",
    ],
    "deepseek-ai__DeepSeek-V3": [
        "q = W[24576 x 1536] n(W[1536 x 7168] u): 128 heads of 128 + 64",
        "c, r = W[576 x 7168] u, c = n(c): 512 + 64 values, all that is cached",
        "softmax_j(0.1352 q_i k_j) v_j",
        "p = sigmoid(W[256 x 7168] u) in fp32; e: the 8 best in the 4 best of 8 groups by p + b; weights p / their sum",
        "their sum * 2.5\n",
        "f = sum over the chosen e of p_e E_e(u) + s,  E_e(u) = W[7168 x 2048] (silu(W[2048 x 7168] u) * (W[2048",
    ],
    "microsoft__Phi-4-mini-instruct": ["the first 96 values of each head rotated by position", "scaled: LongRope"],
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_equations(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--config", str(shared(f"real-configs/{name}/config.json")), "--equations")
    for line in EQUATIONS[name]:
        assert line in out


@pytest.mark.parametrize("row", ROWS)
def test_every_family_has_equations(row: str, tmp_path: Path) -> None:
    """Each begins with x and ends with y, and says every size of its matrices."""
    family, overrides = ROWS[row]
    if family in WRITE:
        tiny.save(tmp_path, family, overrides)
    else:
        made = build(family, {**BASE, **overrides}).config.to_json_string(use_diff=False)
        (tmp_path / "config.json").write_text(made)
        tiny.edit_config(tmp_path, model_type=family)
    spec, _, _ = resolve(read(tmp_path))
    for layer in spec.layers:
        lines = equations(layer, spec)
        assert lines[2 if spec.streams else 0] in ("u = x", "u = n(x)")
        assert any(line.startswith("y = ") for line in lines)
        if layer.ffn is not None:
            width = getattr(layer.ffn, "latent", None) or spec.hidden_size
            assert f"{layer.ffn.intermediate_size} x {width}]" in " ".join(lines)
        if layer.attention is not None:
            assert any(f"[{spec.hidden_size} x " in line for line in lines)


def test_tensors(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--weights", str(DEMO), "--tensors")
    assert "model.layers.0.self_attn.k_proj.weight          layers.0.attention.qkv.weight[128:192]\n" in out
    assert out.count("model.layers.3.") == 9
    assert explain.main(["--config", str(DEMO / "config.json"), "--tensors"]) == 2
    assert "needs the weights or their index" in capsys.readouterr().err
    assert explain.main(["--table", str(DEMO), "--equations"]) == 2
    assert "go with neither --json nor --table" in capsys.readouterr().err


def test_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "anything.json"
    path.write_text((DEMO / "config.json").read_text())
    report = json.loads(run(capsys, "--config", str(path), "--json"))
    assert (report["model_type"], report["unclaimed_tensors"]) == ("llama", None)
    assert explain.main(["--config", str(tmp_path / "none.json")]) == 2
    assert "none.json: no such file; give a config.json" in capsys.readouterr().err


def test_names_do_not_steer_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(DEMO / "model.safetensors")
    save_file({**tensors, "x\x1b[2J": tensors["model.norm.weight"].clone()}, tmp_path / "model.safetensors")
    values = {**json.loads((DEMO / "config.json").read_text()), "evil\x1b]0;": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    out = run(capsys, "--weights", str(tmp_path))
    assert generate.main(["--weights", str(tmp_path), "--prompt", "a"]) == 2
    out += capsys.readouterr().err
    assert "\x1b" not in out
    assert out.count("x\\x1b[2J") == 2


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Markdown, a row for each; a list in JSON."""
    paths = [str(DEMO), str(ROOT / "examples/demo_moe")]
    lines = run(capsys, "--table", *paths).splitlines()
    assert lines[0].startswith("| checkpoint | family | parameters | active |")
    assert len({line.count("|") for line in lines}) == 1
    assert "| demo | llama | 0.89 M | all | 4 | 128 | 4 heads of 32 over 2 | gated silu 384 | 512 | 1.0 kB |" in lines
    assert "2 of 8 experts of 64" in lines[3]
    assert [each["model_type"] for each in json.loads(run(capsys, "--table", *paths, "--json"))] == ["llama", "mixtral"]


def test_576_values_per_layer(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--table", str(shared("real-configs/deepseek-ai__DeepSeek-V3")))
    assert "| 671.03 B | 37.55 B | 61 | 7168 | 128 heads over a latent of 512 + 64 |" in out
    assert "3 x gated silu 18432, 58 x 8 of 256 experts of 2048" in out
    assert f"{61 * 576 * 2 / 1000:.1f} kB" in out


def test_an_index_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/meta-llama__Llama-2-7b-hf")
    report = json.loads(run(capsys, "--weights", str(folder), "--json"))
    assert report["parameter_count"] == 6_738_415_616
    assert len(report["dropped_tensors"]) == 32  # rotary frequencies of early exports
    assert report["misshapen_tensors"] is None  # an index knows no shapes


def test_a_config_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/meta-llama__Llama-3.1-405B")
    out = run(capsys, "--weights", str(folder))
    assert "405,853,388,800 parameters" in out
    assert "unclaimed tensors: not known" in out
    assert "layers 0 to 125:" in out


def test_what_does_not_fit_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(DEMO / "model.safetensors")
    tensors["surprise"] = tensors.pop("model.norm.weight")
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"][:-1].clone()
    tensors["model.layers.1.input_layernorm.weight"] = tensors["model.layers.1.input_layernorm.weight"].int()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((DEMO / "config.json").read_text())
    report = json.loads(run(capsys, "--weights", str(tmp_path), "--json"))
    assert report["unclaimed_tensors"] == ["surprise"]
    assert report["other_faults"] == ["model.layers.1.input_layernorm.weight is I32"]
    assert report["unfilled_parameters"] == ["norm.weight"]
    assert report["misshapen_tensors"] == ["model.layers.0.mlp.down_proj.weight"]


def test_a_quantised_checkpoint_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    folder = shared("real-configs/bnb__Llama-3.1-8B-Instruct")
    report = json.loads(run(capsys, "--weights", str(folder), "--json"))
    assert report["quantization"] == "bitsandbytes int8"
    assert report["parameter_count"] == 8_030_261_248


def test_layers_alike_are_named_together(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "--weights", str(shared("real-configs/google__gemma-3-4b-it")))
    full = "5, 11, 17, 23, 29"
    sliding = "0 to 4, 6 to 10, 12 to 16, 18 to 22, 24 to 28, 30 to 33"
    assert [line for line in out.splitlines() if line.startswith("layer")] == [f"layers {sliding}:", f"layers {full}:"]


def test_the_table_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    """What its command prints today."""
    shared("real-configs")
    command, table = (ROOT / "README.md").read_text().split("minillm.explain --table meta")[1].split("```\n", 1)
    names = ("meta" + command).replace("\\\n", " ").split()
    printed = run(capsys, "--table", *(str(shared(f"real-configs/{name}")) for name in names))
    assert len(names) >= 15
    assert printed == table.split("\n\n")[0] + "\n"


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["--weights", str(tmp_path / "none")]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
