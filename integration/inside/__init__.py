"""What runs inside a guest: the first script, and the agent that carries out the host's commands."""
