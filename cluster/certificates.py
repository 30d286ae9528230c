"""Certificates for Ray's TLS: an authority on your machine, and each node's own, signed as the node starts.

Ray checks a server's address against its certificate, so that a node needs one that names its own addresses; hence the
authority's key travels to every node with the token (`ray_cluster.yaml`, file_mounts). Needs `openssl`.
"""

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

DAYS = 90  # a cluster lives for a run; an authority that leaks is of use for this long
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class RefusedError(click.ClickException):
    """What stands in the way, in one line."""

    exit_code = 2


def make_authority(folder: Path) -> None:
    """Write `authority.crt` and `authority.key` into `folder`, readable by its owner alone.

    Raises:
        RefusedError: one is there already, the folder cannot be written, or openssl fails; then no key is left.
    """
    if (folder / "authority.key").exists():
        raise RefusedError(f"{folder}/authority.key is there already; delete it to make another authority")
    with _scratch(folder) as scratch:
        files = ("-keyout", scratch / "authority.key", "-out", scratch / "authority.crt")
        _openssl("req", "-x509", *_KEY, "-subj", "/CN=manet authority", "-days", DAYS, *files)
        (scratch / "authority.key").chmod(0o600)
        for name in ("authority.crt", "authority.key"):  # the key, which says that there is one, comes last
            (scratch / name).replace(folder / name)


def make_node(authority: Path, folder: Path, addresses: list[str]) -> None:
    """Write `node.crt` and `node.key` for a node of these IP addresses into `folder`.

    Raises:
        RefusedError: the authority is not there, or openssl fails.
    """
    if not (authority / "authority.key").exists():
        raise RefusedError(f"no {authority}/authority.key; make it with: python -m cluster.certificates authority")
    with _scratch(folder) as scratch:
        request, names, key = scratch / "node.csr", scratch / "names", scratch / "node.key"
        names.write_text("subjectAltName=DNS:localhost," + ",".join(f"IP:{address}" for address in addresses))
        _openssl("req", *_KEY, "-subj", "/CN=node", "-keyout", key, "-out", request)
        key.chmod(0o600)
        signer = ("-CA", authority / "authority.crt", "-CAkey", authority / "authority.key")
        serial = ("-CAserial", scratch / "serial", "-CAcreateserial")
        into = ("-extfile", names, "-out", scratch / "node.crt")
        _openssl("x509", "-req", "-in", request, *signer, *serial, "-days", DAYS, *into)
        for name in ("node.crt", "node.key"):
            (scratch / name).replace(folder / name)


def own_addresses() -> list[str]:
    """This node's IPv4 addresses: loopback, and the one that other nodes see."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("10.255.255.255", 1))  # sends nothing: the kernel only picks the interface
        found: str = probe.getsockname()[0]
    return sorted({"127.0.0.1", found})


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder within `folder`, which is made, for files that are moved there when all of them are whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            yield Path(scratch)
    except OSError as error:
        raise RefusedError(f"{error.filename or folder}: {error.strerror}; give another --folder") from error


def _openssl(*arguments: object) -> None:
    try:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise RefusedError("openssl is not installed; install your system's package openssl") from error
    except subprocess.CalledProcessError as error:
        raise RefusedError(f"openssl failed: {(error.stderr.strip() or 'it says nothing').splitlines()[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise RefusedError("openssl did not end within 60 s") from error


@click.group(help=__doc__)
def main() -> None:
    """Make certificates."""


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=Path("~/.ray/authority"), show_default=True)
def authority(folder: Path) -> None:
    """Make the authority, once, on your machine."""
    make_authority(folder.expanduser())


@main.command()
@click.option(
    "--authority", "signer", type=click.Path(path_type=Path), default=Path("~/.ray/authority"), show_default=True
)
@click.option("--folder", type=click.Path(path_type=Path), default=Path("~/.ray/tls"), show_default=True)
def node(signer: Path, folder: Path) -> None:
    """Make this node's certificate, each time it starts."""
    make_node(signer.expanduser(), folder.expanduser(), own_addresses())


if __name__ == "__main__":
    main()
