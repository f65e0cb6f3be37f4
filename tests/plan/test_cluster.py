"""How fast each split over several machines could be, against the formulas by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from minillm.plan import __main__ as plan
from minillm.plan.budget import Question, budget
from minillm.plan.cluster import Cluster, Link, cluster
from minillm.plan.devices import device
from tests.conftest import exit_code, shared

INSIDE, BETWEEN = Link(450e9, 1e-5), Link(50e9, 3e-5)
LLAMA = "real-configs/meta-llama__Llama-3.1-8B"


def splits(machines: int, devices: int, gpu: str = "H200", **question: Any) -> dict[tuple[int, int], dict[str, Any]]:
    """By ranks and stages, in their order."""
    found = Cluster(machines, devices, INSIDE, BETWEEN if machines > 1 else INSIDE)
    report = budget(shared(LLAMA), Question(device=device(gpu), cluster=found, **question))
    return {(each["ranks"], each["stages"]): each for each in report["splits"]}


def test_sums_by_hand() -> None:
    """A small one goes up and down a tree of 8, a large one around the ring."""
    assert INSIDE.total(1, 1e6) == 0
    assert INSIDE.total(8, 0) == pytest.approx(6e-5)
    assert INSIDE.total(8, 450e9) == pytest.approx(14 * (1e-5 + 1 / 8))
    assert INSIDE.total(2, 450e9) == pytest.approx(2 * (1e-5 + 1 / 2))


def test_one_device_is_bound_by_its_memory() -> None:
    report = budget(shared(LLAMA), Question(context=1000, batch=4, device=device("H200")))
    (found,) = splits(1, 1, context=1000, batch=4).values()
    assert found["decode_tokens_per_second"] == pytest.approx(report["speed"]["decode_tokens_per_second"])
    assert found["prefill_tokens_per_second"] == pytest.approx(report["speed"]["prefill_tokens_per_second"])
    assert found["needed_bytes"] == report["weight_bytes"] + report["kv_bytes"]


def test_a_step_by_hand() -> None:
    """Llama 3.1 8B over two machines of two: 65 sums of 4096 values a row, a step reads all but the embedding."""
    found = splits(2, 2, context=1000, batch=8)
    assert set(found) == {(1, 4), (2, 2), (4, 1)}
    read, cache = 16_060_522_496 - 2 * 128256 * 4096, 131072 * 1000

    def stage(ranks: int, stages: int, rows: int, link: Link) -> float:
        own = (read + cache * rows) / ranks / stages / 4.8e12 + 65 / stages * link.total(ranks, 16384 * rows)
        return own + (BETWEEN.latency + 8192 * rows / 50e9 if stages > 1 else 0)

    for ranks, stages, rows, link in ((1, 4, 2, INSIDE), (2, 2, 4, INSIDE), (4, 1, 8, BETWEEN)):
        each = found[ranks, stages]
        all_rows, one = (stages * stage(ranks, stages, count, link) for count in (rows, 1))
        assert each["decode_tokens_per_second"] == pytest.approx(8 / all_rows, rel=1e-3)
        assert each["one_row_tokens_per_second"] == pytest.approx(1 / one, rel=1e-3)
    assert next(iter(found)) == (2, 2)  # sums stay within a machine


def test_what_fits_comes_first() -> None:
    """16 GB and a cache: over four devices of 24 GB all ways do, with 60 GB of cache only those that cut it."""
    found = splits(1, 4, gpu="4090", context=131072, batch=3)
    assert all(each["fits"] for each in found.values())
    found = splits(1, 16, gpu="4090", context=131072, batch=13)
    assert [each["fits"] for each in found.values()] == sorted((each["fits"] for each in found.values()), reverse=True)
    assert not found[16, 1]["fits"]  # its 8 kv heads are on two ranks each
    assert found[8, 2]["fits"]


def test_machines_share_ranks_evenly() -> None:
    """Of three devices, so that two ranks would not."""
    assert set(splits(2, 3)) == {(1, 6), (3, 2), (6, 1)}


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    path = ["--weights", str(shared(LLAMA)), "--gpu", "H200"]
    many = ["--cluster", "2x8", "--link", "450GB/s,10us", "--network", "50GB/s, 30 us"]
    assert plan.main([*path, *many]) == 0
    out = capsys.readouterr().out
    assert "estimates by bytes and latencies" in out
    assert plan.main([*path, *many, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["splits"]) == out.count(" tok/s  ") // 2
    for flags, message in (
        (["--cluster", "2x8", "--link", "450GB/s,10us"], "--network is between machines: give it too"),
        (["--cluster", "1x8", "--link", "450GB/s,10us", "--network", "1GB/s,1us"], "here is but one"),
        (["--cluster", "2x8"], "--cluster needs --link"),
        (["--cluster", "0x8", "--link", "450GB/s,10us"], "--cluster is '0x8'"),
        (["--cluster", "1x8", "--link", "fast"], "--link is 'fast'"),
        (["--cluster", "1x8", "--link", "0GB/s,1us"], "--link is '0GB/s,1us'"),
        (["--link", "450GB/s,10us"], "go with --cluster"),
        (["--cluster", "1x8", "--link", "450GB/s,10us", "--gpus", "8"], "leave out --gpus"),
        (["--cluster", "1x8", "--link", "450GB/s,10us", "--gpu", "24GB"], "whose bandwidth is known"),
    ):
        assert exit_code(plan.main, [*path, *flags]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_sizes_are_read() -> None:
    found = cluster("2x4", "1.5TB/s,500us", "1GiB/s,2ms")
    assert found == Cluster(2, 4, Link(1.5e12, 5e-4), Link(2**30, 2e-3))
