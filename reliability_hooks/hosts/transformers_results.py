"""What an image processor or a pipeline of transformers returns, read as instances; loading a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.ops import masks_to_boxes

from ..instances import Instances
from .rows import RawRows

POST = ("post_process_object_detection", "post_process_instance_segmentation")
"""The methods of a processor whose results are judged."""
ROUNDED = 1e-6
"""The processor rounds scores of segments to six digits."""


class Found(list[dict[str, Any]]):
    """What a pipeline returns for an image, with `instances` beside it.

    Each dict gains `reliability`, a float in [0, 1] or NaN where it is unknown, and `verdict`: 1 accept, -1 reject,
    0 unknown.
    """

    instances: Instances

    @classmethod
    def of(cls, annotations: list[dict[str, Any]], instances: Instances) -> Found:
        found = cls(annotations)
        found.instances = instances
        columns = (instances.reliability.tolist(), instances.column("verdict").tolist())
        for annotation, reliability, verdict in zip(found, *columns, strict=True):
            annotation.update(reliability=reliability, verdict=int(verdict))
        return found


def bare(result: Mapping[str, Any], size: tuple[int, int], relative: bool, device: torch.device) -> Instances:
    """Boxes or masks, scores and labels as they were returned.

    Args:
        result: Of one image.
        size: (height, width) of the image that boxes are to be in.
        relative: The boxes that were returned are relative to the image.
        device: Of the instances.
    """
    if "boxes" in result:
        scale = torch.tensor([size[1], size[0]] * 2 if relative else [1] * 4, device=device)
        boxes, scores = (result[name].detach().to(device).float() for name in ("boxes", "scores"))
        return Instances(boxes * scale, scores, result["labels"].detach().to(device), image_size=size)
    info = result["segments_info"]
    scores = torch.tensor([float(s["score"]) for s in info], device=device)
    labels = torch.tensor([int(s["label_id"]) for s in info], dtype=torch.int64, device=device)
    masks, boxes = _shown(result["segmentation"], [int(s["id"]) for s in info], device), scores.new_zeros(len(info), 4)
    if masks is not None:
        some = masks.flatten(1).any(1)
        if bool(some.any()):
            boxes[some] = masks_to_boxes(masks[some]).float() + boxes.new_tensor([0, 0, 1, 1])
        boxes = boxes * boxes.new_tensor([size[1] / masks.shape[2], size[0] / masks.shape[1]] * 2)
    return Instances(boxes, scores, labels, masks=masks, image_size=size)


def _shown(segmentation: Any, ids: list[int], device: torch.device) -> Tensor | None:
    """(N, h, w) bool of a map of ids or of one map for each segment; None of run lengths."""
    if not isinstance(segmentation, Tensor):
        return None
    shown = segmentation.detach().to(device)
    if shown.ndim == 3:
        return shown > 0
    return shown == torch.tensor(ids, device=device)[:, None, None]


def with_own_masks(kept: Instances, grid: Tensor, raw: RawRows) -> Instances:
    """Segments with the mask of the query that they came from, whole, and the box around it.

    Args:
        kept: As they were returned: in a map of ids, later segments are painted over earlier ones.
        grid: (Q, h, w) mask logits.
        raw: The queries; score and label tell which a segment came from.
    """
    scores = raw.scores[:, kept.labels].T.double()
    same = (scores - kept.scores[:, None].double()).abs() <= ROUNDED
    known = same.sum(1) == 1
    rows = same.float().argmax(1)[known]
    masks = torch.zeros(len(kept), *grid.shape[1:], dtype=torch.bool, device=grid.device)
    if kept.masks is not None and len(kept):
        masks = interpolate(kept.masks[None].byte(), size=grid.shape[1:], mode="nearest-exact")[0].bool()
    masks[known] = grid[rows] > 0
    boxes = kept.boxes.clone()
    boxes[known] = raw.decode(rows, kept.labels[known])
    return kept.replace(masks=masks, boxes=boxes)


def load(spec: str, **options: Any) -> Any:
    """A pipeline of a saved model; see `TransformersHost.load`."""
    if options:
        raise ValueError(f"unknown options for a model of transformers: {sorted(options)}")
    try:
        import transformers
    except ImportError as e:
        raise ImportError("this detector needs transformers: pip install 'reliability_hooks[transformers]'") from e
    try:
        config = transformers.AutoConfig.from_pretrained(spec, local_files_only=True)
    except OSError as e:
        raise FileNotFoundError(f"no model {spec!r} on this machine; give a directory of save_pretrained, or download "
                                "the model first") from e
    kind = {"mask2former": "UniversalSegmentation", "maskformer": "InstanceSegmentation"}
    auto: Any = getattr(transformers, f"AutoModelFor{kind.get(config.model_type, 'ObjectDetection')}")
    process: Any = transformers.AutoImageProcessor
    task = transformers.ImageSegmentationPipeline if config.model_type in kind else transformers.ObjectDetectionPipeline
    return task(
        model=auto.from_pretrained(spec, local_files_only=True).eval(),
        image_processor=process.from_pretrained(spec, local_files_only=True),
    )
