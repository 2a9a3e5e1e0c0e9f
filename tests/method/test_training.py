from __future__ import annotations

import contextlib
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from singlestrip_bids.config import AutoencoderConfig, NetworkConfig, TrainingConfig
from singlestrip_bids.errors import BadData, TemporaryFailure
from singlestrip_bids.machine import files
from singlestrip_bids.machine.runtime import Runtime, stopping_on_sigterm
from singlestrip_bids.method import training
from singlestrip_bids.method.losses import reconstruction_loss, soft_dice
from singlestrip_bids.method.networks import Autoencoder, UNet
from singlestrip_bids.method.training import (
    Muon,
    fit,
    learning_rate,
    make_optimiser,
    orthogonal,
)

CPU = Runtime(torch.device("cpu"), bfloat16=False)
STEPS = 6
SETTINGS = TrainingConfig(STEPS, learning_rate=3e-3, weight_decay=1e-5, cosine=True)


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(NetworkConfig(features=(2, 4), normalise=True))


def unet_loss(network, generators):
    return torch.stack([one_loss(network, generator) for generator in generators]).mean()


def one_loss(network, generator):
    noise = torch.rand((1, 1, 8, 8, 8), generator=generator)
    target = (F.avg_pool3d(noise, 3, 1, 1) > 0.45).float()
    return soft_dice(network(target + 0.5 * noise).sigmoid(), target)


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(latent=4, slice_size=64))


def autoencoder_loss(network, generators):
    generator = generators[0]
    brain = torch.zeros((2, 1, 64, 64))
    low, high = torch.randint(5, 60, (2,), generator=generator).sort().values.tolist()
    brain[:, :, low : high + 3, 20:50] = 1
    both = torch.cat([1 - brain, brain], dim=1)
    return reconstruction_loss(network(both), both)


NETWORKS = pytest.mark.parametrize(
    ("make", "loss"), [(unet, unet_loss), (autoencoder, autoencoder_loss)]
)


def run(network, loss, path: Path, settings=SETTINGS, fingerprint="a", seed=7) -> list[float]:
    return fit(network, loss, settings, CPU, path, fingerprint, seed, "test")


def terminated_at(step: int, loss):
    """The same loss, with a SIGTERM to this process in one of its calls."""
    calls = iter(range(1000))

    def wrapped(network, generators):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(network, generators)

    return wrapped


def interrupt(network, loss, path: Path, step: int = 2, **options) -> None:
    with stopping_on_sigterm(), pytest.raises(TemporaryFailure, match=f"{step + 1} of {STEPS}"):
        run(network, terminated_at(step, loss), path, **options)
    assert path.is_file()


def same_weights(one, two) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def bytes_kept(network: UNet) -> int:
    """What a pass keeps for its gradients, weights left out."""
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(1, 1, 16, 16, 16)).sum()
    return sum(kept.values())


class TestFullMemory:
    @pytest.mark.parametrize("way", [1, 2])
    def test_goes_on_with_less_of_it(self, tmp_path, caplog, way):
        """PyTorch's own error, raised where its GPU allocator would, leaves the same weights."""
        settings = replace(SETTINGS, batch_size=3)
        plain, network, calls = unet(), unet(), []
        expected = run(plain, unet_loss, tmp_path / "plain", settings)

        def greedy(net, generators):
            calls.append(len(generators))
            value = unet_loss(net, generators)
            if len(calls) > 2 and (len(generators) > 1 or net.recompute < (way == 2)):
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
            return value

        with caplog.at_level(logging.WARNING):
            history = run(network, greedy, tmp_path / "c", settings)
        assert calls == [3, 3, 3, *[1] * (way == 2), *[1] * 3 * (STEPS - 2)]
        assert history == pytest.approx(expected, abs=1e-5)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], value, atol=1e-4, rtol=1e-3)
        said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(said) == way
        assert said[0].startswith(
            "OUT OF MEMORY training on whole batches (CUDA out of memory.): now"
        )

    def test_no_way_is_left(self, tmp_path):
        def greedy(*_):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        with pytest.raises(torch.OutOfMemoryError):
            run(unet(), greedy, tmp_path / "c")

    def test_computing_twice_keeps_less(self):
        network = unet().train()
        plain = bytes_kept(network)
        network.recompute = True
        assert bytes_kept(network) < 0.5 * plain


class TestFit:
    def test_loss_falls(self, tmp_path):
        network = unet()
        settings = TrainingConfig(steps=40, learning_rate=0.02)
        history = run(network, unet_loss, tmp_path / "c", settings)
        assert len(history) == 40
        assert sum(history[-5:]) < 0.5 * sum(history[:5])
        assert not network.training

    @NETWORKS
    def test_seed_decides(self, tmp_path, make, loss):
        one, same, other = make(), make(), make()
        assert run(one, loss, tmp_path / "c") == run(same, loss, tmp_path / "c")
        run(other, loss, tmp_path / "c", seed=8)
        assert same_weights(one, same)
        assert not same_weights(one, other)
        assert not same_weights(one, make())

    @NETWORKS
    @pytest.mark.parametrize("step", [0, 2, STEPS - 1])
    def test_interrupted_is_as_uninterrupted(self, tmp_path, make, loss, step):
        whole = make()
        expected = run(whole, loss, tmp_path / "whole")

        network = make()
        interrupt(network, loss, tmp_path / "c", step)
        torch.manual_seed(99)  # a new process: other weights at first, other random state
        resumed = make()
        for parameter in resumed.parameters():
            torch.nn.init.normal_(parameter)
        assert run(resumed, loss, tmp_path / "c") == expected
        assert same_weights(resumed, whole)

    def test_interrupted_twice(self, tmp_path):
        whole = unet()
        expected = run(whole, unet_loss, tmp_path / "whole")
        network, path = unet(), tmp_path / "c"
        interrupt(network, unet_loss, path, 1)
        with stopping_on_sigterm(), pytest.raises(TemporaryFailure, match="4 of"):
            run(network, terminated_at(1, unet_loss), path)
        assert run(network, unet_loss, path) == expected
        assert same_weights(network, whole)

    def test_saved_in_passing(self, tmp_path, monkeypatch):
        """After a crash without any signal, training goes on from the last save."""
        whole, network, path = unet(), unet(), tmp_path / "c"
        expected = run(whole, unet_loss, tmp_path / "whole")
        monkeypatch.setattr(training, "SAVE_EVERY_S", -1.0)
        calls = iter(range(100))

        def crashing(net, generators):
            if next(calls) == 4:
                raise KeyboardInterrupt
            return unet_loss(net, generators)

        with contextlib.suppress(KeyboardInterrupt):
            run(network, crashing, path)
        used = []
        fresh = unet()
        history = run(fresh, lambda n, g: used.append(1) or unet_loss(n, g), path)
        assert len(used) == STEPS - 4
        assert history == expected
        assert same_weights(fresh, whole)

    def test_other_fingerprint_is_not_taken_up(self, tmp_path):
        path, whole, network = tmp_path / "c", unet(), unet()
        interrupt(unet(), unet_loss, path, fingerprint="other", seed=8)
        run(whole, unet_loss, tmp_path / "whole")
        assert len(run(network, unet_loss, path)) == STEPS
        assert same_weights(network, whole)

    def test_damaged_checkpoint_starts_over_with_a_warning(self, tmp_path, caplog):
        path, whole, network = tmp_path / "c", unet(), unet()
        run(whole, unet_loss, tmp_path / "whole")
        interrupt(unet(), unet_loss, path)
        path.write_bytes(path.read_bytes()[:-100])
        with caplog.at_level(logging.WARNING):
            run(network, unet_loss, path)
        assert str(path) in caplog.text
        assert "starts from the beginning" in caplog.text
        assert same_weights(network, whole)

    def test_finished_checkpoint_trains_no_more(self, tmp_path):
        network, path = unet(), tmp_path / "c"
        interrupt(network, unet_loss, path, STEPS - 1)

        def never(*_):
            raise AssertionError("trained on")

        fresh = unet()
        assert len(run(fresh, never, path)) == STEPS
        assert same_weights(fresh, network)

    def test_no_checkpoint_of_a_short_undisturbed_training(self, tmp_path):
        run(unet(), unet_loss, tmp_path / "c")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_loss_that_is_not_finite(self, tmp_path, value):
        with pytest.raises(BadData, match=r"test: the loss is (nan|inf) at step 0"):
            run(unet(), lambda n, g: unet_loss(n, g) * value, tmp_path / "c")
        assert not list(tmp_path.iterdir())

    def test_learns_with_dropout_and_batch_statistics_on(self, tmp_path):
        seen = []
        network = autoencoder().eval()

        def loss(net, generators):
            seen.append(net.training)
            return autoencoder_loss(net, generators)

        run(network, loss, tmp_path / "c", replace(SETTINGS, steps=2))
        assert seen == [True, True]
        assert not network.training

    def test_first_step_has_the_size_of_the_learning_rate(self, tmp_path):
        """Adam's first step is the rate itself, in the direction of the gradient's sign."""
        weight = torch.nn.Linear(1, 1, bias=False)
        before = weight.weight.item()

        def loss(network, generator):
            return F.mse_loss(network(torch.ones((1, 1))), torch.full((1, 1), 100.0))

        run(weight, loss, tmp_path / "c", TrainingConfig(1, learning_rate=0.01))
        assert weight.weight.item() - before == pytest.approx(0.01, rel=1e-3)


class TestLearningRate:
    def test_constant(self):
        settings = TrainingConfig(steps=50, learning_rate=0.3)
        assert {learning_rate(step, settings) for step in range(50)} == {0.3}

    @pytest.mark.parametrize("steps", [1, 2, 10, 1000])
    def test_cosine(self, steps):
        settings = TrainingConfig(steps=steps, learning_rate=0.3, cosine=True)
        rates = [learning_rate(step, settings) for step in range(steps)]
        top = rates.index(max(rates))
        assert top <= max(0.03 * steps, 1)
        assert max(rates) == pytest.approx(0.3)
        assert min(rates) > 0
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)

    def test_cosine_halves_half_way_and_ends_near_zero(self):
        settings = TrainingConfig(steps=1000, learning_rate=1.0, cosine=True)
        middle = 30 + (1000 - 30) // 2
        assert learning_rate(middle, settings) == pytest.approx(0.5)
        assert learning_rate(999, settings) < 1e-5
        assert learning_rate(0, settings) == pytest.approx(1 / 30)


def test_checkpoint_is_safetensors_with_its_fingerprint(tmp_path):
    interrupt(unet(), unet_loss, tmp_path / "c", step=3)
    state, card = files.load_tensors(tmp_path / "c")
    assert card == {"fingerprint": "a"}
    assert state["history"].shape == (4,)


def seeded(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


class TestOrthogonal:
    @pytest.mark.parametrize("shape", [(8, 8), (16, 432), (432, 16), (1, 27), (64, 3)])
    @pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
    def test_singular_values_near_one(self, shape, scale):
        values = torch.linalg.svdvals(orthogonal(seeded(*shape) * scale))
        assert values.min() > 0.6 and values.max() < 1.3

    def test_keeps_the_singular_vectors(self):
        matrix = seeded(6, 20)
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        turned = left.T @ orthogonal(matrix) @ right.T
        assert torch.allclose(turned, torch.diag(turned.diag()), atol=1e-4)
        assert (turned.diag() > 0).all()

    def test_zero_stays_zero(self):
        assert not orthogonal(torch.zeros(4, 9)).any()

    def test_wide_and_tall_agree(self):
        matrix = seeded(5, 12)
        assert torch.allclose(orthogonal(matrix.T), orthogonal(matrix).T, atol=1e-6)


class TestMuon:
    def stepped(self, parameter, gradients, **settings):
        parameter = torch.nn.Parameter(parameter.clone())
        optimiser = Muon([parameter], **settings)
        for gradient in gradients:
            parameter.grad = gradient
            optimiser.step()
        return parameter.detach()

    def test_kernel_moves_by_the_rate(self):
        kernel, gradient = seeded(8, 4, 3, 3, 3), seeded(8, 4, 3, 3, 3) * 1e-4
        moved = self.stepped(kernel, [gradient], lr=0.02) - kernel
        values = torch.linalg.svdvals(moved.flatten(1)) / 0.02
        assert values.min() > 0.6 and values.max() < 1.3
        assert (moved * gradient).sum() < 0

    def test_vector_moves_by_a_tenth_of_the_rate(self):
        gain, gradient = seeded(32), seeded(32) * 1e-3
        moved = self.stepped(gain, [gradient], lr=0.02) - gain
        assert moved.square().mean().sqrt().item() == pytest.approx(0.002, rel=1e-3)

    def test_scale_of_the_loss_does_not_matter(self):
        kernel, gradient = seeded(8, 30), seeded(8, 30)
        small = self.stepped(kernel, [gradient * 1e-3] * 3, lr=0.1)
        assert torch.allclose(small, self.stepped(kernel, [gradient] * 3, lr=0.1), atol=1e-4)

    def test_momentum_remembers(self):
        kernel, first, second = seeded(4, 6), torch.eye(4, 6), torch.eye(4, 6).flip(1)
        with_memory = self.stepped(kernel, [first, second], lr=0.1, momentum=0.9)
        without = self.stepped(kernel, [first, second], lr=0.1, momentum=0.0)
        assert not torch.allclose(with_memory, without, atol=1e-3)

    def test_zero_gradient_moves_nothing(self):
        for shape in ((4, 6), (5,)):
            assert torch.equal(
                self.stepped(seeded(*shape), [torch.zeros(shape)], lr=1.0), seeded(*shape)
            )

    def test_parameters_without_gradient_stay(self):
        used, unused = torch.nn.Parameter(seeded(3, 3)), torch.nn.Parameter(seeded(3, 3))
        used.grad = torch.ones(3, 3)
        Muon([used, unused], lr=0.1).step()
        assert torch.equal(unused.detach(), seeded(3, 3))

    def test_solves_an_ill_conditioned_regression(self):
        inputs = seeded(256, 16) * torch.logspace(0, -1, 16)
        answer = inputs @ seeded(16, 8)
        weight = torch.nn.Parameter(torch.zeros(16, 8))
        optimiser = Muon([weight], lr=0.2)
        for step in range(200):
            optimiser.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
            optimiser.zero_grad()
            (inputs @ weight - answer).square().mean().backward()
            optimiser.step()
        residual = (inputs @ weight - answer).square().mean() / answer.square().mean()
        assert residual.item() < 1e-3


class TestMakeOptimiser:
    def test_by_name(self):
        weight = [torch.nn.Parameter(seeded(2, 2))]
        assert isinstance(make_optimiser(weight, TrainingConfig(1, optimiser="muon")), Muon)
        adam = make_optimiser(weight, TrainingConfig(1, weight_decay=0.5))
        assert isinstance(adam, torch.optim.Adam)
        assert adam.param_groups[0]["weight_decay"] == 0.5

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="adam or muon"):
            make_optimiser([torch.nn.Parameter(seeded(2, 2))], TrainingConfig(1, optimiser="sgd"))

    def test_rate_is_that_of_the_settings(self):
        weight = [torch.nn.Parameter(seeded(2, 2))]
        for name in ("adam", "muon"):
            made = make_optimiser(weight, TrainingConfig(1, learning_rate=0.5, optimiser=name))
            assert made.param_groups[0]["lr"] == 0.5
