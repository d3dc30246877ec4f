"""Detectors of the DETR family, Deformable-DETR to DINO: backbone, neck, transformer, queries and heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from detbench.core.backbones import Backbone
from detbench.core.detectors.auxiliary import AuxiliaryHeads, boxes_of
from detbench.core.detectors.channel_mapper import ChannelMapper
from detbench.core.detectors.gt_probe import ProbeModule
from detbench.core.detectors.heads import Heads
from detbench.core.layers.tokens import Layout, TokenGrid, lay_out
from detbench.core.layers.transformer import Transformer, refine
from detbench.core.queries.boxes import BoxQueries
from detbench.core.queries.denoising import DenoisingQueries, NoisyQueries
from detbench.core.queries.learned import LearnedQueries
from detbench.core.queries.positives import AuxiliaryQueries, PositiveQueries
from detbench.core.queries.proposal_nms import select_after_nms
from detbench.core.queries.proposals import ProposalQueries, anchor_logits, proposal_scores
from detbench.core.queries.visibility import visibility
from detbench.core.selection import take
from detbench.core.types import AnyPredictions, QueryPredictions, Targets
from detbench.errors import RecipeError

if TYPE_CHECKING:
    from detbench.parts.branches import QueryPredictor

Refinement = Literal["none", "detached", "twice"]


class Queries(nn.Module):
    """What the decoder starts from.

    Args:
        one_to_one: the queries that the detector is tested with.
        denoising: makes more from noisy objects; None for none.
        one_to_many: (Q, D) content of further queries; None where there are none or content isn't learned.
        positives: make more from an auxiliary head's positives, by branch.
    """

    def __init__(
        self,
        one_to_one: LearnedQueries | ProposalQueries,
        *,
        denoising: DenoisingQueries | None,
        one_to_many: nn.Embedding | None,
        positives: Mapping[str, PositiveQueries],
    ) -> None:
        super().__init__()
        self.one_to_one, self.denoising, self.one_to_many = one_to_one, denoising, one_to_many
        self.positives = nn.ModuleDict(positives)


class QueryDetector(nn.Module):
    """Backbone, neck, transformer, queries and heads. Computes no loss.

    Parameter names start with `backbone.`, `neck.`, `transformer.`, `heads.`, `queries.`, `probes.`, `auxiliary.`.

    Args:
        backbone: images to C2 to C5.
        neck: these to the transformer's levels.
        transformer: encoder and decoder.
        heads: of the decoder's layers and of a first stage.
        queries: what the decoder starts from.
        probes: by the branch that has one (Match-Free).
        auxiliary: heads on the encoder's output (Co-DETR); None for none.
        outputs: what each other branch reads.
        layout: encoding of the tokens' places.
        refinement: where each layer's boxes start from, see `detbench.parts.detectors.Query`.
        logit_eps: of the inverse sigmoid.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: ChannelMapper,
        transformer: Transformer,
        heads: Heads,
        queries: Queries,
        probes: Mapping[str, ProbeModule],
        auxiliary: AuxiliaryHeads | None,
        outputs: Mapping[str, QueryPredictor],
        layout: Layout,
        refinement: Refinement,
        logit_eps: float,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.transformer = backbone, neck, transformer
        self.heads, self.queries = heads, queries
        self.probes = nn.ModuleDict(probes)
        self.auxiliary = auxiliary
        self.outputs = dict(outputs)
        self.layout, self.refinement, self.logit_eps = layout, refinement, logit_eps

    def forward(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Targets | None = None,
        branches: Sequence[str] | None = None,
    ) -> dict[str, AnyPredictions]:
        """(B, 3, H, W) padded images to predictions by branch.

        Denoising and one-to-many branches have predictions in training mode only; auxiliary heads, and the queries
        made from their positives, only where there are targets besides.

        Args:
            images: normalised; padding is at the bottom and right.
            sizes: height and width of each image without padding.
            targets: the objects that denoising queries are made from, probes look for and auxiliary heads answer for.
            branches: those wanted; None for all. What only others need isn't computed.

        Raises:
            RecipeError: when a two-stage detector is to make more queries than the images have tokens.
        """
        predictions, _ = self.decode(self.encode(images, sizes), targets, branches)
        return predictions

    def encode(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Encoded:
        """(B, 3, H, W) padded images and their unpadded sizes to all that decoding needs of them."""
        levels = self.neck(self.backbone(images))
        memory = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], 1)
        memory = memory.to(torch.promote_types(memory.dtype, torch.float32))
        grid = lay_out(
            self.layout,
            tuple((x.shape[-2], x.shape[-1]) for x in levels),
            sizes=sizes,
            padded_size=(images.shape[-2], images.shape[-1]),
            device=memory.device,
            dtype=memory.dtype,
        )
        if self.transformer.encoder is not None:
            memory = self.transformer.encoder(memory, grid)
        return Encoded(levels, memory, grid, tuple((int(h), int(w)) for h, w in sizes))

    def decode(
        self,
        encoded: Encoded,
        targets: Targets | None = None,
        branches: Sequence[str] | None = None,
        beside: BoxQueries | None = None,
    ) -> tuple[dict[str, AnyPredictions], Tensor | None]:
        """Predictions by branch, see `forward`, and what becomes of queries made elsewhere.

        Args:
            encoded: images.
            targets: their objects.
            branches: those wanted; None for all.
            beside: queries of a two-stage detector to decode beside its own; None for none.

        Returns:
            predictions by branch; (layers, B, groups * K, D) states of the K queries of each group.
        """
        outputs, memory, grid = self._wanted(branches), encoded.memory, encoded.grid
        first = self._propose(memory, grid, outputs) if self._is_two_stage else None
        predictions: dict[str, AnyPredictions] = {}
        states_beside = None
        for name, output in outputs.items():
            if output.kind == "encoder":
                assert first is not None  # Experiment refuses it without a first stage
                predictions[name] = first.predictions(
                    output.tokens, cast(ProposalQueries, self.queries.one_to_one).part.num
                )
        if self.training and targets is not None:
            predictions |= self._assist(branches, memory, grid, targets)
        decoded = {
            name: output for name, output in outputs.items() if output.kind not in ("encoder", "positives")
        }
        if decoded:
            if targets is None:
                targets = _no_objects(encoded.sizes, memory.device)
            start = self._start(first, decoded, targets, beside)
            states, boxes = self._decode(start, memory, grid)
            predictions |= self._read(decoded, start, states, boxes, targets)
            if beside is not None:
                states_beside = torch.stack([state[:, start.spans["beside"]] for state in states])
        return predictions, states_beside

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the neck's levels, in pixels."""
        num_read, num_made = len(self.neck.maps), len(self.neck.extra)
        finest = self.backbone.strides[-1] >> (num_read - 1)
        return tuple(finest << level for level in range(num_read + num_made))

    def parameters_of(self, branches: Sequence[str] | None = None) -> Iterator[nn.Parameter]:
        """The parameters that take part in predicting these branches; None for all."""
        outputs = {name: self.outputs[name] for name in self.outputs if branches is None or name in branches}
        kinds = {output.kind for output in outputs.values()}
        one_to_one = self.queries.one_to_one
        yield from self.backbone.parameters()
        yield from self.neck.parameters()
        if self.transformer.encoder is not None:
            yield from self.transformer.encoder.parameters()
        if self.auxiliary is not None:
            heads = self.auxiliary.branches if branches is None else branches
            sources = [output.of for output in outputs.values() if output.kind == "positives"]
            yield from self.auxiliary.parameters_of([*heads, *sources])
        if not kinds:
            return
        yield from self.heads.encoder_parameters()
        if kinds == {"encoder"}:
            yield from cast(ProposalQueries, one_to_one).token.parameters()
            return
        yield from self.transformer.decoder.parameters()
        yield from one_to_one.parameters()
        yield from self.heads.parameters_of(self._layers(outputs.values()))
        if "denoising" in kinds and self.queries.denoising is not None:
            yield from self.queries.denoising.parameters()
        if "one_to_many" in kinds and self.queries.one_to_many is not None:
            yield from self.queries.one_to_many.parameters()
        for name in outputs:
            for further in (self.probes, self.queries.positives):
                if name in further:
                    yield from further[name].parameters()

    def _assist(
        self, branches: Sequence[str] | None, memory: Tensor, grid: TokenGrid, targets: Targets
    ) -> dict[str, AnyPredictions]:
        """What auxiliary heads say, and the decoder about the positives of each, in a pass of its own (spec 7)."""
        decoded = {n: output for n, output in self._wanted(branches).items() if output.kind == "positives"}
        heads = [] if self.auxiliary is None else self.auxiliary.branches
        if branches is not None:
            heads = [name for name in heads if name in branches]
        if self.auxiliary is None or not (decoded or heads):
            return {}
        found = self.auxiliary(grid.maps_of(memory), targets)
        predictions: dict[str, AnyPredictions] = {name: found[name] for name in heads}
        for name, output in decoded.items():
            made: AuxiliaryQueries = self.queries.positives[name](*boxes_of(found[output.of]), targets)
            start = _Start(made.content, made.reference, made.position, {output.kind: slice(None)}, made=made)
            predictions |= self._read({name: output}, start, *self._decode(start, memory, grid), targets)
        return predictions

    @property
    def _is_two_stage(self) -> bool:
        return isinstance(self.queries.one_to_one, ProposalQueries)

    def _wanted(self, branches: Sequence[str] | None) -> dict[str, QueryPredictor]:
        names = [name for name in self.outputs if branches is None or name in branches]
        kinds = {"decoder", "encoder"}
        if self.training:
            kinds |= {"denoising", "one_to_many", "positives"}
        return {name: self.outputs[name] for name in names if self.outputs[name].kind in kinds}

    def _layers(self, outputs: Iterable[QueryPredictor]) -> list[int]:
        """The decoder layers that these outputs read."""
        num_layers = len(self.transformer.decoder.layers)
        return sorted({layer for output in outputs for layer in layers_of(output, num_layers)})

    def _propose(self, memory: Tensor, grid: TokenGrid, outputs: Mapping[str, QueryPredictor]) -> _FirstStage:
        """The first stage: logits of every token, boxes of those chosen, of all where somebody asks for them."""
        queries = cast(ProposalQueries, self.queries.one_to_one)
        part = queries.part
        num = part.num + sum(o.num_queries for o in outputs.values() if o.kind == "one_to_many")
        if num > memory.shape[1]:
            raise RecipeError(
                f"detector.queries.num: the decoder wants {num} proposals, but the images of this batch have only "
                f"{memory.shape[1]} tokens on {len(grid.level_sizes)} levels; ask for fewer or use larger images"
            )
        anchors = anchor_logits(grid, part.anchor_side)
        tokens = queries.tokens(memory, anchors)
        logits = self.heads.encoder_classes(tokens)
        scores = proposal_scores(logits, part.select_by)
        boxes = None
        if part.nms is not None or any(o.kind == "encoder" and o.tokens == "all" for o in outputs.values()):
            boxes = (self.heads.encoder_offsets(tokens) + anchors).sigmoid()
        if part.nms is None:
            chosen = scores.topk(num, 1).indices
        else:
            assert boxes is not None
            cells = [h * w for h, w in grid.level_sizes]
            chosen = select_after_nms(part.nms, scores, boxes.detach(), cells, num)
        chosen_tokens = take(tokens, chosen)
        if boxes is None:
            chosen_boxes = (self.heads.encoder_offsets(chosen_tokens) + take(anchors, chosen)).sigmoid()
        else:
            chosen_boxes = take(boxes, chosen)
        return _FirstStage(logits, boxes, anchors.sigmoid(), chosen, chosen_tokens, chosen_boxes)

    def _start(
        self,
        first: _FirstStage | None,
        outputs: Mapping[str, QueryPredictor],
        targets: Targets,
        beside: BoxQueries | None,
    ) -> _Start:
        """The decoder's queries: made elsewhere, made from objects, one-to-one, one-to-many."""
        queries, num_images = self.queries.one_to_one, len(targets.counts)
        if isinstance(queries, LearnedQueries):
            position, content, reference = (x.expand(num_images, -1, -1) for x in queries())
            return _Start(content, reference.sigmoid(), position, {"decoder": slice(None)})

        assert first is not None
        reference = first.chosen_boxes.detach()
        num_proposals = reference.shape[1]
        num_further = num_proposals - queries.part.num
        # In front of the proposals: contents, references, and how many queries each group has.
        contents, references, groups = [], [], []
        noisy, num_beside = None, 0
        if beside is not None:
            contents.append(beside.content.repeat(1, beside.groups, 1))
            references.append(beside.reference.repeat(1, beside.groups, 1))
            groups += [beside.content.shape[1]] * beside.groups
            num_beside = contents[0].shape[1]
        if self.queries.denoising is not None and any(o.kind == "denoising" for o in outputs.values()):
            noisy = self.queries.denoising(targets)
            contents.append(noisy.content)
            references.append(noisy.reference)
            groups += [2 * noisy.most_objects] * noisy.num_groups
        reference = torch.cat([*(x.to(reference.dtype) for x in references), reference], 1)
        content, position = queries(
            reference, first.chosen_tokens, self.queries.one_to_many if num_further else None
        )
        num_in_front = reference.shape[1] - num_proposals
        behind = num_in_front + queries.part.num
        return _Start(
            torch.cat([*contents, content], 1),
            reference,
            position,
            {
                "beside": slice(num_beside),
                "denoising": slice(num_beside, num_in_front),
                "decoder": slice(num_in_front, behind),
                "one_to_many": slice(behind, None),
            },
            visible=visibility(
                groups=tuple(groups),
                num_one_to_one=queries.part.num,
                num_one_to_many=num_further,
                device=reference.device,
            ),
            made=noisy,
        )

    def _decode(self, start: _Start, memory: Tensor, grid: TokenGrid) -> tuple[list[Tensor], list[Tensor]]:
        """(B, Q, D) states that the heads read and (B, Q, 4) boxes, of each layer (spec 1.6, 2.3 to 2.5)."""
        decoder, queries, eps = self.transformer.decoder, self.queries.one_to_one, self.logit_eps
        state = start.content
        # Both are the same numbers. Only the first may carry the last layer's gradient: boxes start from it,
        # attention looks at the second.
        reference = looked_at = start.reference
        states, boxes = [], []
        for layer, decode in enumerate(decoder.layers):
            on_levels = grid.on_levels(looked_at)
            position = start.position
            if position is None:
                position = cast(ProposalQueries, queries).position_of(on_levels[:, :, 0])
            state = decode(state, position, on_levels, memory, grid, start.visible)
            states.append(state if decoder.norm is None else decoder.norm(state))
            offset = self.heads.offsets(layer, states[-1])
            boxes.append(refine(offset, reference, eps=eps))
            if self.refinement == "none" or layer + 1 == len(decoder.layers):
                continue
            if decoder.norm is not None:
                moved = refine(self.heads.offsets(layer, state), looked_at, eps=eps)
            elif reference is looked_at:
                moved = boxes[-1]
            else:
                moved = refine(offset, looked_at, eps=eps)
            looked_at = moved.detach()
            reference = moved if self.refinement == "twice" else looked_at
        return states, boxes

    def _read(
        self,
        outputs: Mapping[str, QueryPredictor],
        start: _Start,
        states: Sequence[Tensor],
        boxes: Sequence[Tensor],
        targets: Targets,
    ) -> dict[str, QueryPredictions]:
        """Each output's queries and layers out of all that were decoded."""
        logits = {layer: self.heads.classes(layer, states[layer]) for layer in self._layers(outputs.values())}
        qualities = {layer: self.heads.qualities(layer, states[layer]) for layer in logits}
        predictions = {}
        for name, output in outputs.items():
            span, layers = start.spans[output.kind], layers_of(output, len(states))
            by_layer = [qualities[layer] for layer in layers]
            predictions[name] = QueryPredictions(
                pred_logits=torch.cat([logits[layer][:, span] for layer in layers]),
                pred_boxes=torch.cat([boxes[layer][:, span] for layer in layers]),
                num_layers=len(layers),
                anchors=start.reference[:, span] if self._is_two_stage else None,
                states=torch.cat([states[layer][:, span] for layer in layers]),
                pred_quality=torch.cat([x[:, span] for x in by_layer if x is not None])
                if self.heads.quality_heads is not None
                else None,
            )
            if output.kind in ("denoising", "positives"):
                assert start.made is not None
                pairs = start.made.pairs(targets, len(layers))
                predictions[name] = replace(predictions[name], pairs=pairs)
            if self.training and name in self.probes:
                correspondence = self.probes[name](predictions[name], targets)
                predictions[name] = replace(predictions[name], correspondence=correspondence)
        return predictions


@dataclass(frozen=True, slots=True)
class Encoded:
    """Images as the decoder looks at them.

    Attributes:
        levels: (B, D, h, w) of each level, as the neck gives them.
        memory: (B, S, D) of all tokens, behind the encoder, in at least float32.
        grid: where the tokens stand.
        sizes: height and width of each image without padding.
    """

    levels: Sequence[Tensor]
    memory: Tensor
    grid: TokenGrid
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _FirstStage:
    """What a two-stage detector makes of its tokens.

    Attributes:
        logits: (B, S, C).
        boxes: (B, S, 4) cxcywh; None where nobody asks for all.
        anchors: (1 or B, S, 4) cxcywh.
        chosen: (B, Q) tokens that become queries, best first.
        chosen_tokens: (B, Q, D).
        chosen_boxes: (B, Q, 4) cxcywh.
    """

    logits: Tensor
    boxes: Tensor | None
    anchors: Tensor
    chosen: Tensor
    chosen_tokens: Tensor
    chosen_boxes: Tensor

    def predictions(self, tokens: Literal["all", "selected"], num: int) -> QueryPredictions:
        """Of all tokens, or of those that become the first `num` queries."""
        if tokens == "all":
            assert self.boxes is not None
            return QueryPredictions(self.logits, self.boxes, anchors=self.anchors.expand_as(self.boxes))
        chosen = self.chosen[:, :num]
        return QueryPredictions(
            take(self.logits, chosen), self.chosen_boxes[:, :num], anchors=take(self.anchors, chosen)
        )


@dataclass(frozen=True, slots=True)
class _Start:
    """What the decoder starts from.

    Attributes:
        content: (B, Q, D).
        reference: (B, Q, 4) cxcywh, or (B, Q, 2) xy of one-stage queries.
        position: (B, Q, D); None where every layer makes its own from the reference.
        spans: the queries of each kind of output; "beside" those made elsewhere.
        visible: (Q, Q) bool, see `visibility`.
        made: the queries among them that answer for given objects.
    """

    content: Tensor
    reference: Tensor
    position: Tensor | None
    spans: Mapping[str, slice]
    visible: Tensor | None = None
    made: NoisyQueries | AuxiliaryQueries | None = None


def layers_of(output: QueryPredictor, num_layers: int) -> range:
    """The decoder layers that an output reads, from 0."""
    if output.kind == "encoder":
        return range(0)
    if output.kind == "decoder" and output.layers == "last":
        return range(num_layers - 1, num_layers)
    if output.kind == "decoder" and output.layers == "intermediate":
        return range(num_layers - 1)
    return range(num_layers)


def _no_objects(sizes: Sequence[tuple[int, int]], device: torch.device) -> Targets:
    """A batch of images without any object."""
    labels = torch.zeros(0, dtype=torch.int64, device=device)
    return Targets(labels, torch.zeros(0, 4, device=device), labels, (0,) * len(sizes), tuple(sizes))
