"""What would be the same for another model: stores, artifacts, the Ray session, telemetry, a local S3 server."""
