"""Fills: they colour the hole, and nothing but the hole."""

from __future__ import annotations

import pytest
import torch

from reliability_hooks.evaluation.fills import FILLS, fill_of, filled

G = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (2, 3), (37, 53)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_untouched_pixels_are_bit_equal_and_filled_ones_in_range(
    name: str, size: tuple[int, int], share: float
) -> None:
    pixels = torch.rand((3, *size), generator=G) * 255
    hole = torch.rand((4, *size), generator=G) < share
    out = filled(pixels, hole, FILLS[name](pixels))
    assert out.shape == (4, 3, *size)
    kept = ~hole[:, None].expand_as(out)
    assert torch.equal(out[kept], pixels.expand_as(out)[kept])
    slack = 1e-3
    assert (out >= pixels.amin((1, 2), keepdim=True) - slack).all()
    assert (out <= pixels.amax((1, 2), keepdim=True) + slack).all()


@pytest.mark.parametrize("name", FILLS)
def test_a_constant_picture_stays_what_it_is(name: str) -> None:
    pixels = torch.tensor([0.2, 0.5, 0.9])[:, None, None].expand(3, 21, 30).contiguous()
    hole = torch.rand((3, 21, 30), generator=G) < 0.7
    torch.testing.assert_close(filled(pixels, hole, FILLS[name](pixels)), pixels.expand(3, -1, -1, -1))


@pytest.mark.parametrize("name", FILLS)
def test_each_picture_of_a_batch_is_filled_by_itself(name: str) -> None:
    pixels = torch.rand((3, 19, 24), generator=G)
    hole = torch.rand((5, 19, 24), generator=G) < torch.linspace(0.1, 1, 5)[:, None, None]
    colours = FILLS[name](pixels)
    alone = torch.cat([filled(pixels, one[None], colours) for one in hole])
    torch.testing.assert_close(filled(pixels, hole, colours), alone)


def test_grey_is_the_mean_and_blur_is_the_library() -> None:
    from torchvision.transforms.v2.functional import gaussian_blur

    pixels = torch.rand((3, 40, 60), generator=G)
    everything = torch.ones((1, 40, 60), dtype=torch.bool)
    grey = filled(pixels, everything, FILLS["grey"](pixels))[0]
    torch.testing.assert_close(grey, pixels.mean((1, 2), keepdim=True).expand_as(pixels))
    soft = filled(pixels, everything, FILLS["blur"](pixels))[0]
    torch.testing.assert_close(soft, gaussian_blur(pixels, [13, 13], [2.0, 2.0]))


def test_inpainting_carries_a_ramp_over_a_hole_and_hides_what_was_there() -> None:
    ramp = torch.linspace(0, 1, 64).expand(3, 64, 64).contiguous()
    marked, hole = ramp.clone(), torch.zeros((1, 64, 64), dtype=torch.bool)
    hole[0, 24:34, 20:30] = True
    marked[:, hole[0]] = 9.0
    out = filled(marked, hole, FILLS["inpaint"](marked))[0]
    assert (out - ramp).abs().max() < 0.08  # grey would be off by up to 0.2, and by the mark on top
    other = ramp.clone()
    other[:, hole[0]] = -3.0
    assert torch.equal(filled(other, hole, FILLS["inpaint"](other))[0], out)


def test_names_and_own_fills() -> None:
    def black(pixels: torch.Tensor):
        return lambda hole: pixels.new_zeros(1)

    assert fill_of("blur") == ("blur", FILLS["blur"])
    assert fill_of(black) == ("black", black)
    with pytest.raises(ValueError, match="did you mean 'inpaint'"):
        fill_of("inpiant")
