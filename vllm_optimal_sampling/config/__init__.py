"""How an engine asks for optimal sampling: its settings, and what is refused with which reason."""
