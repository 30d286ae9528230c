"""`python -m jobs JOB --flag value`: the same as `manet JOB --flag value`."""

from jobs.cli import main

if __name__ == "__main__":
    main()
