"""Rates of this installation against the machine's own ceiling, and against peers.

  manet bench extract --model run/model --catalog shop/catalog --pictures 512
  manet bench decode --catalog shop/catalog
  manet bench coordination --actors 64 --rate 100 --rate 1000
  manet bench vectors --rows 500000 --dim 1280 --out bench/vectors
  manet bench index --descriptors bench/vectors
  manet bench search --index bench/index --descriptors bench/vectors --out bench/search
  manet bench serve --index run/index --queries shop/queries --embedders 2
  manet bench maps --model run/model --queries shop/queries --out bench/maps
  manet bench pooling --model run/model
  manet bench fewshot --titles 500000
  manet bench dedup --index bench/doubled-index --descriptors bench/doubled

Every figure is a ratio of rates measured in one run on the same cores.
"""

from jobs.bench import coordination, decode, dedup, extract, fewshot, index, maps, pooling, search, serve, vectors

COMMANDS = {
    "extract": (extract.Config, extract.run),
    "decode": (decode.Config, decode.run),
    "coordination": (coordination.Config, coordination.run),
    "vectors": (vectors.Config, vectors.run),
    "index": (index.Config, index.run),
    "dedup": (dedup.Config, dedup.run),
    "search": (search.Config, search.run),
    "serve": (serve.Config, serve.run),
    "maps": (maps.Config, maps.run),
    "pooling": (pooling.Config, pooling.run),
    "fewshot": (fewshot.Config, fewshot.run),
}
