"""Track ids from a tracker over `supervision.Detections`, for detectors that do not track by themselves."""

from __future__ import annotations

from typing import Any

import torch

from ..instances import Instances


def track_ids_of(tracker: Any, instances: Instances) -> Instances:
    """The instances with the `track_ids` that a tracker over `supervision.Detections` gives them; -1 where none.

    Args:
        tracker: `trackers.ByteTrackTracker` and its kin (`update`), or `supervision.ByteTrack` of releases that have it
            (`update_with_detections`). One for each video.
        instances: Those of the next frame; all rows are kept, in their order, and boxes and scores stay the detector's.

    Raises:
        ImportError: `supervision` is not installed.
        TypeError: The tracker has neither method.
    """
    try:
        import supervision
    except ImportError as e:
        raise ImportError("trackers over supervision.Detections need: pip install supervision trackers") from e
    update = getattr(tracker, "update_with_detections", None) or getattr(tracker, "update", None)
    if not callable(update):
        raise TypeError(f"{type(tracker).__name__} has neither update_with_detections nor update")
    host = instances.cpu()
    found = update(
        supervision.Detections(
            xyxy=host.boxes.numpy().astype("float32"),
            confidence=host.scores.numpy().astype("float32"),
            class_id=host.labels.numpy(),
            data={"row": torch.arange(len(instances)).numpy()},  # trackers drop rows and reorder them
        )
    )
    ids = torch.full((len(instances),), -1, dtype=torch.int64)
    if len(found):
        ids[torch.as_tensor(found.data["row"]).long()] = torch.as_tensor(found.tracker_id).long()
    return instances.replace(track_ids=ids.to(instances.device))
