"""From nothing to a judged Detectron2 detector: train it, calibrate a monitor on other images, test on others again.

A Faster R-CNN (the zoo's FPN config with a ResNet-18 and narrow heads) learns blood cells (BCCD, 205 images) from
random weights on one CPU core; boxes only, as BCCD has no masks. A monitor is calibrated on the 87 validation images
and `ReliabilityEvaluator` measures it on the 72 test images, beside the detector's score and Platt's map of it, which
is fitted on the same validation images. Training goes on where it stopped.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from rich.progress import Progress, TimeRemainingColumn, track

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.detectron2 import ReliabilityEvaluator, load_config
from reliability_hooks.evaluation.bootstrap import image_bootstrap
from reliability_hooks.evaluation.labels import labelled
from reliability_hooks.evaluation.summary import CALIBRATION_METRICS
from reliability_hooks.evaluation.voc import read_voc
from reliability_hooks.images import read_image
from reliability_hooks.reliability.calibrators import Platt

METRICS = ("d_ece", "brier", "auroc", "augrc")
SIDE = 256
CONFIG: dict[str, Any] = {
    "MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN", "MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.FPN.OUT_CHANNELS": 96, "MODEL.FPN.NORM": "BN",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[12], [24], [48], [96], [192]], "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 256, "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 128, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 500, "MODEL.RPN.POST_NMS_TOPK_TRAIN": 200, "MODEL.RPN.PRE_NMS_TOPK_TEST": 500,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 200, "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    "INPUT.MIN_SIZE_TRAIN": (SIDE,), "INPUT.MAX_SIZE_TRAIN": 2 * SIDE, "INPUT.MIN_SIZE_TEST": SIDE,
    "INPUT.MAX_SIZE_TEST": 2 * SIDE, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.1,
}  # fmt: skip


def register(data: Path, limit: int | None) -> tuple[str, ...]:
    """BCCD's three splits, or the first `limit` images of each, in Detectron2's catalog; the class names."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    for split in ("train", "val", "test"):
        voc = read_voc(data / "Annotations", data / "JPEGImages", split_file=data / f"ImageSets/Main/{split}.txt")
        records = [
            {"file_name": str(r.path), "image_id": r.id, "height": r.height, "width": r.width, "annotations": [
                {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(label), "iscrowd": 0}
                for box, label in zip(r.truth.boxes, r.truth.labels, strict=True)]}
            for r in voc.images[:limit]
        ]  # fmt: skip
        DatasetCatalog.register(f"bccd_{split}", lambda records=records: records)
        MetadataCatalog.get(f"bccd_{split}").thing_classes = list(voc.names)
    return voc.names


def train(cfg: Any, work: Path, steps: int, batch: int) -> torch.nn.Module:
    """The detector after `steps` steps of AdamW on a one-cycle schedule, in bfloat16; kept in `work` every 50 steps."""
    from detectron2.data import DatasetCatalog, DatasetMapper
    from detectron2.data import transforms as T
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    model = build_model(cfg).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.15)
    mapper, records = DatasetMapper(cfg, is_train=True), DatasetCatalog.get("bccd_train")
    mapper.augmentations.augs += [T.RandomFlip(vertical=True, horizontal=False), T.RandomBrightness(0.8, 1.2)]
    file, done = work / "train.pth", 0
    if file.is_file():
        state = torch.load(file, weights_only=True)
        for name, part in (("model", model), ("optimizer", optimizer), ("schedule", schedule)):
            part.load_state_dict(state[name])
        done = state["done"]
    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with EventStorage(done), Progress(*columns) as progress:
        task = progress.add_task("training", total=steps, completed=done)
        for step in range(done, steps):
            np.random.seed(step)  # noqa: NPY002  # Detectron2's augmentations draw from it
            torch.manual_seed(step)
            chosen = np.random.default_rng(step).choice(len(records), batch, replace=False)
            with torch.autocast("cpu", torch.bfloat16):
                losses = model([mapper(records[int(i)]) for i in chosen])
            loss = torch.stack(list(losses.values())).sum()
            shown = float(loss.detach())
            if not math.isfinite(shown):
                raise SystemExit(f"step {step}: the loss is {shown:g}")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1, description=f"training, loss {shown:.2f}")
            if (step + 1) % 50 == 0 or step + 1 == steps:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                         "schedule": schedule.state_dict(), "done": step + 1}  # fmt: skip
                torch.save(state, work / "train.new")
                (work / "train.new").replace(file)
    return model.eval()


def calibrate(predictor: Any, monitor: Monitor, truths: dict[Any, Any]) -> list[tuple[Instances, Any]]:
    """Fit the monitor on the validation split; what was found there."""
    from detectron2.data import DatasetCatalog

    pairs = []
    with attach(predictor, monitor, strict=True) as handle:
        for record in track(DatasetCatalog.get("bccd_val"), "calibrating"):
            (found,) = handle.predict([read_image(Path(record["file_name"]))])
            pairs.append((found.cpu(), truths[record["image_id"]]))
        monitor.fit(pairs, fingerprint=handle.host.fingerprint())
    return pairs


def main() -> None:
    args = arguments(
        __doc__, work={"type": Path, "default": Path("runs/detectron2-fit"), "help": "what is kept of the training"},
        steps={"type": int, "default": 400}, batch={"type": int, "default": 4},
        signals={"nargs": "+", "default": ["cheap"]}, threads={"type": int, "default": 1},
    )  # fmt: skip
    torch.set_num_threads(args.threads)
    steps = 30 if args.quick else args.steps
    work = args.work / f"{steps}-steps"
    work.mkdir(parents=True, exist_ok=True)
    from detectron2.data import DatasetMapper, build_detection_test_loader
    from detectron2.data import transforms as T
    from detectron2.evaluation import COCOEvaluator, inference_on_dataset

    from reliability_hooks.hosts.detectron2_load import Predictor

    names = register(SHARED / "data/ood/bccd/BCCD", 20 if args.quick else None)
    cfg = load_config("model_zoo:COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
                      [item for pair in CONFIG.items() for item in pair])  # fmt: skip
    started = time.perf_counter()
    model = train(cfg, work, steps, args.batch)
    seconds = time.perf_counter() - started
    model.class_names = list(names)
    monitor = Monitor(args.signals)
    predictor = Predictor(model, T.ResizeShortestEdge([SIDE] * 2, 2 * SIDE), cfg.INPUT.FORMAT, None)
    fitted_on = calibrate(predictor, monitor, ReliabilityEvaluator("bccd_val").truths)
    monitor.save(work / "monitor")

    loader = build_detection_test_loader(cfg, "bccd_test", mapper=DatasetMapper(cfg, is_train=False), num_workers=0)
    evaluator = ReliabilityEvaluator("bccd_test", work / "test", draws=1000)
    with attach(model, Monitor.load(work / "monitor"), strict=True):
        results = inference_on_dataset(
            model, loader, [COCOEvaluator("bccd_test", output_dir=str(work / "test"), use_fast_impl=False), evaluator]
        )  # fmt: skip
    lines = evaluator.estimates
    rows, correct, _, image = labelled(evaluator.pairs, 0.5)
    a, right, _, _ = labelled(fitted_on, 0.5)
    metrics = {name: CALIBRATION_METRICS[name] for name in METRICS}
    platt = Platt.fit(a.scores, right).predict(rows.scores).double().clamp(0, 1).numpy()
    lines["Platt on the score"] = image_bootstrap(metrics, image.numpy(), platt, correct.numpy(), draws=1000,
                                                  all_images=np.arange(len(evaluator.pairs)))  # fmt: skip
    table = [{"judged by": row, **{m: str(line[m]) for m in METRICS}} for row, line in lines.items()]
    show("test split", list(table[0]), [list(row.values()) for row in table])
    figures = {f"{row.split()[0]}_{m}": line[m].value for row, line in lines.items() for m in METRICS}
    figures |= {"ap": results["bbox"]["AP"], "ap50": results["bbox"]["AP50"], "right": float(correct.float().mean())}
    protocol = {"images": {"calibration": len(fitted_on), "test": len(evaluator.pairs)}, "steps": steps,
                "batch": args.batch, "side": SIDE, "score_cut": CONFIG["MODEL.ROI_HEADS.SCORE_THRESH_TEST"],
                "signals": args.signals, "detections": len(rows), "training_seconds": seconds, "iou_threshold": 0.5,
                **machine()}  # fmt: skip
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
