"""Encoders of all kinds of files: what they describe, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from singlestrip_bids.config import PHANTOM, PRESETS, NetworkConfig, semisam_o1
from singlestrip_bids.errors import BadData, NoInput
from singlestrip_bids.machine.runtime import start
from singlestrip_bids.method import encoders
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.vit import VisionTransformer

CPU = start("cpu")


class Blocks(nn.Module):
    """Means and deviations of blocks of 16 voxels."""

    def forward(self, cube: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool3d(cube, 16)
        square = torch.nn.functional.avg_pool3d(cube * cube, 16)
        return torch.cat([mean, square], 1)


class Flat(Blocks):
    """The same everywhere."""

    def forward(self, cube: Tensor) -> Tensor:
        return torch.ones(1, 4, 8, 8, 8)


class Vector(Blocks):
    """One for the whole cube."""

    def forward(self, cube: Tensor) -> Tensor:
        return cube.flatten(1)[:, :7]


class Narrow(Blocks):
    """Knows another size alone."""

    def forward(self, cube: Tensor) -> Tensor:
        return cube.reshape(1, 4, 16, 16, 16)


def head() -> Tensor:
    image = torch.zeros(1, 1, 64, 64, 64)
    image[:, :, 10:50, 12:52, 8:48] = 0.6
    image[:, :, 20:40, 20:40, 20:40] = 0.9
    return image


@torch.inference_mode()
def described(path: Path, deepest: bool = False) -> Tensor:
    return encoders.read(path, deepest, CPU).network(head())


@pytest.fixture(scope="module")
def sam(tmp_path_factory) -> dict[str, Tensor]:
    """Weights of SAM-Med3D's shape, under the names of its checkpoints."""
    torch.manual_seed(0)
    network = VisionTransformer()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    weights = {f"image_encoder.{name}": one for name, one in network.state_dict().items()}
    return weights | {"mask_decoder.iou_token.weight": torch.zeros(1, 384)}


def test_a_network_of_this_app_by_its_weights_alone():
    path = PHANTOM / "phantom.safetensors"
    own = encoders.own(deepest=False, runtime=CPU)
    with torch.inference_mode():
        torch.testing.assert_close(described(path), own.network(head()))
    assert described(path, deepest=True).shape[2:] == (4, 4, 4)


@pytest.mark.parametrize(
    ("config", "parts"),
    [(NetworkConfig((4, 8)), 0), (NetworkConfig((4, 8, 8), normalise=True, stem=2), 3)],
)
def test_networks_of_any_shape(tmp_path, config, parts):
    torch.manual_seed(0)
    network = UNet(config, parts)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    found = described(tmp_path / "own.safetensors")
    assert found.shape[1] == sum(config.features[:-1])
    torch.testing.assert_close(found.norm(dim=1), torch.ones_like(found[:, 0]))


def test_sam_med3d_as_it_is_published_and_twice_as_fine(tmp_path, sam):
    torch.save({"model_state_dict": sam, "epoch": 3}, tmp_path / "sam.pth")
    save_file(sam, tmp_path / "sam.safetensors")
    coarse, fine = (described(tmp_path / "sam.pth", deepest) for deepest in (True, False))
    assert coarse.shape == (1, 384, 8, 8, 8)
    assert fine.shape == (1, 384, 16, 16, 16)
    assert torch.equal(described(tmp_path / "sam.safetensors", deepest=True), coarse)
    blocks = torch.nn.functional.avg_pool3d(fine, 2)
    like = torch.nn.functional.cosine_similarity(blocks, coarse, dim=1)
    assert like.median() > 0.8  # both describe the same places


def test_windows_see_their_padding_and_positions(sam):
    """Far tokens count by their distance: moving the head moves its features, and changes them."""
    network = VisionTransformer().eval()
    weights = {n.removeprefix("image_encoder."): t for n, t in sam.items() if "encoder" in n}
    network.load_state_dict(weights)
    attention = network.blocks[0].attn
    assert attention.window == 14
    assert network.blocks[2].attn.window == 8
    x = torch.randn(1, 8, 8, 8, 768, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mixed, turned = attention(x), attention(x.flip(1)).flip(1)
    assert mixed.shape == x.shape
    assert not torch.allclose(mixed, turned, atol=1e-4)
    with torch.no_grad():
        attention.rel_pos_d.zero_()
        mixed, turned = attention(x), attention(x.flip(1)).flip(1)
    torch.testing.assert_close(mixed, turned, atol=1e-4, rtol=1e-3)


def test_torchscript(tmp_path):
    torch.jit.script(Blocks()).save(tmp_path / "blocks.pt")
    assert described(tmp_path / "blocks.pt", deepest=True).shape == (1, 2, 8, 8, 8)
    fine = described(tmp_path / "blocks.pt")
    assert fine.shape == (1, 2, 16, 16, 16)
    inside = fine[0, 0, 5:9, 5:9, 5:9].mean()  # brighter than the head in the mean
    assert inside > 0 > fine[0, 0, 0, 0, 0]


def test_an_encoder_is_another_one_where_its_file_or_its_features_are(tmp_path):
    path = PHANTOM / "phantom.safetensors"
    keys = {encoders.read(path, deepest, CPU).key for deepest in (False, True)}
    assert len(keys) == 2


def test_a_method_without_features_needs_none(tmp_path):
    assert encoders.chosen(PRESETS["quick"], tmp_path / "no", CPU) is None
    with pytest.raises(NoInput, match="no such file of weights"):
        encoders.chosen(semisam_o1(PRESETS["quick"]), tmp_path / "no", CPU)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class TestRefused:
    def refused(self, path: Path, words: str) -> None:
        with pytest.raises(BadData, match=words) as caught:
            encoders.read(path, False, CPU)
        assert str(caught.value).startswith(f"{path}: ")

    def test_truncated(self, tmp_path, sam):
        whole = (PHANTOM / "phantom.safetensors").read_bytes()
        (tmp_path / "a.safetensors").write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path / "a.safetensors", "damaged, or no file of weights")
        torch.save(sam, tmp_path / "b.pth")
        whole = (tmp_path / "b.pth").read_bytes()
        (tmp_path / "b.pth").write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path / "b.pth", "damaged")
        torch.jit.script(Blocks()).save(tmp_path / "c.pt")
        whole = (tmp_path / "c.pt").read_bytes()
        (tmp_path / "c.pt").write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path / "c.pt", "damaged")

    @pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.pt"])
    @pytest.mark.parametrize("content", [b"", b"weights", b"\x80\x02}q\x00."])
    def test_no_weights(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        self.refused(tmp_path / name, "weights")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_never_run(self, tmp_path, zipped):
        touched, path = tmp_path / "touched", tmp_path / "evil.pth"
        if zipped:
            torch.save({"model_state_dict": Evil(touched)}, path)
        else:
            path.write_bytes(pickle.dumps(Evil(touched)))
        self.refused(path, "more than weights, or damaged; code in it is never run")
        assert not touched.exists()

    def test_other_shapes(self, tmp_path, sam):
        wrong = dict(sam)
        wrong["image_encoder.pos_embed"] = torch.zeros(1, 16, 16, 16, 768)
        torch.save(wrong, tmp_path / "wide.pth")
        self.refused(tmp_path / "wide.pth", "neither a network of this app nor SAM-Med3D's")
        save_file({"layer.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
        self.refused(tmp_path / "other.safetensors", "neither a network of this app nor")

    @pytest.mark.parametrize(
        ("network", "words"),
        [
            (Flat(), "finite and not all alike"),
            (Vector(), "where features"),
            (Narrow(), "takes no cube of 128 voxels"),
        ],
    )
    def test_what_describes_nothing(self, tmp_path, network, words):
        torch.jit.script(network).save(tmp_path / "a.pt")
        self.refused(tmp_path / "a.pt", words)
