"""A model as files: `model.safetensors` and `config.json`, which rebuild the network and its preprocessing exactly."""

from pathlib import Path

from safetensors.torch import save_file

from manet.config import CONFIG, ModelConfig, read_config
from manet.network import MANet
from manet.weights import load_into, read_tensors

WEIGHTS = "model.safetensors"
TEXT_WEIGHTS = "text.safetensors"


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


def save_text_branch(network: MANet, path: Path) -> None:
    """Write the weights of a network's text branch alone, as float16, for `--text-weights`.

    Raises:
        ValueError: it has none.
    """
    if network.text is None:
        raise ValueError("the network has no text branch")
    tensors = network.text.state_dict()
    save_file(
        {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in tensors.items()},
        path,
    )
