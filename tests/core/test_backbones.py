"""Bodies: the same function as torchvision's, what is frozen, which weights are taken and which refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import FrozenBatchNorm2d

from detbench.core.backbones import ResNet, SmallResNet, build_resnet
from detbench.errors import DataError
from detbench.parts.backbones import ResNet as ResNetPart


def randomise_norms(module: nn.Module, seed: int = 0) -> None:
    """Statistics and affine parameters as after training; without, folding would be tried on the identity."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d):
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                tensor: Tensor = getattr(m, name)
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)


def body(depth: int = 18, **changes: object) -> ResNet:
    settings = {"stride_in": "3x3", "weights": "none", "norm": "frozen", "frozen_stages": 2} | changes
    return build_resnet(depth=depth, **settings)  # type: ignore[arg-type]


def reference(net: torchvision.models.ResNet, x: Tensor) -> list[Tensor]:
    c2 = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
    c3 = net.layer2(c2)
    c4 = net.layer3(c3)
    return [c2, c3, c4, net.layer4(c4)]


@pytest.mark.parametrize("depth", [18, 50])
def test_folding_frozen_norms_changes_no_feature_and_no_gradient(depth: int) -> None:
    torch.manual_seed(0)
    ours = body(depth)
    randomise_norms(ours)
    theirs = getattr(torchvision.models, f"resnet{depth}")(norm_layer=FrozenBatchNorm2d)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(ours(x), reference(theirs, x), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * b.detach().abs().max().item())
    ours(x)[3].sum().backward()
    reference(theirs, x)[3].sum().backward()
    a, b = ours.layer3[0].conv2.weight.grad, theirs.layer3[0].conv2.weight.grad
    assert torch.allclose(a, b, rtol=1e-2, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize(("depth", "channels"), [(18, (64, 128, 256, 512)), (50, (256, 512, 1024, 2048))])
def test_features_have_the_announced_channels_and_strides(depth: int, channels: tuple[int, ...]) -> None:
    ours = body(depth)
    assert ours.out_channels == channels
    for feature, c, stride in zip(ours(torch.zeros(1, 3, 64, 96)), channels, ours.strides, strict=True):
        assert feature.shape == (1, c, 64 // stride, 96 // stride)


def test_caffe_style_strides_in_the_first_convolution() -> None:
    for style, strides in (("1x1", [(2, 2), (1, 1)]), ("3x3", [(1, 1), (2, 2)])):
        block = body(50, stride_in=style).layer3[0]
        assert [block.conv1.stride, block.conv2.stride] == strides


def test_basic_blocks_have_no_1x1_convolution_to_stride_in() -> None:
    with pytest.raises(ValueError, match="depth 18"):
        ResNetPart(depth=18, stride_in="1x1")


@pytest.mark.parametrize("stages", range(6))
def test_frozen_stages_are_those_named(stages: int) -> None:
    ours = body(18, frozen_stages=stages, norm="batch").train()
    parts = [[ours.conv1, ours.bn1], [ours.layer1], [ours.layer2], [ours.layer3], [ours.layer4]]
    for i, modules in enumerate(parts):
        for module in modules:
            assert all(p.requires_grad == (i >= stages) for p in module.parameters())
            assert module.training == (i >= stages)


def test_a_frozen_stage_keeps_its_statistics_in_training() -> None:
    ours = body(18, frozen_stages=1, norm="batch").train()
    before = ours.bn1.running_mean.clone(), ours.layer1[0].bn1.running_mean.clone()
    ours(torch.randn(2, 3, 64, 64))
    assert torch.equal(before[0], ours.bn1.running_mean)
    assert not torch.equal(before[1], ours.layer1[0].bn1.running_mean)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.", "module.backbone."])
@pytest.mark.parametrize("kind", ["pth", "wrapped.pth", "safetensors"])
def test_weights_are_found_under_any_prefix(tmp_path: Path, prefix: str, kind: str) -> None:
    source = body(18)
    randomise_norms(source)
    state = {prefix + k: v for k, v in source.state_dict().items()}
    state |= (
        {f"{prefix}fc.weight": torch.zeros(2, 2)} if "backbone" not in prefix else {"neck.x": torch.zeros(1)}
    )
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "wrapped" in kind else state, path)
    loaded = body(18, weights=str(path)).state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.state_dict().items())


def test_weights_of_another_network_are_refused_in_one_message(tmp_path: Path) -> None:
    state = body(18).state_dict()
    del state["layer4.1.conv2.weight"]
    state["layer4.2.conv1.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(DataError) as error:
        body(18, weights=str(tmp_path / "w.pth"))
    for said in (
        "w.pth",
        "1 missing (layer4.1.conv2.weight)",
        "1 not part of this backbone (layer4.2.conv1.weight)",
        "1 of another shape (conv1.weight (64, 3, 3, 3) for (64, 3, 7, 7))",
    ):
        assert said in str(error.value)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.pth: no such file"):
        body(18, weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(DataError, match="can't be read as a checkpoint"):
        body(18, weights=str(tmp_path / name))


def test_a_checkpoint_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "w.pth")
    with pytest.raises(DataError, match="holds no parameters"):
        body(18, weights=str(tmp_path / "w.pth"))


def test_the_small_body_is_small() -> None:
    small = SmallResNet(width=24)
    assert sum(p.numel() for p in small.parameters()) < 1_000_000
    shapes = [tuple(f.shape) for f in small(torch.zeros(2, 3, 128, 160))]
    assert shapes == [(2, 48, 32, 40), (2, 72, 16, 20), (2, 96, 8, 10), (2, 144, 4, 5)]
    assert small.out_channels == (48, 72, 96, 144)


@pytest.mark.parametrize("width", [8, 15, 24])
@pytest.mark.parametrize("side", [96, 94])
def test_the_small_body_has_the_gradients_of_its_plain_convolutions(width: int, side: int) -> None:
    torch.manual_seed(0)
    body = SmallResNet(width=width).double().to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, side, side, dtype=torch.float64).to(memory_format=torch.channels_last)
    x = body.stem(images).detach().requires_grad_()
    shortcut = body.stages[0].downsample[0]
    plain = torch.nn.Conv2d(width, 2 * width, 1, stride=2, bias=False).double()
    plain.load_state_dict(shortcut.state_dict())
    got, expected = shortcut(x), plain(x.contiguous())
    torch.testing.assert_close(got, expected)
    weight = torch.randn_like(expected)
    mine = torch.autograd.grad((got * weight).sum(), [x, shortcut.weight])
    theirs = torch.autograd.grad((expected * weight).sum(), [x, plain.weight])
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_no_narrow_convolution_meets_the_fault_of_onednn() -> None:
    """A 1x1 convolution with a stride, of under 16 channels, damages memory: it may not be computed as one."""
    strided = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            if function is torch.conv2d and arguments[1].shape[2:] == (1, 1):
                stride = arguments[3] if len(arguments) > 3 else 1
                strided.append((arguments[1].shape[1], stride not in (1, (1, 1))))
            return function(*arguments, **(options or {}))

    with Watch():
        SmallResNet(width=8)(torch.randn(1, 3, 64, 64))
    assert len(strided) == 4
    assert all(channels >= 16 for channels, has_stride in strided if has_stride)
    assert strided[0] == (8, False)
