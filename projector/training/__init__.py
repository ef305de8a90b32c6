"""How a projector learns: epochs, losses, and the state that resumes."""
