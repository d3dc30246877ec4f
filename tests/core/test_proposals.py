"""Two-stage proposals: anchors, ranking, and what the queries start with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detbench.core.layers.position import box_positions
from detbench.core.layers.tokens import Layout, TokenGrid, lay_out
from detbench.core.queries.proposals import ProposalQueries, anchor_logits, proposal_scores
from detbench.core.selection import take
from detbench.parts.detectors import ProposalQueries as Part

LEVELS = ((16, 12), (8, 6), (4, 3))
SIZES = [(128, 96), (72, 96)]


def grid(sizes: list[tuple[int, int]] = SIZES) -> TokenGrid:
    return lay_out(
        Layout(hidden_dim=8, temperature=10000.0, offset=-0.5),
        LEVELS,
        sizes=sizes,
        padded_size=(128, 96),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def module(**kwargs: object) -> ProposalQueries:
    torch.manual_seed(0)
    return ProposalQueries(Part(num=5, **kwargs), 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [0.05, 0.125])
def test_anchors_grow_with_the_level_and_are_infinite_near_the_border_and_in_the_padding(side: float):
    found = anchor_logits(grid(), side)
    rows_of = {0: {128: 16, 72: 9}, 1: {128: 8, 72: 5}, 2: {128: 4, 72: 3}}  # ceil(72 / stride)
    for image, (height, _) in enumerate(SIZES):
        start = 0
        for level, (h, w) in enumerate(LEVELS):
            rows = rows_of[level][height]
            for i in range(h):
                for j in range(w):
                    box = [(j + 0.5) / w, (i + 0.5) / rows, side * 2**level, side * 2**level]
                    usable = i < rows and all(0.01 < x < 0.99 for x in box)
                    expected = [math.log(x / (1 - x)) if usable else math.inf for x in box]
                    assert found[image, start + i * w + j].tolist() == pytest.approx(expected, abs=1e-5)
            start += h * w
    assert (found.sigmoid()[found.isinf()] == 1).all()


def test_some_anchors_lie_too_near_the_border():
    wide = lay_out(
        Layout(hidden_dim=8, temperature=10000.0, offset=-0.5),
        ((1, 100),),
        sizes=[(8, 800)],
        padded_size=(8, 800),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    unusable = anchor_logits(wide, 0.05).isinf().any(-1)[0]
    assert unusable.nonzero().flatten().tolist() == [0, 99]  # centres 0.005 and 0.995


def test_memory_of_unusable_tokens_counts_as_zero():
    queries, anchors = module(), anchor_logits(grid(), 0.05)
    memory = torch.randn(2, anchors.shape[1], 8)
    unusable = anchors.isinf().any(-1)
    assert unusable.any()
    tokens = queries.tokens(memory, anchors)
    of_zero = queries.token(torch.zeros(8))
    assert torch.allclose(tokens[unusable], of_zero.expand(int(unusable.sum()), -1), atol=1e-6)
    assert torch.allclose(tokens[~unusable], queries.token(memory[~unusable]), atol=1e-6)


def test_tokens_are_ranked_by_the_first_class_or_the_best():
    logits = torch.tensor([[[1.0, 9.0], [2.0, 0.0], [3.0, -1.0]]], requires_grad=True)
    assert proposal_scores(logits, "first_class").tolist() == [[1.0, 2.0, 3.0]]
    assert proposal_scores(logits, "best_class").tolist() == [[9.0, 2.0, 3.0]]
    assert not proposal_scores(logits, "best_class").requires_grad


def test_taking_gathers_for_each_image_also_from_what_all_share():
    own, shared = torch.randn(2, 6, 3), torch.randn(1, 6, 3)
    index = torch.tensor([[5, 0], [2, 2]])
    for image in range(2):
        assert torch.equal(take(own, index)[image], own[image][index[image]])
        assert torch.equal(take(shared, index)[image], shared[0][index[image]])


def slow_start(queries: ProposalQueries, reference: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of the embedded boxes (spec 1.7)."""
    assert queries.box is not None
    embedded = queries.box(box_positions(reference, 8, order="xywh"))
    return embedded[..., 8:][:, -tokens.shape[1] :], embedded[..., :8]


REFERENCE = torch.rand(2, 7, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))


def test_content_and_position_are_halves_of_the_embedded_proposal():
    queries = module(content="proposal", position="proposal")
    content, position = queries(REFERENCE, TOKENS, None)
    expected_content, expected_position = slow_start(queries, REFERENCE, TOKENS)
    assert torch.equal(content, expected_content)
    assert torch.equal(position, expected_position)


def test_detas_content_adds_the_detached_token():
    queries = module(content="proposal_and_token", position="proposal")
    tokens = TOKENS.clone().requires_grad_()
    content, _ = queries(REFERENCE, tokens, None)
    expected, _ = slow_start(queries, REFERENCE, tokens)
    assert torch.allclose(content, expected + queries.token_content(TOKENS))
    content.sum().backward()
    assert tokens.grad is None


def test_content_from_the_token_alone_keeps_its_gradient():
    queries = module(content="token", position="reference")
    tokens = TOKENS.clone().requires_grad_()
    content, position = queries(REFERENCE, tokens, None)
    assert position is None
    assert queries.box is None
    assert torch.allclose(content, queries.token_content(TOKENS))
    content.square().sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize("content_init", ["normal", "xavier"])
def test_learned_content_is_drawn_as_its_paper_does(content_init: str):
    torch.manual_seed(0)
    queries = ProposalQueries(Part(num=900, content="learned", content_init=content_init), 64)
    assert queries.content is not None
    rows = queries.content.weight
    bound = math.sqrt(6 / (900 + 64))
    if content_init == "xavier":
        assert rows.abs().max() <= bound
        assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    else:
        assert rows.std().item() == pytest.approx(1, rel=0.02)


def test_learned_content_takes_further_rows_for_further_proposals():
    queries = module(content="learned", position="proposal")
    further = queries.learned_content(2)
    content, position = queries(REFERENCE, torch.zeros(2, 7, 8), further)
    assert queries.content is not None
    assert torch.equal(content[1, :5], queries.content.weight)
    assert torch.equal(content[1, 5:], further.weight)
    assert torch.equal(position, slow_start(queries, REFERENCE, TOKENS)[1])


def test_position_from_the_reference_encodes_y_before_x():
    queries = module(content="learned", position="reference")
    assert queries.box_position is not None
    swapped = REFERENCE[..., [1, 0, 2, 3]]
    expected = queries.box_position(box_positions(swapped, 8, order="xywh"))
    assert torch.allclose(queries.position_of(REFERENCE), expected)
