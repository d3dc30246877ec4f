"""Which parts of a query detector go together, and what is said of those that don't."""

from __future__ import annotations

import json
from typing import Any

import pytest

from detbench.errors import RecipeError
from detbench.parts.experiment import Experiment, read_experiment

LOSSES = {
    "cls": {"kind": "focal", "weight": 2.0, "divide_by": "objects"},
    "bbox": {"kind": "box_l1", "divide_by": "objects"},
    "giou": {"kind": "query_giou"},
}
HUNGARIAN = {"kind": "query_hungarian"}
TREE: dict[str, Any] = {
    "detector": {
        "kind": "query",
        "backbone": {"kind": "resnet"},
        "queries": {"kind": "proposals"},
        "refinement": "detached",
        "heads": "per_layer",
    },
    "branches": {
        "decoder": {"predictor": {"kind": "decoder"}, "assigner": HUNGARIAN, "losses": LOSSES},
        "encoder": {"predictor": {"kind": "encoder"}, "assigner": HUNGARIAN, "losses": LOSSES},
    },
    "schedule": {"length": 1.0},
    "test": {"branch": "decoder", "postprocess": {"kind": "top_k"}},
}


def read(changes: dict[str, Any]) -> Experiment:
    """A two-stage detector with a dotted key of its tree set to something else."""
    # Through JSON, which copies what two branches share.
    tree = json.loads(json.dumps(TREE))
    for key, value in json.loads(json.dumps(changes)).items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return read_experiment(tree, where="here")


def branch(predictor: str, assigner: str = "query_hungarian", **losses: Any) -> dict[str, Any]:
    return {
        "predictor": {"kind": predictor},
        "assigner": {"kind": assigner},
        "losses": losses or LOSSES,
    }


CLASS = {"kind": "focal"}
AUXILIARY = {
    "branches.atss": branch("atss", "atss", cls=CLASS, giou={"kind": "centerness_giou"}),
    "branches.rpn": branch("rpn", "sampled_iou", cls={"kind": "bce"}, bbox={"kind": "delta_l1"}),
    "branches.rcnn": branch("rcnn", "sampled_iou", cls={"kind": "cross_entropy"}),
    "branches.rcnn.predictor.proposals": "rpn",
    "branches.more": branch("positives", "known"),
    "branches.more.predictor.of": "rcnn",
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="two stages"),
        pytest.param(AUXILIARY, id="auxiliary heads"),
        pytest.param({"branches.dn": branch("denoising", "known")}, id="denoising"),
        pytest.param({"branches.many": branch("one_to_many")}, id="hybrid"),
        pytest.param({"branches.decoder.assigner": {"kind": "query_iou"}}, id="overlap"),
        pytest.param({"detector.refinement": "twice", "detector.heads": "shared"}, id="look forward twice"),
        pytest.param(
            {
                "detector.quality_head": True,
                "branches.decoder.losses.iou": {"kind": "iou_quality"},
                "test.postprocess.quality": "sqrt",
            },
            id="quality head",
        ),
        pytest.param(
            {
                "branches.decoder": branch("decoder", "sparse_correspondence"),
                "branches.decoder.predictor.probe": {},
                "branches.decoder.losses.probe": {"kind": "correspondence"},
            },
            id="probe",
        ),
    ],
)
def test_what_a_paper_puts_together_is_accepted(changes: dict[str, Any]) -> None:
    read(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"branches.decoder.predictor": {"kind": "point"}},
            "branches.decoder.predictor: 'point' doesn't go with a query detector; expected one of decoder,",
        ),
        (
            {"branches.decoder.assigner": {"kind": "poto"}},
            "branches.decoder.assigner: 'poto' doesn't go with a query detector; expected one of query_hungarian,",
        ),
        (
            {"branches.decoder.losses.giou": {"kind": "giou"}},
            "branches.decoder.losses.giou: 'giou' doesn't go with a query detector; expected one of focal, box_l1,",
        ),
        (
            {"branches.decoder.losses.cls.divide_by": "positives"},
            "branches.decoder.losses.cls.divide_by: 'positives' doesn't go with a query detector; "
            "expected one of objects, copies",
        ),
        (
            {"detector.neck": {"kind": "channel_mapper", "channels": 100}},
            "detector.neck.groups: 32 doesn't divide detector.neck.channels = 100",
        ),
        (
            {"detector.transformer": {"num_heads": 7}},
            "detector.transformer.num_heads: 7 doesn't divide detector.neck.channels = 256",
        ),
        (
            {
                "detector.neck": {"kind": "channel_mapper", "channels": 36, "groups": 4},
                "detector.transformer": {"num_heads": 4},
            },
            "detector.neck.channels: must be a multiple of 8 for the sine encodings, found 36",
        ),
        (
            {"detector.refinement": "none", "detector.heads": "shared"},
            "detector.refinement: a two-stage detector refines its proposals",
        ),
        (
            {
                "detector.refinement": "none",
                "detector.queries": {"kind": "learned"},
                "branches.encoder": branch("decoder"),
            },
            "detector.heads: without refinement all layers share their heads; expected 'shared'",
        ),
        (
            {"detector.queries": {"kind": "learned"}},
            "branches.encoder.predictor: 'encoder' needs detector.queries.kind = 'proposals'",
        ),
        (
            {"test.branch": "encoder"},
            "test.branch: 'encoder' must be a decoder output that holds the last layer",
        ),
        (
            {"branches.decoder.predictor.layers": "intermediate"},
            "test.branch: 'decoder' must be a decoder output that holds the last layer",
        ),
        (
            {
                "detector.transformer": {"decoder_layers": 1},
                "branches.inner": {
                    **branch("decoder"),
                    "predictor": {"kind": "decoder", "layers": "intermediate"},
                },
            },
            "branches.inner.predictor.layers: a decoder of one layer has no 'intermediate' ones",
        ),
        (
            {"detector.queries.anchor_side": 0.2},
            "detector.queries.anchor_side: 0.2 on the finest of 4 levels is 1.6 of the image on the coarsest",
        ),
        (
            {"branches.dn": branch("denoising")},
            "branches.dn: predictor 'denoising' doesn't go with assigner 'query_hungarian'",
        ),
        (
            {"branches.decoder.assigner": {"kind": "known"}},
            "branches.decoder: predictor 'decoder' doesn't go with assigner 'known'",
        ),
        (
            {"branches.a": branch("one_to_many"), "branches.b": branch("one_to_many")},
            "branches.b.predictor: a second 'one_to_many' output beside branches.a",
        ),
        (
            {
                "detector.queries": {"kind": "learned"},
                "branches.encoder": branch("decoder", "query_iou"),
            },
            "branches.encoder.assigner: 'query_iou' needs detector.queries.kind = 'proposals'",
        ),
        (
            {"branches.decoder.losses.bbox.weigh_by": "match"},
            "branches.decoder.losses.bbox.weigh_by: 'match' needs an assigner that weighs its pairs: query_hungarian "
            "with a rank, task_aligned or sparse_correspondence; found 'query_hungarian'",
        ),
        (
            {"branches.decoder.losses.cls": {"kind": "task_aligned_focal", "divide_by": "objects"}},
            "branches.decoder.losses.cls.kind: 'task_aligned_focal' needs an assigner that weighs its pairs",
        ),
        (
            {"branches.decoder.losses.bbox.divide_by": "pair_weights"},
            "branches.decoder.losses.bbox.divide_by: 'pair_weights' needs an assigner that weighs its pairs",
        ),
        (
            {"test.postprocess.quality": "product"},
            "test.postprocess.quality: 'product' needs detector.quality_head = true",
        ),
        (
            {"branches.decoder.losses.iou": {"kind": "iou_quality"}},
            "branches.decoder.losses.iou: iou_quality needs detector.quality_head = true",
        ),
        (
            {"detector.quality_head": True, "branches.encoder.losses": {"iou": {"kind": "iou_quality"}}},
            "branches.encoder.losses.iou: iou_quality needs detector.quality_head = true and the output of a "
            "decoder, found 'encoder'",
        ),
        (
            {"branches.decoder.assigner": {"kind": "sparse_correspondence"}},
            "branches.decoder.assigner: 'sparse_correspondence' needs a decoder output with a probe",
        ),
        (
            {"branches.decoder.predictor.probe": {}},
            "branches.decoder: a probe needs assigner 'sparse_correspondence', found 'query_hungarian'",
        ),
        (
            {"branches.decoder.losses.probe": {"kind": "correspondence"}},
            "branches.decoder.losses.probe: 'correspondence' needs a decoder output with a probe",
        ),
        (
            AUXILIARY | {"branches.atss.assigner": HUNGARIAN},
            "branches.atss.assigner: 'query_hungarian' doesn't go with the atss predictor; expected one of atss",
        ),
        (
            AUXILIARY | {"branches.decoder.assigner": {"kind": "atss"}},
            "branches.decoder.assigner: 'atss' doesn't go with a query detector; expected one of query_hungarian",
        ),
        (
            AUXILIARY | {"branches.rcnn.losses.cls": CLASS},
            "branches.rcnn.losses.cls: 'focal' doesn't go with the rcnn predictor; expected one of cross_entropy",
        ),
        (
            AUXILIARY | {"branches.rpn.losses.center": {"kind": "centerness"}},
            "branches.rpn.losses.center: centre-ness needs the fcos or the atss predictor, found 'rpn'",
        ),
        (
            AUXILIARY | {"branches.atss.losses.bbox": {"kind": "delta_l1"}},
            "branches.atss.losses.bbox: delta_l1 needs the anchor or the rpn predictor, found 'atss'",
        ),
        (
            AUXILIARY | {"branches.atss.losses.cls": {"kind": "focal", "divide_by": "objects"}},
            "branches.atss.losses.cls.divide_by: 'objects' doesn't go with the atss predictor; "
            "expected a count of positives",
        ),
        (
            AUXILIARY | {"branches.rcnn.predictor.proposals": "rnp"},
            "branches.rcnn.predictor.proposals: 'rnp' is no branch with the predictor rpn; did you mean 'rpn'?",
        ),
        (
            AUXILIARY | {"branches.more.predictor.of": "rpn"},
            "branches.more.predictor.of: 'rpn' is no branch with the predictor atss or rcnn",
        ),
        (
            AUXILIARY | {"branches.more.assigner": HUNGARIAN},
            "branches.more: predictor 'positives' doesn't go with assigner 'query_hungarian'",
        ),
        (
            {"branches.atss": branch("atss", "atss", cls=CLASS), "test.branch": "atss"},
            "test.branch: 'atss' must be a decoder output that holds the last layer",
        ),
    ],
)
def test_what_cant_work_is_refused_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(changes)
    assert [line for line in error.value.problems if line.startswith(f"here: {said}")], error.value.problems


FEW = {"labelled": {"percent": 10}}
MANY = {"branches": {"decoder": branch("decoder", "query_iou")}, "postprocess": {"kind": "nms"}}
TAUGHT: dict[str, Any] = {"data": FEW, "teacher": {"group": 4}}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"data": FEW}, id="supervised alone"),
        pytest.param(TAUGHT, id="partial"),
        pytest.param({**TAUGHT, "data": {"unlabelled": {"kind": "drawn", "seed": 1}}}, id="full"),
        pytest.param({**TAUGHT, "test.student": True}, id="its student tested"),
        pytest.param({**TAUGHT, "first_stage": MANY}, id="two stages"),
        pytest.param({"first_stage": MANY}, id="two stages without a teacher"),
        pytest.param(
            {
                **TAUGHT,
                "branches.dn": branch("denoising", "known"),
                "first_stage": {**MANY, "silent_on_pseudo": ["dn"]},
            },
            id="denoising silent at first",
        ),
    ],
)
def test_few_labels_are_accepted_with_and_without_a_teacher(changes: dict[str, Any]) -> None:
    read(changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": {"group": 4}}, "teacher: all images are labelled; expected data.labelled or data.unl"),
        ({**TAUGHT, "training": {"batch": 6}}, "teacher.group: 4 doesn't divide the batch of 6"),
        ({**TAUGHT, "training": {"accumulate": 2}}, "training.accumulate: must be 1 with a teacher, found 2"),
        ({**TAUGHT, "training": {"ema": 0.9}}, "training.ema: the teacher is the moving average"),
        (
            {**TAUGHT, "teacher.consistency": {}},
            "teacher.consistency: counts in a first stage, and there is none",
        ),
        ({"test.student": True}, "test.student: there is no student without a teacher"),
        ({"data": {"unlabelled": {"kind": "drawn"}}}, "data.unlabelled: nobody labels these images"),
        (
            {**TAUGHT, "data": {**FEW, "unlabelled": {"kind": "drawn"}}},
            "data.unlabelled: the images that data.labelled leaves are the unlabelled ones",
        ),
        ({"data": {**FEW, "source": {"kind": "crowdhuman"}}}, "data.labelled: draws from a file in COCO's"),
        (
            {"data": {**FEW, "source": {"kind": "drawn", "preset": "crowd"}}},
            "data.labelled: draws from a file in COCO's",
        ),
        (
            {"first_stage": {**MANY, "branches": {"decode": branch("decoder")}}},
            "first_stage.branches.decode: no branch is called 'decode'; did you mean 'decoder'?",
        ),
        (
            {
                "first_stage": {
                    **MANY,
                    "branches": {
                        "decoder": {**branch("decoder"), "predictor": {"kind": "decoder", "layers": "last"}}
                    },
                }
            },
            "first_stage.branches.decoder.predictor: must be that of branches.decoder",
        ),
        (
            {"first_stage": {**MANY, "branches": {"decoder": branch("decoder", "known")}}},
            "first_stage.branches.decoder: predictor 'decoder' doesn't go with assigner 'known'",
        ),
        (
            {"first_stage": {**MANY, "postprocess": {"kind": "top_k", "quality": "sqrt"}}},
            "first_stage.postprocess.quality: 'sqrt' needs detector.quality_head = true",
        ),
        (
            {"first_stage": {**MANY, "silent_on_pseudo": ["decoder"]}},
            "first_stage.silent_on_pseudo: there are no pseudo labels without a teacher",
        ),
        (
            {**TAUGHT, "first_stage": {**MANY, "silent_on_pseudo": ["dn"]}},
            "first_stage.silent_on_pseudo: no branch is called 'dn'",
        ),
    ],
)
def test_what_cant_be_taught_is_refused_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        read(changes)
    assert [line for line in error.value.problems if line.startswith(f"here: {said}")], error.value.problems


def test_what_is_wrong_in_both_stages_is_said_once() -> None:
    with pytest.raises(RecipeError) as error:
        read({"detector.transformer": {"num_heads": 7}, "first_stage": MANY})
    assert len(error.value.problems) == 1


def test_a_stage_ends_before_the_step_that_reaches_its_share_and_its_test_after_it() -> None:
    experiment = read({"first_stage": {**MANY, "until": 0.6}})
    kinds = [experiment.branches_at(step / 1000)["decoder"].assigner.kind for step in (0, 599, 600, 999)]
    assert kinds == ["query_iou", "query_iou", "query_hungarian", "query_hungarian"]
    assert experiment.branches_at(0.1)["encoder"] == experiment.branches["encoder"]
    kinds = [experiment.postprocess_at(step / 1000).kind for step in (1, 600, 601, 1000)]
    assert kinds == ["nms", "nms", "top_k", "top_k"]


def test_a_dense_detector_takes_no_part_of_a_query_detector() -> None:
    with pytest.raises(RecipeError) as error:
        read({"detector": {"kind": "dense", "backbone": {"kind": "resnet"}}})
    for place in ("predictor", "assigner", "losses.giou", "losses.bbox.divide_by"):
        start = f"here: branches.decoder.{place}: "
        assert any(line.startswith(start) and "dense detector" in line for line in error.value.problems), (
            place
        )


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(RecipeError) as error:
        read(
            {
                "detector.transformer": {"num_heads": 7},
                "branches.dn": branch("denoising"),
                "test.branch": "dec",
            }
        )
    assert error.value.problems[0] == "here: test.branch: no branch is called 'dec'; did you mean 'decoder'?"
    assert len(error.value.problems) == 3
