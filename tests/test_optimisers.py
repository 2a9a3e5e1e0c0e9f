import pytest
import torch

from singlestrip_bids.config import TrainingConfig
from singlestrip_bids.optimisers import Muon, make, orthogonal


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


class TestMake:
    def test_by_name(self):
        weight = [torch.nn.Parameter(seeded(2, 2))]
        assert isinstance(make(weight, TrainingConfig(1, optimiser="muon")), Muon)
        adam = make(weight, TrainingConfig(1, weight_decay=0.5))
        assert isinstance(adam, torch.optim.Adam)
        assert adam.param_groups[0]["weight_decay"] == 0.5

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="sgd"):
            make([torch.nn.Parameter(seeded(2, 2))], TrainingConfig(1, optimiser="sgd"))

    def test_rate_is_that_of_the_settings(self):
        weight = [torch.nn.Parameter(seeded(2, 2))]
        for name in ("adam", "muon"):
            made = make(weight, TrainingConfig(1, learning_rate=0.5, optimiser=name))
            assert made.param_groups[0]["lr"] == 0.5
