from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from manet import weights
from manet.backbone import Backbone, create, freeze_early, load_pretrained
from manet.checkpoint import save_branch
from manet.config import NetworkConfig
from manet.errors import InputError, WeightsError
from manet.network import InitialWeights, MANet, as_rgb, initial
from manet.rendered.catalogue import Catalogue
from manet.weights import load_into, pinned, read_tensors, resolve


def test_pip_weights_are_the_ones_known() -> None:
    assert resolve("pip:efficientnet-lite0").is_file()
    assert resolve("pip:u2netp").suffix == ".onnx"


def test_own_weights_are_those_of_their_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = NetworkConfig(text="efficientnet-lite0")
    network = initial(config, InitialWeights(backbone="random", saliency="own:saliency-lite0", text="own:east-lite0"))
    assert network.text is not None
    assert all(resolve(f"own:{name}").stat().st_size < 10e6 for name in ("east-lite0", "saliency-lite0"))
    studio = Catalogue(seed=0, products=4).studio(1, 0, 256)
    with torch.inference_mode():
        saliency = network.eval().saliency(as_rgb(torch.from_numpy(studio.rgb)[None]))[0, 0]
    product = torch.from_numpy(studio.mask)[::4, ::4] > 127
    assert saliency[product].mean() > 0.7 and saliency[~product].mean() < 0.3
    with pytest.raises(WeightsError, match="the package has own:east-lite0"):
        resolve("own:other")
    monkeypatch.setattr(weights, "TRAINED", tmp_path)
    (tmp_path / "east-lite0.safetensors").write_bytes(b"other")
    with pytest.raises(WeightsError, match="missing or damaged"):
        resolve("own:east-lite0")


def test_another_file_under_the_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = weights._SHIPPED["u2netp"]
    monkeypatch.setitem(weights._SHIPPED, "u2netp", weights._Shipped(**{**vars(shipped), "sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="is not the file that is known here"):
        resolve("pip:u2netp")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pip:vgg", "the packages known here are pip:efficientnet-lite0"),
        ("/no/such/file.safetensors", "no such file"),
        ("imagenet", "no such file"),
        ("s3://bucket/w.safetensors", "only local files"),
    ],
)
def test_missing_weights_are_never_replaced(spec: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        resolve(spec)


def test_a_pinned_file_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    spec = pinned(str(path))
    assert spec.startswith(f"{path}#sha256=")
    assert resolve(spec) == path
    assert pinned(spec) == spec
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(WeightsError, match="was it replaced"):
        resolve(spec)
    assert pinned(str(path)) != spec
    asked = []

    def fetch(uri: str, sha256: str) -> Path:
        asked.append((uri, sha256))
        return path

    far = pinned("s3://bucket/w.safetensors", fetch)
    resolve(far, fetch)
    assert asked == [("s3://bucket/w.safetensors", ""), ("s3://bucket/w.safetensors", far[-64:])]
    folder = tmp_path / "random"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.zeros(2)}, folder / "w.safetensors")
    assert "#sha256=" in pinned("random/w.safetensors")  # begins with a word, and is a file
    assert [pinned(word) for word in ("none", "random", "own:east-lite0")] == ["none", "random", "own:east-lite0"]


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "resnet18"])
def test_only_what_the_feature_map_depends_on_learns(name: str) -> None:
    backbone = Backbone(name).train()
    backbone.learn()
    assert backbone.training
    assert all(parameter.grad is None for parameter in backbone.parameters())
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone(torch.rand(2, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in learning)
    assert len(learning) > 10


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'harm')!r}, 'w')",))

    torch.save({"w": Harm()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_tensors(tmp_path / "bad.pth")
    assert not (tmp_path / "harm").exists()


def test_damaged_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    with pytest.raises(WeightsError, match="cannot be read"):
        read_tensors(tmp_path / "cut.safetensors")
    torch.save({"epoch": 3}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="not a plain state dict"):
        read_tensors(tmp_path / "odd.pth")


def test_every_parameter_must_be_there_in_its_shape(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 3)
    good = {name: value.clone() for name, value in layer.state_dict().items()}
    save_file(good, tmp_path / "good.safetensors")
    load_into(layer, read_tensors(tmp_path / "good.safetensors"), "good")
    with pytest.raises(WeightsError, match="bias is missing"):
        load_into(layer, {"weight": good["weight"]}, "less")
    with pytest.raises(WeightsError, match=r"weight is \(3, 3\), not \(3, 2\)"):
        load_into(layer, {**good, "weight": torch.zeros(3, 3)}, "other")
    with pytest.raises(WeightsError, match="extra does not belong"):
        load_into(layer, {**good, "extra": torch.zeros(1)}, "more")
    load_into(layer, {**good, "extra": torch.zeros(1)}, "more", strict=False)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_imagenet_weights_change_the_network(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name).eval()
    before = backbone.net.state_dict()["conv_stem.weight"].clone()
    load_pretrained(backbone.net, name, f"pip:{name}")
    assert not torch.equal(before, backbone.net.state_dict()["conv_stem.weight"])
    with torch.inference_mode():
        f = backbone(torch.rand(1, 3, 96, 64))
    assert f.shape == (1, 1280, 3, 2)
    assert (f >= 0).all()
    assert f.max() > 0.1


def test_unknown_backbones_and_other_networks_weights() -> None:
    with pytest.raises(InputError, match="'resnet5000' is unknown"):
        Backbone("resnet5000")
    with pytest.raises(WeightsError, match="another network"):
        load_pretrained(Backbone("resnet18").net, "resnet18", "pip:efficientnet-lite0")
    with pytest.raises(WeightsError, match="another network"):
        load_pretrained(create("efficientnet-lite2"), "efficientnet-lite2", "pip:efficientnet-lite1")


def test_the_depth_of_the_map_is_found_whatever_the_classifier_takes() -> None:
    for name, channels, stride in (("vgg11", 512, 16), ("resnet18", 512, 32), ("convnext_atto", 320, 32)):
        backbone = Backbone(name)
        assert backbone.channels == channels
        assert backbone(torch.rand(1, 3, 96, 64)).shape == (1, channels, 96 // stride, 64 // stride)
    with pytest.raises(InputError, match="use a convolutional one"):
        Backbone("vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["efficientnet-lite0", "resnet18", "vgg11", "densenet121"])
@pytest.mark.parametrize("pyramid", [False, True])
def test_early_layers_are_those_before_the_first_coarser_map(name: str, pyramid: bool) -> None:
    net = create(name, features_only=True) if pyramid else Backbone(name).net
    learning = {key for key, value in net.named_parameters() if value.requires_grad}
    freeze_early(net, 4)
    still = {key for key, value in net.named_parameters() if value.requires_grad}
    frozen = {key.replace("_", ".") for key in learning - still}
    prefixes = {
        "efficientnet-lite0": ("conv.stem", "bn1", "blocks.0", "blocks.1"),
        "resnet18": ("conv1", "bn1", "layer1"),
        "vgg11": ("features.0", "features.3", "features.6", "features.8"),
        "densenet121": ("features.conv0", "features.norm0", "features.denseblock1"),
    }[name]
    assert frozen
    assert all(key.startswith(prefixes) for key in frozen), sorted(frozen)
    assert not any(key.replace("_", ".").startswith(prefixes) for key in still), sorted(still)
    freeze_early(net, 0)
    assert still == {key for key, value in net.named_parameters() if value.requires_grad}


def test_a_network_that_hides_its_first_layers_is_not_frozen_whole() -> None:
    """Of HRNet timm names a stage that is no module."""
    net = create("hrnet_w18_small")
    with pytest.raises(InputError, match="--frozen-stride 0"):
        freeze_early(net, 4)


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="pretrained weights of test_resnet cannot be downloaded"):
        load_pretrained(create("test_resnet"), "test_resnet", "pretrained")


def test_both_names_of_lite0_take_its_weights() -> None:
    net = create("tf_efficientnet_lite0")
    load_pretrained(net, "tf_efficientnet_lite0", "pip:efficientnet-lite0")


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2"])
def test_layers_that_are_matched_by_their_order_are_of_one_kind(name: str) -> None:
    theirs, ours = read_tensors(resolve(f"pip:{name}")), create(name).state_dict()
    assert [key.rpartition(".")[2] for key in theirs] == [key.rpartition(".")[2] for key in ours]


def test_a_feature_pyramid_takes_the_weights_of_its_network(tmp_path: Path) -> None:
    """timm calls some layers of a pyramid otherwise: stem_0 for stem.0."""
    whole = create("convnext_atto")
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    pyramid = create("convnext_atto", features_only=True)
    load_pretrained(pyramid, "convnext_atto", str(tmp_path / "whole.safetensors"))
    torch.testing.assert_close(pyramid.state_dict()["stem_0.weight"], whole.state_dict()["stem.0.weight"])


def test_a_file_may_hold_the_whole_saliency_branch(tmp_path: Path) -> None:
    """Encoder and decoder come from it, as float16; an encoder's file alone fills the encoder alone."""
    config = NetworkConfig(saliency_size=64)
    source = MANet(config)
    save_branch(source, "saliency", tmp_path / "saliency.safetensors")
    weights = InitialWeights(backbone="random", saliency=str(tmp_path / "saliency.safetensors"))
    filled = initial(config, weights)
    for name, value in source.saliency.state_dict().items():
        torch.testing.assert_close(filled.saliency.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    save_file({"encoder.conv_stem.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"encoder.conv_stem.weight is \(3,\), not"):
        initial(config, weights.model_copy(update={"saliency": str(tmp_path / "other.safetensors")}))
