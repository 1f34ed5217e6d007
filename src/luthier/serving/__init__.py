"""A tuned model that answers: what MLflow, or any other server, loads and asks."""
