"""Rates of this installation against the machine's own ceiling, and against peers.

  manet bench extract --model run/model --catalog shop/catalog --pictures 512

Every figure is a ratio of rates measured in one run on the same cores.
"""

from jobs.bench import extract

COMMANDS = {"extract": (extract.Config, extract.run)}
