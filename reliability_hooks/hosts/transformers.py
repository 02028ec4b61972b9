"""transformers: DETR, Conditional and Deformable DETR, RT-DETR (v2), D-FINE, Mask2Former and MaskFormer.

Users call a processor, the model, and the processor again; or a pipeline that does. What the model computes is noted
when it runs. What the processor's `post_process_object_detection` and `post_process_instance_segmentation` return is
judged: each dict gains `reliability`, `reliability_interval`, `verdict`, `expected_iou` and `instances`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..frame import Candidates, Frame, Glance, Layer, View
from ..instances import Instances
from .base import Hook, Host, Process, Removable, Undo, dropouts, dropping
from .info import HostInfo
from .look import Kept, Part, frozen
from .queries import Inside, Pass, view
from .query_look import glance
from .query_rows import HEADS, mask_logits, raw_rows
from .rows import candidates, with_evidence
from .transformers_results import POST, Found, bare, with_own_masks
from .transformers_watch import Listening

TESTED = ((5, 23), (5, 23))
"""First and last version that the tests were run with."""
ADDED = ("reliability", "reliability_interval", "verdict", "expected_iou")


class TransformersHost(Host):
    """A detection or instance segmentation model of transformers with its image processor, or a pipeline of both.

    `attach(model, monitor, processor=processor)`, or `attach(pipeline("object-detection", ...), monitor)`: each
    detection that a pipeline returns gains `reliability` and `verdict`, and its list the attribute `instances`.
    An output is to be post-processed, in the same thread, before the model runs again. Without `target_sizes` the
    boxes of `instances` are in pixels of the processed image. Instance masks are each query's own, before the map of
    all segments paints one over another; panoptic and semantic maps are left alone.

    Args:
        model: The model, or a pipeline.
        processor: The model's image processor; a pipeline has its own.

    Raises:
        TypeError: There is no processor, or it makes no detections; the message says what to pass.
    """

    name: ClassVar[str] = "transformers"
    info: ClassVar[HostInfo] = HostInfo(
        models="DETR, Conditional and Deformable DETR, RT-DETR (v2), D-FINE, Mask2Former, MaskFormer; pipelines",
        beside="keys beside `scores`, `labels`, `boxes` of `post_process_...`", licence="Apache-2.0",
        tested="transformers>=5,<6", gradients="yes (RT-DETR, D-FINE: partly)",
    )  # fmt: skip

    def __init__(self, model: Any, processor: Any = None) -> None:
        super().__init__(model)
        self.net: Any = model if isinstance(model, nn.Module) else getattr(model, "model", None)
        self.processor: Any = processor if processor is not None else getattr(model, "image_processor", None)
        if not hasattr(self.net, "register_forward_hook"):
            raise TypeError(f"{type(model).__qualname__} is neither a model nor a pipeline of one")
        if self.processor is None:
            raise TypeError("a model of transformers needs its image processor: attach(model, monitor, "
                            "processor=processor), or attach a pipeline")
        if not any(hasattr(self.processor, name) for name in POST):
            raise TypeError(f"{type(self.processor).__qualname__} makes no detections: it has none of "
                            f"{', '.join(POST)}")
        self._forget()
        self._needs: frozenset[str] = frozenset()

    @classmethod
    def load(cls, spec: str, **options: Any) -> Any:
        """A pipeline from a directory of `save_pretrained`, or from a model that has been downloaded before.

        Raises:
            FileNotFoundError: It is not on this machine.
            ImportError: transformers is not installed.
        """
        from .transformers_results import load

        return load(spec, **options)

    @property
    def kind(self) -> str:
        """Key in `HEADS`."""
        return str(self.net.config.model_type)

    def class_names(self) -> dict[int, str]:
        return {int(label): str(name) for label, name in self.net.config.id2label.items()}

    def module(self) -> nn.Module:
        found: nn.Module = self.net
        return found

    def install(
        self, process: Process, report: Callable[[Exception], None], needs: Collection[str] = ()
    ) -> list[Removable]:
        """Watch the model, the stages of its backbone, and the last step of the processor."""
        self._check_version()
        if self.kind not in HEADS:
            self.say(f"the head of {self.kind!r} is not known: its objects are judged by image signals alone; known "
                      f"are {', '.join(HEADS)}")
        self._needs = frozenset(needs)

        def judge(name: str, given: Mapping[str, Any], results: Any) -> None:
            self._judge(process, given, results)

        def beside(name: str, given: Mapping[str, Any], result: Any) -> Any:
            judged, self._local.judged = getattr(self._local, "judged", None), None
            return None if judged is None else Found.of(result, judged)

        made: list[Removable] = [
            self.net.register_forward_pre_hook(Hook(self._start, report), with_kwargs=True),
            self.net.register_forward_hook(Hook(self._finish, report), with_kwargs=True, always_call=True),
            Listening(self.processor, POST, Hook(judge, report)),
            Undo(self._forget),
        ]
        if self.model is not self.net:
            made.append(Listening(self.model, ("postprocess",), Hook(beside, report)))
        wide = {self.net.config.num_labels, self.net.config.num_labels + 1}
        for module in self.net.modules():
            if "maps" in needs and type(module).__name__.endswith(("Stage", "Backbone")):
                made.append(module.register_forward_hook(Hook(self._on_stage, report)))
            if "classifier" in needs and isinstance(module, nn.Linear) and module.out_features in wide:
                made.append(module.register_forward_hook(Hook(self._on_layer, report)))
        return made

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if getattr(self._local, "aside", False):
            return
        tracing = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        self._local.last = self._local.judged = None  # its tensors are not held while the next pass runs
        self._local.running = None if module.training or tracing else Inside()

    def _finish(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if getattr(self._local, "aside", False):
            return
        inside, self._local.running = getattr(self._local, "running", None), None
        if inside is not None and output is not None:  # neither training, nor has the forward pass itself failed
            inputs = {"pixel_values": args[0], **kwargs} if args else kwargs
            self._local.last = Pass.of(self.kind, inputs, output, inside)

    def _on_stage(self, module: nn.Module, args: Any, output: Any) -> None:
        if (inside := getattr(self._local, "running", None)) is not None:
            inside.stages.append(output)

    def _on_layer(self, module: Any, args: Any, output: Any) -> None:
        if (inside := getattr(self._local, "running", None)) is not None:
            inside.layers.append((module, args[0].detach(), output.detach()))

    def _judge(self, process: Process, given: Mapping[str, Any], results: Any) -> None:
        outputs, seen = given["outputs"], getattr(self._local, "last", None)
        logits = outputs.logits if hasattr(outputs, "logits") else outputs.class_queries_logits
        found = [-1 if seen is None else seen.find(own.detach()) for own in logits]
        if seen is None or -1 in found:
            self.say("an output was post-processed that is not of the hooked model's last pass in this thread: no "
                      "reliability stands beside it")
            return
        targets = given.get("target_sizes")
        with torch.no_grad():
            for k, (result, i) in enumerate(zip(results, found, strict=True)):
                size = seen.sizes[i] if targets is None else (int(targets[k][0]), int(targets[k][1]))
                kept = bare(result, size, targets is None, seen.logits.device)
                dtype = result["boxes"].dtype if "boxes" in result else torch.float32
                build, plain = partial(self._frame, seen, i, kept, size, dtype), partial(_same, kept)
                self._local.judged = instances = process(build, plain)
                added = {name: instances.column(name).to(logits.device) for name in ADDED}
                result.update(added, instances=instances)

    def _frame(self, seen: Pass, i: int, kept: Instances, size: tuple[int, int], dtype: torch.dtype) -> Frame:
        shown = self._view(seen, i, size)
        if self.kind not in HEADS:
            return Frame(kept, shown)
        grid = None if seen.masks is None else mask_logits(seen, i)
        raw = raw_rows(seen, i, size, dtype, grid)
        if grid is not None:
            kept = with_own_masks(kept, grid, raw)
        levels = seen.cut(seen.maps, i)
        return replace(
            with_evidence(kept, raw, partial(self._look, seen, i) if shown and "look" in self._needs else None),
            view=shown,
            maps=None if levels is None else {name: level.detach() for name, level in levels.items()},
            rerun=None if shown is None else partial(self._rerun, seen, i),
            dropout=bool(dropouts(self.net)),
        )

    def _view(self, seen: Pass, i: int, size: tuple[int, int]) -> View | None:
        shown = view(seen, i, size, self.processor)
        if shown is None:
            self.say("the model was given other pixels than its processor's settings make of an RGB image: nothing is "
                      "judged by them")
        return shown

    def _rerun(self, seen: Pass, i: int, pixels: Tensor, dropout: bool = False) -> list[Candidates]:
        """See `Frame.rerun`."""
        inputs = seen.again(i, pixels)
        with torch.no_grad(), dropping(self.net) if dropout else nullcontext(), self._aside() as inside:
            made = Pass.of(self.kind, inputs, self.net(**inputs), inside)
        assert made is not None
        return [candidates(raw_rows(made, k, seen.sizes[i])) for k in range(len(pixels))]

    def _look(self, seen: Pass, i: int, kept: Kept, pixels: Tensor, parts: Collection[str]) -> Glance:
        """See `Frame.look`. Padded as the image was in its batch."""
        inputs = seen.again(i, pixels)
        given = inputs.pop("pixel_values")
        with self._aside() as inside:
            output = frozen(Part(self.net, lambda net, x: net(pixel_values=x, **inputs)), given)
        found, levels = glance(output, seen, i, kept, parts), inside.maps(given.shape)
        whole = given.new_tensor([[0, 0, given.shape[3], given.shape[2]]], dtype=torch.float32)
        layers = {name: Layer(level, whole) for name, level in levels.items()} if "layers" in parts else None
        return replace(found, maps=seen.cut(levels, i, slice(None)), layers=layers)

    @contextmanager
    def _aside(self) -> Iterator[Inside]:
        """The hooks write elsewhere; what is known of the last pass stays."""
        local, inside = self._local, Inside()
        outer = getattr(local, "running", None), getattr(local, "aside", False)
        local.running, local.aside = inside, True
        try:
            yield inside
        finally:
            local.running, local.aside = outer

    def predict(self, images: Sequence[np.ndarray], conf: float = 0.5, **options: Any) -> list[Instances]:
        """Run processor, hooked model and processor on (H, W, 3) uint8 RGB images, all in one batch.

        Args:
            images: One array for each image.
            conf: The processor's `threshold`.
            **options: There are no others.

        Raises:
            RuntimeError: The model is in training mode, or not hooked.
        """
        if options:
            raise TypeError(f"unknown option {sorted(options)[0]!r}; transformers takes `conf`")
        if self.net.training:
            raise RuntimeError("the model is in training mode; call model.eval() first")
        if not len(images):
            return []
        weight = next(self.net.parameters())
        inputs = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_last")
        inputs = inputs.to(weight.device).to(weight.dtype)
        with torch.inference_mode():
            outputs = self.net(**inputs)
            post = getattr(self.processor, POST["pred_boxes" not in outputs])
            results = post(outputs, threshold=conf, target_sizes=[image.shape[:2] for image in images])
        if any("instances" not in result for result in results):
            raise RuntimeError("the model is not hooked; attach(model, monitor, processor=processor) first")
        return [result["instances"] for result in results]

    def _forget(self) -> None:
        """What is held of the last pass, in every thread."""
        self._local = threading.local()  # `running` and `last` pass, `judged` instances, `aside`

    def _check_version(self) -> None:
        import transformers

        version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        if not TESTED[0] <= version <= TESTED[1]:
            first, last = (".".join(map(str, v)) for v in TESTED)
            self.say(f"transformers {transformers.__version__} is outside of the tested range, {first} to {last}")


def _same(kept: Instances) -> Instances:
    return kept
