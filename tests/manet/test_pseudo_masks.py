from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from manet.augment import binarised, consumer_view, framed_view
from manet.config import NetworkConfig
from manet.errors import WeightsError
from manet.losses import binarise_at_mean
from manet.network import MANet, as_rgb
from manet.pseudo_masks import pseudo_mask
from manet.rendered.catalogue import Catalogue
from manet.weights import read_tensors, resolve


@pytest.mark.parametrize(("source", "least"), [("classical", 0.6), ("pip:u2netp", 0.75), ("own:saliency-lite0", 0.7)])
def test_masks_find_the_product_on_white(source: str, least: float) -> None:
    """Intersection over union with the rendered truth, mean of twelve studio pictures."""
    mask_of = pseudo_mask(source)
    shop = Catalogue(seed=0, products=48)
    overlaps = []
    for index in range(0, 48, 4):
        picture = shop.studio(index, 0, 192)
        grey = mask_of(picture.rgb)
        assert grey.shape == picture.rgb.shape[:2]
        assert grey.dtype == np.float32
        assert 0 <= grey.min() <= grey.max() <= 1
        found = binarise_at_mean(torch.from_numpy(grey)[None])[0].numpy() > 0
        truth = picture.mask > 127
        overlaps.append((found & truth).sum() / (found | truth).sum())
    assert np.mean(overlaps) > least


def test_a_plain_picture_has_no_salient_part() -> None:
    assert not pseudo_mask("classical")(np.full((50, 70, 3), 128, np.uint8)).any()


def test_a_broken_network_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("net") / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(WeightsError, match=r"broken\.onnx: OpenCV cannot read"):
        pseudo_mask(str(path))


def test_a_network_that_gives_no_map_is_named(tmp_path: Path) -> None:
    """ONNX by hand: one layer that flattens its picture, as a classifier's answer is flat."""

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data)]) + data

    def tensor(name: bytes, sides: list[int]) -> bytes:
        shape = b"".join(field(1, b"\x08" + (side.to_bytes(1) if side < 128 else b"\xc0\x02")) for side in sides)
        return field(1, name) + field(2, field(1, b"\x08\x01" + field(2, shape)))

    node = field(1, b"x") + field(2, b"y") + field(4, b"Flatten")
    graph = (
        field(1, node) + field(2, b"g") + field(11, tensor(b"x", [1, 3, 320, 320])) + field(12, tensor(b"y", [1, 3]))
    )
    path = tmp_path / "flat.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0b"))
    with pytest.raises(WeightsError, match=r"flat\.onnx: gives no map of a 320 px picture"):
        pseudo_mask(str(path))


def test_a_branch_that_was_trained_here_gives_its_own_map(tmp_path: Path) -> None:
    """The file that `train --branch saliency` writes, by the network that MANet has; another network's weights are refused."""
    rgb = np.ascontiguousarray(Catalogue(seed=0, products=4).studio(1, 0, 320).rgb[:, :224])
    network = MANet(NetworkConfig())
    network.saliency.load_state_dict(read_tensors(resolve("own:saliency-lite0")))
    with torch.inference_mode():
        wanted = network.eval().saliency(as_rgb(torch.from_numpy(rgb)[None]))
    wanted = F.interpolate(wanted, size=rgb.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()
    np.testing.assert_allclose(pseudo_mask("own:saliency-lite0")(rgb), wanted, atol=2e-3)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors: .* is missing; these are another network's weights"):
        pseudo_mask(str(tmp_path / "other.safetensors"))


def test_views_move_picture_and_mask_together() -> None:
    """A red disc stays under its mask whatever happens to both."""
    disc = np.zeros((96, 96), np.uint8)
    cv2.circle(disc, (48, 48), 28, 255, -1)
    rgb = np.where(disc[..., None] > 0, [[[220, 20, 20]]], [[[20, 80, 20]]]).astype(np.uint8)
    torch.manual_seed(0)
    backgrounds = set()
    for _ in range(20):
        view, mask = consumer_view(rgb, disc, 0.3)
        assert view.shape == (96, 96, 3)
        assert view.dtype == mask.dtype == np.uint8
        redness = view[..., 0].astype(int) - view[..., 1]
        eroded = cv2.erode(mask, np.ones((5, 5))) > 127
        if eroded.sum() > 50:
            assert redness[eroded].mean() > 40
        outside = cv2.dilate(mask, np.ones((9, 9))) == 0
        if outside.sum() > 50:
            backgrounds.add(bool(np.median(view[outside]) < 120))
    assert backgrounds == {True, False}  # some as they were, some before a light ground


def test_a_product_is_cut_out_only_where_its_mask_finds_it() -> None:
    """As often as is asked for, before a ground that is light and plain; never by a mask that marks next to nothing, which would
    leave that ground alone.
    """
    rgb = np.full((96, 96, 3), (10, 60, 10), np.uint8)
    empty, stripes = np.zeros((2, 96, 96), np.uint8)
    empty[:4, :4] = 255
    stripes[:, np.arange(96) // 8 % 2 == 0] = 255  # half of any view
    torch.manual_seed(0)
    for mask, pasted, least, most in ((stripes, 1.0, 0.45, 0.7), (stripes, 0.0, 0, 0.15), (empty, 1.0, 0, 0.15)):
        views = [consumer_view(rgb, mask, pasted)[0] for _ in range(30)]
        light = np.mean([(view.mean(2) > 90).mean() for view in views])  # beside it, what turning leaves in the corners
        assert least <= light <= most, (pasted, light)


def test_y_is_of_the_picture_and_not_of_the_view() -> None:
    """A crop within the product is salient all over, also where the grey map is less bright."""
    ramp = np.zeros((96, 96), np.uint8)
    ramp[:, 20:] = np.linspace(200, 255, 76).astype(np.uint8)
    assert set(np.unique(binarised(ramp))) == {0, 255}
    assert not binarised(np.full((8, 8), 77, np.uint8)).any()
    torch.manual_seed(0)
    black = np.zeros((96, 96, 3), np.uint8)
    views = [consumer_view(black, ramp, 0.0)[1] for _ in range(20)]
    assert set(np.unique(views)) == {0, 255}
    assert any((view == 255).all() for view in views)


def test_a_framed_view_keeps_its_map_and_its_ground() -> None:
    disc = np.zeros((96, 96), np.uint8)
    cv2.circle(disc, (30, 48), 20, 255, -1)  # left of the middle
    rgb = np.where(disc[..., None] > 0, [[[220, 20, 20]]], 235).astype(np.uint8)
    torch.manual_seed(0)
    sides = set()
    for _ in range(20):
        view, mask = framed_view(rgb, disc)
        redness = view[..., 0].astype(int) - view[..., 1]
        inside, outside = mask > 250, mask < 5
        assert redness[inside].mean() > 60 and abs(redness[outside]).mean() < 25
        columns = np.nonzero(inside)[1]
        sides.add(bool(columns.mean() > 48))
    assert sides == {True, False}  # mirrored or not
