"""What a person writes with Pillow and torchvision to prepare a picture: the benches' counterpart to `manet.images`."""

import io
from typing import TYPE_CHECKING

from cluster.storage import read_uri

if TYPE_CHECKING:
    import torch


def prepared(picture_CHW: "torch.Tensor", size: int) -> "torch.Tensor":
    """Longer side to `size`, centred on a white square: uint8 [size, size, 3]."""
    from torchvision.transforms.v2 import functional

    scale = size / max(picture_CHW.shape[1:])
    high, wide = (max(1, round(side * scale)) for side in picture_CHW.shape[1:])
    small = functional.resize(picture_CHW, [high, wide], antialias=True)
    top, left = (size - high) // 2, (size - wide) // 2
    padded: torch.Tensor = functional.pad(small, [left, top, size - wide - left, size - high - top], fill=255)
    return padded.permute(1, 2, 0).contiguous()


class Pictures:
    """A PyTorch dataset of pictures by URI."""

    def __init__(self, uris: list[str], size: int) -> None:
        self.uris, self.size = uris, size

    def __len__(self) -> int:
        return len(self.uris)

    def __getitem__(self, place: int) -> "torch.Tensor":
        """uint8 [size, size, 3]."""
        from PIL import Image, ImageOps
        from torchvision.transforms.v2 import functional

        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(read_uri(self.uris[place])))).convert("RGB")
        return prepared(functional.pil_to_tensor(picture), self.size)
