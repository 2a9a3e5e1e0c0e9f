"""Files, read and written: bytes, JSON, tables, tensors; and the state of a training."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from singlestrip_bids.config import TrainingConfig
from singlestrip_bids.errors import BadData, CannotCreate, IOFailed, NoInput
from singlestrip_bids.machine.files import (
    fingerprint,
    load_tensors,
    read_json,
    read_tsv,
    save_tensors,
    sha256,
    write_bytes,
    write_json,
    write_text,
    write_tsv,
)
from singlestrip_bids.method.training import (
    load_weights,
    make_optimiser,
    resume,
    training_state,
)

TENSORS = {
    "a": torch.rand((3, 4), generator=torch.Generator().manual_seed(0)),
    "b.c": torch.arange(5),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "flag": torch.tensor([True, False]),
}
CARD = {"preset": "quick", "n": 3, "deep": {"é": [1, 2.5, None]}}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
    save_tensors(tmp_path / "x.safetensors", TENSORS, CARD)
    return tmp_path / "x.safetensors"


def network(width: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, width, 3), torch.nn.BatchNorm3d(width), torch.nn.Linear(2, 2)
    )


class TestFiles:
    def test_makes_parents_and_replaces(self, tmp_path):
        path = tmp_path / "a" / "b" / "c.txt"
        write_text(path, "één")
        write_text(path, "twee")
        assert path.read_text(encoding="utf-8") == "twee"
        assert listing(path.parent) == ["c.txt"]

    def test_mode_follows_the_umask(self, tmp_path):
        (tmp_path / "plain").touch()
        write_bytes(tmp_path / "ours", b"")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(CannotCreate, match=f"{tmp_path}/file/sub"):
            write_text(tmp_path / "file" / "sub" / "x.txt", "")

    def test_target_that_is_a_folder(self, tmp_path):
        (tmp_path / "x.txt").mkdir()
        with pytest.raises(IOFailed, match=r"x\.txt"):
            write_text(tmp_path / "x.txt", "")
        assert listing(tmp_path) == ["x.txt"]

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
    def test_interruption_leaves_the_old_file(self, tmp_path, monkeypatch, stop):
        write_text(tmp_path / "x.txt", "old")

        def replace(self, target):
            assert self.name.startswith(".")
            assert self.parent == target.parent
            raise stop

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(IOFailed if stop is OSError else stop):
            write_text(tmp_path / "x.txt", "new")
        assert listing(tmp_path) == ["x.txt"]
        assert (tmp_path / "x.txt").read_text() == "old"

    def test_json(self, tmp_path):
        path = tmp_path / "x.json"
        write_json(path, {"é": np.float32(0.5), "a": np.arange(2), "p": Path("q"), "n": None})
        assert json.loads(path.read_text()) == {"é": 0.5, "a": [0, 1], "p": "q", "n": None}
        assert path.read_text().endswith("}\n")

    def test_json_refuses_what_json_lacks(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"score": float("nan")})
        with pytest.raises(TypeError, match="set"):
            write_json(tmp_path / "x.json", {"score": {1}})
        assert not listing(tmp_path)

    def test_tsv(self, tmp_path):
        path = tmp_path / "x.tsv"
        rows = [
            {"participant_id": "sub-1", "score": 0.5, "n": 3},
            {"participant_id": "sub-2", "score": None, "note": "two\twords\n", "n": np.int64(4)},
            {"participant_id": "", "score": np.float32("nan"), "n": True},
        ]
        write_tsv(path, rows)
        assert path.read_text().splitlines() == [
            "participant_id\tscore\tn\tnote",
            "sub-1\t0.5000\t3\tn/a",
            "sub-2\tn/a\t4\ttwo words",
            "n/a\tn/a\tTrue\tn/a",
        ]

    def test_tsv_is_read_as_text(self, tmp_path):
        path = tmp_path / "x.tsv"
        write_tsv(path, [{"scan": 'a "quoted" é', "score": 0.5, "kept": None}])
        assert read_tsv(path) == [{"scan": 'a "quoted" é', "score": "0.5000", "kept": "n/a"}]
        assert read_tsv(tmp_path / "gone.tsv") == []

    def test_json_that_others_wrote(self, tmp_path):
        path = tmp_path / "x.json"
        path.write_bytes(b'\xef\xbb\xbf{"a": 1}')  # with a byte order mark
        assert read_json(path) == {"a": 1}
        for content in ("{", "[]"):
            path.write_text(content)
            with pytest.raises(BadData, match=r"x\.json"):
                read_json(path)
        with pytest.raises(BadData, match=r"gone\.json"):
            read_json(tmp_path / "gone.json")


class TestTensors:
    def test_round_trip(self, saved):
        tensors, card = load_tensors(saved)
        assert card == CARD
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)

    def test_views_and_gradients(self, tmp_path):
        weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        save_tensors(tmp_path / "x", {"w": weight, "turned": weight.T}, {})
        tensors, _ = load_tensors(tmp_path / "x")
        assert torch.equal(tensors["turned"], weight.detach().T)
        assert not tensors["w"].requires_grad

    def test_same_bytes(self, saved):
        again = saved.with_name("y")
        save_tensors(again, TENSORS, dict(reversed(CARD.items())))
        assert again.read_bytes() == saved.read_bytes()

    def test_nothing_else_is_left(self, saved):
        save_tensors(saved, {"a": torch.zeros(1)}, {})
        assert [p.name for p in saved.parent.iterdir()] == [saved.name]
        assert load_tensors(saved)[0].keys() == {"a"}

    def test_card_that_is_not_plain_leaves_the_old_file(self, saved):
        before = saved.read_bytes()
        with pytest.raises(TypeError):
            save_tensors(saved, TENSORS, {"x": object()})
        assert saved.read_bytes() == before
        assert len(list(saved.parent.iterdir())) == 1

    def test_plain_safetensors_readers_can_read_it(self, saved):
        assert torch.equal(safetensors.torch.load_file(saved)["a"], TENSORS["a"])

    def test_missing(self, tmp_path):
        with pytest.raises(NoInput, match=str(tmp_path / "gone")):
            load_tensors(tmp_path / "gone")
        with pytest.raises(NoInput):
            load_tensors(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
    def test_truncated(self, saved, keep):
        saved.write_bytes(saved.read_bytes()[:keep])
        with pytest.raises(BadData, match=str(saved)):
            load_tensors(saved)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"card": "{"}])
    def test_foreign_safetensors(self, tmp_path, metadata):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
        with pytest.raises(BadData, match=str(path)):
            load_tensors(path)

    def test_pickle_is_not_opened(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "opened"), "w"))

        path = tmp_path / "x.safetensors"
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(BadData, match=str(path)):
            load_tensors(path)
        assert not (tmp_path / "opened").exists()
        torch.save({"a": torch.zeros(2)}, path)
        with pytest.raises(BadData, match=str(path)):
            load_tensors(path)


class TestChecksums:
    def test_of_a_file(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc")
        assert sha256(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()

    def test_of_plain_data(self):
        assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": [2], "a": 1})
        assert fingerprint({"a": 1}) != fingerprint({"a": 2})
        assert fingerprint("a", "b") != fingerprint("ab")


class TestTrainingState:
    def test_restore(self, tmp_path):
        one, two = network(), network()
        for parameter in two.parameters():
            torch.nn.init.normal_(parameter)
        save_tensors(tmp_path / "x", one.state_dict(), {})
        load_weights(tmp_path / "x", two, load_tensors(tmp_path / "x")[0])
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )

    @pytest.mark.parametrize("change", ["wider", "less", "more"])
    def test_other_shape(self, tmp_path, change):
        state = network(4 if change == "wider" else 3).state_dict()
        if change == "less":
            state.pop("0.bias")
        if change == "more":
            state["more"] = torch.zeros(1)
        with pytest.raises(BadData, match=str(tmp_path / "x")):
            load_weights(tmp_path / "x", network(), state)

    @pytest.mark.parametrize("name", ["adam", "muon"])
    def test_training_state(self, name, tmp_path):
        def stepped(steps, net, optimiser):
            for _ in range(steps):
                image = torch.rand((2, 1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
                optimiser.zero_grad()
                net(image).square().sum().backward()
                optimiser.step()
            return net

        def made():
            net = network()
            settings = TrainingConfig(1, learning_rate=0.01, optimiser=name)
            return net, make_optimiser(net.parameters(), settings)

        whole = stepped(5, *made())
        first, optimiser = made()
        stepped(3, first, optimiser)
        save_tensors(tmp_path / "x", training_state(first, optimiser), {})
        second, fresh = made()
        resume(second, fresh, load_tensors(tmp_path / "x")[0])
        stepped(2, second, fresh)
        expected = whole.state_dict()
        for name, tensor in second.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
