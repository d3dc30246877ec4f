"""Which parts go together: what no part can see alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from detbench.parts.assigners import Atss, DenseAssigner, QueryAssigner, SampledIou
from detbench.parts.auxiliary import AuxiliaryPredictor
from detbench.parts.branches import Branch, DensePredictor, Predictor, QueryPredictor
from detbench.parts.detectors import Dense, Query
from detbench.parts.losses import DenseLoss, QueryLoss, RegionLoss
from detbench.parts.part import closest, flatten, kinds, plain

if TYPE_CHECKING:
    from detbench.parts.data import Data
    from detbench.parts.experiment import Experiment, InitFrom, Module
    from detbench.parts.teaching import FirstStage, Teacher
    from detbench.parts.test import Postprocess

QUERY_NORMALISERS = ("objects", "copies", "pairs", "pairs_local", "pair_weights", "one")


def problems_of(experiment: Experiment) -> Iterator[str]:
    """Every impossible combination, each as "key path: what is wrong"."""
    names = list(experiment.branches)
    if not names:
        yield "branches: none; a detector needs at least one branch"
    if experiment.test.branch not in names:
        yield f"test.branch: no branch is called '{experiment.test.branch}'{closest(experiment.test.branch, names)}"
    training = experiment.training
    if training.batch % training.accumulate:
        yield f"training.accumulate: {training.accumulate} doesn't divide the batch of {training.batch}"
    if experiment.data.test.flip:
        yield f"data.test.flip: must be 0 in the test transform, found {experiment.data.test.flip}"
    throughout = list(_supervision(experiment, experiment.branches, experiment.test.postprocess))
    yield from throughout
    yield from _labels(experiment.data, experiment.teacher)
    if experiment.teacher is not None:
        yield from _teacher(experiment, experiment.teacher)
    elif experiment.test.student:
        yield "test.student: there is no student without a teacher"
    if (first := experiment.first_stage) is not None:
        yield from _first_stage(experiment, first)
        branches = {**experiment.branches, **first.branches}
        for problem in _supervision(experiment, branches, first.postprocess):
            if problem not in throughout:
                yield f"first_stage.{problem.removeprefix('test.')}"
    if experiment.init is not None and experiment.init.source is not None:
        yield from _across_runs(experiment, experiment.init.source, experiment.init)
    if experiment.init is not None and experiment.weights is not None:
        yield "weights: a row that starts from another row's run (init) can't start from a file besides"


def _supervision(
    experiment: Experiment, branches: dict[str, Branch], postprocess: Postprocess
) -> Iterator[str]:
    """Branches and postprocess that don't go with the detector or with each other."""
    detector = experiment.detector
    match detector:
        case Dense():
            yield from _dense(detector, branches)
        case Query():
            yield from _query(detector, branches, test=experiment.test.branch)
    yield from _quality(detector, branches, postprocess)
    yield from _pair_weights(branches)


def _labels(data: Data, teacher: Teacher | None) -> Iterator[str]:
    """Labelled and unlabelled images that can't be had, or that nobody needs."""
    crowd = data.source.kind == "crowdhuman" or (
        data.source.kind == "drawn" and data.source.preset == "crowd"
    )
    if data.labelled is not None and crowd:
        yield "data.labelled: draws from a file in COCO's format, which data.source is not"
    if data.labelled is not None and data.unlabelled is not None:
        yield "data.unlabelled: the images that data.labelled leaves are the unlabelled ones; expected one of the two"
    if teacher is None and data.unlabelled is not None:
        yield "data.unlabelled: nobody labels these images without a teacher"
    if teacher is not None and data.labelled is None and data.unlabelled is None:
        yield "teacher: all images are labelled; expected data.labelled or data.unlabelled"


def _teacher(experiment: Experiment, teacher: Teacher) -> Iterator[str]:
    training = experiment.training
    if not isinstance(experiment.detector, Query):
        yield f"teacher: needs a query detector, found '{experiment.detector.kind}'"
    if training.batch % teacher.group:
        yield f"teacher.group: {teacher.group} doesn't divide the batch of {training.batch} (training.batch)"
    if training.accumulate > 1:
        yield f"training.accumulate: must be 1 with a teacher, found {training.accumulate}"
    if training.ema is not None:
        yield "training.ema: the teacher is the moving average; expected none beside it"
    if teacher.consistency is not None and experiment.first_stage is None:
        yield "teacher.consistency: counts in a first stage, and there is none (first_stage)"


def _first_stage(experiment: Experiment, first: FirstStage) -> Iterator[str]:
    names = list(experiment.branches)
    for name, branch in first.branches.items():
        where = f"first_stage.branches.{name}"
        if name not in names:
            yield f"{where}: no branch is called '{name}'{closest(name, names)}"
        elif branch.predictor != experiment.branches[name].predictor:
            yield f"{where}.predictor: must be that of branches.{name}, which the second stage goes on with"
    if first.silent_on_pseudo and experiment.teacher is None:
        yield "first_stage.silent_on_pseudo: there are no pseudo labels without a teacher"
    for name in first.silent_on_pseudo:
        if name not in names:
            yield f"first_stage.silent_on_pseudo: no branch is called '{name}'{closest(name, names)}"


def _families(branches: dict[str, Branch], detector: Literal["dense", "query"]) -> Iterator[str]:
    """Branches whose parts belong to the other family of detectors, or to another predictor."""
    predictors = QueryPredictor | AuxiliaryPredictor if detector == "query" else DensePredictor

    def misfit(where: str, kind: str, place: str, family: Any) -> str:
        known = ", ".join(member_kind for member_kind in kinds(family) if member_kind != "unfiltered")
        return f"{where}: '{kind}' doesn't go with {place}; expected one of {known}"

    for name, branch in branches.items():
        where = f"branches.{name}"
        place, assigners, losses = _partners(branch.predictor, detector)
        if not isinstance(branch.predictor, predictors):
            yield misfit(f"{where}.predictor", branch.predictor.kind, f"a {detector} detector", predictors)
        if not isinstance(branch.assigner, assigners):
            yield misfit(f"{where}.assigner", branch.assigner.kind, place, assigners)
        for loss_name, loss in branch.losses.items():
            if not isinstance(loss, losses):
                yield misfit(f"{where}.losses.{loss_name}", loss.kind, place, losses)
            elif (loss.divide_by in QUERY_NORMALISERS) != (losses is QueryLoss):
                known = "one of " + ", ".join(QUERY_NORMALISERS)
                expected = known if losses is QueryLoss else "a count of positives"
                yield (
                    f"{where}.losses.{loss_name}.divide_by: '{loss.divide_by}' doesn't go with {place}; "
                    f"expected {expected}"
                )


def _partners(predictor: Predictor, detector: Literal["dense", "query"]) -> tuple[str, Any, Any]:
    """Who asks, as a message should call it, and the families of assigners and losses that go with it."""
    match predictor.kind:
        case "atss":
            return "the atss predictor", Atss, DenseLoss
        case "rpn":
            return "the rpn predictor", SampledIou, DenseLoss
        case "rcnn":
            return "the rcnn predictor", SampledIou, RegionLoss
        case _ if detector == "query":
            return "a query detector", QueryAssigner, QueryLoss
    return "a dense detector", DenseAssigner, DenseLoss


def _anchor_losses(name: str, branch: Branch) -> Iterator[str]:
    """Losses that ask a dense head for what its predictor doesn't have."""
    predictor = branch.predictor.kind
    for loss_name, loss in branch.losses.items():
        where = f"branches.{name}.losses.{loss_name}"
        if loss.kind == "delta_l1" and predictor not in ("anchor", "rpn"):
            yield f"{where}: delta_l1 needs the anchor or the rpn predictor, found '{predictor}'"
        needs_centerness = loss.kind in ("centerness", "centerness_giou") or loss.divide_by.startswith(
            "centerness"
        )
        if needs_centerness and predictor not in ("fcos", "atss"):
            yield f"{where}: centre-ness needs the fcos or the atss predictor, found '{predictor}'"


def _dense(detector: Dense, branches: dict[str, Branch]) -> Iterator[str]:
    yield from _families(branches, "dense")
    num_levels = detector.neck.num_levels
    for name, branch in branches.items():
        if branch.assigner.kind == "fcos" and len(branch.assigner.size_ranges) != num_levels:
            yield (
                f"branches.{name}.assigner.size_ranges: {len(branch.assigner.size_ranges)} ranges for "
                f"{num_levels} pyramid levels (detector.neck.num_levels)"
            )
        if (branch.assigner.kind == "max_iou") != (branch.predictor.kind == "anchor"):
            yield (
                f"branches.{name}: predictor '{branch.predictor.kind}' doesn't go with assigner "
                f"'{branch.assigner.kind}'; "
                "max_iou needs the anchor predictor and the anchor predictor needs max_iou"
            )
        if branch.predictor.kind == "unfiltered":
            other = branches.get(branch.predictor.branch)
            if other is None or other.predictor.kind != "point" or other.predictor.max_filter is None:
                yield f"branches.{name}.predictor.branch: '{branch.predictor.branch}' is no branch with a max_filter"
        yield from _anchor_losses(name, branch)
    channels, groups = detector.neck.channels, detector.subnets.groups
    if channels % groups:
        yield f"detector.subnets.groups: {groups} doesn't divide detector.neck.channels = {channels}"


def _query(detector: Query, branches: dict[str, Branch], *, test: str) -> Iterator[str]:
    yield from _families(branches, "query")
    channels = detector.neck.channels
    for key, divisor in (
        ("neck.groups", detector.neck.groups),
        ("transformer.num_heads", detector.transformer.num_heads),
    ):
        if channels % divisor:
            yield f"detector.{key}: {divisor} doesn't divide detector.neck.channels = {channels}"
    if channels % 8:
        yield f"detector.neck.channels: must be a multiple of 8 for the sine encodings, found {channels}"
    two_stage = detector.queries.kind == "proposals"
    if two_stage and detector.refinement == "none":
        yield "detector.refinement: a two-stage detector refines its proposals; expected 'detached' or 'twice'"
    if detector.refinement == "none" and detector.heads == "per_layer":
        yield "detector.heads: without refinement all layers share their heads; expected 'shared'"
    if detector.queries.kind == "proposals":
        coarsest = detector.queries.anchor_side * 2 ** (detector.neck.num_levels - 1)
        if coarsest >= 0.99:
            yield (
                f"detector.queries.anchor_side: {detector.queries.anchor_side:g} on the finest of "
                f"{detector.neck.num_levels} levels is {coarsest:g} of the image on the coarsest, where no token "
                "could propose anything; it must stay below 0.99"
            )
    tested = branches.get(test)
    if tested is not None and (
        tested.predictor.kind != "decoder" or tested.predictor.layers == "intermediate"
    ):
        yield f"test.branch: '{test}' must be a decoder output that holds the last layer"
    for name, branch in branches.items():
        predictor = branch.predictor
        if predictor.kind in ("encoder", "one_to_many", "denoising", "positives") and not two_stage:
            yield f"branches.{name}.predictor: '{predictor.kind}' needs detector.queries.kind = 'proposals'"
        if (branch.assigner.kind == "known") != (predictor.kind in ("denoising", "positives")):
            yield (
                f"branches.{name}: predictor '{predictor.kind}' doesn't go with assigner '{branch.assigner.kind}'; "
                "denoising and positives need known, and known needs one of them"
            )
        if branch.assigner.kind == "query_iou" and not two_stage:
            yield f"branches.{name}.assigner: 'query_iou' needs detector.queries.kind = 'proposals'"
        if (
            predictor.kind == "decoder"
            and predictor.layers == "intermediate"
            and detector.transformer.decoder_layers == 1
        ):
            yield f"branches.{name}.predictor.layers: a decoder of one layer has no 'intermediate' ones"
        yield from _probe(name, branch)
        yield from _auxiliary(name, branch, branches)
    for kind in ("denoising", "one_to_many"):
        users = [name for name, branch in branches.items() if branch.predictor.kind == kind]
        if len(users) > 1:
            yield f"branches.{users[1]}.predictor: a second '{kind}' output beside branches.{users[0]}"


def _auxiliary(name: str, branch: Branch, branches: dict[str, Branch]) -> Iterator[str]:
    """An auxiliary head's losses, and whom it or its queries stand on."""
    predictor = branch.predictor
    if isinstance(predictor, AuxiliaryPredictor):
        yield from _anchor_losses(name, branch)
    match predictor.kind:
        case "rcnn":
            key, other, wanted = "proposals", predictor.proposals, ["rpn"]
        case "positives":
            key, other, wanted = "of", predictor.of, ["atss", "rcnn"]
        case _:
            return
    fitting = [name for name, branch in branches.items() if branch.predictor.kind in wanted]
    if other not in fitting:
        yield (
            f"branches.{name}.predictor.{key}: '{other}' is no branch with the predictor {' or '.join(wanted)}"
            f"{closest(other, fitting)}"
        )


def _quality(detector: Dense | Query, branches: dict[str, Branch], postprocess: Postprocess) -> Iterator[str]:
    """Who asks for an estimate of the IoU that nobody makes."""
    has_head = isinstance(detector, Query) and detector.quality_head
    if postprocess.kind == "top_k" and postprocess.quality != "none" and not has_head:
        yield f"test.postprocess.quality: '{postprocess.quality}' needs detector.quality_head = true"
    for name, branch in branches.items():
        for loss_name, loss in branch.losses.items():
            if loss.kind == "iou_quality" and not (has_head and branch.predictor.kind != "encoder"):
                yield (
                    f"branches.{name}.losses.{loss_name}: iou_quality needs detector.quality_head = true and the "
                    f"output of a decoder, found '{branch.predictor.kind}'"
                )


def _probe(name: str, branch: Branch) -> Iterator[str]:
    """A correspondence without a reader, or a reader without one."""
    predictor = branch.predictor
    has_probe = predictor.kind == "decoder" and predictor.probe is not None
    sparse = branch.assigner.kind == "sparse_correspondence"
    if has_probe and not sparse:
        yield f"branches.{name}: a probe needs assigner 'sparse_correspondence', found '{branch.assigner.kind}'"
    if sparse and not has_probe:
        yield f"branches.{name}.assigner: 'sparse_correspondence' needs a decoder output with a probe"
    for loss_name, loss in branch.losses.items():
        if loss.kind == "correspondence" and not has_probe:
            yield f"branches.{name}.losses.{loss_name}: 'correspondence' needs a decoder output with a probe"


def _pair_weights(branches: dict[str, Branch]) -> Iterator[str]:
    """Losses that ask for weights of pairs which their branch's assigner doesn't give."""
    for name, branch in branches.items():
        assigner = branch.assigner
        ranked = assigner.kind == "query_hungarian" and assigner.rank is not None
        if ranked or assigner.kind in ("task_aligned", "sparse_correspondence"):
            continue
        for loss_name, loss in branch.losses.items():
            where = f"branches.{name}.losses.{loss_name}"
            for key, asked in (
                ("kind", "task_aligned_focal"),
                ("weigh_by", "match"),
                ("divide_by", "pair_weights"),
            ):
                if getattr(loss, key, None) == asked:
                    yield (
                        f"{where}.{key}: '{asked}' needs an assigner that weighs its pairs: query_hungarian with a "
                        f"rank, task_aligned or sparse_correspondence; found '{assigner.kind}'"
                    )


# What decides the shapes and the meaning of a module's weights, below `detector`.
_LAYOUT: dict[Module, tuple[str, ...]] = {
    "backbone": ("backbone",),
    "neck": ("backbone", "neck"),
    "towers": ("neck.channels", "subnets.num_convs", "subnets.groups", "subnets.shared"),
}
_WITHOUT_SHAPE = ("backbone.weights", "backbone.frozen_stages")


def _across_runs(experiment: Experiment, source: Experiment, init: InitFrom) -> Iterator[str]:
    """Why an experiment can't start from the weights of another."""
    for key in ("source", "unlabelled"):
        if getattr(source.data, key) != getattr(experiment.data, key):
            yield f"init.row: '{init.row}' is trained on other data than this row (data.{key})"
    if "towers" in init.modules:
        if not isinstance(experiment.detector, Dense) or not isinstance(source.detector, Dense):
            yield "init.modules: only dense detectors have towers"
        elif not experiment.detector.subnets.shared:
            yield "init.modules: towers can only be taken over where all branches share them"
    ours, theirs = flatten(plain(experiment.detector)), flatten(plain(source.detector))
    for key in [*ours, *(key for key in theirs if key not in ours)]:
        of = [m for m in init.modules if any(f"{key}.".startswith(f"{head}.") for head in _LAYOUT[m])]
        if of and key not in _WITHOUT_SHAPE and ours.get(key) != theirs.get(key):
            yield (
                f"init.modules: the {' and '.join(of)} of '{init.row}' don't fit: there detector.{key} is "
                f"{theirs.get(key)}, here {ours.get(key)}"
            )
