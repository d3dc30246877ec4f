"""Published checkpoints: the same outputs behind our names, every tensor accounted for, everything else refused.

Where a reference model is at hand (transformers, torchvision) outputs are compared; elsewhere checkpoints are written
in their authors' names by `published_names`, and must come back tensor by tensor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from published_names import (
    COCO_IDS,
    State,
    caffe2_body,
    detectron2_body,
    detrex_from_official,
    hf_body_as_torchvision,
    in_coco_ids,
    mmdet_from_ours,
    official_from_ours,
    official_from_transformers,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from detbench import runs
from detbench.cli import app
from detbench.data.coco_classes import IDS, NAMES
from detbench.data.drawn import write
from detbench.engine.apply import load_weights
from detbench.engine.published import LAYOUTS, Imported, import_weights
from detbench.engine.weights import build, start_from
from detbench.errors import DataError, DetbenchError, RecipeError
from detbench.parts.data import Drawn
from detbench.parts.experiment import Experiment
from detbench.recipes import Context, named_row, resolve, select
from detbench.results import read_result
from detbench.store import WEIGHTS, Store
from detbench.workers import execute

TINY = (
    "detector.backbone.depth=18",
    "detector.neck.channels=64",
    "detector.transformer.encoder_layers=2",
    "detector.transformer.decoder_layers=3",
    "detector.transformer.num_heads=4",
    "detector.transformer.dim_feedforward=48",
    "detector.queries.num=11",
)
FORMS = {
    "plain": "match-free/table1/deformable-detr-baseline",
    "refined": "align-detr/table1/def.detr-50-ep",
    "two_stage": "deta/known-numbers/two-stage-deformable-detr-50-ep",
}
SIZES = ((75, 101), (91, 65))


def experiment_of(row: str, *overrides: str) -> Experiment:
    return resolve(*named_row(row), Context("paper", overrides=overrides))


def some_state(experiment: Experiment, num_classes: int) -> State:
    """Random weights of our detector, no two tensors alike."""
    generator = torch.Generator().manual_seed(0)
    state = build(experiment, num_classes).state_dict()
    return {name: torch.rand(tensor.shape, generator=generator) + 0.5 for name, tensor in state.items()}


def bring_in(path: Path, experiment: Experiment, **options: Any) -> Imported:
    return import_weights(path, path.with_name("imported.safetensors"), experiment, row="the row", **options)


def check_same(path: Path, wanted: State) -> None:
    found = load_file(path)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# ------------------------------------------------------------------ against transformers


def transformers_model(form: str, num_classes: int) -> Any:
    peer = pytest.importorskip("hf_deformable_detr")
    part = peer.our_part(
        form,
        depth=18,
        channels=64,
        num_layers=2,
        num_heads=4,
        dim_feedforward=48,
        num_queries=11,
        dropout=0.0,
    )
    torch.manual_seed(0)
    return peer.their_model(part, num_classes=num_classes).eval()


def tiny(form: str) -> Experiment:
    return experiment_of(FORMS[form], *TINY, "detector.transformer.decoder_layers=2")


@torch.no_grad()
def check_outputs(theirs: Any, imported: Imported, rows: Sequence[int] | slice = slice(None)) -> None:
    from hf_deformable_detr import pixel_mask

    ours = load_weights(Path(imported.file), device=torch.device("cpu")).model
    images = torch.randn(2, 3, 91, 101, generator=torch.Generator().manual_seed(1))
    found = ours(images, SIZES)["decoder"]
    wanted = theirs(images, pixel_mask=pixel_mask(SIZES, (91, 101)))
    torch.testing.assert_close(found.pred_logits[-2:], wanted.logits[..., rows], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.pred_boxes[-2:], wanted.pred_boxes, rtol=0, atol=1e-4)
    assert found.pred_logits[-2:].std() > 0.01  # else the test would say little


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["safetensors", "bin", "timm's body"])
def test_a_saved_model_of_transformers_predicts_the_same_here(form: str, kind: str, tmp_path: Path) -> None:
    theirs = transformers_model(form, num_classes=91)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    if kind != "safetensors":
        state = load_file(path)
        if kind == "timm's body":
            state = {
                hf_body_as_torchvision(name) if "backbone" in name else name: t for name, t in state.items()
            }
        path = tmp_path / "pytorch_model.bin"
        torch.save(state, path)
    imported = bring_in(path, tiny(form))
    assert (imported.layout, imported.class_names) == ("transformers", NAMES)
    check_outputs(theirs, imported, rows=COCO_IDS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_model_in_the_authors_names_predicts_the_same_here(form: str, tmp_path: Path) -> None:
    theirs = transformers_model(form, num_classes=91)
    path = tmp_path / "r50_deformable_detr-checkpoint.pth"
    content = {
        "model": official_from_transformers(theirs.state_dict()),
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 2e-4}]},
        "epoch": 49,
        "args": argparse.Namespace(lr=2e-4, two_stage=form == "two_stage"),
        "best": {"bbox_mAP": np.float64(0.445), "epoch": np.int64(48)},
    }
    torch.save(content, path)
    imported = bring_in(path, tiny(form))
    assert (imported.layout, imported.entry) == ("deformable-detr", "model")
    check_outputs(theirs, imported, rows=COCO_IDS)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_model_in_detrexs_names_has_the_same_tensors_here(form: str, tmp_path: Path) -> None:
    official = official_from_transformers(transformers_model(form, num_classes=5).state_dict())
    torch.save({"model": official}, tmp_path / "official.pth")
    torch.save({"model": detrex_from_official(official)}, tmp_path / "detrex.pth")
    names = ["a", "b", "c", "d", "e"]
    wanted = bring_in(tmp_path / "official.pth", tiny(form), class_names=names)
    tensors = load_file(wanted.file)
    with pytest.raises(RecipeError, match=r"logit_eps is 1e-05 there, expected detector.logit_eps=0.001"):
        bring_in(tmp_path / "detrex.pth", tiny(form), class_names=names)
    experiment = experiment_of(
        FORMS[form], *TINY, "detector.transformer.decoder_layers=2", "detector.logit_eps=1e-3"
    )
    imported = bring_in(tmp_path / "detrex.pth", experiment, class_names=names)
    assert imported.layout == "detrex"
    check_same(Path(imported.file), tensors)


# ------------------------------------------------------------------ there and back


def detr_heads_in_coco_ids(state: State, *, objectness: bool, last: str) -> State:
    """Class heads with a row for each id; a first stage that calls every object 0 learns in that row."""
    spread = {}
    for name, tensor in state.items():
        if "class_embed" not in name:
            spread[name] = tensor
            continue
        spread[name] = in_coco_ids(tensor)
        if objectness and last in name:
            spread[name][0] = tensor[0]
            spread[name][1] = -1e3
    return spread


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ("align-detr/table2/h-detr", ("branches.one_to_many.predictor.num_queries=22",)),
        ("deta/ablations/deta", ()),
        ("deta/known-numbers/improved-deformable-detr-50-ep", ()),
    ],
)
@pytest.mark.parametrize("layout", ["deformable-detr", "detrex"])
def test_two_stage_detectors_come_back_whole(
    row: str, more: tuple[str, ...], layout: str, tmp_path: Path
) -> None:
    eps = ("detector.logit_eps=1e-3",) if layout == "detrex" else ()
    experiment = experiment_of(row, *TINY, *more, *eps)
    ours = some_state(experiment, 80)
    state = official_from_ours(ours, num_layers=3)
    state = detr_heads_in_coco_ids(state, objectness=True, last="class_embed.3")
    content = [
        state.pop("queries.one_to_one.content.weight", None),
        state.pop("queries.one_to_many.weight", None),
    ]
    if content[0] is not None:
        state["query_embed.weight"] = torch.cat([x for x in content if x is not None])
    if layout == "detrex":
        state = detrex_from_official(state)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "x.pth")
    imported = bring_in(tmp_path / "x.pth", experiment)
    assert (imported.layout, imported.class_names, imported.tensors) == (layout, NAMES, len(ours))
    check_same(Path(imported.file), ours)


@pytest.mark.parametrize(
    ("row", "branches"), [("sized-l1/on-dino/dino", 3), ("align-detr/table3/align-loss-ours", 4)]
)
@pytest.mark.parametrize("layout", ["dino", "detrex"])
def test_dino_and_align_detr_come_back_whole(row: str, branches: int, layout: str, tmp_path: Path) -> None:
    theirs = (
        ("detector.position.temperature=20.0", "detector.position.offset=0.0") if layout == "dino" else ()
    )
    experiment = experiment_of(row, *TINY, *theirs)
    assert len(experiment.branches) == branches
    ours = some_state(experiment, 80)
    state = official_from_ours(ours, num_layers=3)
    state["transformer.tgt_embed.weight"] = state.pop("queries.one_to_one.content.weight")
    labels = state.pop("queries.denoising.label_embed.weight")
    if layout == "dino":
        for kind in ("class", "bbox"):
            state = {
                n.replace(f"{kind}_embed.3", f"transformer.enc_out_{kind}_embed"): t
                for n, t in state.items()
                if not n.startswith(f"transformer.decoder.{kind}_embed.3")
            }
        state = detr_heads_in_coco_ids(state, objectness=False, last="")
        state["label_enc.weight"] = in_coco_ids(labels, num_rows=92)
    else:
        state = detrex_from_official(state) | {"label_enc.weight": labels}
    torch.save({"model": state, "ema_model": {"x": torch.zeros(1)}}, tmp_path / "x.pth")
    imported = bring_in(tmp_path / "x.pth", experiment)
    assert (imported.layout, imported.class_names) == (layout, NAMES)
    assert imported.other_entries == ("ema_model",)
    check_same(Path(imported.file), ours)


def test_the_authors_dino_is_refused_where_positions_would_be_encoded_otherwise(tmp_path: Path) -> None:
    experiment = experiment_of("sized-l1/on-dino/dino", *TINY)
    state = official_from_ours(some_state(experiment, 5), num_layers=3)
    state["transformer.tgt_embed.weight"] = state.pop("queries.one_to_one.content.weight")
    state["label_enc.weight"] = torch.cat(
        [state.pop("queries.denoising.label_embed.weight"), torch.zeros(1, 64)]
    )
    for kind in ("class", "bbox"):
        state = {
            n.replace(f"{kind}_embed.3", f"transformer.enc_out_{kind}_embed"): t
            for n, t in state.items()
            if not n.startswith("transformer.decoder.")
            or "layers" in n.split(".")[2]
            or n.split(".")[2] in ("norm", "ref_point_head")
        }
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(RecipeError) as error:
        bring_in(tmp_path / "x.pth", experiment, class_names=list("abcde"))
    assert (
        "detector.position.temperature is 10000.0 there, expected detector.position.temperature=20.0"
        in str(error.value)
    )
    assert "detector.position.offset=0.0" in str(error.value)


DENSE = ("detector.backbone.depth=50", "detector.neck.channels=32", "detector.subnets.groups=8")
DATE_HEADS = {
    f"predictors.{branch}.{ours}": f"predictors.{index}.{theirs}"
    for index, branch in enumerate(("o2o", "o2m"))
    for ours, theirs in (
        ("convs.logits", "conv_cls"),
        ("convs.distances", "conv_reg"),
        ("convs.deltas", "conv_reg"),
        ("convs.centerness", "conv_ctr"),
        ("max_filter.predict", "filter"),
        ("max_filter", "max3d"),
    )
}
FCOS_HEADS = {
    "predictors.o2m.convs.logits": "conv_cls",
    "predictors.o2m.convs.distances": "conv_reg",
    "predictors.o2m.convs.centerness": "conv_centerness",
}


@pytest.mark.parametrize(
    ("row", "layout", "heads"),
    [
        ("date/table1/fcos-12-ep", "mmdet-fcos", FCOS_HEADS),
        ("date/table1/onenet-12-ep", "date", DATE_HEADS),
        ("date/table1/date-f-ours-12-ep", "date", DATE_HEADS),
        ("date/table5/date-r-ours-poto", "date", DATE_HEADS),
        ("date/table2/date-f-ours-3x-3dmf", "date", DATE_HEADS),
        ("date/table9/date-r-separate-subnets", "date", DATE_HEADS),
    ],
)
def test_dense_detectors_come_back_whole(
    row: str, layout: str, heads: dict[str, str], tmp_path: Path
) -> None:
    experiment = experiment_of(row, *DENSE)
    ours = some_state(experiment, 80)
    state = mmdet_from_ours(ours, heads=heads)
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    torch.save(
        {"meta": {"mmdet_version": "2.25.0", "CLASSES": NAMES}, "state_dict": state}, tmp_path / "x.pth"
    )
    imported = bring_in(tmp_path / "x.pth", experiment)
    assert (imported.layout, imported.entry, imported.class_names) == (layout, "state_dict", NAMES)
    assert imported.left_out == {"counters of batches": 1}
    check_same(Path(imported.file), ours)


def test_mmdetections_retinanet_is_refused_by_the_names_that_differ(tmp_path: Path) -> None:
    experiment = experiment_of("date/table1/retinanet-12-ep", *DENSE)
    state = mmdet_from_ours(some_state(experiment, 80), heads={"predictors.o2m.convs.logits": "retina_cls"})
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    with pytest.raises(DataError, match="isn't the detector of the row"):
        bring_in(tmp_path / "x.pth", experiment)


# ------------------------------------------------------------------ bodies


@cache
def body(depth: int = 50) -> nn.Module:
    """torchvision's, with statistics as after training."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, f"resnet{depth}")()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
                getattr(module, name).data.copy_(torch.rand(module.num_features) + low)
    return net.eval()


def of_body(net: nn.Module) -> State:
    return {n: t for n, t in net.state_dict().items() if not n.startswith("fc.") and "num_batches" not in n}


@torch.no_grad()
def features_of(net: Any, images: Tensor) -> list[Tensor]:
    x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
    levels = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        levels.append(x)
    return levels


@torch.no_grad()
def check_features(experiment: Experiment, path: str, wanted: list[Tensor], images: Tensor) -> None:
    """A run that names the file starts with these features."""
    from dataclasses import replace

    assert experiment.detector.backbone.kind == "resnet"
    ours = replace(experiment.detector.backbone, weights=path).build().eval()
    for found, level in zip(ours(images), wanted, strict=True):
        assert torch.allclose(found, level, rtol=1e-3, atol=1e-4 * level.abs().max().item())


def caffe_features(blobs: dict[str, np.ndarray[Any, Any]], images: Tensor) -> list[Tensor]:
    """A Caffe ResNet-50 worked out blob by blob: the stride sits in the first convolution of a stage."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = torch.from_numpy(blobs[f"{conv}_w"])
        y = nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        statistics = [
            torch.from_numpy(blobs[f"{norm}_{k}"]) for k in ("running_mean", "running_var", "gamma", "beta")
        ]
        return nn.functional.batch_norm(y, *statistics, eps=1e-5)

    x = nn.functional.max_pool2d(conv_norm(images, "conv1", "res_conv1_bn", 2).relu(), 3, 2, 1)
    levels = []
    for stage, num_blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(num_blocks):
            name = f"res{stage}_{block}_branch"
            stride = 2 if stage > 2 and block == 0 else 1
            y = conv_norm(x, f"{name}2a", f"{name}2a_bn", stride).relu()
            y = conv_norm(y, f"{name}2b", f"{name}2b_bn").relu()
            y = conv_norm(y, f"{name}2c", f"{name}2c_bn")
            x = (y + (conv_norm(x, f"{name}1", f"{name}1_bn", stride) if block == 0 else x)).relu()
        levels.append(x)
    return levels


DETR_ROW, DATE_ROW = "deta/ablations/deta", "date/table1/fcos-12-ep"


def test_torchvisions_file_gives_torchvisions_features(tmp_path: Path) -> None:
    net, images = body(), torch.randn(1, 3, 64, 96)
    torch.save(net.state_dict(), tmp_path / "resnet50.pth")
    experiment = experiment_of(DETR_ROW)
    imported = bring_in(tmp_path / "resnet50.pth", experiment)
    assert (imported.layout, imported.class_names) == ("torchvision", ())
    assert imported.left_out == {"counters of batches": 53, "the classifier": 2}
    for path in (imported.file, str(tmp_path / "resnet50.pth")):
        check_features(experiment, path, features_of(net, images), images)


@pytest.mark.parametrize("name", ["R-50.pkl", "weights.pth"])
def test_detectron2s_torchvision_pickle_gives_torchvisions_features(name: str, tmp_path: Path) -> None:
    net, images = body(), torch.randn(1, 3, 64, 96)
    arrays = {detectron2_body(n): t.numpy() for n, t in of_body(net).items()}
    arrays |= {"stem.fc.weight": np.zeros((2, 3)), "stem.fc.bias": np.zeros(2)}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": {n: torch.from_numpy(a) for n, a in arrays.items()}}, path)
    experiment = experiment_of(DETR_ROW)
    imported = bring_in(path, experiment)
    assert imported.layout == "detectron2-torchvision"
    check_features(experiment, imported.file, features_of(net, images), images)


def test_a_caffe_pickle_gives_the_features_worked_out_blob_by_blob(tmp_path: Path) -> None:
    blobs = {caffe2_body(n): t.numpy() for n, t in of_body(body()).items()}
    blobs |= {"conv1_b": np.zeros(64, np.float32), "fc1000_w": np.zeros((3, 4)), "fc1000_b": np.zeros(3)}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(
        pickle.dumps(blobs, protocol=2).replace(b"numpy._core.", b"numpy.core.")
    )  # older than NumPy 2
    experiment = experiment_of(DATE_ROW)
    imported = bring_in(path, experiment)
    assert (imported.layout, imported.tensors) == ("detectron2-caffe", 53 * 5)
    images = torch.randn(1, 3, 64, 96)
    for file in (imported.file, str(path)):
        check_features(experiment, file, caffe_features(blobs, images), images)


def test_mmdetections_caffe_file_gives_the_same_as_the_pickle_that_it_was_made_from(tmp_path: Path) -> None:
    state = of_body(body())
    blobs = {caffe2_body(n): t.numpy() for n, t in state.items()}
    biases = {n.replace(".weight", ".bias"): torch.zeros(len(t)) for n, t in state.items() if t.dim() == 4}
    torch.save(
        {"state_dict": state | biases}, tmp_path / "resnet50_caffe.pth", _use_new_zipfile_serialization=False
    )
    experiment = experiment_of(DATE_ROW)
    imported = bring_in(tmp_path / "resnet50_caffe.pth", experiment)
    assert imported.layout == "mmdet-caffe"
    assert list(imported.left_out.values()) == [53]
    images = torch.randn(1, 3, 64, 96)
    for file in (imported.file, str(tmp_path / "resnet50_caffe.pth")):
        check_features(experiment, file, caffe_features(blobs, images), images)


def test_a_torchvision_body_is_refused_where_pixels_come_as_caffe_wants_them(tmp_path: Path) -> None:
    torch.save(body().state_dict(), tmp_path / "resnet50.pth")
    with pytest.raises(RecipeError) as error:
        bring_in(tmp_path / "resnet50.pth", experiment_of(DATE_ROW))
    assert 'detector.backbone.stride_in is "1x1" there, expected detector.backbone.stride_in="3x3"' in str(
        error.value
    )
    assert 'data.pixels.order="rgb"' in str(error.value)


# ------------------------------------------------------------------ refusals


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment]:
    """A refined Deformable-DETR of five classes in the authors' names."""
    experiment = experiment_of(FORMS["refined"], *TINY)
    state = official_from_ours(some_state(experiment, 5), num_layers=3)
    state["query_embed.weight"] = state.pop("queries.one_to_one.embedding.weight")
    path = tmp_path_factory.mktemp("refused") / "five.pth"
    torch.save({"model": state}, path)
    return path, experiment


def changed(checkpoint: tuple[Path, Experiment], path: Path, change: Any) -> Path:
    state = torch.load(checkpoint[0], weights_only=True)["model"]
    change(state)
    torch.save({"model": state}, path)
    return path


def test_classes_that_nobody_names_are_asked_for(checkpoint: tuple[Path, Experiment]) -> None:
    with pytest.raises(DataError, match=r"tells 5 classes apart and doesn't name them\. Give --data DIR"):
        bring_in(*checkpoint)


def test_names_of_another_number_of_classes_are_refused(checkpoint: tuple[Path, Experiment]) -> None:
    with pytest.raises(DataError, match=r"tells 5 classes apart and doesn't name them; --data has 3\."):
        bring_in(*checkpoint, class_names=["a", "b", "c"])


def test_a_missing_tensor_is_named_here_and_there(
    checkpoint: tuple[Path, Experiment], tmp_path: Path
) -> None:
    path = changed(
        checkpoint, tmp_path / "x.pth", lambda s: s.pop("transformer.encoder.layers.1.norm2.weight")
    )
    with pytest.raises(DataError) as error:
        bring_in(path, checkpoint[1], class_names=list("abcde"))
    said = str(error.value)
    assert "--layout deformable-detr" in said
    assert (
        "1 missing (transformer.encoder.layers.1.feed_forward.norm.weight, there "
        "transformer.encoder.layers.1.norm2.weight)"
    ) in said
    assert "left over" not in said


def test_a_tensor_that_nobody_asks_for_is_named(checkpoint: tuple[Path, Experiment], tmp_path: Path) -> None:
    path = changed(checkpoint, tmp_path / "x.pth", lambda s: s.update({"transformer.extra": torch.zeros(2)}))
    with pytest.raises(DataError, match=r"1 left over in the file \(transformer\.extra\)"):
        bring_in(path, checkpoint[1], class_names=list("abcde"))


def test_a_second_copy_that_is_none_is_named(checkpoint: tuple[Path, Experiment], tmp_path: Path) -> None:
    def change(state: State) -> None:
        name = "transformer.decoder.bbox_embed.1.layers.0.bias"
        state[name] = state[name] + 1

    path = changed(checkpoint, tmp_path / "x.pth", change)
    with pytest.raises(
        DataError, match=r"bbox_embed\.1\.layers\.0\.bias, which is no copy of bbox_embed\.1\.layers"
    ):
        bring_in(path, checkpoint[1], class_names=list("abcde"))


def test_rows_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    experiment = experiment_of(
        "align-detr/table2/h-detr", *TINY, "branches.one_to_many.predictor.num_queries=22"
    )
    state = official_from_ours(some_state(experiment, 80), num_layers=3)
    content = [state.pop("queries.one_to_one.content.weight"), state.pop("queries.one_to_many.weight")]
    state["query_embed.weight"] = torch.cat([*content, content[0]])
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(DataError, match=r"11 of the 44 rows of query_embed\.weight"):
        bring_in(tmp_path / "x.pth", experiment)


def test_a_model_that_refines_its_boxes_is_not_taken_for_one_that_does_not(
    checkpoint: tuple[Path, Experiment],
) -> None:
    with pytest.raises(
        DataError, match=r"class_embed\.1\.weight, which is no copy of class_embed\.0\.weight"
    ):
        bring_in(checkpoint[0], experiment_of(FORMS["plain"], *TINY), class_names=list("abcde"))


def test_a_model_that_does_not_refine_its_boxes_is_not_taken_for_one_that_does(
    checkpoint: tuple[Path, Experiment], tmp_path: Path
) -> None:
    def change(state: State) -> None:
        for name in [n for n in state if n.startswith("transformer.decoder.bbox_embed")]:
            del state[name]

    path = changed(checkpoint, tmp_path / "x.pth", change)
    with pytest.raises(RecipeError, match=r'detector\.refinement is "detached" there, expected'):
        bring_in(path, checkpoint[1], class_names=list("abcde"))


class Payload:
    """What a pickle must not be able to do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


@pytest.mark.parametrize("name", ["x.pkl", "x.pth", "old.pth"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    content = {"conv1.weight": torch.zeros(1), "more": Payload()}
    if name == "x.pkl":
        path.write_bytes(pickle.dumps({"conv1_w": np.zeros(1), "more": Payload()}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=name != "old.pth")
    with pytest.raises(DataError, match=r"holds a [\w.]*print beside its weights, which may run code"):
        bring_in(path, experiment_of(DETR_ROW))
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["pth", "safetensors", "pkl"])
def test_a_file_that_was_cut_off_is_refused(
    kind: str, checkpoint: tuple[Path, Experiment], tmp_path: Path
) -> None:
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"x.{kind}"
    state = torch.load(checkpoint[0], weights_only=True)["model"]
    if kind == "pth":
        torch.save(state, whole)
    elif kind == "pkl":
        whole.write_bytes(pickle.dumps({n: t.numpy() for n, t in state.items()}))
    else:
        save_file({n: t.clone() for n, t in state.items()}, whole)
    path.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(DataError, match="can't be read as a checkpoint"):
        bring_in(path, checkpoint[1])


@pytest.mark.parametrize("content", [b"hello", b"\x80\x02garbage"])
def test_what_is_no_pickle_is_refused_without_advice_to_read_it_unchecked(
    content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.pth: can't be read as a checkpoint \(no whole pickle\)"):
        bring_in(tmp_path / "x.pth", experiment_of(DETR_ROW))


def test_weights_that_are_not_finite_are_refused(checkpoint: tuple[Path, Experiment], tmp_path: Path) -> None:
    def change(state: State) -> None:
        state["class_embed.0.bias"][2] = torch.nan

    path = changed(checkpoint, tmp_path / "x.pth", change)
    with pytest.raises(DataError, match=r"2 tensors with NaN or infinite values \(class_embed\.0\.bias, "):
        bring_in(path, checkpoint[1], class_names=list("abcde"))


def test_entries_without_weights_and_unknown_ones_are_named(tmp_path: Path) -> None:
    experiment = experiment_of(DETR_ROW)
    torch.save({"student": {"a": torch.zeros(1)}, "step": 3}, tmp_path / "x.pth")
    with pytest.raises(DataError, match=r"holds weights under student, none of which is model or state_dict"):
        bring_in(tmp_path / "x.pth", experiment)
    with pytest.raises(DataError, match=r"has no entry 'ema' with weights; those with weights are student"):
        bring_in(tmp_path / "x.pth", experiment, entry="ema")
    torch.save({"step": 3}, tmp_path / "y.pth")
    with pytest.raises(DataError, match="holds no parameters"):
        bring_in(tmp_path / "y.pth", experiment)


def test_the_numbers_of_the_eighty_classes_are_cocos() -> None:
    assert len(IDS) == len(NAMES) == len(set(NAMES)) == 80
    assert list(IDS) == COCO_IDS
    by_id = dict(zip(IDS, NAMES, strict=True))
    assert (by_id[1], by_id[13], by_id[44], by_id[67], by_id[90]) == (
        "person",
        "stop sign",
        "bottle",
        "dining table",
        "toothbrush",
    )


def test_the_guide_names_every_layout_and_rows_that_there_are() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "weights.md").read_text(encoding="utf-8")
    table = guide.split("## Whose files")[1].split("Without `--layout`")[0]
    quoted = set(re.findall(r"`([^`]+)`", table))
    assert set(LAYOUTS) <= quoted
    rows = [text for text in quoted if text.count("/") == 2]
    assert len(rows) >= 7
    for row in rows:
        assert resolve(*named_row(row), Context("paper"))


# ------------------------------------------------------------------ from the command line to detections

SMOKE = (
    'data.pixels.order="rgb"',
    "data.pixels.mean=[123.675, 116.28, 103.53]",
    "data.pixels.std=[58.395, 57.12, 57.375]",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Path, Path]:
    """A finished run at smoke scale, its data, and its weights as the authors of its detector would publish them."""
    folder = tmp_path_factory.mktemp("published")
    store = Store(folder / "runs")
    cells = runs.plan(select([FORMS["two_stage"]]), Context("smoke", overrides=SMOKE), seeds=[0], store=store)
    assert [outcome.state for outcome in execute(cells, store=store, threads=1)] == ["finished"]
    run = next(store.folders())
    num_layers = read_result(run).experiment["detector"]["transformer"]["decoder_layers"]
    torch.save(
        {"model": official_from_ours(load_file(run / WEIGHTS), num_layers=num_layers)},
        folder / "published.pth",
    )
    write(Drawn(size=64, num_train=6, num_val=4), folder / "drawn")
    return store, folder / "drawn", folder / "published.pth"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_imported_detector_reaches_on_data_what_the_run_behind_it_reached(
    published: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    store, drawn, file = published
    out = tmp_path / "weights" / "imported.safetensors"
    options = ["--recipe", FORMS["two_stage"], "--scale", "smoke", "--data", drawn, "--runs", store.root]
    brought = invoke("weights", "import", file, *SMOKE, *options, "-o", out, "--json")
    assert brought.exit_code == 0, brought.exception
    said = json.loads(brought.stdout)
    assert said["layout"] == "deformable-detr"
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert said["source_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()

    run = read_result(next(store.folders()))
    tested = invoke("eval", out, "--data", drawn, "--runs", store.root, "--json")
    assert tested.exit_code == 0, tested.exception
    found = json.loads(tested.stdout)
    assert (found["run"], found["metrics"]) == ("imported.safetensors", run.metrics)
    assert found["per_class"] == run.per_class

    seen = invoke("predict", out, drawn / "images", "--score", 0, "--json")
    assert seen.exit_code == 0, seen.exception
    assert {one["class"] for image in json.loads(seen.stdout) for one in image["detections"]} <= set(
        run.per_class
    )


def test_the_command_says_what_it_read_and_wrote(published: tuple[Store, Path, Path], tmp_path: Path) -> None:
    store, drawn, file = published
    out = tmp_path / "imported.safetensors"
    options = ["--recipe", FORMS["two_stage"], "--scale", "smoke", "--data", drawn, "--runs", store.root]
    said = invoke("weights", "import", file, *SMOKE, *options, "-o", out).stdout
    for line in (
        "deformable-detr (the authors' Deformable-DETR, H-DETR or DETA)",
        "copies of others",
        hashlib.sha256(out.read_bytes()).hexdigest(),
    ):
        assert line in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file": "nowhere.pth"}, "nowhere.pth: no such file"),
        ({"--recipe": "deta/known-numbers"}, "stands for 2"),
        ({"--recipe": "deta/ablations/deta"}, "isn't the detector of deta/ablations/deta at smoke scale"),
        ({"--layout": "detrx"}, "--layout detrx: no such layout; did you mean 'detrex'?"),
        ({"--layout": "dino"}, "isn't named as by the authors' DINO"),
        ({"-o": "imported.pth"}, "imported.pth: weights are written as .safetensors"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    changes: dict[str, str], message: str, published: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    store, drawn, file = published
    options = {"--recipe": FORMS["two_stage"], "--scale": "smoke", "-o": str(tmp_path / "x.safetensors")}
    options |= {"--data": str(drawn), "--runs": str(store.root)} | changes
    source = options.pop("file", str(file))
    failed = invoke("weights", "import", source, *SMOKE, *(word for pair in options.items() for word in pair))
    assert isinstance(failed.exception, DetbenchError)
    assert failed.exception.exit_code == 2
    assert message in str(failed.exception)
    assert not list(tmp_path.iterdir())


def test_files_that_hold_no_imported_detector_are_not_tested(tmp_path: Path) -> None:
    torch.save(body(18).state_dict(), tmp_path / "body.pth")
    experiment = experiment_of(DETR_ROW, "detector.backbone.depth=18")
    alone = bring_in(tmp_path / "body.pth", experiment)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    for file, message in (
        (alone.file, "holds the body of a detector alone"),
        (tmp_path / "other.safetensors", "bring it in with `detbench weights import`"),
        (tmp_path / "broken.safetensors", "can't be read as weights"),
        (tmp_path / "nowhere.safetensors", "can't be read as weights"),
    ):
        failed = invoke("eval", file, "--data", tmp_path)
        assert isinstance(failed.exception, DataError)
        assert message in str(failed.exception)


# ------------------------------------------------------------------ training from published weights


@pytest.fixture(scope="module")
def imported(published: tuple[Store, Path, Path]) -> Path:
    store, drawn, file = published
    out = store.root.parent / "imported.safetensors"
    options = ["--recipe", FORMS["two_stage"], "--scale", "smoke", "--data", drawn, "--runs", store.root]
    assert invoke("weights", "import", file, *SMOKE, *options, "-o", out).exit_code == 0
    return out


def smoke(*overrides: str) -> Experiment:
    return resolve(*named_row(FORMS["two_stage"]), Context("smoke", overrides=(*SMOKE, *overrides)))


def test_a_run_starts_from_an_imported_detector(imported: Path, published: tuple[Store, Path, Path]) -> None:
    store = published[0]
    names = tuple(read_result(next(store.folders())).per_class)
    started = start_from(imported, smoke(), names).state_dict()
    wanted = load_file(imported)
    assert all(torch.equal(started[name], tensor) for name, tensor in wanted.items())
    cells = runs.plan(
        select([FORMS["two_stage"]]),
        Context(
            "smoke", overrides=(*SMOKE, f"weights={imported}", "optim.lr=1e-30", "optim.weight_decay=0.0")
        ),
        seeds=[0],
        store=store,
    )
    assert [outcome.state for outcome in execute(cells, store=store, threads=1)] == ["finished"]
    trained = load_file(cells[0].folder / WEIGHTS)
    for name, tensor in wanted.items():
        if not name.startswith("backbone."):  # whose norms count their own statistics
            torch.testing.assert_close(trained[name], tensor)


def test_a_run_starts_from_another_runs_weights(
    published: tuple[Store, Path, Path], imported: Path, tmp_path: Path
) -> None:
    store, drawn, _ = published
    mine = next(folder for folder in store.folders() if not read_result(folder).experiment["weights"])
    wanted, names = load_file(mine / WEIGHTS), tuple(read_result(mine).per_class)
    started = start_from(mine / WEIGHTS, smoke(), names).state_dict()
    assert all(torch.equal(started[name], tensor) for name, tensor in wanted.items())
    others = start_from(mine / WEIGHTS, smoke(), ("cat", "dog")).state_dict()
    fits = {name for name, tensor in wanted.items() if others[name].shape == tensor.shape}
    assert all(torch.equal(others[name], wanted[name]) for name in fits if "class" not in name)
    by_file, by_name = (
        json.loads(invoke("eval", model, "--data", drawn, "--runs", store.root, "--json").stdout)
        for model in (mine / WEIGHTS, f"{mine.parent.name}/{mine.name}")
    )
    assert by_file["metrics"] == by_name["metrics"]
    elsewhere = tmp_path / "copy.safetensors"
    elsewhere.write_bytes((mine / WEIGHTS).read_bytes())
    with pytest.raises(DataError, match=r"lies in no finished run's folder; bring it in with"):
        start_from(elsewhere, smoke(), names)


def test_a_file_that_changed_since_a_run_started_from_it_is_refused(
    imported: Path, published: tuple[Store, Path, Path], tmp_path: Path
) -> None:
    store, file = Store(tmp_path / "runs"), tmp_path / "mine.safetensors"

    def go(*overrides: str, force: bool = False) -> Any:
        context = Context("smoke", overrides=(*SMOKE, f"weights={file}", *overrides))
        cells = runs.plan(select([FORMS["two_stage"]]), context, seeds=[0], store=store)
        outcomes = execute(cells, store=store, threads=1, force=force)
        assert all(outcome.state == "finished" for outcome in outcomes)
        return read_result(cells[0].folder)

    with pytest.raises(RecipeError, match=r"50 ep: starts from .*mine\.safetensors: no such file"):
        go()
    file.write_bytes(imported.read_bytes())
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    assert go().environment["weights_sha256"] == before
    borrowed = go("test.postprocess.keep=50")  # another test of the same training
    assert borrowed.weights_from
    file.unlink()
    go()  # finished: the file isn't needed any more

    save_file({name: tensor + 1 for name, tensor in load_file(imported).items()}, file, about(imported))
    for overrides in ((), ("test.postprocess.keep=50",), ("test.postprocess.keep=20",)):
        with pytest.raises(RecipeError, match=rf"isn't what .* started from \(its SHA-256 was {before}\)"):
            go(*overrides)
    assert go(force=True).environment["weights_sha256"] != before


def about(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_class_heads_start_anew_for_other_classes(imported: Path) -> None:
    torch.manual_seed(0)
    started = start_from(imported, smoke(), ("cat", "dog")).state_dict()
    torch.manual_seed(0)
    fresh = build(smoke(), 2).state_dict()
    wanted = load_file(imported)
    for name, tensor in started.items():
        assert torch.equal(tensor, (fresh if "class" in name else wanted)[name]), name
    assert started["heads.class_heads.0.weight"].shape[0] == 2


def test_a_detector_of_another_shape_is_not_started_from(imported: Path) -> None:
    with pytest.raises(
        DataError, match=r"doesn't fit this row's detector; \d+ of another shape \(transformer\."
    ):
        start_from(imported, smoke("detector.transformer.dim_feedforward=24"), ("cat", "dog"))
    with pytest.raises(DataError, match=r"doesn't fit this row's detector; \d+ missing.*the same --scale"):
        start_from(imported, smoke("detector.transformer.decoder_layers=4"), ("cat", "dog"))


def test_weights_to_start_from_rename_no_run_that_has_none() -> None:
    tree = smoke().identity("data")
    assert "weights" not in tree
    assert smoke("weights=x.safetensors").identity("data") == tree | {"weights": "x.safetensors"}


def test_a_row_does_not_start_from_a_file_and_a_run_at_once() -> None:
    recipe, row = named_row("date/table11/onenet-dagger-feature-extractor-from-a-trained-fcos")
    with pytest.raises(RecipeError, match="can't start from a file besides"):
        resolve(recipe, row, Context("smoke", overrides=("weights=x.safetensors",)))
