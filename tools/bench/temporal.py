"""How soon is the track of an unknown object flagged, and how many tracks of known ones ever are?

Videos are made from photographs (`evaluation/videos.py`): of each COCO photograph one with what it shows, and one into
which a raccoon, cut out of another photograph, comes from a side. The detector tracks; each fold of photographs is
tested with an alarm that was calibrated on the tracks of the others.

- A known object's track: more than half of its detections match an annotated object of their class (IoU >= .5), in the
  videos without a raccoon. Each is tested once; flagged = at any frame of its life.
- The raccoon: from the first frame at which a box in a track covers it (IoU >= .5), whatever its label; flagged at the
  first frame at which such a box carries the alarm. 1 frame is at once, a raccoon that is never flagged counts as
  infinite. Those never detected in a track are left out and counted.
- `plain`: a threshold for each single frame, calibrated for the same rate of false alarms for each track. `quantile`:
  the threshold that a share alpha of the *frames* of known tracks exceeds, as it is commonly set.

The default score was chosen on photographs that are not used here: train2017 and the first half of the raccoons.
Tracks of one photograph depend on each other, which the Wilson intervals do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import SHARED, arguments, finish, machine, show
from drift import wilson
from rich.console import Console
from rich.progress import track

from reliability_hooks import Instances, Monitor, attach
from reliability_hooks.cli.collect import label_names
from reliability_hooks.evaluation.datasets import GroundTruth, ImageRecord, read_coco
from reliability_hooks.evaluation.matching import match
from reliability_hooks.evaluation.videos import Stranger, VideoFrame, cut_out, moving_crop
from reliability_hooks.evaluation.voc import read_voc
from reliability_hooks.hook import Handle
from reliability_hooks.hosts.base import load
from reliability_hooks.images import read_image
from reliability_hooks.signals.temporal import COLUMNS, Tracks
from reliability_hooks.signals.track_ids import track_ids_of

ENTERS, SOON, FOLDS = 4, 5, 5
Follow = Callable[[np.ndarray], Instances]


@dataclass(frozen=True)
class Video:
    """What was tracked in a video: the instances of each frame, and for each row whether it is right, or the raccoon.

    Attributes:
        frames: Instances with track ids and the watched columns.
        hits: For each frame (N,) bool: matched to an annotated object of its class; or, with a raccoon, covering it.
    """

    frames: list[Instances]
    hits: list[torch.Tensor]

    def known(self) -> list[Instances]:
        """Only the rows of known objects' tracks."""
        ids, hit = torch.cat([_ids(f) for f in self.frames]), torch.cat(self.hits)
        names, of = ids.unique(return_inverse=True)
        share = torch.zeros(len(names)).index_add_(0, of, hit.float()) / torch.bincount(of, minlength=len(names))
        right = names[(share > 0.5) & (names >= 0)]
        return [f[torch.isin(_ids(f), right)] for f in self.frames]


def _ids(frame: Instances) -> torch.Tensor:
    return torch.full((len(frame),), -1) if frame.track_ids is None else frame.track_ids


def follower(handle: Handle, kind: str, options: dict[str, object]) -> Follow:
    """A function that tracks the next frame, RGB; call this again for each video."""
    if kind == "ultralytics":
        model = handle.host.model
        for tracker in getattr(model.predictor, "trackers", ()):
            tracker.reset()
        return lambda image: model.track(
            np.ascontiguousarray(image[..., ::-1]), persist=True, tracker="bytetrack.yaml", verbose=False, **options
        )[0].instances
    from trackers import ByteTrackTracker

    # As the other's defaults: a track begins with a confidence of .25
    own = ByteTrackTracker(track_activation_threshold=0.25, high_conf_det_threshold=0.25)
    return lambda image: track_ids_of(own, handle.predict([image], **options)[0])


def watch(frames: Iterator[VideoFrame], labels: np.ndarray, follow: Follow, columns: Sequence[str]) -> Video:
    """Track a video; only what is needed later is kept."""
    kept, hits = [], []
    for frame in frames:
        found = follow(frame.image).cpu()
        columns_of = {name: found.columns[name] for name in columns} if len(found) else {}
        kept.append(Instances(found.boxes, found.scores, found.labels, track_ids=found.track_ids, columns=columns_of))
        here = np.zeros(len(found)), np.zeros(len(frame.boxes))
        raccoon = len(labels) and labels[-1] < 0
        if raccoon:
            only = frame.is_ood
            m = match(found.boxes, found.scores, here[0], here[0], frame.boxes[only], here[1][only], here[1][only])
            hits.append(torch.from_numpy(m.best_iou >= 0.5))
        else:
            m = match(found.boxes, found.scores, found.labels, here[0], frame.boxes, labels[frame.object_ids], here[1])
            hits.append(torch.from_numpy(m.tp))
    return Video(kept, hits)


def record(
    handle: Handle, photos: Sequence[ImageRecord], strangers: Sequence[Stranger | None], frames: int, tracker: str,
    columns: Sequence[str], options: dict[str, object],
) -> list[Video]:  # fmt: skip
    """One video of each photograph, with the stranger of the same index."""
    out = []
    what = "raccoon" if any(strangers) else "known"
    for i in track(range(len(photos)), what, console=Console(stderr=True)):
        truth, guest = photos[i].truth, strangers[i]
        plain = ~truth.crowd
        made = moving_crop(read_image(photos[i].path), truth.boxes[plain], frames=frames, stranger=guest, seed=i)
        labels = np.append(truth.labels[plain], -1) if guest else truth.labels[plain]
        out.append(watch(made, labels, follower(handle, tracker, options), columns))
    return out


def raccoons(names: Sequence[str], n: int) -> list[Stranger | None]:
    """Cut-outs of the second half of the photographs, at places and in sizes drawn once and for all."""
    data = read_voc(SHARED / "data/ood/raccoon/annotations", SHARED / "data/ood/raccoon/images", names, open_set=True)
    rng, half = np.random.default_rng(1), data.images[len(data) // 2 :]
    made: list[Stranger | None] = []
    for i in range(n):
        one = half[i % len(half)]
        place = float(rng.uniform(0.35, 0.65)), float(rng.uniform(0.5, 0.7))
        made.append(Stranger(*cut_out(read_image(one.path), one.truth.boxes[0]), enters=ENTERS, place=place,
                             height=float(rng.uniform(0.35, 0.65)), from_left=bool(rng.integers(2))))
    return made


def false_alarms(tracks: Tracks, video: Video) -> list[bool]:
    """For each known track whether it was ever flagged."""
    tracks.reset()
    ever: dict[int, bool] = {}
    for frame in video.known():
        seen = tracks.update(frame)
        for i, alarm in zip(_ids(seen).tolist(), (seen.columns["track/alarm"] == 1).tolist(), strict=True):
            ever[i] = ever.get(i, False) or alarm
    return list(ever.values())


def delay(tracks: Tracks, video: Video) -> float | None:
    """Frames from the raccoon's first detection in a track to an alarm on it; None where it is in no track."""
    tracks.reset()
    first = None
    for t, (frame, hit) in enumerate(zip(video.frames, video.hits, strict=True)):
        seen = tracks.update(frame)
        on_it = hit & (_ids(seen) >= 0)
        if first is None and bool(on_it.any()):
            first = t
        if first is not None and bool((seen.columns["track/alarm"][on_it] == 1).any()):
            return t - first + 1
    return None if first is None else np.inf


def quantile(cal: Sequence[list[Instances]], columns: Sequence[str], alpha: float) -> Tracks:
    """The alarm of single frames at the level that a share alpha of the calibration *frames* exceeds."""
    each = [[row.replace(track_ids=torch.tensor([0]))] for video in cal for frame in video for row in frame]
    return Tracks.fit(each, columns, alpha=alpha, rule="frame")


def learn(handle: Handle, limit: int | None, options: dict[str, object]) -> int:
    """Teach the signals that learn from train2017 and what is annotated there; how many photographs."""
    names = label_names(handle.host.class_names())
    coco = SHARED / "data/coco"
    images = read_coco(coco / "instances_train2017.json", coco / "train2017", names).images[:limit]
    truths: list[GroundTruth | None] = [r.truth for r in images]
    with handle.monitor.learning(truths):
        for r in track(images, "learning", console=Console(stderr=True)):
            handle.predict([read_image(r.path)], **options)
    return len(images)


def main() -> None:
    args = arguments(
        __doc__,
        detector={"default": str(SHARED / "weights/yolov8n.pt")},
        score={"nargs": "+", "default": list(COLUMNS), "help": "columns to watch, such as ood/knn/score"},
        tracker={"choices": ["ultralytics", "trackers"], "default": "ultralytics",
                 "help": "model.track, or any host and the package `trackers` over supervision"},
        alpha={"type": float, "help": "promised rate of false alarms for each track; .01, with --quick .05"},
        frames={"type": int, "help": "of each video; 16, with --quick 10"},
    )
    alpha = args.alpha or (0.05 if args.quick else 0.01)
    frames, limit, guests = args.frames or (10 if args.quick else 16), *((24, 14) if args.quick else (None, None))
    torch.set_num_threads(1)
    options: dict[str, object] = {"conf": 0.1, "imgsz": 480}
    model, coco = load(args.detector), SHARED / "data/coco"
    names = label_names(dict(model.names))
    photos = read_coco(coco / "instances_val2017.json", coco / "val2017", names).images[:limit]
    monitor = Monitor(dict.fromkeys(name.rpartition("/")[0] for name in args.score))
    with attach(model, monitor, strict=True) as handle:
        bank = learn(handle, 80 if args.quick else None, options) if monitor.learns else 0
        clean = record(handle, photos, [None] * len(photos), frames, args.tracker, args.score, options)
        behind = photos[:guests]
        wild = record(handle, behind, raccoons(names, len(behind)), frames, args.tracker, args.score, options)

    fold = np.random.default_rng(0).permutation(len(photos)) % FOLDS
    flagged: dict[str, list[bool]] = {"mean": [], "cusum": [], "frame": [], "quantile": []}
    delays: dict[str, list[float]] = {rule: [] for rule in flagged}
    for k in range(FOLDS):
        cal = [v.known() for v, f in zip(clean, fold, strict=True) if f != k]
        for rule in flagged:
            tracks = quantile(cal, args.score, alpha) if rule == "quantile" else Tracks.fit(
                cal, args.score, alpha=alpha, rule=rule)  # type: ignore[arg-type]
            flagged[rule] += [a for v, f in zip(clean, fold, strict=True) if f == k for a in false_alarms(tracks, v)]
            found = [delay(tracks, v) for v, f in zip(wild, fold[: len(wild)], strict=True) if f == k]
            delays[rule] += [d for d in found if d is not None]

    if not delays["mean"] or not flagged["mean"]:
        raise SystemExit("no raccoon, or no known object, is in a track: take longer videos (--frames)")
    table, figures = [], {}
    for rule, name in {"mean": "temporal", "cusum": "cusum", "frame": "plain", "quantile": "quantile"}.items():
        wrong, took = flagged[rule], np.array(delays[rule])
        rate, soon, median = float(np.mean(wrong)), float(np.mean(took <= SOON)), float(np.median(took))
        low, high = wilson(sum(wrong), len(wrong))
        table.append({"rule": name, "known_tracks": len(wrong), "false_alarm_rate": rate, "low": low, "high": high,
                      "raccoons": len(took), "flagged_within_5": soon, "flagged_ever": float(np.isfinite(took).mean()),
                      "delay": median if np.isfinite(median) else None})  # fmt: skip
        if name in ("temporal", "plain"):
            figures |= {f"{name}_false_alarm_rate": rate, f"{name}_false_alarm_rate_low": low,
                        f"{name}_false_alarm_rate_high": high, f"{name}_flagged_within_{SOON}": soon}
            soon_low, soon_high = wilson(int((took <= SOON).sum()), len(took))
            figures |= {f"{name}_flagged_within_{SOON}_low": soon_low, f"{name}_flagged_within_{SOON}_high": soon_high}
            if np.isfinite(median):  # where fewer than half are ever flagged there is none
                figures[f"{name}_delay_frames"] = median
    show(f"{', '.join(args.score)}: alpha = {alpha:g} for each track", list(table[0]),
         [["-" if v is None else v for v in row.values()] for row in table])
    protocol = {
        "detector": Path(args.detector).name, "tracker": args.tracker, "scores": args.score, "alpha": alpha,
        "photographs": len(photos), "folds": FOLDS, "frames": frames, "learnt_from": bank, **options,
        "raccoon_videos": len(wild), "raccoons_in_no_track": len(wild) - len(delays["mean"]), "enters": ENTERS,
        "unit": "track", "known": "more than half of the detections match an object of their class, IoU >= .5",
        "delay": "frames from the first detection in a track, 1 = at once; median, never = infinite", **machine(),
    }  # fmt: skip
    print({k: protocol[k] for k in ("raccoon_videos", "raccoons_in_no_track")})
    finish(args, protocol, table, figures)


if __name__ == "__main__":
    main()
