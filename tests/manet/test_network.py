"""The network, its files, and the descriptor path."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from manet.checkpoint import load_model, save_model
from manet.config import NetworkConfig, read_config
from manet.describe import Describer
from manet.errors import InputError, WeightsError
from manet.images import PictureConfig
from manet.losses import binarise_at_mean
from manet.names import DescriptorName, PoolingName
from manet.network import (
    InitialWeights,
    JointStage,
    MANet,
    freeze_statistics,
    initial,
    weigh_by_saliency,
    weigh_by_text,
)
from manet.pooling import pool

LITE = "pip:efficientnet-lite0"
SMALL = NetworkConfig(saliency_size=64, pictures=PictureConfig(size=96))


@pytest.fixture(scope="module")
def network() -> MANet:
    return initial(SMALL, InitialWeights(backbone=LITE, saliency=LITE)).eval()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (5, 96, 96, 3), np.uint8)


def test_equations_2_and_3() -> None:
    f = torch.rand(2, 4, 3, 3)
    s, tm = torch.rand(2, 1, 3, 3), torch.randn(2, 1, 3, 3) * 4
    torch.testing.assert_close(weigh_by_saliency(f, s, "s*f"), s * f)
    torch.testing.assert_close(weigh_by_saliency(f, s, "(1+s)*f"), f + s * f)
    assert weigh_by_saliency(f, s, "none") is f
    t = weigh_by_text(f, tm) / f
    torch.testing.assert_close(t[:, :1], 1 / (1 + torch.exp(-tm)) + 1)
    assert (t > 1).all()
    assert (t < 2).all()


def test_one_pass(network: MANet, pixels: np.ndarray) -> None:
    with torch.inference_mode():
        maps = network(torch.from_numpy(pixels))
    assert maps.backbone_BKHW.shape == maps.attended_BKHW.shape == (5, 1280, 3, 3)
    assert maps.saliency_B1hw.shape == (5, 1, 16, 16)  # a quarter of 64
    assert 0 <= maps.saliency_B1hw.min() <= maps.saliency_B1hw.max() <= 1
    s = torch.nn.functional.interpolate(maps.saliency_B1hw, size=(3, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(maps.attended_BKHW, s * maps.backbone_BKHW)
    torch.testing.assert_close(maps.salient_BHW, binarise_at_mean(s[:, 0]))
    assert maps.text_B1HW is None
    assert maps.logits_BN is None


def test_pretrained_statistics_stay_frozen_and_the_decoders_learn(pixels: np.ndarray) -> None:
    network = initial(SMALL, InitialWeights(backbone=LITE, saliency=LITE)).train()
    freeze_statistics(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.from_numpy(pixels))
    changed = {name for name, value in network.state_dict().items() if not torch.equal(before[name], value)}
    assert changed
    assert all(name.startswith("saliency.merge") for name in changed), changed


def test_the_joint_stage_describes_as_the_library_does(network: MANet, pixels: np.ndarray) -> None:
    with torch.inference_mode():
        _, _, descriptors = JointStage(network)(torch.from_numpy(pixels))
    described = Describer(network).describe(pixels)
    np.testing.assert_allclose(descriptors.numpy(), described.vectors["sr-mac"], atol=1e-3)


def test_weights_of_levels_are_learned_kept_and_used(network: MANet, pixels: np.ndarray, tmp_path: Path) -> None:
    learned = MANet(SMALL.model_copy(update={"region_weights": "learned"}))
    learned.load_state_dict(network.state_dict(), strict=False)
    learned.eval()
    assert learned.log_level_weights_L is not None
    stage = JointStage(learned)
    _, _, descriptors = stage(torch.from_numpy(pixels))
    as_usual = Describer(network).describe(pixels).vectors["sr-mac"].astype(np.float32)
    np.testing.assert_allclose(descriptors.detach().numpy(), as_usual, atol=1e-3)  # they begin alike
    (descriptors[0] @ descriptors[1]).backward()
    taught = learned.log_level_weights_L.grad
    assert taught is not None
    assert (taught.numpy() != 0).all()
    with torch.no_grad():
        learned.log_level_weights_L.copy_(torch.tensor([1.0, -2.0, 0.5]))
        _, _, descriptors = stage(torch.from_numpy(pixels))
    save_model(tmp_path, learned)
    seen = Describer(load_model(tmp_path), names=("sr-mac-learned",)).observe(pixels)
    vectors = seen.described.vectors["sr-mac-learned"].astype(np.float32)
    np.testing.assert_allclose(descriptors.numpy(), vectors, atol=1e-3)
    assert np.abs(vectors - as_usual).max() > 0.01
    assert seen.parts_NRD is not None
    np.testing.assert_allclose(seen.parts_NRD.sum(1), vectors, atol=1e-3)
    with pytest.raises(InputError, match="descriptor sr-mac-learned: the model has no learned weights"):
        Describer(network, names=("sr-mac", "sr-mac-learned"))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.7)])
def test_a_pass_that_does_not_fit_with_its_pooling_is_halved(
    scales: tuple[float, ...], network: MANet, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is added twice: a descriptor that was pooled before memory ran out is pooled again."""
    names: tuple[DescriptorName, ...] = ("spoc", "gem", "sr-mac")
    wanted = Describer(network, names=names, batch_size=2, scales=scales).describe(pixels)

    def narrow(name: PoolingName, features: torch.Tensor, *others: Any) -> torch.Tensor:  # noqa: ANN401 - as `pool`
        if name == "gem" and len(features) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pool(name, features, *others)

    monkeypatch.setattr("manet.describe.pool", narrow)
    describer = Describer(network, names=names, batch_size=8, scales=scales)
    found = describer.describe(pixels)
    assert (describer.batch_size, describer.halvings) == (2, 2)
    for name in names:
        np.testing.assert_array_equal(found.vectors[name], wanted.vectors[name])
    one = Describer(network, names=("gem",), batch_size=1, scales=scales)
    monkeypatch.setattr("manet.describe.pool", Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        one.describe(pixels)


@pytest.mark.parametrize("source", ["logits", "scores"])
def test_text_branch_is_frozen_under_train(source: str, pixels: np.ndarray) -> None:
    config = SMALL.model_copy(update={"text": "efficientnet-lite0", "text_source": source, "classes": 3})
    random = InitialWeights(backbone=LITE, saliency=LITE, text="random")
    network = initial(config, random).train()
    assert network.text is not None
    assert not any(module.training for module in network.text.modules())
    before = {name: value.clone() for name, value in network.text.state_dict().items()}
    saliency, logits, descriptors = JointStage(network)(torch.from_numpy(pixels))
    assert logits is not None
    (saliency.sum() + logits.sum() + descriptors.sum()).backward()
    assert all(parameter.grad is None for parameter in network.text.parameters())
    assert all(parameter.grad is not None for parameter in network.backbone.parameters())
    for name, value in network.text.state_dict().items():
        assert torch.equal(before[name], value), name
    maps = network.eval()(torch.from_numpy(pixels))
    ratio = maps.attended_BKHW / weigh_by_saliency(
        maps.backbone_BKHW,
        torch.nn.functional.interpolate(maps.saliency_B1hw, size=(3, 3), mode="bilinear", align_corners=False),
        "s*f",
    )
    ratio = ratio[torch.isfinite(ratio)]
    low, high = (1.0, 2.0) if source == "logits" else (1.4999, 1.7311)  # sigmoid(0) + 1, sigmoid(1) + 1
    assert low <= ratio.min() <= ratio.max() <= high


def test_text_without_weights_is_refused() -> None:
    config = SMALL.model_copy(update={"text": "efficientnet-lite0"})
    with pytest.raises(WeightsError, match="text branch has no weights"):
        initial(config, InitialWeights(backbone=LITE, saliency=LITE))


def test_a_model_file_rebuilds_the_network_exactly(network: MANet, pixels: np.ndarray, tmp_path: Path) -> None:
    save_model(tmp_path, network, ("a", "b"))
    again = load_model(tmp_path)
    assert again.config == network.config
    assert read_config(tmp_path).categories == ("a", "b")
    one, two = (Describer(each).describe(pixels).vectors["sr-mac"] for each in (network, again))
    np.testing.assert_array_equal(one, two)
    (tmp_path / "config.json").write_text('{"network": {"backbone": "resnet18"}}')
    with pytest.raises(WeightsError):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"network": {"back": 1}}')
    with pytest.raises(InputError, match=r"network\.back"):
        load_model(tmp_path)
    with pytest.raises(InputError, match="not a model"):
        load_model(tmp_path / "nowhere")


def test_descriptors_are_of_unit_length_and_repeat(network: MANet, pixels: np.ndarray) -> None:
    describer = Describer(network, names=("sr-mac", "r-mac", "spoc@backbone"), batch_size=2)
    one, two = describer.describe(pixels), describer.describe(pixels)
    for name, vectors in one.vectors.items():
        assert vectors.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=2e-3)
        np.testing.assert_array_equal(vectors, two.vectors[name])
    assert not one.dead.any()


def test_scales_are_summed_and_brought_to_unit_length(network: MANet, pixels: np.ndarray) -> None:
    """Against a float64 sum of descriptors of pictures that another library resized; SPoC has no threshold to cross."""
    name: DescriptorName = "spoc@backbone"
    scales = (1.0, 0.5, 1.4)
    expected = np.zeros((len(pixels), network.backbone.channels))
    for size in (round(pixels.shape[1] * scale) for scale in scales):
        resized = [np.array(Image.fromarray(each).resize((size, size), Image.Resampling.BILINEAR)) for each in pixels]
        expected += Describer(network, names=(name,)).describe(np.stack(resized)).vectors[name].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    describer = Describer(network, names=(name,), scales=scales)
    found = describer.describe(pixels).vectors[name]
    assert (found.astype(np.float64) * expected).sum(1).min() > 0.9995
    single = Describer(network, names=(name,)).describe(pixels).vectors[name]
    assert (single.astype(np.float64) * expected).sum(1).max() < 0.99
    seen = describer.observe(pixels)
    np.testing.assert_array_equal(seen.described.vectors[name].view(np.uint16), found.view(np.uint16))


def test_several_scales_have_no_parts(network: MANet, pixels: np.ndarray) -> None:
    assert Describer(network).observe(pixels).parts_NRD is not None
    assert Describer(network, scales=(1.0, 0.7)).observe(pixels).parts_NRD is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_an_error(network: MANet) -> None:
    with pytest.raises(InputError, match="torch finds no CUDA device"):
        Describer(network, device="cuda")


def test_a_picture_does_not_depend_on_its_neighbours(network: MANet, pixels: np.ndarray) -> None:
    together = Describer(network, batch_size=5).describe(pixels).vectors["sr-mac"]
    alone = Describer(network, batch_size=1).describe(pixels).vectors["sr-mac"]
    np.testing.assert_allclose(together.astype(np.float32), alone.astype(np.float32), atol=2e-3)


def test_a_dead_picture_is_marked_and_the_others_stay(network: MANet, pixels: np.ndarray) -> None:
    class Dead(torch.nn.Module):
        """The network with the activations of the second picture at zero."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.config, self.text = network.backbone, network.config, network.text

        def forward(self, given: torch.Tensor) -> object:
            maps = network(given)
            maps.attended_BKHW[1] = 0
            return maps

    described = Describer(Dead(), batch_size=5).describe(pixels)  # type: ignore[arg-type]
    assert described.dead.tolist() == [False, True, False, False, False]
    assert not described.vectors["sr-mac"][1].any()
    assert described.vectors["sr-mac"][2].any()
