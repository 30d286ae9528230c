"""The online part behind `manet serve`: the API, the page, and the replicas of Ray Serve that they run in."""
