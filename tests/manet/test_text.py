"""The text branch: its public layout, its teachers, words written over pictures, and what a descriptor makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from manet.checkpoint import save_branch
from manet.config import NetworkConfig
from manet.describe import Describer
from manet.errors import InputError, WeightsError
from manet.images import PictureConfig
from manet.lettering import lettered_view, written_over
from manet.losses import is_text, text_loss
from manet.names import Features
from manet.network import InitialWeights, MANet, TextStage, features_of, freeze_statistics, initial
from manet.pseudo_text import pseudo_text
from manet.text import PublicEast
from manet.weights import load_into, read_tensors
from tests.manet.graphs import frozen_graph

LITE = "pip:efficientnet-lite0"
SMALL = NetworkConfig(saliency_size=64, text="efficientnet-lite0", pictures=PictureConfig(size=96))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Three noisy pictures."""
    return np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)


def _public_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of the public PyTorch files, with statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, value in PublicEast().state_dict().items():
        if not value.is_floating_point():
            tensors[name] = value
        elif name.endswith("running_var"):
            tensors[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            scale = 1.0 if value.dim() == 1 else (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.randn(value.shape, generator=generator) * scale
    return tensors


def _public_reference(t: dict[str, Tensor], rgb: Tensor) -> tuple[Tensor, Tensor]:
    """EAST over VGG16, float64, written from the names alone: pools after 2, 2, 3, 3, 3 convolutions."""

    def layer(x: Tensor, conv: str, bn: str, padding: int) -> Tensor:
        x = F.conv2d(x, t[f"{conv}.weight"].double(), t[f"{conv}.bias"].double(), padding=padding)
        mean, var, gain, shift = (t[f"{bn}.{part}"].double()[:, None, None] for part in
                                  ("running_mean", "running_var", "weight", "bias"))  # fmt: skip
        return torch.relu((x - mean) / torch.sqrt(var + 1e-5) * gain + shift)

    x, maps, at = rgb.double() * 2 - 1, [], 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            x = layer(x, f"extractor.features.{at}", f"extractor.features.{at + 1}", 1)
            at += 3
        x = F.max_pool2d(x, 2)
        at += 1
        maps.append(x)
    y = maps[4]
    for place, fine in ((1, maps[3]), (3, maps[2]), (5, maps[1])):
        up = F.interpolate(y, size=fine.shape[-2:], mode="bilinear", align_corners=True)
        y = layer(torch.cat([up, fine], 1), f"merge.conv{place}", f"merge.bn{place}", 0)
        y = layer(y, f"merge.conv{place + 1}", f"merge.bn{place + 1}", 1)
    y = layer(y, "merge.conv7", "merge.bn7", 1)
    score, distances, angle = (
        F.conv2d(y, t[f"output.conv{n}.weight"].double(), t[f"output.conv{n}.bias"].double()) for n in (1, 2, 3)
    )
    return score, torch.cat([torch.sigmoid(distances) * 512, (torch.sigmoid(angle) - 0.5) * torch.pi], 1)


def test_a_public_file_gives_the_maps_of_the_public_network(tmp_path: Path, pixels: np.ndarray) -> None:
    tensors = _public_tensors()
    torch.save({f"module.{name}": value for name, value in tensors.items()}, tmp_path / "east_vgg16.pth")
    config = SMALL.model_copy(update={"text": "vgg16-east"})
    weights = InitialWeights(backbone=LITE, saliency=LITE, text=str(tmp_path / "east_vgg16.pth"))
    network = initial(config, weights).eval()
    assert network.text is not None
    rgb = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        score, geometry = network.text(rgb)
    wanted_score, wanted_geometry = _public_reference(tensors, rgb)
    assert score.shape == (3, 1, 24, 24)
    assert float(wanted_score.std()) > 0.1
    torch.testing.assert_close(score.double(), wanted_score, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(geometry.double(), wanted_geometry, atol=0.2, rtol=2e-3)
    torch.save({"module.features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    other = weights.model_copy(update={"text": str(tmp_path / "other.pth")})
    with pytest.raises(WeightsError, match="is missing; these are another network's weights"):
        initial(config, other)


def test_a_frozen_east_is_a_teacher(tmp_path: Path) -> None:
    """A small graph under EAST's names: bright is text, after EAST's mean is taken off; another graph is refused."""
    path = tmp_path / "frozen_east_text_detection.pb"
    path.write_bytes(frozen_graph())
    rgb = np.zeros((50, 70, 3), np.uint8)
    rgb[:, 35:] = 255
    found = pseudo_text(str(path))(rgb)
    assert found.shape == (50, 70)
    assert found.dtype == np.float32
    assert found[20, 10] == pytest.approx(1 / (1 + np.exp(114.55 / 40)), abs=0.01)  # 0 less the mean colour
    assert found[20, 60] > 0.9
    path.write_bytes(frozen_graph("score"))
    with pytest.raises(WeightsError, match="has no layer feature_fusion/Conv_7/Sigmoid"):
        pseudo_text(str(path))


def test_what_is_no_detector_is_named(tmp_path: Path) -> None:
    for name in ("broken.onnx", "broken.pb"):
        (tmp_path / name).write_bytes(b"not a network")
        with pytest.raises(WeightsError, match=rf"{name}: OpenCV cannot read"):
            pseudo_text(str(tmp_path / name))
    (tmp_path / "net.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"an \.onnx file"):
        pseudo_text(str(tmp_path / "net.pth"))
    with pytest.raises(WeightsError, match="gives 7 maps where a text detector gives one"):
        pseudo_text("pip:u2netp")  # a network, but none for text


def test_words_written_over_a_picture_are_where_the_map_says() -> None:
    """On plain grey every changed pixel is a letter: the map lies within their boxes and marks each line."""
    plain = np.full((240, 240, 3), 120, np.uint8)
    for seed in range(8):
        rgb, grey = written_over(plain, np.zeros((240, 240), np.uint8), np.random.default_rng(seed))
        changed = np.abs(rgb.astype(int) - plain).max(2) > 8
        assert changed.any()
        assert (grey > 127).any()
        near = np.asarray(Image.fromarray((changed * 255).astype(np.uint8)).resize((60, 60), Image.Resampling.BOX)) > 0
        marked = np.asarray(Image.fromarray(grey).resize((60, 60), Image.Resampling.BOX)) > 127
        assert (near & marked).sum() > 0.75 * marked.sum()


def test_a_view_is_of_the_size_asked_for_and_follows_the_seed() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    views = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        views.append(lettered_view(rgb, np.zeros((120, 120), np.uint8), 64))
    assert views[0][0].shape == (64, 64, 3)
    assert views[0][1].shape == (64, 64)
    np.testing.assert_array_equal(views[0][0], views[1][0])
    assert not np.array_equal(views[0][0], views[2][0])


def test_the_loss_falls_as_the_map_is_found() -> None:
    scores = torch.zeros(2, 8, 8)
    scores[:, 2:4, 1:7] = 0.9
    assert is_text(scores).sum() == 2 * 12
    right, wrong, nothing = (text_loss(torch.where(scores > 0.5, *pair), scores) for pair in
                             ((6.0, -6.0), (-6.0, 6.0), (0.0, 0.0)))  # fmt: skip
    assert right < nothing < wrong


def test_learning_moves_the_branch_and_nothing_else(pixels: np.ndarray, tmp_path: Path) -> None:
    """A few steps on words over noise: the score map learns, the rest of the network keeps its bits, and so does the stem's
    statistics; the file that is written gives the same maps to half precision.
    """
    torch.manual_seed(0)
    network = initial(SMALL, InitialWeights(backbone="random", saliency="random", text_stem=LITE))
    module = TextStage(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pairs = [lettered_view(each, np.zeros((96, 96), np.uint8), 96) for each in np.repeat(pixels, 3, 0) // 8 + 96]
    given = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
    wanted = F.interpolate(
        torch.from_numpy(np.stack([pair[1] for pair in pairs]))[:, None].float() / 255, size=(24, 24)
    )
    optimizer = torch.optim.Adam([each for each in module.parameters() if each.requires_grad], lr=2e-3)
    module.train()
    freeze_statistics(network)
    losses = []
    for _ in range(30):
        loss = text_loss(module(given)[:, 0], wanted[:, 0])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.75 * losses[0]
    changed = {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith("text.") for name in changed)
    assert not any("running" in name and name.startswith("text.stem") for name in changed)
    assert not any(name.startswith("text.geometry") for name in changed)
    network.eval()
    with torch.inference_mode():
        scores = module(given)[:, 0]
    assert roc_auc_score((wanted[:, 0] > 0.3).flatten().numpy(), scores.flatten().numpy()) > 0.75
    save_branch(network, "text", tmp_path / "text.safetensors")
    again = MANet(SMALL)
    assert again.text is not None
    load_into(again.text, read_tensors(tmp_path / "text.safetensors"), "text.safetensors")
    with torch.inference_mode():
        torch.testing.assert_close(
            again.text(given[:2].permute(0, 3, 1, 2).float() / 255)[0][:, 0], scores[:2], atol=0.1, rtol=0.02
        )


def test_what_one_thing_changed_pools(pixels: np.ndarray) -> None:
    """Each of the changed features against its formula (equations 2 and 3)."""
    network = initial(SMALL, InitialWeights(backbone=LITE, saliency=LITE, text="random")).eval()
    with torch.inference_mode():
        maps = network(torch.from_numpy(pixels))
        assert maps.text_B1hw is not None
        f, s = maps.backbone_BKHW, maps.saliency_BHW[:, None]
        of_logits, of_scores = (
            F.interpolate(each, size=(3, 3), mode="bilinear", align_corners=False)
            for each in (maps.text_B1hw, torch.sigmoid(maps.text_B1hw))
        )
        t, other_t = torch.sigmoid(of_logits) + 1, torch.sigmoid(of_scores) + 1
        wanted: dict[Features, Tensor] = {
            "attended": t * s * f,
            "backbone": f,
            "no-text": s * f,
            "no-saliency": t * f,
            "other-saliency": t * (1 + s) * f,
            "other-text": other_t * s * f,
        }
        for name, value in wanted.items():
            torch.testing.assert_close(features_of(maps, name, SMALL), value)


def test_a_descriptor_without_its_branch_is_refused(pixels: np.ndarray) -> None:
    del pixels
    config = SMALL.model_copy(update={"text": "none"})
    with pytest.raises(InputError, match=r"sr-mac@no-text: the model has no text branch"):
        Describer(MANet(config), names=("sr-mac@no-text",))
