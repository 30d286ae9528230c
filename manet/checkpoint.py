"""A model as files: `model.safetensors` and `config.json`, which rebuild the network and its preprocessing exactly."""

from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from manet.config import CONFIG, ModelConfig, read_config
from manet.network import MANet
from manet.weights import load_into, read_tensors

WEIGHTS = "model.safetensors"


def save_model(folder: Path, network: MANet, categories: tuple[str, ...] = ()) -> None:
    """Write both files of a model into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    config = ModelConfig(network=network.config, categories=categories)
    (folder / CONFIG).write_text(config.model_dump_json(indent=1))


def load_model(folder: Path) -> MANet:
    """The network of a folder, in eval mode. No pretrained file is needed.

    Raises:
        InputError: no model there.
        WeightsError: the weights are not this network's.
    """
    network = MANet(read_config(folder).network)
    load_into(network, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return network.eval()


def save_branch(network: MANet, name: Literal["saliency", "text"], path: Path) -> None:
    """Write the weights of one branch alone, as float16, for `--saliency-weights` or `--text-weights`.

    Raises:
        ValueError: the network has no such branch.
    """
    branch = network.saliency if name == "saliency" else network.text
    if branch is None:
        raise ValueError(f"the network has no {name} branch")
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in branch.state_dict().items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
