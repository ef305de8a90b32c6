"""How a projector learns: closed form, epochs, losses, and the state that resumes."""
