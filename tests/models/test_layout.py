"""Convolutional models with the channels last: the same outputs, gradients and files."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from luthier.models.layout import channels_first, channels_last, has_convolutions

pytestmark = pytest.mark.usefixtures("one_thread")


class Residual(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.two = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        inner = torch.relu(self.norm_one(self.one(images)))
        return torch.relu(self.norm_two(self.two(inner)) + self.shortcut(images))


def residual() -> nn.Module:
    blocks = (Residual(8, 16, 2), Residual(16, 16, 1))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, *head)


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2),
        nn.Conv2d(12, 12, 5, padding=2, groups=12),
        nn.BatchNorm2d(12),
        nn.Hardswish(),
        nn.Conv2d(12, 6, 1),
        nn.ConvTranspose2d(6, 4, 2, stride=2),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


NETS = {"residual": residual, "depthwise": depthwise}


@pytest.fixture(params=NETS)
def nets(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A net as it is, and the same with the channels last."""
    build: Callable[[], nn.Module] = NETS[request.param]
    torch.manual_seed(0)
    plain = build()
    plain(torch.randn(2, 3, 20, 24))  # what is lazy learns its width
    other = copy.deepcopy(plain)
    assert channels_last(other)
    return plain, other


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 20, 24, generator=torch.Generator().manual_seed(1))


def test_outputs_and_gradients_are_equal(nets: tuple[nn.Module, nn.Module]) -> None:
    found = []
    for net in nets:
        given = images().requires_grad_()
        out = net(given)
        out.square().sum().backward()
        found.append((out, given.grad, *(p.grad for p in net.parameters())))
    for plain, other in zip(*found, strict=True):
        assert plain.shape == other.shape
        scale = float(plain.detach().abs().max())
        assert torch.allclose(plain, other, rtol=1e-4, atol=1e-5 * max(scale, 1))


def test_training_takes_the_same_way(nets: tuple[nn.Module, nn.Module]) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for net in nets:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        losses.append([])
        for _ in range(6):
            loss = nn.functional.cross_entropy(net(images()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def test_every_convolution_is_given_the_layout(nets: tuple[nn.Module, nn.Module]) -> None:
    """Seen where it counts: at the layers, for weights and images alike."""
    _, net = nets
    seen: list[bool] = []

    def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        last = torch.channels_last
        seen.append(
            given[0].is_contiguous(memory_format=last)
            and layer.weight.is_contiguous(memory_format=last)
        )

    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        layer.register_forward_pre_hook(look)
    net(images())
    assert seen == [True] * len(layers)


def test_the_same_state_and_a_layout_that_can_be_undone(
    nets: tuple[nn.Module, nn.Module],
) -> None:
    plain, net = nets
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(map(torch.equal, plain.state_dict().values(), net.state_dict().values()))
    assert channels_last(net)  # again: still one hook
    assert len(net._forward_pre_hooks) == 1
    net = copy.deepcopy(net)
    assert channels_last(net)
    assert len(net._forward_pre_hooks) == 1
    channels_first(net)
    assert not net._forward_pre_hooks
    assert all(p.is_contiguous() for p in net.parameters())
    assert torch.equal(net.eval()(images()), plain.eval()(images()))


def test_named_arguments_are_laid_out_and_all_else_is_left() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3)
            self.seen: list[bool] = []

        def forward(self, pixels: Tensor, mask: Tensor, scale: float) -> Tensor:
            self.seen.append(pixels.is_contiguous(memory_format=torch.channels_last))
            self.seen.append(mask.is_contiguous())
            return self.convolution(pixels) * scale

    module = Takes()
    channels_last(module)
    module(pixels=images(), mask=torch.ones(4, 3, 5, 5, dtype=torch.bool), scale=2.0)
    assert module.seen == [True, True]


def test_a_module_without_convolutions_is_left_alone() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(2, 2, 1))
    assert not has_convolutions(module)
    assert not channels_last(module)
    assert not module[0]._forward_pre_hooks
    assert not module._forward_pre_hooks
