"""The files of the models in use: found, checked, hashed, converted, rounded, and the tiny ones made."""
