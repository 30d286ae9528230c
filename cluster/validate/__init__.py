"""Offline checks of the deployment files: what their own tools would say, and what this project asks of them."""
