from __future__ import annotations

import pytest
import torch

from reliability_hooks.explain.targets import TARGETS, BoxTarget, Reference, Target, target_of
from reliability_hooks.frame import Frame, Glance

from .toy import toy


def seen(frame: Frame, names: list[str]) -> tuple[Glance, Reference, list[torch.Tensor]]:
    glance = frame.look(frame.view.pixels[None], ("boxes", "masks"))  # type: ignore[misc, union-attr]
    reference = Reference.of(frame, torch.arange(3), glance)
    return glance, reference, [TARGETS[name].seen(glance, reference)[0] for name in names]


def test_values_by_hand() -> None:
    frame = toy()
    glance, reference, (p, box, mask, boundary, joint) = seen(frame, ["class", "box", "mask", "boundary", "joint"])
    labels = frame.instances.labels
    torch.testing.assert_close(p, glance.logits[0, torch.arange(3), labels].sigmoid())
    torch.testing.assert_close(joint, p * mask)
    now, own = glance.boxes[0], reference.boxes  # type: ignore[index]
    shrunk = (now[:, 2:] - now[:, :2]).prod(1) / (own[:, 2:] - own[:, :2]).prod(1)  # it lies inside of the first one
    torch.testing.assert_close(box, shrunk)
    assert bool((mask < 1).all())
    edge = torch.zeros_like(reference.masks[0], dtype=torch.bool)  # type: ignore[index]
    inner = reference.masks[0] > 0  # type: ignore[index]
    for y in range(28):
        for x in range(32):
            around = inner[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
            edge[y, x] = bool(around.any()) and not bool(around.all())
    band = edge & (reference.inside[0] > 0)  # type: ignore[index]
    soft, first = glance.masks[0, 0].sigmoid()[band], inner.float()[band]  # type: ignore[index]
    common = (soft * first).sum()
    torch.testing.assert_close(boundary[0], common / (soft.sum() + first.sum() - common))


def test_the_joint_scalar_is_the_log_of_what_is_seen() -> None:
    glance, reference, (joint, p) = seen(toy(), ["joint", "class"])
    torch.testing.assert_close(TARGETS["joint"].scalar(glance, reference)[0], joint.log())
    torch.testing.assert_close(TARGETS["class"].scalar(glance, reference)[0], p.log())


def test_the_iou_of_a_box_has_no_gradient_where_it_is_one_and_its_extent_has() -> None:
    frame = toy()
    boxes = frame.view.to_view(frame.instances.boxes)[None].requires_grad_()  # type: ignore[union-attr]
    glance = Glance(torch.zeros(1, 3, 2), boxes=boxes)
    reference = Reference.of(frame, torch.arange(3), None)
    flat = torch.autograd.grad(BoxTarget().seen(glance, reference).sum(), boxes)[0]
    torch.testing.assert_close(flat, torch.zeros_like(flat))
    extent = torch.autograd.grad(BoxTarget().scalar(glance, reference).sum(), boxes)[0][0]
    assert bool((extent[:, :2] < 0).all())
    assert bool((extent[:, 2:] > 0).all())


def test_softmax_counts_the_background() -> None:
    frame = toy()
    kept = frame.instances.replace(head="softmax+background", background=0, logits=torch.zeros(3, 4))
    frame = frame.with_instances(kept)
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    value = TARGETS["class"].seen(Glance(logits), Reference.of(frame, torch.arange(3), None))
    torch.testing.assert_close(value, logits.softmax(2)[:, torch.arange(3), kept.labels])


def test_names() -> None:
    class Own(Target):
        name = "own"

    own = Own()
    assert target_of(own) is own
    assert target_of("joint") is TARGETS["joint"]
    with pytest.raises(ValueError, match="'boundry', did you mean 'boundary'"):
        target_of("boundry")
