"""Size and work of Deformable-DETR as published: 40 M parameters, 173 GFLOPs (official README, R50, 91 classes).

The published "FLOPs" are multiply-accumulates, averaged over COCO's validation images at 800 pixels a side. Ours are
those of one shape, with 5 D for each point that deformable attention samples: 1 % of the whole. LayerNorm and softmax
don't count.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from detbench.core.cost import Cost, count
from detbench.parts.assigners import QueryHungarian
from detbench.parts.backbones import ResNet
from detbench.parts.branches import Branch, DecoderOutput
from detbench.parts.detectors import Query, Transformer
from detbench.parts.losses import Focal

NUM_TOKENS = 100 * 160 + 50 * 80 + 25 * 40 + 13 * 20  # of an image of 800 x 1280 pixels
SAMPLED = 8 * 4 * 4 * 5 * 32  # heads, levels, points, four corners and a weight, channels
FEED_FORWARD = 2 * 256 * 1024
OFFSETS_AND_WEIGHTS = 256 * (8 * 4 * 4 * 3)


@cache
def cost(
    *,
    height: int = 800,
    width: int = 1280,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    refined: bool = False,
) -> Cost:
    part = Query(
        backbone=ResNet(depth=50, frozen_stages=2),
        transformer=Transformer(encoder_layers=encoder_layers, decoder_layers=decoder_layers),
        refinement="detached" if refined else "none",
        heads="per_layer" if refined else "shared",
    )
    branch = Branch(
        predictor=DecoderOutput(), assigner=QueryHungarian(), losses={"cls": Focal(divide_by="objects")}
    )
    with torch.device("meta"):
        detector = part.build(branches={"decoder": branch}, num_classes=91)
    return count(detector, height=height, width=width)


@pytest.mark.parametrize("refined", [False, True])
def test_parameters_are_the_published_40_million(refined: bool) -> None:
    assert cost(refined=refined).parameters == pytest.approx(40e6, rel=0.02)


def test_work_is_the_published_173_billion() -> None:
    # The shapes that most images of COCO have, 4:3 and 3:2, lie to either side of the mean.
    assert cost(width=1066).macs < 173e9 < cost(width=1199).macs


def test_refinement_costs_parameters_but_no_work() -> None:
    # Five more class heads (256 x 91) and box heads (256 x 256 twice, 256 x 4), each with its biases.
    more = 5 * (257 * 91 + 2 * 257 * 256 + 257 * 4)
    assert cost(refined=True).parameters - cost().parameters == more
    assert cost(refined=True).macs == cost().macs


def test_an_encoder_layer_costs_what_its_products_cost() -> None:
    of_token = 2 * 256 * 256 + OFFSETS_AND_WEIGHTS + SAMPLED + FEED_FORWARD
    assert cost().macs - cost(encoder_layers=5).macs == NUM_TOKENS * of_token


def test_a_decoder_layer_costs_what_its_products_cost() -> None:
    self_attention = 4 * 256 * 256 + 2 * 300 * 256
    cross_attention = 256 * 256 + OFFSETS_AND_WEIGHTS + SAMPLED
    heads = 256 * 91 + 2 * 256 * 256 + 256 * 4
    of_query = self_attention + cross_attention + FEED_FORWARD + heads
    of_memory = NUM_TOKENS * 256 * 256
    assert cost().macs - cost(decoder_layers=5).macs == 300 * of_query + of_memory
