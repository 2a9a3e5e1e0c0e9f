from __future__ import annotations

import pickle

import pytest
import safetensors.torch
import torch

from singlestrip_bids import optimisers
from singlestrip_bids.checkpoints import load, restore, resume, save, training_state
from singlestrip_bids.config import TrainingConfig
from singlestrip_bids.errors import BadData, NoInput

TENSORS = {
    "a": torch.rand((3, 4), generator=torch.Generator().manual_seed(0)),
    "b.c": torch.arange(5),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "scalar": torch.tensor(3.25, dtype=torch.float64),
    "flag": torch.tensor([True, False]),
}
CARD = {"preset": "quick", "n": 3, "deep": {"é": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path):
    save(tmp_path / "x.safetensors", TENSORS, CARD)
    return tmp_path / "x.safetensors"


def network(width: int = 3) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, width, 3), torch.nn.BatchNorm3d(width), torch.nn.Linear(2, 2)
    )


class TestFile:
    def test_round_trip(self, saved):
        tensors, card = load(saved)
        assert card == CARD
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype
            assert torch.equal(tensors[name], tensor)

    def test_views_and_gradients(self, tmp_path):
        weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
        save(tmp_path / "x", {"w": weight, "turned": weight.T}, {})
        tensors, _ = load(tmp_path / "x")
        assert torch.equal(tensors["turned"], weight.detach().T)
        assert not tensors["w"].requires_grad

    def test_same_bytes(self, saved):
        again = saved.with_name("y")
        save(again, TENSORS, dict(reversed(CARD.items())))
        assert again.read_bytes() == saved.read_bytes()

    def test_nothing_else_is_left(self, saved):
        save(saved, {"a": torch.zeros(1)}, {})
        assert [p.name for p in saved.parent.iterdir()] == [saved.name]
        assert load(saved)[0].keys() == {"a"}

    def test_card_that_is_not_plain_leaves_the_old_file(self, saved):
        before = saved.read_bytes()
        with pytest.raises(TypeError):
            save(saved, TENSORS, {"x": object()})
        assert saved.read_bytes() == before
        assert len(list(saved.parent.iterdir())) == 1

    def test_plain_safetensors_readers_can_read_it(self, saved):
        assert torch.equal(safetensors.torch.load_file(saved)["a"], TENSORS["a"])

    def test_missing(self, tmp_path):
        with pytest.raises(NoInput, match=str(tmp_path / "gone")):
            load(tmp_path / "gone")
        with pytest.raises(NoInput):
            load(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
    def test_truncated(self, saved, keep):
        saved.write_bytes(saved.read_bytes()[:keep])
        with pytest.raises(BadData, match=str(saved)):
            load(saved)

    @pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"card": "{"}])
    def test_foreign_safetensors(self, tmp_path, metadata):
        path = tmp_path / "x.safetensors"
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
        with pytest.raises(BadData, match=str(path)):
            load(path)

    def test_pickle_is_not_opened(self, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "opened"), "w"))

        path = tmp_path / "x.safetensors"
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(BadData, match=str(path)):
            load(path)
        assert not (tmp_path / "opened").exists()
        torch.save({"a": torch.zeros(2)}, path)
        with pytest.raises(BadData, match=str(path)):
            load(path)


class TestNetwork:
    def test_restore(self, tmp_path):
        one, two = network(), network()
        for parameter in two.parameters():
            torch.nn.init.normal_(parameter)
        save(tmp_path / "x", one.state_dict(), {})
        restore(tmp_path / "x", two, load(tmp_path / "x")[0])
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
            restore(tmp_path / "x", network(), state)

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
            return net, optimisers.make(net.parameters(), settings)

        whole = stepped(5, *made())
        first, optimiser = made()
        stepped(3, first, optimiser)
        save(tmp_path / "x", training_state(first, optimiser), {})
        second, fresh = made()
        resume(second, fresh, load(tmp_path / "x")[0])
        stepped(2, second, fresh)
        expected = whole.state_dict()
        for name, tensor in second.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
