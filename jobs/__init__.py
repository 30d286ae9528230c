"""One file a command: parse, build, run, commit. Joins `manet` (the method) and `cluster` (stores, artifacts, Ray)."""
