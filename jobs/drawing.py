"""Pictures for people: a map as colours over a picture, JPEG bytes, data URIs."""

import base64

import cv2
import numpy as np

from jobs.pictures import Picture


def heat(picture: Picture, grey: np.ndarray) -> Picture:
    """A map in [0, 1] as colours over the picture."""
    scaled = cv2.resize(np.clip(grey, 0, 1).astype(np.float32), picture.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((scaled * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return cv2.addWeighted(picture, 0.35, np.ascontiguousarray(colours), 0.65, 0)


def jpeg(picture: Picture) -> bytes:
    """An RGB picture as JPEG."""
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
    return bytes(data)


def data_uri(data: bytes) -> str:
    """JPEG bytes as an address that holds them."""
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
