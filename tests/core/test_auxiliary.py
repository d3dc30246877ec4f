"""Auxiliary heads of a query detector and the queries made from their positives (Co-DETR; spec 7)."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from query_scenes import NUM_CLASSES, SIZES, some_objects
from torch import Tensor

from detbench.core.boxes import xyxy_to_cxcywh
from detbench.core.detectors.query import QueryDetector
from detbench.core.layers.position import box_positions
from detbench.core.layers.transformer import inverse_sigmoid
from detbench.core.queries.positives import PositiveQueries, choose
from detbench.core.supervise import supervise
from detbench.core.types import (
    AnyPredictions,
    DensePredictions,
    Matches,
    QueryPredictions,
    RegionPredictions,
    Targets,
)
from detbench.parts.assigners import Atss, Known, QueryHungarian, SampledIou
from detbench.parts.auxiliary import AtssPredictor, PositivesOutput, RcnnPredictor, RpnPredictor
from detbench.parts.backbones import SmallResNet
from detbench.parts.branches import Branch, DecoderOutput, DenoisingOutput, EncoderOutput
from detbench.parts.detectors import ChannelMapper, ProposalQueries, Query, Transformer
from detbench.parts.losses import (
    BinaryCrossEntropy,
    BoxL1,
    Centerness,
    CenternessGiou,
    CrossEntropy,
    DeltaL1,
    DivideBy,
    Focal,
    Giou,
    QualityFocal,
    QueryGiou,
)

COUNTS = (2, 0, 3)
TARGETS = some_objects(COUNTS, seed=0)
IMAGES = torch.randn(3, 3, 100, 128, generator=torch.Generator().manual_seed(0))
HEADS = ["atss", "rcnn", "rpn"]
TRAINING_ONLY = {*HEADS, "from_atss", "from_rcnn", "denoising"}


def query_losses(divide_by: DivideBy) -> dict[str, QualityFocal | BoxL1 | QueryGiou]:
    return {
        "cls": QualityFocal(divide_by=divide_by),
        "bbox": BoxL1(divide_by=divide_by),
        "giou": QueryGiou(divide_by=divide_by),
    }


PLAIN = {
    "decoder": Branch(predictor=DecoderOutput(), assigner=QueryHungarian(), losses=query_losses("objects")),
    "encoder": Branch(
        predictor=EncoderOutput(tokens="selected", labels="true"),
        assigner=QueryHungarian(),
        losses=query_losses("objects"),
    ),
    "denoising": Branch(
        predictor=DenoisingOutput(num_queries=6), assigner=Known(), losses=query_losses("copies")
    ),
}
ALL = PLAIN | {
    "atss": Branch(
        predictor=AtssPredictor(octave_scale=2.0),
        assigner=Atss(),
        losses={
            "cls": Focal(weight=12.0, divide_by="positives_image"),
            "giou": CenternessGiou(weight=24.0),
            "centerness": Centerness(weight=12.0, divide_by="positives_image"),
        },
    ),
    "rpn": Branch(
        predictor=RpnPredictor(octave_scale=1.0, per_level=60, num_proposals=50),
        assigner=SampledIou(positive=0.7, negative=0.3, low_quality=0.3, sample=40, most_positive=0.5),
        losses={"cls": BinaryCrossEntropy(weight=12.0), "bbox": DeltaL1(weight=12.0, divide_by="sampled")},
    ),
    "rcnn": Branch(
        predictor=RcnnPredictor(proposals="rpn", hidden_dim=16, finest_side=28.0),
        assigner=SampledIou(sample=20),
        losses={"cls": CrossEntropy(weight=12.0), "giou": Giou(weight=120.0, divide_by="sampled")},
    ),
    "from_atss": Branch(predictor=PositivesOutput(of="atss"), assigner=Known(), losses=query_losses("pairs")),
    "from_rcnn": Branch(
        predictor=PositivesOutput(of="rcnn", fewest=5), assigner=Known(), losses=query_losses("pairs")
    ),
}


def detector(branches: dict[str, Branch] = ALL, *, position: str = "reference") -> QueryDetector:
    torch.manual_seed(0)
    part = Query(
        backbone=SmallResNet(width=8),
        neck=ChannelMapper(channels=16, num_levels=3, groups=4),
        transformer=Transformer(
            encoder_layers=1, decoder_layers=2, num_heads=2, num_points=2, dim_feedforward=32, dropout=0.0
        ),
        queries=ProposalQueries(num=6, content="learned", position=position),  # type: ignore[arg-type]
        refinement="twice",
        heads="per_layer",
    )
    return part.build(branches=branches, num_classes=NUM_CLASSES)


def run(
    model: QueryDetector, *names: str, images: Tensor = IMAGES, targets: Targets = TARGETS, seed: int = 3
) -> dict[str, AnyPredictions]:
    torch.manual_seed(seed)
    return model(images, targets.sizes, targets, names or None)


@cache
def found() -> dict[str, AnyPredictions]:
    return run(detector())


def total(model: QueryDetector, targets: Targets, *names: str, seed: int = 3) -> Tensor:
    predictions = run(model, *names, targets=targets, seed=seed)
    losses = [x for name in predictions for x in supervise(ALL[name], predictions[name], targets).values()]
    return torch.stack(losses).sum()


# ---- who predicts, and when


def test_auxiliary_heads_take_part_in_training_alone() -> None:
    model = detector()
    assert run(model).keys() == ALL.keys()
    torch.manual_seed(3)
    assert model(IMAGES, TARGETS.sizes).keys() == {*PLAIN}  # nothing to answer for
    model.eval()
    assert run(model).keys() == {"decoder", "encoder"}


def test_a_detector_tests_alike_with_and_without_them() -> None:
    with_heads, without = detector().eval(), detector(PLAIN).eval()
    shared = without.state_dict()
    assert all(torch.equal(with_heads.state_dict()[name], weight) for name, weight in shared.items())
    for name in ("decoder", "encoder"):
        assert torch.equal(run(with_heads)[name].pred_boxes, run(without)[name].pred_boxes)
    tested = sum(p.numel() for p in with_heads.parameters_of(["decoder"]))
    assert tested == sum(p.numel() for p in without.parameters_of(["decoder"]))


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_branch_alone_predicts_as_among_all(name: str) -> None:
    model = detector()
    alone = run(model, name)
    assert alone.keys() == {name}
    if name in HEADS:  # what is drawn for queries comes after
        assert torch.allclose(alone[name].pred_boxes, found()[name].pred_boxes, atol=1e-5)


@pytest.mark.parametrize("name", sorted(ALL))
def test_the_parameters_of_a_branch_are_those_with_a_gradient(name: str) -> None:
    model = detector()
    total(model, TARGETS, name).backward()
    named = {id(p): n for n, p in model.named_parameters()}
    said = {named[id(p)] for p in model.parameters_of([name])}
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached <= said
    if name in HEADS:
        # Proposals carry no gradient to what made them.
        assert {
            n for n in said - reached if not n.startswith(("auxiliary.dense.rpn.", "auxiliary.coarser."))
        } == set()


@pytest.mark.parametrize("counts", [COUNTS, (0, 0, 0), (40, 0, 1)])
def test_every_parameter_has_a_finite_gradient(counts: tuple[int, ...]) -> None:
    model = detector()
    loss = total(model, some_objects(counts, seed=1))
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_heads_teach_the_encoder_and_the_body() -> None:
    for name in HEADS:
        model = detector()
        total(model, TARGETS, name).backward()
        assert model.transformer.encoder.layers[0].attention.value_proj.weight.grad.any(), name
        assert model.backbone.stem[0].weight.grad.any(), name
        assert model.transformer.decoder.layers[0].cross_attention.value_proj.weight.grad is None, name


def test_the_same_seed_samples_the_same() -> None:
    again = run(detector())
    for name, predictions in found().items():
        assert torch.equal(predictions.pred_boxes, again[name].pred_boxes)
    other = run(detector(), seed=4)
    assert not torch.equal(found()["rcnn"].pred_boxes, other["rcnn"].pred_boxes)


# ---- what heads hand on


def test_heads_say_whom_they_answer_for_once() -> None:
    for name in HEADS:
        predictions = found()[name]
        assert isinstance(predictions, DensePredictions | RegionPredictions)
        assert predictions.pairs is not None
        moved = dataclasses.replace(
            predictions.pairs, target_idx=1 - predictions.pairs.target_idx.clamp(max=1)
        )
        ours = supervise(ALL[name], predictions, TARGETS)
        theirs = supervise(ALL[name], dataclasses.replace(predictions, pairs=moved), TARGETS)
        assert any(not torch.equal(ours[loss], theirs[loss]) for loss in ours)


def test_the_first_stage_knows_no_classes() -> None:
    relabelled = dataclasses.replace(TARGETS, labels=(TARGETS.labels + 1) % NUM_CLASSES)
    ours, theirs = (supervise(ALL["rpn"], found()["rpn"], t) for t in (TARGETS, relabelled))
    assert ours == theirs


def test_levels_are_the_necks_and_a_coarser_one() -> None:
    anchors = found()["atss"].anchors
    assert anchors.level_sizes == (13 * 16, 7 * 8, 4 * 4, 2 * 2)
    assert anchors.strides.unique().tolist() == [8, 16, 32, 64]


def test_images_dont_see_each_other() -> None:
    order = [2, 0, 1]
    mine = [TARGETS.image_idx == i for i in order]
    turned = Targets.of(
        [TARGETS.labels[m] for m in mine], [TARGETS.boxes[m] for m in mine], [SIZES[i] for i in order]
    )
    model = detector().eval()
    memory = [
        model.encode(images, targets.sizes)
        for images, targets in ((IMAGES, TARGETS), (IMAGES[order], turned))
    ]
    heads = [
        model.auxiliary(e.grid.maps_of(e.memory), t) for e, t in zip(memory, (TARGETS, turned), strict=True)
    ]
    for name in ("atss", "rpn"):
        assert torch.allclose(heads[1][name].pred_boxes, heads[0][name].pred_boxes[order], atol=1e-4)


# ---- queries from positives


def pairs_of(place: list[list[int]], *, ignored: Tensor | None = None) -> Matches:
    """Each image's positives among eight candidates; object k belongs to the k-th of all."""
    image = [i for i, own in enumerate(place) for _ in own]
    pred = [q for own in place for q in own]
    return Matches(torch.tensor(image), torch.tensor(pred), torch.arange(len(pred)), ignored)


def test_every_image_has_as_many_queries_as_the_most_positives() -> None:
    pairs = pairs_of([[1, 4, 6], [], [0]])
    place, matches = choose(pairs, (3, 8), fewest=1, most=300)
    assert place.shape == (3, 3)
    assert sorted(place[0].tolist()) == [1, 4, 6]
    assert place[2, 0] == 0
    assert len({*place[1].tolist()}) == 3
    chosen = place[matches.image_idx, matches.pred_idx].tolist()
    assert sorted(zip(matches.image_idx.tolist(), chosen, matches.target_idx.tolist(), strict=True)) == [
        (0, 1, 0), (0, 4, 1), (0, 6, 2), (2, 0, 3),
    ]  # fmt: skip


@pytest.mark.parametrize(("fewest", "most", "expected"), [(5, 300, 5), (1, 2, 2), (20, 300, 8), (1, 300, 3)])
def test_the_number_of_queries_is_bounded(fewest: int, most: int, expected: int) -> None:
    place, _ = choose(pairs_of([[1, 4, 6], []]), (2, 8), fewest=fewest, most=most)
    assert place.shape == (2, expected)
    assert all(len(set(own)) == expected for own in place.tolist())


def test_of_too_many_positives_all_have_the_same_chance() -> None:
    torch.manual_seed(0)
    pairs = pairs_of([[1, 4, 6]] * 3000)
    place, matches = choose(pairs, (3000, 8), fewest=1, most=2)
    assert len(matches.pred_idx) == 6000
    share = torch.bincount(place.flatten(), minlength=8) / 3000
    assert share[[1, 4, 6]].tolist() == pytest.approx([2 / 3] * 3, abs=0.03)
    assert share.sum().item() == pytest.approx(2)


def test_ignored_candidates_fill_up_last_and_stay_ignored() -> None:
    ignored = torch.ones(1, 8, dtype=torch.bool)
    ignored[0, [2, 3, 5]] = False
    place, matches = choose(pairs_of([[3]], ignored=ignored), (1, 8), fewest=3, most=300)
    assert place[0, 0] == 3
    assert sorted(place[0].tolist()) == [2, 3, 5]
    assert not matches.ignored.any()
    place, matches = choose(pairs_of([[3]], ignored=ignored), (1, 8), fewest=5, most=300)
    assert matches.ignored.tolist() == [[False] * 3 + [True] * 2]


def test_a_query_is_the_embedding_of_its_box() -> None:
    torch.manual_seed(0)
    module = PositiveQueries(PositivesOutput(of="atss"), 16, with_position=False, logit_eps=1e-3)
    boxes = torch.rand(3, 12, 2) * 40
    boxes = torch.cat([boxes, boxes + 10], -1)
    pairs = Matches(*(torch.tensor(x) for x in ([0, 2], [3, 5], [1, 4])))
    queries = module(boxes, pairs, TARGETS)
    assert queries.position is None
    assert queries.reference.shape == (3, 9, 4)
    image, slot = queries.matches.image_idx, queries.matches.pred_idx
    for i, s, q in zip(image, slot, (3, 5), strict=True):
        height, width = TARGETS.sizes[i]
        box = xyxy_to_cxcywh(boxes[i, q] / torch.tensor([width, height, width, height]))
        assert torch.allclose(queries.reference[i, s], box, atol=1e-5)
        linear, norm = module.box
        expected = norm(linear(box_positions(box, 16, order="xywh")))
        assert torch.allclose(queries.content[i, s], expected, atol=1e-4)


@pytest.mark.parametrize("position", ["reference", "proposal"])
@pytest.mark.parametrize("head", ["atss", "rcnn"])
def test_its_targets_are_those_of_the_head(head: str, position: str) -> None:
    predictions = run(detector(position=position))
    source, queries = predictions[head], predictions[f"from_{head}"]
    assert isinstance(queries, QueryPredictions)
    assert source.pairs is not None
    assert queries.pairs is not None
    of_image = [torch.bincount(x.image_idx, minlength=n) for x, n in ((source.pairs, 3), (queries.pairs, 6))]
    assert torch.equal(of_image[1].view(2, 3), of_image[0].expand(2, 3))
    assert torch.equal(
        queries.pairs.target_idx.view(2, -1).sort(1).values,
        source.pairs.target_idx.sort().values + 5 * torch.arange(2)[:, None],
    )
    boxes = (
        source.regions if isinstance(source, RegionPredictions) else source.anchors.boxes.expand(3, -1, -1)
    )
    starts = xyxy_to_cxcywh(boxes / TARGETS.whwh[:, None])[source.pairs.image_idx, source.pairs.pred_idx]
    assert queries.anchors is not None
    pairs = of_first_layer(queries.pairs, num_images=3)
    found = queries.anchors[pairs.image_idx, pairs.pred_idx]
    for m in range(sum(COUNTS)):  # the same anchors or regions for each object, in any order
        theirs = inverse_sigmoid(starts[source.pairs.target_idx == m], eps=1e-5).sigmoid()
        ours = found[pairs.target_idx == m]
        assert len(ours) == len(theirs)
        assert not len(ours) or torch.cdist(ours, theirs).amin(1).max() < 1e-4
        assert not len(ours) or torch.cdist(ours, theirs).amin(0).max() < 1e-4


def of_first_layer(pairs: Matches, *, num_images: int) -> Matches:
    first = pairs.image_idx < num_images
    return Matches(pairs.image_idx[first], pairs.pred_idx[first], pairs.target_idx[first])


def test_queries_of_one_head_see_neither_the_others_nor_the_detectors_own() -> None:
    model = detector()
    run(model)["from_rcnn"].pred_logits.sum().backward()
    queries = model.queries
    assert queries.positives["from_rcnn"].box[0].weight.grad.any()
    for unseen in (
        queries.positives["from_atss"].box[0],
        queries.one_to_one.content,
        queries.denoising.label_embed,
    ):
        assert unseen.weight.grad is None


def test_pairs_of_one_layer_divide_all_layers() -> None:
    queries = found()["from_atss"]
    assert isinstance(queries, QueryPredictions)
    assert queries.pairs is not None
    num_pairs = len(queries.pairs.pred_idx) // 2
    branch = dataclasses.replace(ALL["from_atss"], losses={"l1": BoxL1(weight=1.0, divide_by="pairs")})
    plain = dataclasses.replace(branch, losses={"l1": BoxL1(weight=1.0, divide_by="one")})
    ours, theirs = (supervise(b, queries, TARGETS)["l1"].item() for b in (branch, plain))
    assert num_pairs > 0
    assert ours == pytest.approx(theirs / num_pairs, rel=1e-5)
