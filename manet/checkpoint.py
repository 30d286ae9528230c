"""A model as files: `model.safetensors` and `config.json`, which rebuild the network and its preprocessing exactly."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file

from manet.errors import InputError
from manet.network import MANet, NetworkConfig
from manet.weights import load_into, read_tensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class ModelConfig(BaseModel):
    """`config.json`: the network, and the names of its classes in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    network: NetworkConfig
    categories: tuple[str, ...] = ()


def save_model(folder: Path, network: MANet, categories: tuple[str, ...] = ()) -> None:
    """Write both files of a model into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS)
    config = ModelConfig(network=network.config, categories=categories)
    (folder / CONFIG).write_text(config.model_dump_json(indent=1))


def read_config(folder: Path) -> ModelConfig:
    """A model's `config.json`.

    Raises:
        InputError: missing, or not of this form.
    """
    try:
        return ModelConfig.model_validate_json((folder / CONFIG).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: no {CONFIG}: not a model") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{folder / CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def load_model(folder: Path) -> MANet:
    """The network of a folder, in eval mode. No pretrained file is needed.

    Raises:
        InputError: no model there.
        WeightsError: the weights are not this network's.
    """
    network = MANet(read_config(folder).network)
    load_into(network, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return network.eval()
