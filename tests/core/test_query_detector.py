"""The query detector: its layers against plain forms, what its queries see, what its boxes start from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from query_scenes import NUM_CLASSES, some_objects
from torch import Tensor, nn

from detbench.core.detectors.channel_mapper import ChannelMapper as ChannelMapperModule
from detbench.core.detectors.query import QueryDetector
from detbench.core.layers.attention import SelfAttention
from detbench.core.layers.position import box_positions
from detbench.core.layers.transformer import inverse_sigmoid
from detbench.core.queries.boxes import BoxQueries
from detbench.core.queries.learned import LearnedQueries as LearnedQueriesModule
from detbench.core.types import QueryPredictions, Targets
from detbench.errors import RecipeError
from detbench.parts.assigners import Known, QueryHungarian
from detbench.parts.backbones import ResNet, SmallResNet
from detbench.parts.branches import (
    Branch,
    DecoderOutput,
    DenoisingOutput,
    EncoderOutput,
    GtProbe,
    OneToManyOutput,
    QueryPredictor,
)
from detbench.parts.detectors import (
    ChannelMapper,
    ChannelMapperC2,
    LearnedQueries,
    ProposalQueries,
    Query,
    Transformer,
)

TARGETS = some_objects((2, 0, 3), seed=0)
PADDED = (100, 128)  # holds all images of TARGETS
IMAGES = torch.randn(3, 3, *PADDED, generator=torch.Generator().manual_seed(0))

DECODER = {"decoder": DecoderOutput()}
ALL: dict[str, QueryPredictor] = {
    "decoder": DecoderOutput(),
    "encoder": EncoderOutput(),
    "denoising": DenoisingOutput(num_queries=7),
    "one_to_many": OneToManyOutput(num_queries=9),
}
ONE_STAGE = LearnedQueries(num=6)
TWO_STAGE = ProposalQueries(num=6, content="learned", position="reference")


def branches_of(outputs: Mapping[str, QueryPredictor]) -> dict[str, Branch]:
    return {
        name: Branch(
            predictor=output, assigner=Known() if output.kind == "denoising" else QueryHungarian(), losses={}
        )
        for name, output in outputs.items()
    }


def detector(
    outputs: Mapping[str, QueryPredictor] = ALL,
    *,
    seed: int = 0,
    num_levels: int = 3,
    transformer: Mapping[str, Any] = {},
    **kwargs: Any,
) -> QueryDetector:
    """A small detector with weights that leave nothing at zero."""
    torch.manual_seed(seed)
    settings = {"encoder_layers": 1, "decoder_layers": 3, "num_heads": 2, "num_points": 2}
    part = Query(
        backbone=SmallResNet(width=8),
        neck=ChannelMapper(channels=16, num_levels=num_levels, groups=4),  # type: ignore[arg-type]
        transformer=Transformer(**{**settings, "dim_feedforward": 32, "dropout": 0.0, **transformer}),
        **{"queries": TWO_STAGE, "refinement": "detached", "heads": "per_layer", **kwargs},
    )
    return part.build(branches=branches_of(outputs), num_classes=NUM_CLASSES)


@torch.no_grad()
def shaken(model: QueryDetector) -> QueryDetector:
    """The same with noise on every weight, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def run(model: QueryDetector, *names: str, seed: int = 3) -> dict[str, QueryPredictions]:
    torch.manual_seed(seed)
    return model(IMAGES, TARGETS.sizes, TARGETS, names or None)


def same(a: QueryPredictions, b: QueryPredictions, tolerance: float = 1e-5) -> bool:
    return torch.allclose(a.pred_logits, b.pred_logits, atol=tolerance) and torch.allclose(
        a.pred_boxes, b.pred_boxes, atol=tolerance
    )


# ---- layers


@pytest.mark.parametrize("masked", [False, True])
def test_self_attention_is_that_of_torch(masked: bool):
    torch.manual_seed(0)
    ours = SelfAttention(16, num_heads=4, dropout=0.0).double()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        for parameter in theirs.parameters():
            nn.init.normal_(parameter)
        ours.query_key.weight.copy_(theirs.in_proj_weight[:32])
        ours.query_key.bias.copy_(theirs.in_proj_bias[:32])
        ours.value.weight.copy_(theirs.in_proj_weight[32:])
        ours.value.bias.copy_(theirs.in_proj_bias[32:])
        ours.output.load_state_dict(theirs.out_proj.state_dict())
    content, position = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    visible = (torch.rand(5, 5) < 0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    query = content + position
    expected, _ = theirs(query, query, content, attn_mask=None if visible is None else ~visible)
    assert torch.allclose(ours(content, position, visible), expected, atol=1e-9)


def test_self_attention_starts_like_torchs():
    torch.manual_seed(0)
    attention = SelfAttention(64, num_heads=4, dropout=0.0)
    bound = math.sqrt(6 / (64 + 3 * 64))  # Xavier of the joint (192, 64) matrix
    for projection in (attention.query_key, attention.value):
        assert projection.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert attention.output.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert not any(p.bias.any() for p in (attention.query_key, attention.value, attention.output))


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_inverse_sigmoid_clamps_numerator_and_denominator_apart(eps: float):
    x = torch.tensor([-0.5, 0.0, eps / 2, 0.2, 0.5, 1 - eps / 2, 1.0, 1.5], dtype=torch.float64)
    expected = [
        math.log(max(min(max(v, 0.0), 1.0), eps) / max(1 - min(max(v, 0.0), 1.0), eps)) for v in x.tolist()
    ]
    assert inverse_sigmoid(x, eps=eps).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_further_levels_stand_on_c5_and_on_each_other(num_levels: int):
    torch.manual_seed(0)
    neck = ChannelMapperModule([4, 6, 8], channels=8, num_levels=num_levels, groups=2)
    features = [torch.randn(2, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    levels = neck(features)
    assert [tuple(x.shape[1:]) for x in levels] == [(8, s, s) for s in (16, 8, 4, 2, 1)[:num_levels]]
    source = features[-1]
    for level, (conv, norm) in zip(levels[3:], neck.extra, strict=True):
        source = norm(F.conv2d(source, conv.weight, conv.bias, stride=2, padding=1))
        assert torch.allclose(level, source, atol=1e-6)
    assert not any(m.bias.any() for m in neck.modules() if isinstance(m, nn.Conv2d))


def test_the_neck_and_the_reference_points_start_xavier_uniform():
    torch.manual_seed(0)
    neck = ChannelMapperModule([32, 48, 64], channels=64, num_levels=5, groups=2)
    convs = [conv.weight for conv, _ in [*neck.maps, *neck.extra]]
    for weight in [*convs, LearnedQueriesModule(8, 256).reference_points.weight]:
        fan_out, fan_in = (size * weight[0, 0].numel() for size in weight.shape[:2])
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.97 * bound < weight.abs().max() <= bound


def test_a_neck_from_c2_reads_all_features_and_has_no_biases():
    torch.manual_seed(0)
    part = Query(
        backbone=SmallResNet(width=8),
        neck=ChannelMapperC2(channels=16, num_levels=5, groups=4),
        transformer=Transformer(encoder_layers=0, decoder_layers=1, num_heads=2, dim_feedforward=16),
    )
    model = part.build(branches=branches_of(DECODER), num_classes=NUM_CLASSES)
    features = model.backbone(IMAGES)
    levels = model.neck(features)
    assert [tuple(x.shape[-2:]) for x in levels] == [(25, 32), (13, 16), (7, 8), (4, 4), (2, 2)]
    for feature, level, (conv, norm) in zip(features, levels, model.neck.maps, strict=False):
        assert conv.bias is None
        assert torch.allclose(level, norm(F.conv2d(feature, conv.weight)), atol=1e-6)
    assert torch.allclose(levels[4], model.neck.extra[0](features[3]), atol=1e-6)


# ---- the decoder


def valid_ratios(level_sizes: tuple[tuple[int, int], ...]) -> Tensor:
    """(B, L, 2) unpadded share of the first row and column of each level's resized mask (spec 1.4)."""
    masks = torch.zeros(len(TARGETS.sizes), 1, *PADDED)
    for mask, (h, w) in zip(masks, TARGETS.sizes, strict=True):
        mask[:, :h, :w] = 1
    levels = [F.interpolate(masks, size=size)[:, 0] for size in level_sizes]
    return torch.stack([torch.stack([x[:, 0].mean(1), x[:, :, 0].mean(1)], -1) for x in levels], 1)


CASES = [
    (ONE_STAGE, "none", "shared"),
    (ONE_STAGE, "detached", "per_layer"),
    (ONE_STAGE, "twice", "per_layer"),
    (TWO_STAGE, "detached", "per_layer"),
    (TWO_STAGE, "twice", "shared"),
]


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize(("queries", "refinement", "heads"), CASES)
def test_boxes_and_references_are_those_of_the_specification(
    queries: Any, refinement: str, heads: str, final_norm: bool
):
    """Spec 1.6, 2.3 and 2.4, from what each layer was given and gave, one layer after the other."""
    model = shaken(
        detector(
            DECODER,
            queries=queries,
            refinement=refinement,
            heads=heads,
            transformer={"final_norm": final_norm},
        )
    ).eval()
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    for layer in model.transformer.decoder.layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append((*inputs[1:3], output)))
    found = run(model)["decoder"]

    if queries is ONE_STAGE:
        one_to_one = model.queries.one_to_one
        position = one_to_one.embedding.weight[:, :16]
        reference = one_to_one.reference_points(position).sigmoid().expand(3, -1, -1)
    else:
        reference = found.anchors
    ratios = valid_ratios(((13, 16), (7, 8), (4, 4)))
    boxes, logits = [], []
    for layer, (position, given, state) in enumerate(seen):
        on_levels = reference[:, :, None] * ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]
        assert torch.allclose(given, on_levels, atol=1e-6)
        if queries is TWO_STAGE:
            encoded = box_positions(on_levels[:, :, 0], 16, order="yxwh")  # of the finest level
            assert torch.allclose(position, model.queries.one_to_one.box_position(encoded), atol=1e-5)
        normed = state if model.transformer.decoder.norm is None else model.transformer.decoder.norm(state)
        i = layer if heads == "per_layer" else 0
        head = model.heads.box_heads[i]
        logit = inverse_sigmoid(reference, eps=1e-5)
        if reference.shape[-1] == 2:
            logit = torch.cat([logit, torch.zeros_like(logit)], -1)
        boxes.append((head(normed) + logit).sigmoid())
        logits.append(model.heads.class_heads[i](normed))
        if refinement != "none":
            reference = (head(state) + logit).sigmoid()
    assert found.num_layers == 3
    assert torch.allclose(found.pred_boxes, torch.cat(boxes), atol=1e-5)
    assert torch.allclose(found.pred_logits, torch.cat(logits), atol=1e-5)


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("refinement", ["detached", "twice"])
def test_only_looking_twice_teaches_the_layer_before(refinement: str, final_norm: bool):
    model = shaken(detector(DECODER, refinement=refinement, transformer={"final_norm": final_norm}))
    boxes = run(model)["decoder"].pred_boxes.view(3, 3, 6, 4)
    boxes[2].sum().backward()
    reached = [
        head.layers[0].weight.grad is not None and bool(head.layers[0].weight.grad.any())
        for head in model.heads.box_heads
    ]
    assert reached == [False, refinement == "twice", True]


@pytest.mark.parametrize("refinement", ["detached", "twice"])
def test_proposals_get_no_gradient_from_the_decoder(refinement: str):
    model = shaken(detector(DECODER, refinement=refinement))
    predictions = run(model)["decoder"]
    (predictions.pred_boxes.sum() + predictions.pred_logits.sum()).backward()
    assert all(p.grad is None for p in model.heads.encoder_parameters())


def test_a_one_stage_reference_learns_from_the_first_layer():
    model = shaken(detector(DECODER, queries=ONE_STAGE, refinement="detached"))
    run(model)["decoder"].pred_boxes[:3].sum().backward()
    assert model.queries.one_to_one.reference_points.weight.grad.any()


# ---- what each output holds


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_every_output_has_its_queries_in_every_layer(num_levels: int):
    model = detector(num_levels=num_levels, quality_head=True)
    predictions = run(model)
    num_tokens = sum(h * w for h, w in ((13, 16), (7, 8), (4, 4), (2, 2), (1, 1))[:num_levels])
    assert predictions["encoder"].pred_logits.shape == (3, num_tokens, NUM_CLASSES)
    assert predictions["encoder"].num_layers == 1
    for name, num in (("decoder", 6), ("denoising", 2 * 2 * 3), ("one_to_many", 9)):
        p = predictions[name]
        assert p.num_layers == 3
        assert p.pred_logits.shape == (9, num, NUM_CLASSES)
        assert p.pred_boxes.shape == (9, num, 4)
        assert p.states.shape == (9, num, 16)
        assert p.pred_quality.shape == (9, num)
        assert p.anchors.shape == (3, num, 4)
        assert (p.pairs is not None) == (name == "denoising")


def test_layers_follow_each_other_and_can_be_asked_for():
    outputs = {
        "all": DecoderOutput(),
        "last": DecoderOutput(layers="last"),
        "rest": DecoderOutput(layers="intermediate"),
    }
    predictions = run(shaken(detector(outputs)).eval())
    assert predictions["last"].num_layers == 1
    assert predictions["rest"].num_layers == 2
    assert torch.equal(predictions["all"].pred_boxes[:6], predictions["rest"].pred_boxes)
    assert torch.equal(predictions["all"].pred_logits[6:], predictions["last"].pred_logits)
    assert torch.equal(predictions["all"].last.states, predictions["last"].states)


def test_the_encoders_selected_tokens_are_the_best_of_all():
    outputs = {"all": EncoderOutput(tokens="all"), "selected": EncoderOutput(tokens="selected"), **DECODER}
    model = shaken(detector(outputs)).eval()
    predictions = run(model)
    every, selected = predictions["all"], predictions["selected"]
    order = every.pred_logits[..., 0].topk(6, 1).indices[..., None]
    assert torch.allclose(selected.pred_boxes, every.pred_boxes.gather(1, order.expand(-1, -1, 4)))
    assert torch.allclose(
        selected.pred_logits, every.pred_logits.gather(1, order.expand(-1, -1, NUM_CLASSES))
    )
    assert torch.equal(selected.anchors, every.anchors.gather(1, order.expand(-1, -1, 4)))
    assert torch.allclose(predictions["decoder"].anchors, selected.pred_boxes)
    assert every.anchors.amax() == 1.0  # of tokens that no box stands on
    # Without the encoder's output only the chosen boxes are computed; they are the same.
    assert same(run(model, "selected")["selected"], selected)
    assert same(run(model, "decoder")["decoder"], predictions["decoder"])


def test_one_to_many_proposals_rank_behind_the_one_to_one_ones():
    predictions = run(shaken(detector()))
    scores = predictions["encoder"].pred_logits[..., 0]
    order = scores.topk(15, 1).indices[..., None].expand(-1, -1, 4)
    boxes = predictions["encoder"].pred_boxes.gather(1, order)
    assert torch.allclose(predictions["decoder"].anchors, boxes[:, :6])
    assert torch.allclose(predictions["one_to_many"].anchors, boxes[:, 6:])


def test_denoising_and_one_to_many_exist_in_training_only():
    assert set(run(detector().eval())) == {"decoder", "encoder"}


@pytest.mark.parametrize("targets", [None, some_objects((0, 0, 0), seed=0)])
def test_without_objects_denoising_predicts_nothing_and_loses_nothing(targets: Targets | None):
    model = detector()
    predictions = model(IMAGES, TARGETS.sizes, targets)["denoising"]
    assert predictions.pred_logits.shape == (9, 0, NUM_CLASSES)
    assert predictions.pairs.copies == 1
    assert len(predictions.pairs.image_idx) == 0
    predictions.pred_logits.sum().backward()


def test_probes_say_their_correspondence_in_training_only():
    model = detector({"decoder": DecoderOutput(probe=GtProbe(dim=8)), "encoder": EncoderOutput()})
    found = run(model)["decoder"].correspondence
    assert found.shape == (3 * 5, 6)
    assert torch.allclose(found.sum(1), torch.ones(15))
    assert run(model.eval())["decoder"].correspondence is None


# ---- who sees whom


def test_training_only_queries_change_nothing_for_the_others():
    model = shaken(detector())
    alone = run(model, "decoder")["decoder"]
    for others in (("denoising",), ("one_to_many",), ("denoising", "one_to_many", "encoder")):
        assert same(run(model, "decoder", *others)["decoder"], alone)
    assert same(run(model, "one_to_many")["one_to_many"], run(model)["one_to_many"])
    assert same(run(model, "denoising")["denoising"], run(model)["denoising"])


def test_a_denoising_group_is_seen_by_itself_alone(monkeypatch: pytest.MonkeyPatch):
    model = shaken(detector())
    before = run(model)
    make = model.queries.denoising.forward

    def changed(targets: Targets) -> Any:
        noisy = make(targets)
        content = noisy.content.clone()
        content[:, 0] += 1.0  # a positive of the first of two groups of six
        return dataclasses.replace(noisy, content=content)

    monkeypatch.setattr(model.queries.denoising, "forward", changed)
    after = run(model)
    for name in ("decoder", "one_to_many", "encoder"):
        assert same(after[name], before[name])
    moved = (after["denoising"].pred_logits - before["denoising"].pred_logits).abs().amax(-1)
    assert moved[:, 6:].max() < 1e-5
    assert (moved[3:, :6] > 1e-4).all()  # positives and negatives of one group see each other


class Given(nn.Module):
    """Stands in for a neck: hands out levels made beforehand."""

    def __init__(self, levels: list[Tensor]) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, features: object) -> list[Tensor]:
        return self.levels


@pytest.mark.parametrize(
    "queries",
    [
        ONE_STAGE,
        ProposalQueries(num=6, content="proposal_and_token"),
        ProposalQueries(num=6, content="learned", select_by="best_class"),
    ],
)
def test_padding_changes_nothing(queries: Any):
    # DINO's positions aren't among these: they encode references of the padded map (spec 2.3).
    model = shaken(detector(DECODER, queries=queries)).eval()
    model.backbone = nn.Identity()
    torch.manual_seed(5)
    levels = [torch.randn(2, 16, h, w) for h, w in ((12, 8), (6, 4), (3, 2))]
    levels[0][1, :, 8:], levels[0][1, :, :, 4:] = 50.0, -50.0
    levels[1][1, :, 4:], levels[1][1, :, :, 2:] = 50.0, -50.0
    levels[2][1, :, 2:], levels[2][1, :, :, 1:] = 50.0, -50.0
    model.neck = Given(levels)
    together = model(torch.zeros(2, 3, 96, 64), [(96, 64), (64, 32)])["decoder"]
    model.neck = Given([levels[0][1:, :, :8, :4], levels[1][1:, :, :4, :2], levels[2][1:, :, :2, :1]])
    alone = model(torch.zeros(1, 3, 64, 32), [(64, 32)])["decoder"]
    assert torch.allclose(together.pred_boxes[1::2], alone.pred_boxes, atol=1e-4)
    assert torch.allclose(together.pred_logits[1::2], alone.pred_logits, atol=1e-4)


# ---- parameters


PARAMETER_CASES: list[tuple[Mapping[str, QueryPredictor], dict[str, Any]]] = [
    (ALL, {"quality_head": True}),
    (ALL, {"queries": ProposalQueries(num=6, content="proposal_and_token"), "heads": "shared"}),
    ({"decoder": DecoderOutput(layers="last")}, {}),
    (DECODER, {"queries": ONE_STAGE, "refinement": "none", "heads": "shared"}),
    (DECODER, {"queries": ONE_STAGE, "transformer": {"encoder_layers": 0, "self_attention": False}}),
]


WITHOUT_GRADIENT = ("heads.encoder", "queries.one_to_one.token.", "heads.box_heads")
"""What may serve an output by choosing its queries or places, through which no gradient flows."""


@pytest.mark.parametrize(("outputs", "settings"), PARAMETER_CASES)
def test_an_output_depends_on_its_own_parameters_alone(
    outputs: Mapping[str, QueryPredictor], settings: dict[str, Any]
):
    for name in outputs:
        model = shaken(detector(outputs, **settings))
        before = run(model, name)[name]
        own = list(model.parameters_of([name]))
        assert len({id(p) for p in own}) == len(own)
        with torch.no_grad():
            for parameter in model.parameters():
                if all(parameter is not p for p in own):
                    parameter += 1.0
        assert same(run(model, name)[name], before, 1e-6)
        total = before.pred_logits.sum() + before.pred_boxes.sum()
        if before.pred_quality is not None:
            total = total + before.pred_quality.sum()
        total.backward()
        idle = [
            parameter_name
            for parameter_name, parameter in model.named_parameters()
            if parameter.grad is None
            and any(parameter is p for p in own)
            and not parameter_name.startswith(WITHOUT_GRADIENT)
        ]
        assert idle == []


def test_parameters_of_nothing_in_particular_are_all():
    model = detector(quality_head=True)
    assert {id(p) for p in model.parameters_of()} == {id(p) for p in model.parameters()}
    prefixes = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert prefixes == {"backbone", "neck", "transformer", "heads", "queries"}
    rated = [n for n, _ in model.named_parameters() if "sampling_offsets" in n or "reference_points" in n]
    assert len(rated) == 2 * 4  # weight and bias of one encoder and three decoder layers


def test_rows_share_the_weights_that_both_have():
    plain = detector(DECODER).state_dict()
    richer = detector(ALL, quality_head=True).state_dict()
    assert set(plain) < set(richer)
    assert all(torch.equal(value, richer[name]) for name, value in plain.items())
    shuffled = detector(dict(reversed(ALL.items())), quality_head=True).state_dict()
    assert all(torch.equal(value, shuffled[name]) for name, value in richer.items())


def test_heads_start_as_the_specification_says():
    refined = detector(DECODER, queries=ONE_STAGE).heads
    assert [head.last.bias.tolist() for head in refined.box_heads] == [
        [0, 0, -2, -2], [0, 0, 0, 0], [0, 0, 0, 0],
    ]  # fmt: skip
    two_stage = detector(ALL).heads
    assert not any(head.last.bias.any() for head in [*two_stage.box_heads, two_stage.encoder_box])
    for head in [*refined.box_heads, *two_stage.box_heads]:
        assert not head.last.weight.any()
    classes = [*two_stage.class_heads, two_stage.encoder_class]
    for head in classes:
        assert head.bias.tolist() == pytest.approx([-4.59512] * NUM_CLASSES, abs=1e-5)
        assert torch.equal(head.weight, classes[0].weight)  # all are copies of one


def test_deformable_detr_has_forty_million_parameters():
    part = Query(backbone=ResNet(weights="none"), queries=LearnedQueries(), refinement="none")
    with torch.device("meta"):
        model = part.build(branches=branches_of(DECODER), num_classes=91)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(40.0e6, rel=0.005)


# ---- numbers and mistakes


def test_mixed_precision_keeps_boxes_and_logits_in_float32():
    model = shaken(detector())
    full = run(model)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(model)
    for name, p in mixed.items():
        assert p.pred_logits.dtype == p.pred_boxes.dtype == torch.float32
        assert p.pred_boxes.shape == full[name].pred_boxes.shape
    assert (mixed["encoder"].pred_boxes - full["encoder"].pred_boxes).abs().max() < 0.05


def test_double_precision_agrees_with_single():
    model = shaken(detector()).eval()
    single = run(model)["decoder"]
    double = model.double()(IMAGES.double(), TARGETS.sizes)["decoder"]
    assert double.pred_boxes.dtype == torch.float64
    assert torch.allclose(double.pred_boxes.float(), single.pred_boxes, atol=1e-4)


def test_more_queries_than_tokens_are_refused():
    model = detector(queries=ProposalQueries(num=300))
    with pytest.raises(RecipeError, match=r"300 proposals.*only 280 tokens"):
        model(IMAGES, TARGETS.sizes, branches=["decoder"])


# ---- queries made elsewhere


def made_elsewhere(*, num: int = 4, groups: int = 2, seed: int = 0) -> BoxQueries:
    generator = torch.Generator().manual_seed(seed)
    content = torch.randn(3, num, 16, generator=generator)
    return BoxQueries(content, torch.rand(3, num, 4, generator=generator) * 0.5 + 0.2, groups)


def beside(model: QueryDetector, queries: BoxQueries) -> tuple[dict[str, QueryPredictions], Tensor]:
    torch.manual_seed(3)
    predictions, states = model.decode(model.encode(IMAGES, TARGETS.sizes), TARGETS, beside=queries)
    assert states is not None
    return predictions, states


@pytest.mark.parametrize("position", ["reference", "proposal"])
def test_nobody_sees_queries_made_elsewhere(position: Any):
    queries = ProposalQueries(num=6, content="proposal_and_token", position=position)
    model = shaken(detector(queries=queries))
    plain = run(model)
    predictions, _ = beside(model, made_elsewhere())
    for name, expected in plain.items():
        assert same(predictions[name], expected), name


def test_groups_made_elsewhere_decode_as_one_alone_does():
    model = shaken(detector())
    _, alone = beside(model, made_elsewhere(groups=1))
    _, three = beside(model, made_elsewhere(groups=3))
    assert alone.shape == (3, 3, 4, 16)  # layers, images, queries, channels
    for group in three.split(4, 2):
        assert torch.allclose(group, alone, atol=1e-5)


def test_queries_made_elsewhere_see_each_other_and_the_matching_queries():
    model = shaken(detector())
    queries = made_elsewhere(groups=1)
    queries.content.requires_grad_()
    _, states = beside(model, queries)
    states[:, :, 0].square().sum().backward()
    assert queries.content.grad is not None
    assert (queries.content.grad.abs().sum(-1) > 0).all()
    learned = model.queries.one_to_one.content
    assert learned.weight.grad.abs().sum() > 0


def test_states_of_queries_made_elsewhere_are_those_of_the_same_denoising_queries():
    model = shaken(detector())
    torch.manual_seed(3)
    noisy = model.queries.denoising(TARGETS)
    group = slice(2 * noisy.most_objects)
    queries = BoxQueries(noisy.content[:, group], noisy.reference[:, group], 1)
    expected = run(model, "denoising")["denoising"].states
    _, states = beside(model, queries)
    assert torch.allclose(states.flatten(0, 1), expected[:, group], atol=1e-5)
