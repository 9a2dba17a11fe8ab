"""The training objective: one step, its losses, and sampling."""
