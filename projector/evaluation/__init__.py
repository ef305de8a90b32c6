"""How well a projector's embeddings fit, against every baseline."""
