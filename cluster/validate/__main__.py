"""Check deployment files without a cluster: a line for each fault, and exit code 2 when there is one. What is still to be put
in (ACCOUNT, ami-00000000000000000, ...) is named, and is no fault.

Knows `ray_cluster.yaml`, Dockerfiles, IAM policies, kustomizations (by their folder or file), Kubernetes manifests and
Grafana dashboards; without arguments all of this project's own.
"""

import sys
from pathlib import Path

import click

from cluster.validate.files import OWN, faults_of, placeholders_in


@click.command(help=__doc__)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
def main(paths: tuple[Path, ...]) -> None:
    """Print faults."""
    found = 0
    chosen = paths or tuple(Path(name) for name in OWN)
    for path in chosen:
        for fault in faults_of(path):
            found += 1
            click.echo(f"{path}: {fault}", err=True)
    if found:
        sys.exit(2)
    for path in chosen:
        if wanted := placeholders_in(path):
            click.echo(f"{path}: still to be put in: {', '.join(sorted(wanted))}", err=True)
    click.echo(f"{len(chosen)} file(s) without a fault")


if __name__ == "__main__":
    main()
