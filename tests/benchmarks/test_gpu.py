"""The benchmark of a GPU, where there may be none."""

from __future__ import annotations

from benchmarks import gpu
from singlestrip_bids.machine import files


def test_every_part_runs_on_a_processor(tmp_path):
    out = tmp_path / "gpu"
    words = ["--device", "cpu", "--presets", "quick", "--batches", "2", "--steps", "2"]
    assert gpu.main([*words, "--out", str(out)]) == 0
    found = files.read_json(out.with_suffix(".json"))
    (training,), (masking,) = found["training"], found["masking"]
    assert 0 < training["synthesis_share"] < 1
    assert training["steps_per_s"] > 0
    assert masking["s_per_image"] > 0
    assert found["waits"][0]["waits_in_a_step"] == 0
    assert found["full memory"][0]["said"] == ""
    assert "## masking" in out.with_suffix(".md").read_text()
