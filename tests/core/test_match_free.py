"""Match-Free: the probe, the thinning of its correspondence, and both losses (spec 7), against plain forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from query_scenes import NUM_CLASSES, some_objects, some_queries
from torch import Tensor

from detbench.core.assign.correspondence import normalise_rows, stands_out
from detbench.core.assign.query_hungarian import query_cost
from detbench.core.detectors.gt_probe import ProbeAttention, ProbeModule
from detbench.core.losses.focal import background_focal, foreground_focal
from detbench.core.supervise import QuerySupervision, supervise
from detbench.core.types import QueryPredictions, Targets
from detbench.parts.assigners import QueryHungarian, SparseCorrespondence
from detbench.parts.branches import Branch, DecoderOutput, GtProbe
from detbench.parts.losses import BoxL1, Correspondence, Focal, QueryGiou, WeightedFocal

COUNTS = (3, 0, 5, 1)
LAYERS = 2
STATE_DIM = 6

DEFORMABLE_DETR = Branch(
    predictor=DecoderOutput(),
    assigner=QueryHungarian(),
    losses={
        "cls": Focal(weight=2.0, divide_by="objects"),
        "bbox": BoxL1(divide_by="objects"),
        "giou": QueryGiou(),
    },
)
MATCH_FREE = Branch(
    predictor=DecoderOutput(probe=GtProbe()),
    assigner=SparseCorrespondence(eps=0.0),
    losses={
        "cls": WeightedFocal(),
        "bbox": BoxL1(weigh_by="match", divide_by="objects"),
        "giou": QueryGiou(weigh_by="match"),
        "correspondence": Correspondence(),
    },
)


def scene(counts: tuple[int, ...] = COUNTS, seed: int = 0) -> tuple[QueryPredictions, Targets]:
    """Predictions of two layers with states and a random correspondence, and the batch's objects."""
    targets = some_objects(counts, seed)
    predictions = some_queries(targets, seed, num_layers=LAYERS)
    generator = torch.Generator().manual_seed(seed + 5)
    num = predictions.pred_logits.shape[1]
    states = torch.randn(LAYERS * len(counts), num, STATE_DIM, generator=generator, dtype=torch.float64)
    affinity = torch.randn(LAYERS * sum(counts), num, generator=generator, dtype=torch.float64)
    return replace(predictions, states=states, correspondence=(2 * affinity).softmax(-1)), targets


def probe(part: GtProbe) -> ProbeModule:
    torch.manual_seed(0)
    return ProbeModule(part, num_classes=NUM_CLASSES, state_dim=STATE_DIM, num_layers=LAYERS).double()


def thinned(soft: Tensor, rule: SparseCorrespondence) -> Tensor:
    """(M, Q) weights of a single image's correspondence."""
    kept = stands_out(
        soft,
        torch.zeros(len(soft), dtype=torch.int64),
        num_images=1,
        row_filter=rule.row_filter,
        compare=rule.compare,
        rho_row=rule.rho if rule.rho_row is None else rule.rho_row,
        rho=rule.rho,
        keep_row_argmax=rule.keep_row_argmax,
    )
    return normalise_rows(soft * kept, how=rule.normalization, eps=0.0)


# --- the probe --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", ["state", "prediction"])
@pytest.mark.parametrize("layers", ["shared", "separate", "last_only"])
def test_each_row_is_a_distribution_over_the_queries_of_its_objects_image(
    layers: Literal["shared", "separate", "last_only"], reads: Literal["state", "prediction"]
) -> None:
    predictions, targets = scene()
    module = probe(GtProbe(dim=8, layers=layers, reads=reads))
    found = module(predictions, targets)
    assert found.shape == (LAYERS * sum(COUNTS), predictions.pred_logits.shape[1])
    torch.testing.assert_close(found.sum(1), torch.ones(len(found), dtype=torch.float64))

    # Object by object, layer by layer, with the formula written out.
    for layer in range(LAYERS):
        seen = LAYERS - 1 if layers == "last_only" else layer
        attention = module.attentions[layer if layers == "separate" else 0]
        for i, image in enumerate(targets.image_idx.tolist()):
            row = seen * len(COUNTS) + image
            assert predictions.states is not None
            read = (
                predictions.states[row]
                if reads == "state"
                else torch.cat([predictions.pred_logits[row].sigmoid(), predictions.pred_boxes[row]], 1)
            )
            one_hot = torch.eye(NUM_CLASSES)[targets.labels[i]]
            assert isinstance(attention, ProbeAttention)
            told = attention.object_mlp(torch.cat([one_hot, targets.cxcywh[i]]).double())
            affinity = attention.query_proj(attention.query_mlp(read)) @ attention.object_proj(told)
            torch.testing.assert_close(found[layer * sum(COUNTS) + i], (affinity / 8**0.5).softmax(0))


def test_the_attention_has_two_matrices_and_nothing_else() -> None:
    attention = probe(GtProbe(dim=5)).attentions[0]
    of_attention = {name: tuple(x.shape) for name, x in attention.named_parameters() if "mlp" not in name}
    assert of_attention == {"object_proj.weight": (5, 5), "query_proj.weight": (5, 5)}


def test_states_learn_from_the_probe_unless_it_only_looks_on() -> None:
    predictions, targets = scene()
    assert predictions.states is not None
    for detach in (False, True):
        states = predictions.states.clone().requires_grad_()
        found = probe(GtProbe(dim=8, detach_queries=detach))(replace(predictions, states=states), targets)
        (found**2).sum().backward()
        assert (states.grad is None) == detach


def test_a_probe_without_objects_still_has_gradients_of_zero() -> None:
    predictions, targets = scene((0, 0))
    module = probe(GtProbe(dim=8))
    found = module(predictions, targets)
    assert found.shape == (0, predictions.pred_logits.shape[1])
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


# --- the thinning -----------------------------------------------------------------------------------

SOFT = torch.tensor(
    [
        [0.40, 0.30, 0.10, 0.20],
        [0.10, 0.60, 0.05, 0.25],
        [0.05, 0.25, 0.10, 0.60],
    ],
    dtype=torch.float64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        # Rows keep what reaches half their greatest; in columns 0.3 then reaches half of 0.6, and 0.2 doesn't.
        (SparseCorrespondence(), [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
        (SparseCorrespondence(rho=0.6), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
        (SparseCorrespondence(rho_row=0.2), [[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
        (SparseCorrespondence(row_filter="argmax"), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]),
        # Every column keeps its own greatest entry: not sparse (spec 7.2 a).
        (SparseCorrespondence(row_filter="none"), [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]),
        # As printed: where the row filter left nothing of a column its threshold is 0 and all of it comes back.
        (SparseCorrespondence(row_filter="argmax", compare="unfiltered"), [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]]),
    ],
)  # fmt: skip
def test_entries_that_stand_out_in_row_and_column_are_kept(
    rule: SparseCorrespondence, kept: list[list[int]]
) -> None:
    wanted = SOFT * torch.tensor(kept)
    torch.testing.assert_close(thinned(SOFT, replace(rule, normalization="none")), wanted)
    torch.testing.assert_close(thinned(SOFT, rule), wanted / wanted.sum(1, keepdim=True))
    torch.testing.assert_close(
        thinned(SOFT, replace(rule, normalization="max")), wanted / wanted.amax(1, keepdim=True)
    )


def test_an_object_whose_queries_all_belong_to_a_stronger_one_keeps_its_best_query() -> None:
    soft = torch.tensor([[0.98, 0.02], [0.30, 0.70], [0.49, 0.51]])
    strict = thinned(soft, SparseCorrespondence(rho=0.8, keep_row_argmax=False, normalization="none"))
    assert strict[2].tolist() == [0, 0]
    kept = thinned(soft, SparseCorrespondence(rho=0.8))
    assert kept[2].tolist() == [0, 1]
    assert torch.equal(kept[:2] > 0, strict[:2] > 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("row_filter", ["threshold", "argmax", "none"])
def test_weights_sum_as_stated_and_every_object_is_supervised(
    row_filter: Literal["threshold", "argmax", "none"], seed: int
) -> None:
    predictions, targets = scene(seed=seed)
    targets = targets.repeat(LAYERS)
    assert predictions.correspondence is not None
    rule = SparseCorrespondence(row_filter=row_filter)
    for how in ("none", "sum", "max"):
        matches = replace(rule, normalization=how)(predictions, targets)
        assert torch.equal(targets.image_idx[matches.target_idx], matches.image_idx)
        assert matches.weights is not None
        assert (matches.weights > 0).all()
        rows = torch.zeros_like(predictions.correspondence)
        rows[matches.target_idx, matches.pred_idx] = matches.weights
        assert (rows.sum(1) > 0).all()
        if how == "sum":
            torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)).double(), atol=1e-4, rtol=0)
        elif how == "max":
            torch.testing.assert_close(rows.amax(1), torch.ones(len(rows)).double(), atol=1e-4, rtol=0)
        else:
            assert torch.equal(rows[rows > 0], predictions.correspondence[rows > 0])


def test_the_divisor_of_a_row_has_an_epsilon() -> None:
    row = torch.tensor([[3e-6, 1e-6, 0.0]])
    assert normalise_rows(row, how="sum", eps=1e-6)[0].tolist() == pytest.approx([0.6, 0.2, 0])
    assert normalise_rows(row, how="max", eps=1e-6)[0].tolist() == pytest.approx([0.75, 0.25, 0])


def test_images_do_not_compete_for_queries() -> None:
    predictions, targets = scene()
    assert predictions.correspondence is not None
    last = predictions.correspondence[sum(COUNTS) :]
    together = SparseCorrespondence()(replace(predictions.last, correspondence=last), targets)
    for image in range(len(COUNTS)):
        mine = targets.image_idx == image
        alone = thinned(last[mine], SparseCorrespondence())
        in_image = together.image_idx == image
        assert together.weights is not None
        torch.testing.assert_close(together.weights[in_image], alone[alone > 0], rtol=1e-4, atol=0)


# --- the losses -------------------------------------------------------------------------------------


def test_a_one_hot_correspondence_gives_deformable_detrs_losses() -> None:
    predictions, targets = scene()
    assert predictions.correspondence is not None
    matches = QueryHungarian()(predictions, targets.repeat(LAYERS))
    one_hot = torch.zeros_like(predictions.correspondence)
    one_hot[matches.target_idx, matches.pred_idx] = 1.0
    found = supervise(MATCH_FREE, replace(predictions, correspondence=one_hot), targets)
    wanted = supervise(DEFORMABLE_DETR, predictions, targets)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)

    # What teaches the probe is then the cost of the matching itself, its GIoU term shifted by 1 for each object.
    cost = query_cost(QueryHungarian(), predictions, targets.repeat(LAYERS))
    of_pairs = cost[matches.target_idx, matches.pred_idx].sum() + 2 * LAYERS * sum(COUNTS)
    torch.testing.assert_close(found["correspondence"], of_pairs / sum(COUNTS))


def test_the_weighted_losses_are_those_of_a_dense_sum_over_objects_and_queries() -> None:
    predictions, targets = scene()
    found = supervise(MATCH_FREE, predictions, targets)
    layered = targets.repeat(LAYERS)
    matches = MATCH_FREE.assigner(predictions, layered)  # type: ignore[arg-type]
    assert predictions.correspondence is not None
    assert matches.weights is not None
    sparse = torch.zeros_like(predictions.correspondence)
    sparse[matches.target_idx, matches.pred_idx] = matches.weights

    soft_target = torch.zeros_like(predictions.pred_logits)
    bbox = predictions.pred_boxes.new_zeros(())
    for i, (image, label) in enumerate(zip(layered.image_idx.tolist(), layered.labels.tolist(), strict=True)):
        soft_target[image, :, label] += sparse[i]
        distance = (predictions.pred_boxes[image] - layered.cxcywh[i]).abs().sum(-1)
        bbox += (sparse[i] * distance).sum()
    positive = soft_target * foreground_focal(predictions.pred_logits, alpha=0.25, gamma=2.0)
    negative = (soft_target == 0) * background_focal(predictions.pred_logits, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(found["cls"], 2 * (positive + negative).sum() / sum(COUNTS))
    torch.testing.assert_close(found["bbox"], 5 * bbox / sum(COUNTS))

    supervision = QuerySupervision(predictions, layered, matches)
    torch.testing.assert_close(WeightedFocal(background=False)(supervision), positive.sum())
    cost = query_cost(QueryHungarian(), predictions, layered) + 2.0
    torch.testing.assert_close(
        found["correspondence"], (predictions.correspondence * cost).sum() / sum(COUNTS)
    )


@pytest.mark.parametrize("literal", [False, True])
def test_each_loss_teaches_its_own_side_unless_nothing_is_detached(literal: bool) -> None:
    predictions, targets = scene()
    assert predictions.correspondence is not None
    soft = predictions.correspondence.clone().requires_grad_()
    boxes = predictions.pred_boxes.clone().requires_grad_()
    branch = replace(
        MATCH_FREE,
        assigner=SparseCorrespondence(detach_correspondence=not literal),
        losses={**MATCH_FREE.losses, "correspondence": Correspondence(detach_cost=not literal)},
    )
    found = supervise(branch, replace(predictions, correspondence=soft, pred_boxes=boxes), targets)
    for name, teaches in {"bbox": [literal, True], "correspondence": [True, literal]}.items():
        gradients = torch.autograd.grad(found[name], [soft, boxes], retain_graph=True, allow_unused=True)
        assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == teaches


def test_images_without_objects_push_scores_down_and_teach_nothing_else() -> None:
    predictions, targets = scene((0, 0))
    found = supervise(MATCH_FREE, predictions, targets)
    negative = background_focal(predictions.pred_logits, alpha=0.25, gamma=2.0).sum()
    torch.testing.assert_close(found["cls"], 2 * negative, rtol=1e-6, atol=0)
    assert all(found[name] == 0 for name in ("bbox", "giou", "correspondence"))


def test_the_plain_sum_is_divided_by_nothing() -> None:
    predictions, targets = scene()
    literal = replace(MATCH_FREE, losses={"correspondence": Correspondence(divide_by="one")})
    torch.testing.assert_close(
        supervise(literal, predictions, targets)["correspondence"],
        supervise(MATCH_FREE, predictions, targets)["correspondence"] * sum(COUNTS),
        rtol=1e-6,
        atol=0,
    )
