import cv2
import numpy as np
import pytest
import torch

from manet.augment import consumer_view, framed_view
from manet.errors import WeightsError
from manet.losses import binarise_at_mean
from manet.pseudo_masks import pseudo_mask
from manet.rendered.catalogue import Catalogue


@pytest.mark.parametrize(("source", "least"), [("classical", 0.6), ("pip:u2netp", 0.75)])
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


def test_views_move_picture_and_mask_together() -> None:
    """A red disc stays under its mask whatever happens to both."""
    disc = np.zeros((96, 96), np.uint8)
    cv2.circle(disc, (48, 48), 28, 255, -1)
    rgb = np.where(disc[..., None] > 0, [[[220, 20, 20]]], 255).astype(np.uint8)
    other = np.full((96, 96, 3), (40, 160, 40), np.uint8)
    torch.manual_seed(0)
    backgrounds = set()
    for _ in range(20):
        view, mask = consumer_view(rgb, disc, other)
        assert view.shape == (96, 96, 3)
        assert view.dtype == mask.dtype == np.uint8
        redness = view[..., 0].astype(int) - view[..., 1]
        eroded = cv2.erode(mask, np.ones((5, 5))) > 127
        if eroded.sum() > 50:
            assert redness[eroded].mean() > 40
        outside = cv2.dilate(mask, np.ones((9, 9))) == 0
        if outside.sum() > 50:
            backgrounds.add(bool(view[outside].mean() < 150))
    assert backgrounds == {True, False}  # some before the other picture, some as they were


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
