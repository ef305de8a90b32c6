"""Where captions come from: the built-in prompt space and people's files, with their categories and variety."""
