"""How a run's scores vary over the validation images: its scores on resampled ones, kept beside the runs."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from detbench.errors import StoreError
from detbench.results import DETECTIONS, Result, read_detections
from detbench.store import Store, whole_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 1000


def resampled_scores(store: Store, result: Result) -> dict[str, NDArray[np.float64]]:
    """AP, AP50, AP75 and APs, APm, APl of a run on resampled images, in percent.

    All runs on the same images are given the same draws, so that their differences are paired. A run's scores
    are worked out once: some ten seconds for 2,000 images with a hundred detections each.

    Args:
        store: holds the run; its cache keeps the scores.
        result: of the run.

    Returns:
        (RESAMPLES,) each; without metrics that some resample has no object for, and empty where the run was not
        tested with COCO's metrics.

    Raises:
        DataError: the annotations can't be read.
        StoreError: the detections can't be read.
    """
    import numpy as np

    if result.experiment["test"]["metrics"]["kind"] != "coco":
        return {}
    detections = store.folder(result.digest, result.seed) / DETECTIONS
    try:
        content = hashlib.sha256(detections.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise StoreError(f"{detections}: can't be read ({error})") from None
    kept = store.cache / "resampled" / f"{result.digest}-{result.seed}-{content}-{RESAMPLES}.npz"
    if not kept.is_file():
        print(f"resampling the images of run {result.name}", file=sys.stderr)
        scores = _scores(store, result, detections)
        with whole_file(kept) as file:
            np.savez(file, **scores)  # type: ignore[arg-type]
    with np.load(kept) as arrays:
        return dict(arrays)


def _scores(store: Store, result: Result, detections: Path) -> dict[str, NDArray[np.float64]]:
    import numpy as np

    from detbench.data.sources import read_splits
    from detbench.data.truth import ground_truth
    from detbench.metrics.coco import match
    from detbench.metrics.resampling import resampled_precisions
    from detbench.stats import image_weights

    annotations = read_splits(result.data_part.source, store.cache).val
    matches = match(ground_truth(annotations, result.test_part.metrics), read_detections(detections))
    weights = image_weights(matches.num_images, resamples=RESAMPLES, seed=0)
    scores = resampled_precisions(matches, weights)
    return {name: values * 100 for name, values in scores.items() if not np.isnan(values).any()}
