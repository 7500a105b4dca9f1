"""Making it so: the controller, its API, the agents on the nodes, and the launcher that starts ranks."""
