"""Projectors without steps: ridge, position by position or of whole pictures, where networks start."""
